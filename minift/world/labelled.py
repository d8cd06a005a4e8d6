"""Labelled texts from the world, for classifiers: how does it end, what went wrong, does the statement follow?

Three sets, each in two domains: stories, and letters that a child writes about the same scenes (for tests under a
domain shift). Single words do not tell the ending: there are negations, late turns of events, and sentences with a glad
and a sad word whose order decides. Left out: labels that are a matter of opinion; annotators' noise is in
`ways.preferences`.
"""

import random

from minift.errors import MiniftError
from minift.world import lexicon as words
from minift.world.corpus import state_fact, state_false, true_or_false
from minift.world.scenes import FORMS, SENTENCES, draw_scene, draw_scenes, fill_form, fill_forms, with_articles

# What went wrong, a key of FORMS["trouble"] -> its label.
TOPICS = {
    "the {object} got lost": "lost",
    "the {object} fell into the water": "water",
    "the {object} got stuck in a tree": "tree",
    "the {object} broke": "broken",
    "a thief took the {object}": "thief",
    "the {animal} ran away": "runaway"}
LABELS = {
    "sentiment": ("sad", "happy"),
    "topic": tuple(TOPICS.values()),
    "follows": ("no", "yes", "unknown")}
DOMAINS = ("stories", "letters")
# Endings that no single word decides. {this}: a word for how it ends; {other}: a word for the contrary.
READ = SENTENCES["read"]
# Role of a sentence of a letter -> its forms.
LETTER = SENTENCES["letter"]
# A fact that only some texts tell -> the statement of it.
STATEMENTS = SENTENCES["statement"]
# The same facts -> the words that they can have.
GROUPS = {
    "weather": words.WEATHER,
    "time": words.TIMES,
    "helper": words.HELPERS,
    "food": words.FOODS,
    "size": words.SIZES,
    "make": words.MAKES}


def labelled(task, n, seed, split="train", domain="stories"):
    """n rows {"text", "label"}, or {"text", "text_pair", "label"} for the task "follows"; each has a scene of its own.

    task: "sentiment" of the ending, "topic" (what went wrong, 6 classes), "follows" (does the statement text_pair
    follow: yes, no, unknown). Labels are equally likely. Raises MiniftError for another task or domain.
    """
    if task not in LABELS or domain not in DOMAINS:
        raise MiniftError(
            f"no labelled set {task!r} in the domain {domain!r}; there are "
            f"{', '.join(LABELS)} in {' and '.join(DOMAINS)}")
    rng = random.Random(f"labelled/{task}/{domain}/{split}/{seed}")
    scenes = draw_scenes(n, f"labelled/{task}/{domain}/{seed}", split)
    tell = tell_story if domain == "stories" else tell_letter
    rows = []
    for scene in scenes:
        row = {"text": tell(scene, rng)}
        if task == "sentiment":
            row["label"] = scene.mood
        elif task == "topic":
            row["label"] = TOPICS[scene.trouble]
        else:
            row["text_pair"], row["label"] = state(scene, row["text"], rng)
        rows.append(row)
    return rows


# ---- texts ----


def tell_story(scene, rng):
    """The scene as a story. In half of the stories a late turn of events reverses the first turn."""
    late = rng.random() < 0.5
    turns = FORMS["good turn" if scene.happy != late else "bad turn"]
    forms = [rng.choice(FORMS["opening"]), rng.choice(FORMS["thing"])]
    if rng.random() < 0.3:
        forms.append(rng.choice(FORMS["detail"]))
    forms.append(rng.choice(FORMS["trouble"][scene.trouble]))
    forms.append(rng.choice(turns[scene.trouble]))
    parts = [fill_forms(forms, scene, rng)]
    if late:
        parts.append(late_turn(rng.choice(READ["late"]), scene, rng))
    ending = draw_ending(rng)
    if ending == "plain":
        form = rng.choice(FORMS[scene.mood])
        parts.append(fill_form(form, scene, rng))
    else:
        form = rng.choice(READ[ending])
        parts.append(tell_feeling(form, scene, rng))
    return " ".join(parts)


def tell_letter(scene, rng):
    """The scene as a letter. No sentence of a letter occurs in a story."""
    late = rng.random() < 0.5
    forms = [rng.choice(LETTER["opening"])]
    if rng.random() < 0.5:
        forms.append(rng.choice(LETTER["weather"]))
    forms.append(rng.choice(LETTER["thing"]))
    forms.append(rng.choice(LETTER["trouble"][scene.trouble]))
    parts = [fill_forms(forms, scene, rng)]
    if late:
        parts.append(late_turn(rng.choice(LETTER["late"]), scene, rng))
    form = rng.choice(LETTER[draw_ending(rng)])
    parts.append(tell_feeling(form, scene, rng))
    return " ".join(parts)


def draw_ending(rng):
    """The kind of the last sentence: "plain" in 25 of 100 texts, "negation" in 15, "contrast" in 60."""
    kind = rng.random()
    if kind < 0.25:
        return "plain"
    return "negation" if kind < 0.4 else "contrast"


def late_turn(form, scene, rng):
    """A sentence that says how things seemed to end and how they really end."""
    return fill_mood(form, scene, rng, "well", "lost")


def tell_feeling(form, scene, rng):
    """An ending with words of feeling."""
    glad, sorry = rng.choice(words.GLAD), rng.choice(words.SORRY)
    return fill_mood(form, scene, rng, glad, sorry)


def fill_mood(form, scene, rng, good, bad):
    """A form with `good` and `bad` put in: {this} is the word for how the story ends, {other} the contrary."""
    this, other = (good, bad) if scene.happy else (bad, good)
    form = form.replace("{this}", this).replace("{other}", other)
    return fill_form(form, scene, rng)


# ---- statements ----


def state(scene, text, rng):
    """(statement, label) about a text: it follows from it ("yes"), contradicts it ("no"), or is left open ("unknown").

    A fact that only some texts tell can get any label. Every text tells child, place, animal and colour.
    """
    # Draw the label. "unknown" needs a fact that the text leaves open.
    without_signs = text.replace(".", " ").replace(",", " ")
    told = set(without_signs.split())
    left_open = [fact for fact in STATEMENTS if not told & set(GROUPS[fact])]
    possible = LABELS["follows"] if left_open else ("yes", "no")
    label = rng.choice(possible)
    if label == "unknown":
        fact = rng.choice(left_open)
        return state_word(fact, rng.choice(GROUPS[fact])), label

    # Often state a fact that this text tells and other texts do not.
    told_here = [fact for fact in STATEMENTS if getattr(scene, fact) in told]
    if told_here and rng.random() < 0.5:
        fact = rng.choice(told_here)
        wrong = [word for word in GROUPS[fact] if word not in told]
        word = rng.choice(wrong)
        if label == "yes":
            word = getattr(scene, fact)
        return state_word(fact, word), label

    # Otherwise state a fact that every text tells.
    kind = rng.choice(("who", "where", "animal", "colour"))
    right = claim = state_fact(kind, scene, rng)
    while label == "no" and claim == right:
        claim = state_false(kind, scene, rng)
    return claim, label


def state_word(fact, word):
    """The statement that a fact has this word."""
    return with_articles(STATEMENTS[fact].format(word))


def statements(n, seed, split="train"):
    """n texts without labels, for pre-training an encoder: a story of tell_story, then true and false statements."""
    rng = random.Random(f"statements/{split}/{seed}")
    texts = []
    for _ in range(n):
        scene = draw_scene(rng)
        story = tell_story(scene, rng)
        texts.append(f"{story}\n{true_or_false(scene, rng)}")
    return texts
