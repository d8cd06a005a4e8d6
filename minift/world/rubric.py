"""The gold rubric: what the world's readers like in a story, as a number from 0 to 10. It plays the human judge.

A story is read back with the lexicon: each sentence, its names and things replaced by their kinds, must be one of the
world's sentence forms, and the form tells the sentence's role. So a fragment, a babble or a list of wished-for words
scores low: the rubric asks for a whole and consistent story before it rewards taste. Left out: beauty, surprise.
"""

import random
import re
from dataclasses import dataclass

from minift.world import lexicon
from minift.world.scenes import FORMS, draw_scenes, fill_form

# Points, together 10.
ASKED, WHOLE, HAPPY, KIND, SPEECH = 2.0, 2.5, 2.5, 2.0, 1.0
# Taken off for each fault.
FAULT = 0.5

GROUPS = {
    "NAME": lexicon.GIRLS + lexicon.BOYS,
    "ANIMAL": lexicon.ANIMALS,
    "OBJECT": lexicon.OBJECTS,
    "COLOUR": lexicon.COLOURS,
    "PLACE": lexicon.PLACES,
    "NEAR": lexicon.PLACE_ADJECTIVES,
    "HELPER": lexicon.HELPERS,
    "FOOD": lexicon.FOODS,
    "PLANT": lexicon.PLANTS,
    "GLAD": lexicon.GLAD,
    "SORRY": lexicon.SORRY,
    "WORRIED": lexicon.WORRIED,
    "CHARACTER": lexicon.CHARACTERS,
    "SIZE": lexicon.SIZES,
    "MAKE": lexicon.MAKES,
    "WEATHER": lexicon.WEATHER,
    "TIME": lexicon.TIMES,
    "ADVERB": lexicon.ADVERBS}
# Word -> its kind.
KINDS = {}
for _kind, _group in GROUPS.items():
    KINDS.update(dict.fromkeys(_group, _kind))
# The one thing whose name is a word of the sentence forms as well ("Nobody saw the thief again.").
VERBS = {"saw"}
PRONOUNS = {"he": "she", "him": "her", "his": "her", "an": "a"}
ENDINGS = ("happy", "sad")


def sentences(story):
    """The story's sentences; the last one may lack its full stop (it then matches no form)."""
    parts = re.findall(r'[^.?!]*[.?!]"?|[^.?!]+$', story)
    return [part.strip() for part in parts if part.strip()]


def split_words(text):
    """The words of a text, without its signs."""
    return re.findall(r"[A-Za-z][A-Za-z-]*", text)


def skeleton(sentence):
    """The sentence with every word of the lexicon replaced by its kind; pronouns and articles are made alike."""
    parts = re.findall(r"[A-Za-z][A-Za-z-]*|[^\sA-Za-z]", sentence)
    kinds = []
    for part in parts:
        small = part.lower()
        kinds.append(KINDS.get(part) or PRONOUNS.get(small, small))
    # A place is the same place with and without its adjective.
    return " ".join(kind for kind in kinds if kind != "NEAR")


def skeletons_of(form):
    """The skeletons of a form's sentences. Any scene will do to fill it, because its words become kinds."""
    scene = draw_scenes(1, 0)[0]
    filled = fill_form(form, scene, random.Random(0))
    return [skeleton(part) for part in sentences(filled)]


def read_roles():
    """Skeleton -> role, and skeleton of a trouble -> what went wrong, read off the world's own sentence forms."""
    roles, troubles = {}, {}
    for role, forms in FORMS.items():
        groups = forms if isinstance(forms, dict) else {None: forms}
        for trouble, group in groups.items():
            for form in group:
                first, *others = skeletons_of(form)
                roles[first] = role
                roles.update(dict.fromkeys(others, "detail"))
                if role == "trouble":
                    troubles[first] = trouble
    return roles, troubles


ROLES, TROUBLES = read_roles()


