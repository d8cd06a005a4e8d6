"""Three further domains of the toy world, in words and forms of their own: notices, a harbour's log, a recipe book.

The base model has never read them: they are texts for continued pre-training. The notices are about things that it
knows, in a new form. The log and the recipes have new words as well, which domains.json holds. Left out: entries that
refer to each other.
"""

import random
from pathlib import Path

from minift.core.files import read_json
from minift.world import lexicon as words
from minift.world.scenes import with_articles

TABLES = read_json(Path(__file__).with_name("domains.json"))
NUMBERS = TABLES["numbers"]
HARBOUR = TABLES["harbour"]
KITCHEN = TABLES["kitchen"]
# Field of a notice -> the words for it. They are drawn in this order.
NOTICE_WORDS = {
    "place": words.PLACES,
    "colour": words.COLOURS,
    "object": words.OBJECTS,
    "day": words.TIMES,
    "name": words.GIRLS + words.BOYS,
    "pay": NUMBERS,
    "make": words.MAKES,
    "plant": words.PLANTS,
    "keeper": words.HELPERS,
    "size": words.SIZES,
    "animal": words.ANIMALS,
    "character": words.CHARACTERS,
    "helper": words.HELPERS,
    "food": words.FOODS,
    "chief": words.HELPERS,
    "goods": words.FOODS}


def notice(rng):
    """One notice on the board in front of the town hall."""
    fields = {field: rng.choice(group) for field, group in NOTICE_WORDS.items()}
    form = rng.choice(TABLES["notices"])
    return with_articles(form.format(**fields))


def load(rng):
    """A part of a ship's cargo: "six crates of copper"."""
    number, unit = rng.choice(NUMBERS), rng.choice(HARBOUR["units"])
    return f"{number} {unit} of {rng.choice(HARBOUR['cargo'])}"


def harbour_entry(rng):
    """One entry of the harbour master's log."""
    cargo = " and ".join(load(rng) for _ in range(rng.randint(1, 2)))
    vessel = rng.choice(HARBOUR["vessels"])
    ship = rng.choice(HARBOUR["ships"]).replace("-", " ")
    wind = rng.choice(HARBOUR["winds"])
    strength = rng.choice(HARBOUR["strengths"])
    # Three ports are drawn, whichever form is drawn: so every form draws equally often from rng.
    origin, goal, missed = (rng.choice(HARBOUR["ports"]) for _ in range(3))
    form = rng.choice(HARBOUR["forms"])
    event = form.format(
        ship=f"the {vessel} {ship}", cargo=cargo,
        origin=origin, goal=goal, missed=missed)
    remark = rng.choice(HARBOUR["remarks"])
    return f"Harbour log. Wind {wind}, {strength}. {event} {remark}"


def recipe(rng):
    """One recipe of the kitchen's book."""
    main, side = rng.sample(words.FOODS, 2)
    herb, dish = rng.choice(KITCHEN["herbs"]), rng.choice(KITCHEN["dishes"])
    titles = (
        f"{main.capitalize()} {dish} with {herb}",
        f"{dish.capitalize()} of {main} and {side}")
    title = rng.choice(titles)

    def draw(kind):
        return rng.choice(KITCHEN[kind])

    steps = (
        f"Take {draw('amounts')} {main}, {draw('prepare')}.",
        f"{draw('verbs')} in a {draw('vessels')} "
        f"with {draw('amounts')} {side}.",
        f"Season with {herb} and stir until {draw('done')}.",
        f"Serves {rng.choice(NUMBERS)}. {draw('last')}")
    head = f"Recipe. {title}, for {rng.choice(NUMBERS)}. "
    return with_articles(head + " ".join(steps))


# Domain -> (its entries, how many make a document).
DOMAINS = {
    "notices": (notice, 4),
    "harbour": (harbour_entry, 2),
    "kitchen": (recipe, 2)}


def domain_texts(domain, n, seed, split="train"):
    """n documents of a domain ("notices", "harbour" or "kitchen"), each of a few entries."""
    rng = random.Random(f"{domain}/{split}/{seed}")
    entry, count = DOMAINS[domain]
    texts = []
    for _ in range(n):
        entries = [entry(rng) for _ in range(count)]
        texts.append("\n".join(entries))
    return texts
