"""The embedded toy world: small scenes, drawn from a seed and told as children's stories.

A scene says who, where, with which animal and which coloured thing, what goes wrong and how it ends. A telling puts
it into sentences, each with a role (opening, trouble, turn, ending, ...), so that every fact comes back later: copying
from the context is then worth learning. Left out: two children in one story, time that passes, causes and plans.
"""

import random
import re
from dataclasses import dataclass

from minift.world import lexicon as words

OPENING = ("One {weather} {time} {name} went to {place} with {hers} {animal}.",
           "{name} lived near {place} and had a {size} {animal}.",
           "On a {weather} {time} {name} and {hers} {animal} came to {place}.",
           "There was once a {character} child called {name}, who had a {animal} and lived by {place}.",
           "It was a {weather} {time}, and {name} was at {place} with a {size} {animal}.",
           "{name} and a {size} {animal} walked {adverb} to {place}.",
           "{name} was a {character} child. One {time} {she} took {hers} {animal} to {place}.",
           "A {animal} followed {name} to {place} on a {weather} {time}.")
THING = ("{She} carried a {thing}.", "{She} had brought a {make} {thing} from home.",
         "In {hers} hand was a {thing}, a gift from the {helper}.", "{She} wanted to show the {animal} {hers} {thing}.",
         "Under {hers} arm {she} held a {thing}.", "The {helper} had given {her} a {make} {thing}.",
         "{name} never went out without {hers} {thing}.", "There {she} found a {make} {thing}.")
DETAIL = ("The {animal} was {size} and followed {her} {adverb}.", "They sat down at {place} and ate some {food}.",
          "The {animal} sniffed {adverb} at the {thing}.", "At {place} they met the {helper}, who waved {adverb}.",
          "{name} liked the {colour} {object} more than anything.",
          "The {object} was so {make} that the {helper} came to look at it.", "They played {adverb} behind a {plant}.")
TROUBLE = {
    "the {object} got lost": (
        "Then {name} looked again, and the {thing} was gone.",
        "But on the way {she} lost the {object}.",
        "Soon the {colour} {object} could not be found."),
    "the {object} fell into the water": (
        "Then the {thing} fell into the water.",
        "{name} slipped, and the {object} dropped into the water.",
        "Suddenly the {colour} {object} rolled into deep water."),
    "the {object} got stuck in a tree": (
        "Then the wind blew the {thing} up into a tree.",
        "{name} threw the {object} too high, and it got stuck in a tree.",
        "Suddenly the {colour} {object} flew into a tree and stayed there."),
    "the {object} broke": (
        "Then the {thing} broke in two.",
        "{name} fell down {adverb}, and the {object} broke.",
        "Suddenly there was a crack, and the {colour} {object} was broken."),
    "a thief took the {object}": (
        "Then a thief took the {thing} and ran away.",
        "While {name} slept, a thief took the {object}.",
        "Suddenly a thief came by and took the {colour} {object}."),
    "the {animal} ran away": (
        "Then the {animal} ran away from {place}.",
        "{name} turned round, and the {animal} was not there.",
        "Suddenly the {animal} was frightened by a noise and ran away."),
}
FEELING = ("{name} was {worried} and did not know what to do.", "{She} felt {worried}.",
           "{name} stood there {worried} and looked round {adverb}.", "The {animal} looked {worried} too.")
GOOD_TURN = {
    "the {object} got lost": (
        "The {animal} found it under a {plant}.",
        "The {helper} had seen it behind a {plant}.",
        "{name} searched {adverb} and found it near {place}."),
    "the {object} fell into the water": (
        "The {animal} jumped in and brought it back.",
        "The {helper} pulled it out with a long stick.",
        "It came to the bank under a {plant}, and {name} reached it."),
    "the {object} got stuck in a tree": (
        "The {helper} fetched a ladder and got it down.",
        "The {animal} climbed up and pushed it down.",
        "{name} shook the tree {adverb} until it came down."),
    "the {object} broke": (
        "The {helper} mended it with string and glue.",
        "The {helper} had tools at {place} and made it whole again.",
        "{name} put it together again {adverb}."),
    "a thief took the {object}": (
        "The {animal} ran after the thief and got it back.",
        "The {helper} caught the thief at {place}.",
        "The thief hid behind a {plant}, but {name} took it back."),
    "the {animal} ran away": (
        "The {helper} came back with the {animal}.",
        "{name} called {adverb}, and the {animal} came out from behind a {plant}.",
        "They found the {animal} under a {plant} near {place}."),
}
BAD_TURN = {
    "the {object} got lost": (
        "{name} searched {adverb}, but it was nowhere.",
        "The {helper} helped to look, but nobody found it.",
        "They looked under every {plant} and found nothing."),
    "the {object} fell into the water": (
        "The water carried it away.",
        "The {helper} came too late, and it sank.",
        "The {animal} jumped in but could not reach it."),
    "the {object} got stuck in a tree": (
        "Nobody could reach it.",
        "The {helper} had no ladder, so it stayed there.",
        "The {animal} climbed up but could not move it."),
    "the {object} broke": (
        "The {helper} could not mend it.",
        "Nobody knew how to mend it.",
        "{name} tried {adverb}, but the pieces did not hold."),
    "a thief took the {object}": (
        "Nobody saw the thief again.",
        "The {animal} ran after the thief but was too slow.",
        "The {helper} looked behind every {plant}, but the thief was gone."),
    "the {animal} ran away": (
        "{name} called and called, but the {animal} did not come.",
        "The {helper} looked behind every {plant}, but the {animal} was not there.",
        "They waited at {place}, but the {animal} stayed away."),
}
LATE_GOOD = ("But the next day the {helper} came to the door, and all was well again.",
             "Then, when nobody hoped any more, the {helper} put everything right.")
