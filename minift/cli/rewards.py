"""Where a reward comes from: a reward model's folder, a function in the user's own Python file, or a right answer."""

import importlib.util
import math
import traceback
from collections import defaultdict
from pathlib import Path

import torch

from minift.cli.models import check_tokenizers, open_kind, plain_copy
from minift.core.heads import TokenScorer
from minift.errors import MiniftError
from minift.evaluation.verifiable import exact_reward
from minift.methods.reward import reward_from_model


def check_judge(options):
    """MiniftError unless the options name one judge."""
    given = {"--reward-model DIR": options.reward_model, "--reward-fn FILE.py:NAME": options.reward_fn}
    if hasattr(options, "checker"):
        given["--checker exact"] = options.checker
    if sum(value is not None for value in given.values()) != 1:
        raise MiniftError(f"{options.verb} needs one of {' and '.join(given)}")


def open_reward(options, run, data):
    """(reward_fn, the reward model or None), as --reward-model, --reward-fn or --checker asks for it."""
    examples = data.train + data.valid
    if options.reward_model:
        model = open_reward_model(options.reward_model, run)
        return reward_from_model(model), model
    if options.reward_fn:
        prompts = {tuple(example["input_ids"]): example["prompt"] for example in examples}
        function = open_function(options.reward_fn)
        return reward_from_function(function, options.reward_fn, run.tokenizer, prompts), None
    return exact_reward(run.tokenizer, right_answers(examples)), None


def right_answers(examples):
    """Prompt ids (a tuple) -> its right answers; rows of one prompt may have different ones."""
    truths = defaultdict(set)
    for example in examples:
        if example["truth"] is None:
            raise MiniftError(f"{example['where']}: --checker exact needs an 'answer' or a 'completion' in each row")
        truths[tuple(example["input_ids"])].add(example["truth"])
    return truths


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
        asked = [prompts[tuple(ids)] for ids in generation.prompts()]
        answers = [tokenizer.decode(ids, skip_special=True) for ids in generation.responses()]
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
