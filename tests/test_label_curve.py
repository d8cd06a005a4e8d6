"""The study of label counts: nested training sets, means over seeds, and going on where it was stopped."""

import json
from pathlib import Path

import pytest
import torch

from minift.core.heads import MaskedLanguageModel
from minift.core.transformer import TransformerConfig
from minift.formats.checkpoint import save_model
from minift.studies import label_curve
from minift.text.tokenizer import Tokenizer
from minift.world.corpus import stories

TOKENIZER = Tokenizer.train(stories(50, 0), 400)
CONFIG = TransformerConfig(vocab_size=400, context_length=160, n_layer=1, n_head=2, d_model=16, d_ff=16, causal=False,
                           norm_first=False, norm="layernorm", positions="learned", mlp="gelu", bias=True)


def encoder():
    torch.manual_seed(0)
    return MaskedLanguageModel(CONFIG)


def test_summary_is_mean_and_std_over_seeds(summary=label_curve.summary):
    """Of accuracies 0.5 and 0.7 the mean is 0.6 and the sample standard deviation 0.2 / sqrt(2)."""
    runs = [{"probe/16": {"stories": 0.5, "letters": 0.1}, "probe/64": {"stories": 1.0, "letters": 0.1}},
            {"probe/16": {"stories": 0.7, "letters": 0.1}, "probe/64": {"stories": 1.0, "letters": 0.1}}]
    found = summary(runs)["probe"]["stories"]
    assert found["n"] == [16, 64] and found["mean"] == pytest.approx([0.6, 1.0])
    assert found["std"] == pytest.approx([0.2 / 2**0.5, 0.0])


@pytest.mark.parametrize("way", list(label_curve.WAYS)[:3] + list(label_curve.WAYS)[4:])
def test_every_way_leaves_the_given_encoder_as_it_is(way):
    """Each way but the bag of words trains a classifier of its own; only its frozen body keeps the given weights."""
    body = encoder().body
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    task = label_curve.Task("sentiment", 0, body, TOKENIZER, n_train=8, n_test=6)
    model = task.fit(way, 8, steps=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())
    kept = all(torch.equal(tensor, before[name]) for name, tensor in model.body.state_dict().items())
    assert kept == (way in ("probe", "shuffled labels"))
    assert set(task.score(model)) == {"stories", "letters"}


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch):
    """Cells that are on disk are not measured again; in the end there are one curve and one picture of all."""
    save_model(encoder(), TOKENIZER, tmp_path / "encoder")
    monkeypatch.setattr(label_curve, "SIZES", (8,))
    monkeypatch.setattr(label_curve, "WAYS", {"probe": (8,), "bag of words": (8,)})
    monkeypatch.setattr(label_curve, "N_TEST", 6)
    arguments = {"out": tmp_path / "out", "encoder": tmp_path / "encoder", "tasks": ("topic",), "seeds": (0, 1)}
    first = label_curve.run(**arguments)
    cell = tmp_path / "out" / "cells" / "topic-1.json"
    cell.write_text(json.dumps({**json.loads(cell.read_text()), "probe/8": {"stories": 0.25, "letters": 0.25}}))
    monkeypatch.setattr(label_curve.Task, "measure", lambda *_: pytest.fail("measured again"))
    again = label_curve.run(**arguments)["topic"]
    assert again["bag of words"] == first["topic"]["bag of words"]
    old = json.loads((tmp_path / "out" / "cells" / "topic-0.json").read_text())["probe/8"]["stories"]
    assert again["probe"]["stories"]["mean"] == pytest.approx([(old + 0.25) / 2])
    assert (tmp_path / "out" / "curve.png").stat().st_size > 10_000


def test_the_committed_curve_shows_what_the_readme_says():
    """With 64 labels the frozen encoder is ahead of training from scratch by more than twice their spread; on moods all
    of the encoder needs 256 labels for what a model from scratch does not reach with 4,096."""
    curve = json.loads((Path(__file__).parents[1] / "data/labels/curve.json").read_text(encoding="utf-8"))["tasks"]

    def at(task, way, n):
        entry = curve[task][way]["stories"]
        return entry["mean"][entry["n"].index(n)], entry["std"][entry["n"].index(n)]
    (probe, spread), (scratch, other) = at("topic", "probe", 64), at("topic", "scratch", 64)
    assert probe - scratch > 2 * max(spread, other)
    assert at("sentiment", "full", 256)[0] > at("sentiment", "scratch", 4096)[0] > at("sentiment", "probe", 4096)[0]
