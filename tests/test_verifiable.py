"""Verifiable rewards: exact match as a reward, and pass@k against enumeration."""

import itertools

import pytest
import torch
from test_jobs import make_tokenizer

from minift.core.generate import Generation
from minift.errors import MiniftError
from minift.evaluation import verifiable


def generation_of(tokenizer, rows):
    """A Generation of (prompt, answer, whether it ended), left- and right-padded."""
    prompts = [tokenizer.encode(prompt) for prompt, _, _ in rows]
    answers = [tokenizer.encode(answer) + [tokenizer.eos_id] * ended for _, answer, ended in rows]
    left, right = max(map(len, prompts)), max(map(len, answers))
    ids, real, written = [], [], []
    for prompt, answer in zip(prompts, answers):
        before, after = left - len(prompt), right - len(answer)
        ids.append([tokenizer.pad_id] * before + prompt + answer + [tokenizer.pad_id] * after)
        real.append([False] * before + [True] * (len(prompt) + len(answer)) + [False] * after)
        written.append([False] * left + [True] * len(answer) + [False] * after)
    ids, real, written = (torch.tensor(rows) for rows in (ids, real, written))
    return Generation(ids, real, written, torch.zeros(ids[:, 1:].shape))


def test_exact_match_as_a_reward(exact_reward=verifiable.exact_reward):
    """1 for a right answer that has ended, with spaces around it or not; 0 if it was cut, is another, or says more."""
    tokenizer = make_tokenizer()
    rows = [("Where is Ada?", "at the mill", True), ("Where is Ada?", " at the mill ", True),
            ("Where is Ada?", "at the mill", False), ("Where is Ada?", "at the mill.", True),
            ("Who?", "Bob", True), ("Who?", "Ada", True), ("Who?", "at the mill", True),
            ("Where is Ada?", "Where is Ada?at the mill", True)]
    where, who = (tuple(tokenizer.encode(prompt)) for prompt in ("Where is Ada?", "Who?"))
    truths = {where: {"at the mill"}, who: {"Ada", "Bob"}}
    generation = generation_of(tokenizer, rows)
    assert generation.prompts() == [tokenizer.encode(prompt) for prompt, _, _ in rows]
    assert exact_reward(tokenizer, truths)(generation).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]


def test_pass_at_k(pass_at_k=verifiable.pass_at_k):
    """Against the share of all k-subsets of the n answers that hold a right one; 10 answers, 3 right, k 5: .916667."""
    assert pass_at_k(10, 3, 5) == pytest.approx(0.9166666667, abs=1e-9)
    for n, k in itertools.product(range(1, 8), range(1, 8)):
        for right in range(n + 1 if k <= n else 0):
            answers = [1] * right + [0] * (n - right)
            subsets = list(itertools.combinations(answers, k))
            assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-9)
    for bad in ((3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(MiniftError, match="pass@"):
            pass_at_k(*bad)
