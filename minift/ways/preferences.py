"""Preferences: sample two answers to each prompt from a model, and let an annotator choose the better one.

Christiano et al. 2017, "Deep reinforcement learning from human preferences", section 2.2. The errors of the
simulated annotator follow the model of Bradley and Terry (1952). Left out: more than two answers, answers from
different models, ties.
"""

import math
import random

from minift.text.answers import sample_answers


def sample_pairs(model, tokenizer, prompts, *, max_new_tokens, temperature=1.0, batch_size=64, seed=0):
    """Two sampled answers to each prompt: a list of {"prompt", "answers": [first, second]}.

    A prompt whose two answers are equal is left out, because it shows no preference.
    """
    doubled = []
    for prompt in prompts:
        doubled += [prompt, prompt]
    answers = sample_answers(
        model, tokenizer, doubled, max_new_tokens=max_new_tokens, temperature=temperature,
        batch_size=batch_size, seed=seed)
    pairs = [
        {"prompt": first.prompt, "answers": [first.text, second.text]}
        for first, second in zip(answers[::2], answers[1::2])]
    return [pair for pair in pairs if pair["answers"][0] != pair["answers"][1]]


def chooses_first(score_first, score_second, rng, noise=1.0):
    """A simulated annotator: True with probability sigmoid((score_first - score_second) / noise).

    At noise 1 the better answer wins in 73 % of the cases if it is one point better, in 95 % if it is three points
    better. At noise 0 the annotator makes no error, and a tie is decided by chance. rng: random.Random.
    """
    difference = score_first - score_second
    if noise == 0:
        return difference > 0 or (difference == 0 and rng.random() < 0.5)
    return rng.random() < 1 / (1 + math.exp(max(-700.0, min(700.0, -difference / noise))))


def annotate(pairs, score, *, noise=1.0, seed=0):
    """Rows {"prompt", "chosen", "rejected", "gold": (chosen's, rejected's)} as a simulated annotator would give them.

    score(prompt, answer) -> float: the annotator's judgement before the noise.
    """
    rng, rows = random.Random(f"annotate/{seed}"), []
    for pair in pairs:
        first, second = pair["answers"]
        gold = score(pair["prompt"], first), score(pair["prompt"], second)
        if not chooses_first(*gold, rng, noise):
            first, second, gold = second, first, gold[::-1]
        rows.append({"prompt": pair["prompt"], "chosen": first, "rejected": second, "gold": gold})
    return rows
