"""Worksheets: what is asked can be read off the story, and the answer is true of it."""

import random
import re

import pytest

from minift.evaluation.metrics import rouge_l
from minift.ways.templates import read_templates
from minift.world import practice
from minift.world.practice import WORDINGS
from minift.world.rubric import sentences
from minift.world.scenes import draw_scenes, tell

TEMPLATES = "data/instructions/templates.json"


def exercises(kind, n=60, exercise=practice.exercise):
    """(scene, story, request, answer) of one kind, for as many scenes as lend themselves."""
    rng = random.Random(kind)
    for scene in draw_scenes(n, kind):
        story = tell(scene, rng)
        found = exercise(kind, scene, story, rng)
        if found is not None:
            yield scene, story, *found


def count(word, text):
    return len(re.findall(rf"(?<![A-Za-z-]){re.escape(word)}(?![A-Za-z-])", text))


def test_each_kind_has_wordings_and_answers():
    """Every kind can be asked in several ways, fits most stories, and gives an answer that is not empty."""
    assert set(WORDINGS) == set(practice.KINDS)
    for kind, wordings in WORDINGS.items():
        assert len(set(wordings)) == len(wordings) >= 3
        found = list(exercises(kind))
        assert len(found) > 15, kind
        assert all(answer.strip() for *_, answer in found)
        assert not any(re.search(r"\{\w+\}", request + answer) for *_, request, answer in found), kind


def test_no_wording_is_an_instruction_template():
    """What tuning teaches and judging asks is worded otherwise; the worksheets give nothing of it away."""
    templates = [template["instruction"].replace("{story}", "") for entry in read_templates(TEMPLATES).values()
                 for template in entry["templates"]]
    near = [(wording, template) for wordings in WORDINGS.values() for wording in wordings for template in templates
            if rouge_l(wording, template) > 0.8]
    assert not near


@pytest.mark.parametrize(("kind", "true"), [
    ("is it", lambda scene, story, request, answer: (answer == "yes") == any(
        count(word, request) for word in (scene.name, scene.animal, scene.colour))),
    ("either", lambda scene, story, request, answer: answer in request and answer.split()[-1] in story),
    ("mood", lambda scene, story, request, answer: answer == ("happy" if scene.happy else "sad")),
    ("ended well", lambda scene, story, request, answer: answer == ("yes" if scene.happy else "no")),
    ("speaks", lambda scene, story, request, answer: (answer == "yes") == ('"' in story)),
    ("feeling", lambda scene, story, request, answer: count(answer, sentences(story)[-1]) == 1),
    ("count sentences", lambda scene, story, request, answer: int(answer) == len(sentences(story))),
    ("count word", lambda scene, story, request, answer: int(answer) in (
        count(word, story) for word in (scene.name, scene.animal, scene.object) if count(word, request))),
    ("gap", lambda scene, story, request, answer: any(
        line[:found.start()] + "___" + line[found.end():] in request for line in sentences(story)
        for found in re.finditer(re.escape(answer), line))),
    ("last", lambda scene, story, request, answer: story.endswith(answer)),
    ("next", lambda scene, story, request, answer: story.index(answer) > 0 and request.endswith(
        story[:story.index(answer)].rstrip()[-15:]) or answer in story and "?" in request),
    ("who", lambda scene, story, request, answer: answer == scene.name),
    ("colour", lambda scene, story, request, answer: answer == scene.colour),
    ("title", lambda scene, story, request, answer: answer == f"{scene.name} and the {scene.colour} {scene.object}"),
])
def test_the_answer_is_true_of_the_story(kind, true):
    """What the worksheet says can be checked against the scene or the text by other means."""
    found = list(exercises(kind))
    assert all(true(*one) for one in found), next(one for one in found if not true(*one))


def test_the_first_of_two_stands_first():
    """Of two things the answer is the one that the story names earlier."""
    for scene, story, request, answer in exercises("first"):
        words = (scene.name, scene.place.split()[-1], scene.animal, scene.object, scene.helper, scene.food)
        places = {word: re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", story) for word in words
                  if count(word, request)}
        assert min((word for word in places if places[word]), key=lambda word: places[word].start()) == (
            answer.split()[-1])


def test_a_rewritten_sentence_is_the_old_one_with_another_word():
    """The one new word is in the request and not in the story; with the old one for it the sentence is the story's."""
    for scene, story, request, answer in exercises("rewrite", n=120):
        new = {*re.findall(r"[\w-]+", answer)} - {*re.findall(r"[\w-]+", story)} - {"a", "an", "A", "An"}
        assert len(new) == 1 and count(new.copy().pop(), request), (request, answer)
        new = new.pop()
        olds = [re.sub(rf"\b([Aa])n? {old}", r"\1 " + old, answer.replace(new, old))
                for old in (scene.name, scene.animal, scene.colour)]
        assert any(re.sub(r"\b([Aa])n ", r"\1 ", old) in re.sub(r"\b([Aa])n ", r"\1 ", story) for old in olds)


def test_both_answers_are_equally_likely():
    """Yes and no, and the two places of a right option: nothing is gained by always saying the same."""
    yes = [answer == "yes" for *_, answer in exercises("is it", n=600)]
    first = [request.index(answer) < len(request) - len(answer) - 6 for *_, request, answer in exercises("either", 600)
             if request.startswith("Which one")]
    assert 0.44 < sum(yes) / len(yes) < 0.56          # 3 sigma of 600 fair coins: 0.061
    assert 0.3 < sum(first) / len(first) < 0.7


def test_the_same_seed_writes_the_same_worksheets(worksheets=practice.worksheets):
    """And other seeds and splits write others; no sheet holds a sign of the chat template."""
    sheets = worksheets(50, 0)
    assert sheets == worksheets(50, 0) and not set(sheets) & set(worksheets(50, 1)) | set(sheets) & set(
        worksheets(50, 0, "valid"))
    assert not any("<user>" in sheet or "<assistant>" in sheet for sheet in sheets)
