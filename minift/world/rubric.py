"""The gold rubric: what the world's readers like in a story, as a number from 0 to 10. It plays the human judge.

A story is read back with the lexicon: each sentence, its names and things replaced by their kinds, must be one of the
world's sentence forms, and the form tells the sentence's role. So a fragment, a babble or a list of wished-for words
scores low: the rubric asks for a whole and consistent story before it rewards taste. Left out: beauty, surprise.
"""

import random
import re
from dataclasses import dataclass

from minift.world import lexicon
from minift.world import scenes as world

# Points, together 10.
ASKED, WHOLE, HAPPY, KIND, SPEECH = 2.0, 2.5, 2.5, 2.0, 1.0
# Taken off for each fault.
FAULT = 0.5

KINDS = {
    word: kind
    for kind, group in (("NAME", lexicon.GIRLS + lexicon.BOYS), ("ANIMAL", lexicon.ANIMALS),
                        ("OBJECT", lexicon.OBJECTS), ("COLOUR", lexicon.COLOURS), ("PLACE", lexicon.PLACES),
                        ("NEAR", lexicon.PLACE_ADJECTIVES), ("HELPER", lexicon.HELPERS), ("FOOD", lexicon.FOODS),
                        ("PLANT", lexicon.PLANTS), ("GLAD", lexicon.GLAD), ("SORRY", lexicon.SORRY),
                        ("WORRIED", lexicon.WORRIED), ("CHARACTER", lexicon.CHARACTERS), ("SIZE", lexicon.SIZES),
                        ("MAKE", lexicon.MAKES), ("WEATHER", lexicon.WEATHER), ("TIME", lexicon.TIMES),
                        ("ADVERB", lexicon.ADVERBS))
    for word in group
}
# The one thing whose name is a word of the sentence forms as well ("Nobody saw the thief again.").
VERBS = {"saw"}
PRONOUNS = {"he": "she", "him": "her", "his": "her", "an": "a"}


def sentences(story):
    """The story's sentences; the last one may lack its full stop (it then matches no form)."""
    return [part.strip() for part in re.findall(r'[^.?!]*[.?!]"?|[^.?!]+$', story) if part.strip()]


def skeleton(sentence):
    """The sentence with every word of the lexicon replaced by its kind, pronouns and articles made alike."""
    parts = re.findall(r"[A-Za-z][A-Za-z-]*|[^\sA-Za-z]", sentence)
    kinds = [KINDS.get(part) or PRONOUNS.get(part.lower(), part.lower()) for part in parts]
    return " ".join(kind for kind in kinds if kind != "NEAR")


def _roles():
    """skeleton -> role, read off the world's own sentence forms."""
    sample = world.Scene("Ada", True, "the mill", "fox", "kite", "red", "baker", "bread", "sunny", "day", "small",
                         "plain", "the {object} broke", True, False, False, False)
    groups = {"opening": world.OPENING, "thing": world.THING, "detail": world.DETAIL, "feeling": world.FEELING,
              "late good": world.LATE_GOOD, "late bad": world.LATE_BAD, "kindness": world.KINDNESS,
              "speech": world.SPEECH, "happy": world.HAPPY_ENDING, "sad": world.SAD_ENDING,
              "trouble": sum(world.TROUBLE.values(), ()), "good turn": sum(world.GOOD_TURN.values(), ()),
              "bad turn": sum(world.BAD_TURN.values(), ())}
    rng = random.Random(0)
    return {
        skeleton(part): role if first else "detail"
        for role, forms in groups.items()
        for form in forms
        for first, part in zip((True, False), sentences(world.fill(form, sample, rng)))
    }


ROLES = _roles()


@dataclass(frozen=True)
class Judgement:
    """What the rubric saw in one story."""

    score: float  # 0 to 10
    # The role of each sentence; None: not a sentence of this world.
    roles: tuple
    # Share of the request that the story keeps: child, animal, thing, its colour.
    asked: float
    # Share of opening, trouble, turn and ending that are there and in order.
    whole: float
    happy: bool
    kind: bool
    speech: bool
    # ill-formed, repeated or inconsistent sentences.
    faults: int


def judge(story, scene):
    """Read one story written for a request that names the scene's child, animal and thing. Returns a Judgement.

    Taste (a happy ending, a kindness, somebody who speaks) counts only in a whole story.
    """
    parts = sentences(story)
    roles = tuple(ROLES.get(skeleton(part)) for part in parts)
    asked = (
        sum((scene.name in story, f" {scene.animal}" in story, f" {scene.object}" in story, f" {scene.thing}" in story))
        / 4
    )
    whole = _whole(roles)
    happy, kind, speech = roles[-1:] == ("happy",), "kindness" in roles, "speech" in roles
    faults = _faults(parts, roles, scene)
    taste = HAPPY * happy + KIND * kind + SPEECH * speech if whole == 1 else 0.0
    score = max(0.0, ASKED * asked + WHOLE * whole + taste - FAULT * faults)
    return Judgement(score, roles, asked, whole, happy, kind, speech, faults)


def _whole(roles):
    """The share of: opens with an opening, has a trouble, a turn after it, ends with an ending."""
    trouble = roles.index("trouble") if "trouble" in roles else len(roles)
    turn = any(role in ("good turn", "bad turn") for role in roles[trouble:])
    return ((("opening",) == roles[:1]) / 4
            + ("trouble" in roles) / 4
            + turn / 4
            + (roles[-1:] in (("happy",), ("sad",))) / 4)


def _faults(parts, roles, scene):
    """Sentences of no known form, said twice, about somebody else, and an end that contradicts the last turn."""
    faults = sum(role is None for role in roles) + len(parts) - len(set(parts))
    faults += max(0, sum(role in ("happy", "sad") for role in roles) - 1) + max(0, roles.count("trouble") - 1)
    turns = [role.split()[-2:] for role in roles if role and role.endswith(("turn", "late good", "late bad"))]
    if turns and roles[-1] in ("happy", "sad"):
        faults += ("good" in turns[-1]) != (roles[-1] == "happy")
    place, wrong = None, {"he", "him", "his"} if scene.girl else {"she", "her"}
    for part in parts:
        found = re.findall(r"[A-Za-z][A-Za-z-]*", part)
        places = re.findall(r"\bthe (?:([a-z-]+) )?([a-z-]+)", part)
        places = [pair for pair in places if KINDS.get(pair[1]) == "PLACE" and KINDS.get(pair[0], "NEAR") == "NEAR"]
        place = place or (places[0] if places else None)
        colours = [(a, b) for a, b in zip(found, found[1:]) if KINDS.get(a) == "COLOUR" and KINDS.get(b) == "OBJECT"]
        faults += (any(KINDS.get(word) == "NAME" and word != scene.name for word in found)
                   or any(KINDS.get(word) == "ANIMAL" and word != scene.animal for word in found)
                   or any(KINDS.get(word) == "OBJECT" and word not in VERBS | {scene.object} for word in found)
                   or any(colour != scene.colour for colour, _ in colours)
                   or any(pair != place for pair in places)
                   or any(word.lower() in wrong for word in found))
    return faults
