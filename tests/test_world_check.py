"""The world's checker: stories are read back as they were told, right answers are true, all others are not."""

import random
import re

import pytest

from minift.ways.templates import instantiate, read_templates
from minift.world import checker as world_check
from minift.world.facts import scene_fields
from minift.world.scenes import draw_scenes, tell
from minift.world.tasks import world_rows

TEMPLATES = read_templates("data/instructions/templates.json")
STORY = ("Ada and a small fox walked slowly to the old mill. She carried a red kite. Then the red kite broke in two. "
         "The baker mended it with string and glue. In the end Ada was glad.")


@pytest.fixture(scope="module")
def verdict():
    return world_check.make_verdict(TEMPLATES)


def test_a_told_story_is_read_back(read_story=world_check.read_story):
    """From 300 tellings come the facts of the scenes from which they were told, none missing, none else."""
    rng = random.Random(0)
    for scene in draw_scenes(300, 5):
        story = tell(scene, rng)
        told = scene_fields(scene, story)
        del told["story"]
        assert read_story(story) == told


@pytest.mark.parametrize(("old", "new", "lost"), [
    (" She carried", " A goat came. She carried", {"animal", "an_animal", "trouble"}),
    ("She carried a red kite", "She carried a blue kite", {"colour", "thing", "a_thing"}),
    ("In the end Ada was glad.", "In the end Ada", {"mood", "ending"}), ("In the end Ada", "In the end Ben", {"name"}),
    ("walked slowly to the old mill", "walked slowly to the old mill by the pond", {"place"}),
])
def test_what_a_story_tells_twice_or_never_is_no_fact(old, new, lost, read_story=world_check.read_story):
    """Two animals, two colours, no ending, two children, two places: the fact is left out, and nothing else."""
    assert set(read_story(STORY)) - set(read_story(STORY.replace(old, new))) == lost and old in STORY


@pytest.mark.parametrize("split", ["seen", "held-out"])
def test_right_answers_are_true_and_those_of_others_are_not(split, verdict):
    """Every template of every task: the row's own answer is true, another row's to the same question is not."""
    rows = instantiate(world_rows(1400, 1, tasks=world_check.TASKS), TEMPLATES, split=split, inverted=False)
    used, wrong = {(row["task"], row["template"]) for row in rows}, {}
    for row in rows:
        turn, answer = (message["content"] for message in row["messages"])
        assert verdict(turn, answer) is True, (turn, answer)
        other = wrong.get((row["task"], row["template"]))
        if other not in (None, answer):
            assert verdict(turn, other) is False, (turn, other)
        wrong[row["task"], row["template"]] = answer
    assert used == {(task, i) for task in world_check.TASKS
                    for i, one in enumerate(TEMPLATES[task]["templates"], start=1)
                    if one["split"] == split and not one["inverted"]}


@pytest.mark.parametrize(("turn", "answer", "found"), [
    (f"What colour is the kite in this story?\n{STORY}", "red", True),
    (f"What colour  is the kite in this story? {STORY}", " red", True),      # as self_instruct joins lines
    (f"What colour is the kite in this story?\n{STORY}", "Red", False),
    (f"What colour is the drum in this story?\n{STORY}", "red", False),     # there is no drum
    (f"What colour was the sky that day?\n{STORY}", "red", None),           # no template
    ("What colour is the kite in this story?\nNothing happened.", "red", None),
    (f"Which animal is in the story, a fox or a goat?\n{STORY}", "a fox", True),
    (f"Which animal is in the story, an owl or a goat?\n{STORY}", "a goat", None),      # neither of the two
    (f"Is the end of this story happy or sad?\n{STORY}", "happy", True),
    (f"Is the end of this story happy or sad?\n{STORY}", "sad", False),
])
def test_what_is_true_what_is_not_and_what_cannot_be_told(turn, answer, found, verdict):
    """A question about what the story has not is not true; one that cannot be read is left open."""
    assert verdict(turn, answer) is found


def test_braces_and_signs_of_a_template_are_letters(pattern=world_check.pattern):
    """Signs that mean something to a regular expression, doubled braces, a slot that comes twice."""
    form = pattern("(A) {one}? [{{x}}]\n{object}, {object}: {story}")
    assert form.fullmatch("(A) a fox? [{x}] kite, kite: It fell.").group("story") == "It fell."
    assert form.fullmatch("(A) a fox? [{x}] kite, drum: It fell.") is None and re.compile(form)
