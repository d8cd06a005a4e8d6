"""The words that the toy world is made of, by kind, from lexicon.ini.

No word belongs to two kinds, so that a story can be parsed.
"""

import configparser
from pathlib import Path

_FILE = configparser.ConfigParser()
_FILE.read_string(Path(__file__).with_name("lexicon.ini").read_text(encoding="utf-8"))


def words(kind):
    """The list of words of a kind, in the order of the file. What is drawn from a seed depends on this order."""
    return _FILE["words"][kind].split()


GIRLS = words("girls")
BOYS = words("boys")
ANIMALS = words("animals")
OBJECTS = words("objects")
COLOURS = words("colours")
PLACES = words("places")
PLACE_ADJECTIVES = words("place_adjectives")
HELPERS = words("helpers")
FOODS = words("foods")
PLANTS = words("plants")
GLAD = words("glad")
SORRY = words("sorry")
WORRIED = words("worried")
CHARACTERS = words("characters")
SIZES = words("sizes")
MAKES = words("makes")
WEATHER = words("weather")
TIMES = words("times")
ADVERBS = words("adverbs")
