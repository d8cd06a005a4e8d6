"""Preferences: for each prompt sample two answers from a model, and let somebody choose the better one.

Christiano et al. 2017, "Deep reinforcement learning from human preferences", section 2.2; the simulated annotator errs
as Bradley and Terry (1952) say. Left out: more than two answers, answers from different models, ties.
"""

import math
import random
from dataclasses import dataclass

import torch

from minift.core.generate import generate, left_pad
from minift.text.batches import chunks
from minift.text.chat import encode_prompt


@dataclass(frozen=True)
class Answer:
    """One sampled answer, as ids (for log-probabilities) and as text (for people)."""

    # Str or messages.
    prompt: object
    # The chat template's ids, up to where the answer begins.
    prompt_ids: list
    # What the model wrote, its <eos> included.
    response_ids: list
    # Without special tokens.
    text: str
    # Did it write <eos>?
    ended: bool


def sample_answers(model, tokenizer, prompts, *, max_new_tokens, temperature=1.0, batch_size=64, seed=0):
    """One sampled Answer to each prompt (str or messages), through the chat template. temperature 0: greedy."""
    device = next(model.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed)
    answers = []
    for part in chunks(prompts, batch_size):
        rows = [encode_prompt(tokenizer, prompt) for prompt in part]
        out = generate(model, *left_pad(rows, tokenizer.pad_id, device), max_new_tokens=max_new_tokens,
                       temperature=temperature, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, generator=generator)
        for prompt, row, ids, written in zip(part, rows, out.input_ids, out.response_mask):
            response = ids[written].tolist()
            ended = response[-1:] == [tokenizer.eos_id]
            answers.append(Answer(prompt, row, response, tokenizer.decode(response, skip_special=True), ended))
    return answers


def sample_pairs(model, tokenizer, prompts, *, max_new_tokens, temperature=1.0, batch_size=64, seed=0):
    """Two sampled answers to each prompt: a list of {"prompt", "answers": [first, second]}.

    Prompts whose two answers came out the same are left out: they hold no preference.
    """
    doubled = [prompt for prompt in prompts for _ in range(2)]
    answers = sample_answers(model, tokenizer, doubled, max_new_tokens=max_new_tokens, temperature=temperature,
                             batch_size=batch_size, seed=seed)
    pairs = [
        {"prompt": first.prompt, "answers": [first.text, second.text]}
        for first, second in zip(answers[::2], answers[1::2])
    ]
    return [pair for pair in pairs if pair["answers"][0] != pair["answers"][1]]


def chooses_first(score_first, score_second, rng, noise=1.0):
    """A simulated annotator: True with probability sigmoid((score_first - score_second) / noise).

    At noise 1 a difference of one point is judged right 73 % of the time, of three points 95 %; noise 0 never errs
    (a tie is then a coin's throw). rng: random.Random.
    """
    difference = score_first - score_second
    if noise == 0:
        return difference > 0 or (difference == 0 and rng.random() < 0.5)
    return rng.random() < 1 / (1 + math.exp(max(-700.0, min(700.0, -difference / noise))))


def annotate(pairs, score, *, noise=1.0, seed=0):
    """Rows {"prompt", "chosen", "rejected", "gold": (chosen's, rejected's)} as a simulated annotator would give them.

    score(prompt, answer) -> float is what the annotator would think without noise.
    """
    rng, rows = random.Random(f"annotate/{seed}"), []
    for pair in pairs:
        first, second = pair["answers"]
        gold = score(pair["prompt"], first), score(pair["prompt"], second)
        if not chooses_first(*gold, rng, noise):
            first, second, gold = second, first, gold[::-1]
        rows.append({"prompt": pair["prompt"], "chosen": first, "rejected": second, "gold": gold})
    return rows
