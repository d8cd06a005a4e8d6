"""What a recipe says is what is trained: its texts, its two phases, and a manifest and a log that hold both."""

import json
import math
from collections import Counter

import pytest

from minift.text.tokenizer import Tokenizer
from minift.world import recipes
from minift.world.corpus import documents
from minift.world.practice import worksheets

SMALL = {**recipes.BASE, "steps": 30, "batch_size": 2, "warmup": 2, "eval_every": 100, "n_documents": 60,
         "config": {"context_length": 256, "n_layer": 1, "n_head": 1, "d_model": 8, "d_ff": 8},
         "practice": {"steps": 25, "batch_size": 2, "lr": 1e-2, "warmup": 5, "n_worksheets": 20, "n_documents": 12}}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(documents(50, 0), 400)


def test_each_phase_reads_its_own_texts(tokenizer, base_phases=recipes.base_phases):
    """The first phase: documents. The second: worksheets and other documents, each text once, in mixed order."""
    (first, _), (second, settings) = base_phases(tokenizer, SMALL)
    assert texts_of(tokenizer, first) == documents(60, 0)
    found, sheets = texts_of(tokenizer, second), worksheets(20, 0)
    assert Counter(found) == Counter(sheets + documents(12, "0/practice")) and not set(found) & set(documents(60, 0))
    assert [text in sheets for text in found] not in ([True] * 20 + [False] * 12, [False] * 12 + [True] * 20)
    assert settings == SMALL["practice"]


def texts_of(tokenizer, windows):
    """The texts in a row of ids with <eos> after each."""
    return tokenizer.decode(list(windows.ids)).removesuffix("<eos>").split("<eos>")


def test_the_phases_follow_each_other(tmp_path, monkeypatch, tokenizer, pretrain_base=recipes.pretrain_base):
    """The manifest counts the tokens of both; the log goes on counting in the second, which has its own schedule."""
    monkeypatch.setattr(recipes, "base_tokenizer", lambda seed: tokenizer)
    manifest = pretrain_base(tmp_path / "base", SMALL, progress=False)
    assert 0.95 < manifest["tokens"] / ((30 + 25) * 2 * 255) <= 1 and manifest["practice"] == SMALL["practice"]
    log = [json.loads(line) for line in (tmp_path / "base" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in log] == [1, 25, 50]
    low, high = 1e-3, 1e-2
    cosine = low + (high - low) * 0.5 * (1 + math.cos(math.pi * (20 - 5) / (25 - 5)))      # its 20th step of 25
    assert log[2]["lr"] == pytest.approx(cosine, abs=1e-3 * high)
    assert {"valid_stories_loss", "valid_documents_loss", "valid_worksheets_loss"} <= set(manifest)
