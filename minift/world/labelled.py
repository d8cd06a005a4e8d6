"""Labelled texts from the world, for classifiers: how does it end, what went wrong, does the statement follow?

Three sets, each in two domains: stories, and letters that a child writes about the same scenes (for tests under a shift
of domain). The endings need reading: negations, late turns of events, and sentences with a glad and a sad word whose
order decides. Left out: labels that are a matter of opinion; annotators' noise is in `datasets.preferences`.
"""

import random

from minift.errors import MiniftError
from minift.world import lexicon as words
from minift.world import scenes as world
from minift.world.corpus import ask, fill_colour, true_or_false
from minift.world.scenes import draw_scene, draw_scenes, fill, with_articles

# Label -> what went wrong, a key of world.TROUBLE.
TOPICS = {
    "lost": "the {object} got lost", "water": "the {object} fell into the water",
    "tree": "the {object} got stuck in a tree", "broken": "the {object} broke",
    "thief": "a thief took the {object}", "runaway": "the {animal} ran away",
}
LABELS = {"sentiment": ("sad", "happy"), "topic": tuple(TOPICS), "follows": ("no", "yes", "unknown")}
DOMAINS = ("stories", "letters")

# {this}: how it comes out; {other}: how it seemed.
LATE = (
    "All seemed {other}, but then all was {this}.",
    "Everybody thought that all was {other}, and yet it came out {this}.",
)
# {this}: a word for how it ends; {other}: a word for the contrary.
CONTRAST = (
    "In the end {name} was {this}, not {other}.",
    "{name} had thought to go home {other}, but went home {this}.",
    "{name} was no longer {other} now, only {this}.",
    "First {she} had been {other}, now {name} was {this}.",
    "The {helper} was {other}, but {name} was {this}.",
    "{name} was {this}, though the {helper} had been {other}.",
)
NEGATION = ("In the end {name} was not {other}.", "{name} was not {other} when {she} went home.")
LETTER = {
    "opening": ("Dear {helper}, I am writing to you from {place}.", "Dear {helper}, greetings from {place}.",
                "My dear {helper}, you know {place}, do you not?"),
    "weather": ("We have a {weather} {time} here.", "It has been a {weather} {time}."),
    "thing": ("I took my {animal} and my {thing} along.", "My {animal} is with me, and so was my {thing}.",
              "Do you remember my {animal} and the {thing}?"),
    "LATE": ("I thought that all was {other}, but all is {this}.", "It looked {other} to us, yet it is {this}."),
    "CONTRAST": ("Now I am {this}, not {other}. Yours, {name}", "I was {other} before; I am {this} now. Yours, {name}",
                 "Do not think that I am {other}, I am {this}. Yours, {name}",
                 "My aunt is {other}, but I am {this}. Yours, {name}"),
    "NEGATION": ("So I am not {other}. Yours, {name}", "Do not call me {other}. Yours, {name}"),
    "PLAIN": ("I am {this}. Yours, {name}", "You see me {this}. Yours, {name}"),
}
LETTER_TROUBLE = {
    "lost": ("I do not know where the {object} is.", "Just now I miss my {object}, I put it down somewhere."),
    "water": ("The {object} went over the edge and got wet.", "I let my {object} slip into the waves."),
    "tree": ("My {object} hangs up there among the twigs.", "The {object} sits high in the branches."),
    "broken": ("The {object} is in pieces.", "I sat on the {object}, and it went crack."),
    "thief": ("Somebody stole my {object}.", "A robber has run off with the {object}."),
    "runaway": ("My {animal} slipped away from me.", "The {animal} pulled the lead out of my hand and was off."),
}
# Fact -> statement; these facts are told in some texts only.
STATEMENTS = {
    "weather": "The weather was {}.", "time": "It happened on a {}.", "helper": "The story speaks of a {}.",
    "food": "There were some {}.", "size": "The animal was {}.", "make": "The thing was {}.",
}
GROUPS = {"weather": words.WEATHER, "time": words.TIMES, "helper": words.HELPERS, "food": words.FOODS,
          "size": words.SIZES, "make": words.MAKES}


