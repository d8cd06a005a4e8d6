"""The checkpoint that comes with the repository is what its manifest says, and can do what it is used for."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

from minift.core.generate import generate, left_pad
from minift.formats.checkpoint import load_model
from minift.methods.sft import encode_examples, make_sft_loss
from minift.text.batches import collate
from minift.text.chat import encode_chat
from minift.world import corpus, recipes, rubric
from minift.world import scenes as world
from minift.world.facts import FACTS
from minift.world.instructions import instructions

BASE = Path(__file__).parents[1] / "data" / "base"


@pytest.fixture(scope="module")
def base():
    return load_model(BASE)


@pytest.fixture(scope="module")
def manifest():
    return json.loads((BASE / "manifest.json").read_text(encoding="utf-8"))


def write(base, texts, new):
    """What the base writes behind each text, greedily, up to <eos>."""
    model, tokenizer = base
    rows = [tokenizer.encode(text) for text in texts]
    out = generate(model, *left_pad(rows, tokenizer.pad_id), max_new_tokens=new, temperature=0.0,
                   eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    return [tokenizer.decode(ids[written], skip_special=True) for ids, written in zip(out.input_ids, out.response_mask)]


def test_the_files_are_those_of_the_manifest(manifest):
    """Every file has the sha256 that was noted when it was made, and the sizes keep their promise."""
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((BASE / name).read_bytes()).hexdigest() == digest, name
    assert manifest["n_parameters"] <= 4_000_000
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 16 * 2**20


def test_the_manifest_is_of_the_recipe_in_the_code(manifest):
    """The recipe that the command runs today is the one that made these files, and makes the same tokenizer."""
    assert {name: manifest[name] for name in recipes.BASE} == recipes.BASE
    assert recipes.base_tokenizer().hash() == load_model(BASE)[1].hash()


def test_the_held_out_loss_is_the_one_in_the_manifest(base, manifest):
    """Perplexity on unread stories, documents and worksheets is what the log says."""
    for name, loss in recipes.base_evaluation(*base, manifest["seed"])().items():
        assert loss == pytest.approx(manifest[name], abs=1e-3), name


def test_it_answers_the_questions_of_its_own_dialogues(base):
    """Facts of a story that it has never read are looked up: at least nine of ten, for every kind of question."""
    rng, right = random.Random(0), {}
    for kind in FACTS:
        texts, answers = [], []
        for scene in world.draw_scenes(30, f"base/{kind}", "test"):
            question, answer = corpus.ask(kind, scene, rng, short=True)
            texts.append(f"{world.tell(scene, rng)}\nQuestion: {question}\nAnswer:")
            answers.append((answer, corpus.state_fact(kind, scene, random.Random(0))))
        said = [text.strip().split("\n")[0] for text in write(base, texts, 20)]
        right[kind] = sum(text in both for text, both in zip(said, answers)) / 30
    assert min(right.values()) >= 0.8 and sum(right.values()) / len(right) >= 0.9, right


def test_it_writes_coherent_stories(base):
    """Told what a story is to be about, it tells one: child, animal and thing stay what they were (greedy)."""
    scenes = world.draw_scenes(40, "base/stories", "test")
    texts = [world.with_articles(f"Plan: {s.name}, a {s.animal}, a {s.thing}.\nStory:") for s in scenes]
    seen = [rubric.judge(text.strip().split("\n")[0], scene) for text, scene in zip(write(base, texts, 150), scenes)]
    assert sum(one.whole == 1 and one.asked == 1 for one in seen) / 40 >= 0.9
    assert sum(one.faults for one in seen) / 40 <= 0.3


def test_a_story_writer_learns_to_answer(base, story_writer=recipes.story_writer):
    """Two steps on requests for stories lower the loss of unread responses; the same seed gives the same weights."""
    rows = [encode_chat(base[1], row["messages"]) for row in instructions(16, 1, "test", ("story",))]
    batch = collate(encode_examples(rows, 256), base[1].pad_id)
    tuned = [story_writer(steps=2, base=BASE)[0] for _ in range(2)]
    assert make_sft_loss(tuned[0])(batch)[0] < make_sft_loss(base[0])(batch)[0] - 0.05
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in tuned)))
