"""The encoder that comes with the repository is what its manifest says, and fills blanks by reading."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

from minift.evaluation.masked import masked_accuracy
from minift.formats.checkpoint import load_model
from minift.text.segments import encode_segments
from minift.world import corpus, recipes
from minift.world import scenes as world

ENCODER = Path(__file__).parents[1] / "data" / "encoder"


@pytest.fixture(scope="module")
def encoder():
    return load_model(ENCODER)


@pytest.fixture(scope="module")
def manifest():
    return json.loads((ENCODER / "manifest.json").read_text(encoding="utf-8"))


def fill(encoder, text, words, second=None):
    """What the encoder writes in the last occurrence of each word, whose tokens are all hidden at once."""
    model, tokenizer = encoder
    ids, _ = encode_segments(tokenizer, text, second)
    places = []
    for word in words:
        tokens = tokenizer.encode(f" {word}")
        start = max(i for i in range(len(ids)) if ids[i:i + len(tokens)] == tokens)
        places.append(range(start, start + len(tokens)))
    hidden = torch.tensor([ids])
    for place in places:
        hidden[0, list(place)] = tokenizer.special_id("<mask>")
    with torch.no_grad():
        best = model(hidden)[0].argmax(-1)
    return [tokenizer.decode(best[list(place)].tolist()).strip() for place in places]


def test_the_files_are_those_of_the_manifest(manifest):
    """Every file has the sha256 that was noted when it was made, and the sizes keep their promise."""
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((ENCODER / name).read_bytes()).hexdigest() == digest, name
    assert manifest["n_parameters"] <= 4_000_000
    assert sum(path.stat().st_size for path in ENCODER.iterdir()) < 16 * 2**20


def test_the_manifest_is_of_the_recipe_in_the_code(manifest, encoder):
    """The recipe that the command runs today is the one that made these files; the tokenizer is the base's."""
    assert {name: manifest[name] for name in recipes.ENCODER} == recipes.ENCODER
    assert encoder[1].hash() == load_model(ENCODER.parent / "base")[1].hash()


def test_the_held_out_accuracy_is_the_one_in_the_manifest(encoder, manifest):
    """On unread documents it fills as many blanks as the log says, far more than a guess from the left neighbour."""
    model, tokenizer = encoder
    rows = recipes.encoder_rows(tokenizer, 400, 0, "valid", model.config.context_length)
    measured = masked_accuracy(model, recipes.masked_batches(tokenizer, rows, 64, fresh=False, shuffle=False))
    assert measured == pytest.approx(manifest["valid_accuracy"], abs=2e-3)
    assert measured > 2 * manifest["valid_accuracy_bigram"] > 4 * manifest["valid_accuracy_most_frequent_token"]


def test_it_reads_names_and_things_from_elsewhere_in_the_story(encoder):
    """A hidden child, animal or thing that the story names elsewhere is put back."""
    rng, right, n = random.Random("blanks"), {"name": 0, "animal": 0, "object": 0}, 40
    for _ in range(n):
        scene = world.draw_scene(rng)
        story = f"It was a fine day. {scene.name} had a {scene.animal} and a {scene.object}. " + world.tell(scene, rng)
        for fact in right:
            word = getattr(scene, fact)
            right[fact] += fill(encoder, story, [word]) == [word]
    assert min(right.values()) > 0.6 * n, right      # all pieces of the word, among hundreds of words


def test_it_answers_the_questions_below_a_story(encoder):
    """In a question and its answer below a story, the hidden answer is looked up in the story."""
    rng, hits, n = random.Random("questions"), {"who": 0, "animal": 0, "thing": 0, "colour": 0}, 40
    facts = {"who": "name", "animal": "animal", "thing": "object", "colour": "colour"}
    for _ in range(n):
        scene = world.draw_scene(rng)
        story = world.tell(scene, rng)
        for kind in hits:
            question, answer = corpus.ask(kind, scene, rng, short=True)
            word = getattr(scene, facts[kind])
            hits[kind] += fill(encoder, story, [word], f"Question: {question}\nAnswer: {answer}") == [word]
    assert min(hits.values()) > 0.4 * n, hits