def labelled(task, n, seed, split="train", domain="stories"):
    """n rows {"text", "label"}, or {"text", "text_pair", "label"} for the task "follows"; each of a scene of its own.

    task: "sentiment" of the ending, "topic" (what went wrong, 6 classes), "follows" (does the statement text_pair
    follow: yes, no, unknown). Labels are equally likely. Raises MiniftError for another task or domain.
    """
    if task not in LABELS or domain not in DOMAINS:
        raise MiniftError(f"no labelled set {task!r} in the domain {domain!r}; there are {', '.join(LABELS)} in "
                          f"{' and '.join(DOMAINS)}")
    rng = random.Random(f"labelled/{task}/{domain}/{split}/{seed}")
    rows = []
    for scene in draw_scenes(n, f"labelled/{task}/{domain}/{seed}", split):
        text = (tell_story if domain == "stories" else tell_letter)(scene, rng)
        row = {"text": text, "label": ("sad", "happy")[scene.happy]}
        if task == "topic":
            row["label"] = topic_of(scene)
        if task == "follows":
            row["text_pair"], row["label"] = statement(scene, text, rng)
        rows.append(row)
    return rows


def topic_of(scene):
    return next(label for label, trouble in TOPICS.items() if trouble == scene.trouble)


def tell_story(scene, rng):
    """The scene as a story whose ending must be read: half of the turns are reversed later."""
    late = rng.random() < 0.5
    turns = world.GOOD_TURN if scene.happy != late else world.BAD_TURN
    forms = [rng.choice(world.OPENING), rng.choice(world.THING)]
    forms += [rng.choice(world.DETAIL)] if rng.random() < 0.3 else []
    forms += [rng.choice(world.TROUBLE[scene.trouble]), rng.choice(turns[scene.trouble])]
    text = " ".join(fill(form, scene, rng) for form in forms)
    text += " " + mood(scene, rng, rng.choice(LATE), "well", "lost") if late else ""
    kind = rng.random()
    if kind < 0.25:
        return f"{text} {fill(rng.choice(world.HAPPY_ENDING if scene.happy else world.SAD_ENDING), scene, rng)}"
    return f"{text} {feeling(scene, rng, rng.choice(NEGATION if kind < 0.4 else CONTRAST))}"


def tell_letter(scene, rng):
    """The same kinds of scene in the words of a letter, none of whose sentences the stories have."""
    late = rng.random() < 0.5
    forms = [rng.choice(LETTER["opening"])]
    forms += [rng.choice(LETTER["weather"])] if rng.random() < 0.5 else []
    forms += [rng.choice(LETTER["thing"]), rng.choice(LETTER_TROUBLE[topic_of(scene)])]
    text = " ".join(fill(form, scene, rng) for form in forms)
    text += " " + mood(scene, rng, rng.choice(LETTER["LATE"]), "well", "lost") if late else ""
    kind = rng.random()
    ending = "PLAIN" if kind < 0.25 else "NEGATION" if kind < 0.4 else "CONTRAST"
    return f"{text} {feeling(scene, rng, rng.choice(LETTER[ending]))}"


def feeling(scene, rng, form):
    """An ending with words of feeling."""
    return mood(scene, rng, form, rng.choice(words.GLAD), rng.choice(words.SORRY))


def mood(scene, rng, form, good, bad):
    """A sentence in which {this} is the word for how it ends and {other} the contrary."""
    this, other = (good, bad) if scene.happy else (bad, good)
    return fill(form.replace("{this}", this).replace("{other}", other), scene, rng)


def statement(scene, text, rng):
    """(statement, label) about a text: it follows from it ("yes"), contradicts it ("no"), or is left open ("unknown").

    Facts that are told in some texts only can have any label; child, place, animal and colour are always told.
    """
    told = set(text.replace(".", " ").replace(",", " ").split())
    left_open = [fact for fact in STATEMENTS if not told & set(GROUPS[fact])]
    label = rng.choice(LABELS["follows"] if left_open else ("yes", "no"))
    if label == "unknown":
        fact = rng.choice(left_open)
        return with_articles(STATEMENTS[fact].format(rng.choice(GROUPS[fact]))), label
    told_here = [fact for fact in STATEMENTS if getattr(scene, fact) in told]
    if told_here and rng.random() < 0.5:
        fact = rng.choice(told_here)
        wrong = rng.choice([word for word in GROUPS[fact] if word not in told])
        return with_articles(STATEMENTS[fact].format(getattr(scene, fact) if label == "yes" else wrong)), label
    kind = rng.choice(("who", "where", "animal", "colour"))
    right = claim = ask(kind, scene, rng, short=False)[1]
    while label == "no" and claim == right:
        other = draw_scene(rng)
        claim = ask(kind, fill_colour(scene, other) if kind == "colour" else other, rng, short=False)[1]
    return claim, label


def statements(n, seed, split="train"):
    """n texts without labels for pre-training an encoder: such a story, and below it statements, true or false."""
    rng = random.Random(f"statements/{split}/{seed}")
    scenes = (draw_scene(rng) for _ in range(n))
    return [tell_story(scene, rng) + "\n" + true_or_false(scene, rng) for scene in scenes]
