"""Exercises about a told scene: what is asked, which options are given, and what is right.

An exercise is a function (scene, fields, rng) -> dict. `fields` are those of the told scene (facts.scene_fields); the
dict has the further fields of the exercise, and "answer". Exercises have two uses: worksheets, which are text for
pre-training (practice.py), and labelled rows for instruction templates (tasks.py). Answers come from the scene or from
the text, so they are true. Left out: answers that are a matter of taste.
"""

import re

from minift.ways.templates import fill
from minift.world import lexicon as words
from minift.world.facts import FACTS, answer_phrase, draw_other, fact
from minift.world.rubric import sentences

SUMMARY = "{name} and {an_animal} at {place}: {trouble}, and it ended {ending}."
TITLE = "{name} and the {thing}"
KEY_FACTS = "{name}, {an_animal}, {a_thing}, {place}"


def look_up(kind):
    """The exercise that asks for one fact."""
    return lambda scene, fields, rng: {"answer": fact(kind, fields)[2]}


def write(form):
    """The exercise whose answer is `form`, filled with the fields: a summary, a title, the story itself."""
    return lambda scene, fields, rng: {"answer": fill(form, fields)}


def yes_no(true):
    """The answer to a question of yes or no."""
    return "yes" if true else "no"


def ended_well(scene, fields, rng):
    """Did it end well?"""
    return {"answer": yes_no(scene.happy)}


def somebody_speaks(scene, fields, rng):
    """Does somebody speak?"""
    return {"answer": yes_no(scene.speech)}


def is_it(kind, scene, rng):
    """Is the animal (colour, name) the one that is asked about? In half of the cases it is."""
    true = rng.random() < 0.5
    asked = getattr(scene, kind) if true else draw_other(kind, scene, rng)
    return {"asked": asked, "answer": yes_no(true)}


def either(kind, scene, rng):
    """Which of two is it?"""
    right = answer_phrase(kind, getattr(scene, kind))
    wrong = answer_phrase(kind, draw_other(kind, scene, rng))
    return {**two_options(right, wrong, rng), "answer": right}


def two_options(a, b, rng):
    """Two options in random order."""
    one, two = rng.sample((a, b), 2)
    return {"one": one, "two": two}


def feelings_at_the_end(story):
    """The words of feeling in the last sentence, as a list; [] if the sentence has a "not"."""
    last = re.findall(r"[\w-]+", sentences(story)[-1])
    if "not" in last:
        return []
    return [word for word in last if word in words.GLAD + words.SORRY]


def feeling(scene, fields, rng):
    """What did the child feel in the end? None if the last sentence does not say it."""
    felt = feelings_at_the_end(fields["story"])
    return {"answer": felt[0]} if felt else None


def two_in_order(items, rng):
    """Two of the items, the earlier one first."""
    places = sorted(rng.sample(range(len(items)), 2))
    return [items[place] for place in places]


def sort_sentences(scene, fields, rng):
    """In which order do two sentences stand in the story: "A, B" or "B, A"?"""
    parts = sentences(fields["story"])
    earlier, later = two_in_order(parts, rng)
    options = two_options(earlier, later, rng)
    right = "A, B" if options["one"] == earlier else "B, A"
    return {**options, "earlier": earlier, "later": later, "answer": right}


def put_gap(text, match):
    """The text with ___ in the place of a match."""
    return text[:match.start()] + "___" + text[match.end():]


def finish_fact(scene, fields, rng):
    """Complete a sentence that states a fact."""
    _, stem, answer = fact(rng.choice(tuple(FACTS)), fields)
    return {"stem": stem, "answer": answer}


def last_sentence(scene, fields, rng):
    """How does the story end?"""
    *beginning, last = sentences(fields["story"])
    return {"beginning": " ".join(beginning), "answer": last}


def question_for_answer(scene, fields, rng):
    """An answer is given. What was the question?"""
    question, _, given = fact(rng.choice(tuple(FACTS)), fields)
    return {"fact": given, "answer": question}


def name_of(kind, scene):
    """The phrase for the child, the place, an animal or a thing in the story: Ada, the old mill, the kite."""
    word = getattr(scene, kind)
    return word if kind in ("name", "place") else f"the {word}"
