"""Where ppo's reward comes from: a reward model's folder, or a function in the user's own Python file."""

import importlib.util
import math
import traceback
from pathlib import Path

import torch

from minift.cli.models import check_tokenizers, open_kind, plain_copy
from minift.core.heads import TokenScorer
from minift.errors import MiniftError
from minift.methods.reward import reward_from_model


def open_reward(options, run, data):
    """(reward_fn, the reward model or None), as --reward-model or --reward-fn asks for it."""
    if options.reward_model:
        model = open_reward_model(options.reward_model, run)
        return reward_from_model(model), model
    prompts = {tuple(example["input_ids"]): example["prompt"] for example in data.train + data.valid}
    function = open_function(options.reward_fn)
    return reward_from_function(function, options.reward_fn, run.tokenizer, prompts), None


def open_reward_model(path, run):
    """The reward model in a folder; it must share the policy's tokenizer, and read as many tokens."""
    model, tokenizer = open_kind(path, TokenScorer, "--reward-model")
    check_tokenizers(run.tokenizer, tokenizer, run.options.model, path)
    longest = model.config.context_length
    if longest < run.context:
        raise MiniftError(f"{path} reads {longest} tokens, but {run.context} may come; add --context {longest}")
    return plain_copy(model).to(run.device)


def open_function(name):
    """The function that "FILE.py:NAME" names. MiniftError: no such file or function, or the file does not run."""
    file, _, function = name.rpartition(":")
    if not function.isidentifier() or not file.endswith(".py") or not Path(file).is_file():
        raise MiniftError(f"--reward-fn {name}: expected a Python file and a function that is in it, as my.py:score")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise MiniftError(f"--reward-fn {name}: {blame(error, file)}") from error
    if not callable(getattr(module, function, None)):
        raise MiniftError(f"--reward-fn {name}: {file} has no function called {function}")
    return getattr(module, function)


def blame(error, file):
    """What went wrong in the user's file, and in which of its lines."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == Path(file).resolve()]
    return f"{file}{f':{lines[-1]}' if lines else ''} raised {type(error).__name__}: {error}"


def reward_from_function(function, name, tokenizer, prompts):
    """A reward_fn(generation) -> (B,) for train_ppo, made of function(prompts, responses) -> a finite number for each.

    prompts: ids (a tuple) -> the prompt as it stands in the user's data; this is what the function gets.
    """
    def reward_fn(generation):
        asked, answers = [], []
        for ids, real, written in zip(generation.input_ids, generation.attention_mask, generation.response_mask):
            asked.append(prompts[tuple(ids[real & ~written].tolist())])
            answers.append(tokenizer.decode(ids[written].tolist(), skip_special=True))
        try:
            scores = [float(score) for score in function(asked, answers)]
        except Exception as error:
            raise MiniftError(f"--reward-fn {name}: {blame(error, name.rpartition(':')[0])}") from error
        if len(scores) != len(answers):
            raise MiniftError(
                f"--reward-fn {name} returned {len(scores)} numbers for {len(answers)} responses; it "
                "must return one for each")
        for score, answer in zip(scores, answers):
            if not math.isfinite(score):
                raise MiniftError(
                    f"--reward-fn {name} returned {score} for the response {answer!r:.60}; a reward "
                    "must be a finite number")
        return torch.tensor(scores, device=generation.input_ids.device)
    return reward_fn