def role_of(sentence):
    """The role of a sentence; None: it is none of this world."""
    return ROLES.get(skeleton(sentence))


@dataclass(frozen=True)
class Judgement:
    """What the rubric saw in one story."""

    # 0 to 10.
    score: float
    # The role of each sentence; None: not a sentence of this world.
    roles: tuple
    # Share of the request that the story keeps: child, animal, thing, its colour.
    asked: float
    # Share of opening, trouble, turn and ending that are there and in order.
    whole: float
    happy: bool
    kind: bool
    speech: bool
    # Ill-formed, repeated or inconsistent sentences.
    faults: int


def judge(story, scene):
    """Read one story written for a request that names the scene's child, animal and thing. Returns a Judgement.

    Taste (a happy ending, a kindness, somebody who speaks) counts only in a whole story.
    """
    parts = sentences(story)
    roles = tuple(role_of(part) for part in parts)
    things = (scene.animal, scene.object, scene.thing)
    wanted = [scene.name, *(f" {thing}" for thing in things)]
    asked = sum(text in story for text in wanted) / 4
    whole = share_of_whole(roles)
    happy = roles[-1:] == ("happy",)
    kind, speech = "kindness" in roles, "speech" in roles
    faults = count_faults(parts, roles, scene)

    score = ASKED * asked + WHOLE * whole - FAULT * faults
    if whole == 1:
        score += HAPPY if happy else 0
        score += KIND if kind else 0
        score += SPEECH if speech else 0
    return Judgement(max(0.0, score), roles, asked, whole, happy, kind, speech, faults)


def share_of_whole(roles):
    """The share of: opens with an opening, has a trouble, a turn after it, ends with an ending."""
    after = ()
    if "trouble" in roles:
        after = roles[roles.index("trouble"):]
    kept = (
        roles[:1] == ("opening",),
        "trouble" in roles,
        "good turn" in after or "bad turn" in after,
        roles[-1:] in (("happy",), ("sad",)))
    return sum(kept) / 4


def count_faults(parts, roles, scene):
    """How many sentences are of no known form, said twice, or about somebody else; and faults of the whole.

    Faults of the whole: a second trouble, a second ending, an ending that contradicts the last turn.
    """
    faults = roles.count(None) + len(parts) - len(set(parts))
    endings = sum(role in ENDINGS for role in roles)
    faults += max(0, endings - 1)
    faults += max(0, roles.count("trouble") - 1)
    turns = [role for role in roles if role and ("turn" in role or "late" in role)]
    if turns and roles[-1] in ENDINGS:
        promised = "happy" if "good" in turns[-1] else "sad"
        faults += promised != roles[-1]
    place = None
    for part in parts:
        places = places_in(part)
        if places and place is None:
            place = places[0]
        faults += is_inconsistent(part, places, place, scene)
    return faults


def places_in(sentence):
    """The places that a sentence names, as (adjective or "", place)."""
    found = re.findall(r"\bthe (?:([a-z-]+) )?([a-z-]+)", sentence)
    return [
        (near, place)
        for near, place in found
        if KINDS.get(place) == "PLACE" and KINDS.get(near, "NEAR") == "NEAR"]


def is_inconsistent(sentence, places, place, scene):
    """Is a child, animal, thing, colour, place or pronoun not the story's own? place: the first that it named."""
    found = split_words(sentence)
    own = {
        "NAME": {scene.name},
        "ANIMAL": {scene.animal},
        "OBJECT": VERBS | {scene.object}}
    wrong = {"he", "him", "his"} if scene.girl else {"she", "her"}
    for word, following in zip(found, [*found[1:], ""]):
        kind = KINDS.get(word)
        if kind in own and word not in own[kind]:
            return True
        coloured = kind == "COLOUR" and KINDS.get(following) == "OBJECT"
        if coloured and word != scene.colour:
            return True
        if word.lower() in wrong:
            return True
    return any(named != place for named in places)
