"""Rewards that can be checked: an answer is right or wrong, and nobody has to learn a reward model.

Lambert et al. 2024, "Tulu 3", section 6 (reinforcement learning with verifiable rewards); Chen et al. 2021,
"Evaluating Large Language Models Trained on Code", eq. 1 (pass@k). Left out: answers that a program or a proof checks;
write a reward function for these.
"""

import math

import torch

from minift.errors import MiniftError
from minift.evaluation.metrics import exact_match


def exact_reward(tokenizer, truths):
    """A reward_fn(generation) -> (B,): 1 if the response equals a right answer and has ended, else 0.

    truths: prompt ids (a tuple) -> the right answers (a set of texts). Texts are compared as exact_match does. A
    response that was cut before its end token is wrong, whatever it says.
    """
    def reward_fn(generation):
        ended = generation.ended(tokenizer.eos_id).tolist()
        rows = zip(generation.prompts(), generation.responses(), ended, strict=True)
        scores = []
        for prompt, ids, complete in rows:
            answer = tokenizer.decode(ids, skip_special=True)
            right = any(exact_match([answer], [truth]) for truth in truths[tuple(prompt)])
            scores.append(float(right and complete))
        return torch.tensor(scores, device=generation.input_ids.device)
    return reward_fn


def pass_at_k(n, right, k):
    """The chance that k answers hold a right one: 1 - C(n - right, k) / C(n, k), unbiased, from n answers drawn.

    right: how many of the n are right. The estimate 1 - (1 - right / n) ** k would be too low.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise MiniftError(f"pass@{k} from {n} answers of which {right} are right: expected right <= n and 1 <= k <= n")
    return 1 - math.comb(n - right, k) / math.comb(n, k)