LATE_BAD = ("But the next day it all went wrong again, and this time nobody could help.",
            "Then, on the way home, everything was lost after all.")
KINDNESS = ("{name} gave the {animal} some {food} to say thank you.", "{name} shared some {food} with the {helper}.",
            "{She} hugged the {animal} and gave it some {food}.",
            "Then {name} helped the {helper} to carry the {food}.")
SPEECH = ('"Thank you for coming with me," said {name} {adverb}.', '"What a {weather} {time}," said the {helper}.',
          '"You are a {character} {animal}," said {name}.', '"Come with me to {place}," said {name} to the {animal}.',
          '"I will never forget this {time}," said {name} {adverb}.')
HAPPY_ENDING = ("{name} went home {glad}, and the {animal} did too.", "In the end {name} was {glad}.",
                "{name} and the {animal} were {glad} and danced at {place}.",
                "{name} was not {worried} any more and laughed all the way home.",
                "It had been a good {time}, and {name} was {glad}.",
                "{name} smiled, for {she} still had {hers} {animal} and the {thing}.")
SAD_ENDING = ("{name} went home {sorry}, and the {animal} did too.", "In the end {name} was {sorry}.",
              "{name} and the {animal} were {sorry} and walked home {adverb}.",
              "{name} was not {glad} any more and cried all the way home.",
              "It had been a bad {time}, and {name} was {sorry}.",
              "{name} cried, for nothing was as it had been with the {thing}.")


@dataclass(frozen=True)
class Scene:
    """What happens in one story. Every field is a word (or phrase) of the lexicon unless it says otherwise."""

    name: str
    # True: she, her; False: he, his.
    girl: bool
    # With its article: "the old mill"
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
    # Of the thing.
    make: str
    # A key of TROUBLE.
    trouble: str
    # How it ends.
    happy: bool
    # A late turn of events reverses what the first turn promised.
    late: bool
    # Somebody does a kindness.
    kind: bool
    # Somebody speaks.
    speech: bool

    @property
    def thing(self):
        return f"{self.colour} {self.object}"

    @property
    def trouble_text(self):
        """What went wrong, as a clause: "the kite broke"."""
        return self.trouble.format(object=self.object, animal=self.animal)


def draw_scene(rng):
    """One scene. rng: random.Random. Half of the scenes end happily; kindness and speech occur in two of five."""
    girl = rng.random() < 0.5
    adjective = rng.choice(words.PLACE_ADJECTIVES) + " " if rng.random() < 0.4 else ""
    return Scene(name=rng.choice(words.GIRLS if girl else words.BOYS), girl=girl,
                 place=f"the {adjective}{rng.choice(words.PLACES)}", animal=rng.choice(words.ANIMALS),
                 object=rng.choice(words.OBJECTS), colour=rng.choice(words.COLOURS), helper=rng.choice(words.HELPERS),
                 food=rng.choice(words.FOODS), weather=rng.choice(words.WEATHER), time=rng.choice(words.TIMES),
                 size=rng.choice(words.SIZES), make=rng.choice(words.MAKES), trouble=rng.choice(tuple(TROUBLE)),
                 happy=rng.random() < 0.5, late=rng.random() < 0.15, kind=rng.random() < 0.4, speech=rng.random() < 0.4)


def draw_scenes(n, seed, split="train"):
    """n scenes from a seed. Different splits ("train", "valid", "test") draw from streams that do not meet."""
    rng = random.Random(f"{split}/{seed}")
    return [draw_scene(rng) for _ in range(n)]


def fill(form, scene, rng):
    """One sentence: the form with the scene's facts and fresh small words (feelings, plants, adverbs) filled in."""
    text = form.format(
        name=scene.name, she="she" if scene.girl else "he", She="She" if scene.girl else "He",
        her="her" if scene.girl else "him", hers="her" if scene.girl else "his", place=scene.place,
        animal=scene.animal, object=scene.object, colour=scene.colour, thing=scene.thing, helper=scene.helper,
        food=scene.food, weather=scene.weather, time=scene.time, size=scene.size, make=scene.make,
        plant=rng.choice(words.PLANTS), character=rng.choice(words.CHARACTERS), adverb=rng.choice(words.ADVERBS),
        glad=rng.choice(words.GLAD), sorry=rng.choice(words.SORRY), worried=rng.choice(words.WORRIED))
    return with_articles(text)


def with_articles(text):
    """"a orange owl" -> "an orange owl"."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)


def tell(scene, rng):
    """The scene as a story: one paragraph of about seven sentences, never twice the same."""
    good_first = scene.happy != scene.late
    turns = (GOOD_TURN if good_first else BAD_TURN)[scene.trouble]
    forms = [rng.choice(OPENING), rng.choice(THING)]
    forms += [rng.choice(DETAIL)] if rng.random() < 0.5 else []
    forms += [rng.choice(TROUBLE[scene.trouble])]
    forms += [rng.choice(FEELING)] if rng.random() < 0.5 else []
    forms += [rng.choice(turns)]
    forms += [rng.choice(LATE_GOOD if scene.happy else LATE_BAD)] if scene.late else []
    forms += [rng.choice(KINDNESS)] if scene.kind else []
    forms += [rng.choice(SPEECH)] if scene.speech else []
    forms += [rng.choice(HAPPY_ENDING if scene.happy else SAD_ENDING)]
    return " ".join(fill(form, scene, rng) for form in forms)
