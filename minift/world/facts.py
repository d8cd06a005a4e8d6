"""Facts: what can be asked about a told scene, and which wrong options are allowed.

A told scene is a dict of fields: the story, and the facts that every telling of the scene has (child, place, animal).
Templates and wordings are filled with these fields. facts.json holds the questions about each fact, the beginning of
the sentence that answers them, and the answer. Left out: facts that only some tellings have (weather, food).
"""

import re
from dataclasses import replace
from pathlib import Path

from minift.core.files import read_json
from minift.ways.templates import fill
from minift.world.scenes import TROUBLES, draw_scene, tell, with_articles

# Kind of fact -> "questions", the "plain" one of them, "stem" and "answer".
FACTS = read_json(Path(__file__).with_name("facts.json"))
# Groups of words that can name the same thing. A wrong option is never in
# one group with the right one.
_KIN = Path(__file__).with_name("kin.txt").read_text(encoding="utf-8")
KIN = [set(line.split()) for line in _KIN.splitlines()]


def scene_fields(scene, story=""):
    """The fields of a scene that was told as this story.

    Phrases with an article are fields of their own, because a template cannot choose the article.
    """
    return {
        "story": story,
        "name": scene.name,
        "place": scene.place,
        "animal": scene.animal,
        "an_animal": with_articles(f"a {scene.animal}"),
        "object": scene.object,
        "an_object": with_articles(f"a {scene.object}"),
        "colour": scene.colour,
        "thing": scene.thing,
        "a_thing": with_articles(f"a {scene.thing}"),
        "trouble": scene.trouble_text,
        "mood": scene.mood,
        "ending": "happily" if scene.happy else "sadly"}


def tell_fields(scene, rng):
    """Tell the scene; the fields of this telling."""
    return scene_fields(scene, tell(scene, rng))


def tell_until(scene, rng, wanted):
    """The fields of the first telling for which wanted(story, fields) is true.

    The trouble and the optional events are drawn anew for each telling. Child, place, animal, thing, helper, food and
    mood of the ending stay as they are. The loop has no limit: every scene must have such a telling.
    """
    while True:
        fields = tell_fields(scene, rng)
        if wanted(fields["story"], fields):
            return fields
        scene = replace(
            scene,
            trouble=rng.choice(TROUBLES),
            late=rng.random() < 0.15,
            kind=rng.random() < 0.4,
            speech=rng.random() < 0.4)


def fact(kind, fields):
    """(question, beginning of the sentence that answers it, rest of that sentence) about one fact of a told scene."""
    entry = FACTS[kind]
    texts = entry["plain"], entry["stem"], entry["answer"]
    return tuple(fill(text, fields) for text in texts)


def whole_word(word):
    """A regular expression for a word that is not a part of a longer one."""
    return rf"(?<![\w-]){re.escape(word)}(?![\w-])"


def find_word(word, text):
    """The matches of a whole word in a text, as a list of re.Match."""
    return list(re.finditer(whole_word(word), text))


def draw_other(kind, scene, rng):
    """A name, place, animal or colour that is not the scene's own and shares no group of KIN with it.

    A name is of the same gender.
    """
    own = getattr(scene, kind).split()[-1]
    while True:
        drawn = draw_scene(rng)
        other = getattr(drawn, kind)
        word = other.split()[-1]
        akin = any({word, own} <= group for group in KIN)
        if drawn.girl == scene.girl and word != own and not akin:
            return other


def answer_phrase(kind, word):
    """A fact in the form of an answer: a fox, at the mill, red."""
    before = {"animal": "a ", "place": "at "}.get(kind, "")
    return with_articles(before + word)
