"""The gold rubric: a score from 0 to 10 for a story. It stands for a human judge.

A story is parsed with the lexicon. In each sentence, names and things are replaced by their kinds. The result must be
one of the world's sentence forms, and the form gives the sentence's role. So a fragment, nonsense or a list of the
requested words scores low: the rubric gives points for taste only to a whole and consistent story. Left out: beauty,
surprise.
"""

import random
import re
from dataclasses import dataclass

from minift.world import lexicon
from minift.world.scenes import FORMS, draw_scenes, fill_form

# Points, together 10.
ASKED, WHOLE, HAPPY, KIND, SPEECH = 2.0, 2.5, 2.5, 2.0, 1.0
# Points that each fault costs.
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
# The only thing whose name is also a verb in the sentence forms ("Nobody saw the thief again.").
VERBS = {"saw"}
PRONOUNS = {"he": "she", "him": "her", "his": "her", "an": "a"}
ENDINGS = ("happy", "sad")


def sentences(story):
    """The story's sentences. The last one may lack its full stop; it then matches no form."""
    parts = re.findall(r'[^.?!]*[.?!]"?|[^.?!]+$', story)
    return [part.strip() for part in parts if part.strip()]


def split_words(text):
    """The words of a text, without digits and punctuation."""
    return re.findall(r"[A-Za-z][A-Za-z-]*", text)


def skeleton(sentence):
    """The sentence: words of the lexicon become their kinds, male pronouns become female ones, "an" becomes "a"."""
    parts = re.findall(r"[A-Za-z][A-Za-z-]*|[^\sA-Za-z]", sentence)
    kinds = []
    for part in parts:
        small = part.lower()
        kinds.append(KINDS.get(part) or PRONOUNS.get(small, small))
    # Leave out a place's adjective: a sentence has the same form with and without it.
    return " ".join(kind for kind in kinds if kind != "NEAR")


def skeletons_of(form):
    """The skeletons of a form's sentences. Any scene can fill the form, because its words become kinds."""
    scene = draw_scenes(1, 0)[0]
    filled = fill_form(form, scene, random.Random(0))
    return [skeleton(part) for part in sentences(filled)]


def read_roles():
    """(skeleton -> role, skeleton of a trouble -> what went wrong), from the world's sentence forms."""
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
    """The role of a sentence; None if it has no form of this world."""
    return ROLES.get(skeleton(sentence))


@dataclass(frozen=True)
class Judgement:
    """The rubric's findings about one story."""

    # 0 to 10.
    score: float
    # The role of each sentence, as role_of gives it.
    roles: tuple
    # Share of the request that is in the story: child, animal, thing, colour of the thing.
    asked: float
    # Share of opening, trouble, turn and ending that are in their places.
    whole: float
    happy: bool
    kind: bool
    speech: bool
    # The number of faults, see count_faults.
    faults: int


def judge(story, scene):
    """Judge a story written for a request that names the scene's child, animal and thing. Returns a Judgement.

    Points for taste (a happy ending, a kindness, somebody who speaks) are given only to a whole story.
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
    """The share of four conditions: an opening first, a trouble, a turn after it, an ending last."""
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
    """The number of faults in a story: in its sentences and in the whole.

    Faults of sentences: no known form, said before, inconsistent (see is_inconsistent). Faults of the whole: a second
    trouble, a second ending, an ending that contradicts the last turn.
    """
    faults = roles.count(None) + len(parts) - len(set(parts))
    endings = sum(role in ENDINGS for role in roles)
    faults += max(0, endings - 1)
    faults += max(0, roles.count("trouble") - 1)
    turns = [role for role in roles if role and ("turn" in role or "late" in role)]
    if turns and roles[-1] in ENDINGS:
        promised = "happy" if "good" in turns[-1] else "sad"
        if promised != roles[-1]:
            faults += 1
    place = None
    for part in parts:
        places = places_in(part)
        if places and place is None:
            place = places[0]
        if is_inconsistent(part, places, place, scene):
            faults += 1
    return faults


def places_in(sentence):
    """The places that a sentence names, as (adjective or "", place)."""
    found = re.findall(r"\bthe (?:([a-z-]+) )?([a-z-]+)", sentence)
    return [
        (near, place)
        for near, place in found
        if KINDS.get(place) == "PLACE" and KINDS.get(near, "NEAR") == "NEAR"]


def is_inconsistent(sentence, places, place, scene):
    """Does the sentence name a child, animal, thing, colour, place or pronoun that is not the story's?

    places: those that the sentence names. place: the first one that the story named.
    """
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
