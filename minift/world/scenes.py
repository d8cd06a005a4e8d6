"""The embedded toy world: small scenes, drawn from a seed and told as children's stories.

A scene is what happens in one story: who, where, with which animal and which coloured thing, what goes wrong and how
it ends. A telling is a scene in words. It is a sequence of sentences, each with a role (opening, thing, trouble, turn,
ending); sentences.json holds several forms for each role. Names, places and things are repeated later in a story, so a
model learns to copy from the context. Left out: two children in one story, time that passes, causes and plans.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

from minift.core.files import read_json
from minift.world import lexicon as words

SENTENCES = read_json(Path(__file__).with_name("sentences.json"))
# Role of a sentence -> its forms. For trouble, good turn and bad turn:
# what goes wrong -> its forms.
FORMS = SENTENCES["story"]
TROUBLES = tuple(FORMS["trouble"])
PRONOUNS = {
    True: {"she": "she", "She": "She", "her": "her", "hers": "her"},
    False: {"she": "he", "She": "He", "her": "him", "hers": "his"}}
# Words that are no part of the scene: they are drawn anew for each sentence.
SMALL_WORDS = {
    "plant": words.PLANTS,
    "character": words.CHARACTERS,
    "adverb": words.ADVERBS,
    "glad": words.GLAD,
    "sorry": words.SORRY,
    "worried": words.WORRIED}


@dataclass(frozen=True)
class Scene:
    """What happens in one story. Every field is a word (or phrase) of the lexicon unless it says otherwise."""

    name: str
    # True: she, her; False: he, his.
    girl: bool
    # With its article: "the old mill".
    place: str
    animal: str
    object: str
    colour: str
    helper: str
    food: str
    weather: str
    time: str
    # Of the animal.
    size: str
    # Of the thing: "plain", "heavy".
    make: str
    # A key of FORMS["trouble"].
    trouble: str
    # True: a happy ending; False: a sad one.
    happy: bool
    # A late turn of events reverses what the first turn promised.
    late: bool
    # Somebody does a kindness.
    kind: bool
    # Somebody speaks.
    speech: bool

    @property
    def thing(self):
        """The object with its colour: "red kite"."""
        return f"{self.colour} {self.object}"

    @property
    def mood(self):
        """How it ends: "happy" or "sad"."""
        return "happy" if self.happy else "sad"

    @property
    def trouble_text(self):
        """What went wrong, as a clause: "the kite broke"."""
        return self.trouble.format(
            object=self.object, animal=self.animal)


def draw_scene(rng):
    """One scene. rng: random.Random. Half of the scenes end happily; kindness and speech occur in two of five."""
    # First draw the fields that other fields depend on.
    girl = rng.random() < 0.5
    adjective = ""
    if rng.random() < 0.4:
        adjective = rng.choice(words.PLACE_ADJECTIVES) + " "
    names = words.GIRLS if girl else words.BOYS
    # Then the rest, in this order: the scene of a seed depends on it.
    return Scene(
        name=rng.choice(names),
        girl=girl,
        place=f"the {adjective}{rng.choice(words.PLACES)}",
        animal=rng.choice(words.ANIMALS),
        object=rng.choice(words.OBJECTS),
        colour=rng.choice(words.COLOURS),
        helper=rng.choice(words.HELPERS),
        food=rng.choice(words.FOODS),
        weather=rng.choice(words.WEATHER),
        time=rng.choice(words.TIMES),
        size=rng.choice(words.SIZES),
        make=rng.choice(words.MAKES),
        trouble=rng.choice(TROUBLES),
        happy=rng.random() < 0.5,
        late=rng.random() < 0.15,
        kind=rng.random() < 0.4,
        speech=rng.random() < 0.4)


def draw_scenes(n, seed, split="train"):
    """n scenes from a seed. Each split ("train", "valid", "test") has a random stream of its own."""
    rng = random.Random(f"{split}/{seed}")
    return [draw_scene(rng) for _ in range(n)]


def fill_form(form, scene, rng):
    """The form filled with the scene's facts, and with SMALL_WORDS (a feeling, a plant) that are drawn anew."""
    drawn = {kind: rng.choice(group) for kind, group in SMALL_WORDS.items()}
    text = form.format(
        **vars(scene),
        **PRONOUNS[scene.girl],
        **drawn,
        thing=scene.thing)
    return with_articles(text)


def fill_forms(forms, scene, rng):
    """The forms, filled one after the other, as one text."""
    return " ".join(fill_form(form, scene, rng) for form in forms)


def with_articles(text):
    """Put "an" for "a" before a vowel: "a orange owl" -> "an orange owl"."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)


def tell(scene, rng):
    """The scene as a story: one paragraph of about seven sentences, drawn anew at each call."""
    # A late turn reverses the first one.
    good_first = scene.happy != scene.late
    turns = FORMS["good turn" if good_first else "bad turn"]
    forms = [rng.choice(FORMS["opening"]), rng.choice(FORMS["thing"])]
    if rng.random() < 0.5:
        forms.append(rng.choice(FORMS["detail"]))
    forms.append(rng.choice(FORMS["trouble"][scene.trouble]))
    if rng.random() < 0.5:
        forms.append(rng.choice(FORMS["feeling"]))
    forms.append(rng.choice(turns[scene.trouble]))
    if scene.late:
        late = "late good" if scene.happy else "late bad"
        forms.append(rng.choice(FORMS[late]))
    if scene.kind:
        forms.append(rng.choice(FORMS["kindness"]))
    if scene.speech:
        forms.append(rng.choice(FORMS["speech"]))
    forms.append(rng.choice(FORMS[scene.mood]))
    return fill_forms(forms, scene, rng)
