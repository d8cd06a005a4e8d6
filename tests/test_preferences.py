"""Preferences: sampled pairs, and annotators who err as Bradley and Terry say."""

import math
import random

import pytest
import torch

from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.text.tokenizer import Tokenizer
from minift.ways import preferences

TOKENIZER = Tokenizer.train(["a b c d e f g h"] * 3, 270)


def tiny():
    torch.manual_seed(0)
    return LanguageModel(TransformerConfig(TOKENIZER.vocab_size, 64, n_layer=1, n_head=2, d_model=16, d_ff=32))


def test_annotators_err_as_often_as_bradley_terry_says(chooses_first=preferences.chooses_first):
    """p(first) = 1 / (1 + exp(-(difference) / noise)), within four standard errors of 20,000 choices."""
    for difference, noise in ((1.0, 1.0), (3.0, 1.0), (-2.0, 1.0), (1.0, 2.0), (0.0, 1.0)):
        rng = random.Random(0)
        share = sum(chooses_first(difference, 0.0, rng, noise) for _ in range(20_000)) / 20_000
        p = 1 / (1 + math.exp(-difference / noise))
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 20_000), (difference, noise, share, p)


def test_without_noise_the_better_one_is_chosen(chooses_first=preferences.chooses_first):
    """noise=0 never errs; far apart scores do not overflow."""
    rng = random.Random(0)
    assert chooses_first(2.0, 1.0, rng, 0) and not chooses_first(1.0, 2.0, rng, 0)
    assert chooses_first(1e6, -1e6, rng, 1.0) and not chooses_first(-1e6, 1e6, rng, 1.0)


def test_without_noise_a_tie_is_a_coins_throw(chooses_first=preferences.chooses_first):
    """noise=0 and equal scores: the first is chosen about half of the time, within four standard errors."""
    rng = random.Random(0)
    assert abs(sum(chooses_first(2.0, 2.0, rng, 0) for _ in range(2000)) - 1000) < 4 * math.sqrt(2000 / 4)


@pytest.mark.parametrize("noise", [0, 1.0])
def test_equal_answers_win_alike_on_either_side(noise, annotate=preferences.annotate):
    """Where both answers have the same score, the first is chosen in half of the cases, within four standard errors."""
    pairs = [{"prompt": "", "answers": ["left", "right"]}] * 1000
    rows = annotate(pairs, lambda prompt, text: 5.0, noise=noise, seed=0)
    assert abs(sum(row["chosen"] == "left" for row in rows) - 500) < 4 * math.sqrt(1000 / 4)


def test_annotate_keeps_both_answers_and_their_scores(annotate=preferences.annotate):
    """Each row holds the two answers of its pair, and gold belongs to chosen and rejected in that order."""
    pairs = [{"prompt": str(i), "answers": [f"{i} short", f"{i} much longer"]} for i in range(50)]
    rows = annotate(pairs, lambda prompt, text: len(text) / 10, noise=1.0, seed=1)
    assert len(rows) == 50 and any(row["chosen"].endswith("short") for row in rows)
    for row, pair in zip(rows, pairs):
        assert {row["chosen"], row["rejected"]} == set(pair["answers"])
        assert row["gold"] == (len(row["chosen"]) / 10, len(row["rejected"]) / 10)
    assert rows == annotate(pairs, lambda prompt, text: len(text) / 10, noise=1.0, seed=1)


def test_sampled_answers_do_not_depend_on_the_batch(sample_answers=preferences.sample_answers):
    """Greedy answers of prompts of unequal length are the same alone and together."""
    model, prompts = tiny(), ["a b", "c d e f g h a b c", "h"]
    together = sample_answers(model, TOKENIZER, prompts, max_new_tokens=6, temperature=0.0)
    alone = [sample_answers(model, TOKENIZER, [prompt], max_new_tokens=6, temperature=0.0)[0] for prompt in prompts]
    assert [answer.response_ids for answer in together] == [answer.response_ids for answer in alone]
    assert all(answer.ended == (answer.response_ids[-1] == TOKENIZER.eos_id) for answer in together)


def test_pairs_are_two_different_answers_to_one_prompt(sample_pairs=preferences.sample_pairs):
    """Sampling twice gives pairs in the prompts' order; greedy pairs are alike and therefore left out."""
    model, prompts = tiny(), ["a b", "c d", "e f"]
    pairs = sample_pairs(model, TOKENIZER, prompts, max_new_tokens=8, seed=3)
    assert [pair["prompt"] for pair in pairs] == prompts
    assert all(pair["answers"][0] != pair["answers"][1] for pair in pairs)
    assert pairs == sample_pairs(model, TOKENIZER, prompts, max_new_tokens=8, seed=3)
    assert sample_pairs(model, TOKENIZER, prompts, max_new_tokens=8, temperature=0.0) == []
