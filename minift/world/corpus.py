"""The text that the base model is pretrained on: stories, and texts about them.

Most documents have more than a story: questions and answers, a list of facts, a plan, in many forms. No document uses
the chat template. From these texts a small model learns to look facts up in its context. Every document is drawn from
a seed. Left out: the further domains (domains.py), which are kept for continued pre-training.
"""

import random
from dataclasses import replace
from pathlib import Path

from minift.core.files import read_json
from minift.ways.templates import fill
from minift.world import lexicon as words
from minift.world.facts import FACTS, scene_fields
from minift.world.scenes import draw_scene, tell

# How quizzes, plans, worksheets and instructions are worded and printed.
TEXT_FORMS = read_json(Path(__file__).with_name("forms.json"))


def ask(kind, scene, rng, short=None):
    """(question, answer) about one fact of the scene. short: answer with the fact alone, not a sentence; None: draw."""
    if short is None:
        short = rng.random() < 0.5
    entry, fields = FACTS[kind], scene_fields(scene)
    question = fill(rng.choice(entry["questions"]), fields)
    if short:
        return question, fill(entry["answer"], fields)
    stem = "It was" if kind == "thing" else entry["stem"]
    return question, fill(f"{stem} {entry['answer']}.", fields)


def ask_some(scene, rng, n):
    """n pairs (question, answer), each about a different fact."""
    kinds = rng.sample(tuple(FACTS), n)
    return [ask(kind, scene, rng) for kind in kinds]


def quiz(scene, rng):
    """Questions and answers in one of several printed forms."""
    form = rng.choice(TEXT_FORMS["quiz"]["forms"])
    pairs = ask_some(scene, rng, rng.randint(2, 4))
    lines = [
        form.format(q=question, a=answer, n=n)
        for n, (question, answer) in enumerate(pairs, start=1)]
    return rng.choice(TEXT_FORMS["quiz"]["titles"]) + "\n".join(lines)


def dialogue(scene, rng):
    """Two people talk about what happened."""
    one, two = rng.sample(words.GIRLS + words.BOYS, 2)
    quoted = rng.random() < 0.5
    lines = []
    for question, answer in ask_some(scene, rng, rng.randint(2, 3)):
        if quoted:
            said = answer.rstrip(".")
            lines.append(f'"{question}" asked {one}. "{said}," said {two}.')
        else:
            lines.append(f"{one}: {question}\n{two}: {answer}")
    return "\n".join(lines)


def fact_list(scene, rng):
    """Some of the story's facts as a list, in any order."""
    fields = scene_fields(scene)
    rows = [
        ("Child", "Name", fields["name"]),
        ("Place", "Where", fields["place"]),
        ("Animal", "Pet", fields["an_animal"]),
        ("Thing", "Object", fields["object"]),
        ("Colour", "Its colour", fields["colour"]),
        ("Trouble", "What happened", fields["trouble"]),
        ("End", "How it ended", fields["ending"])]
    column, mark = rng.randrange(2), rng.choice((": ", " = ", " - "))
    rows = rng.sample(rows, rng.randint(3, 6))
    return "\n".join(f"{row[column]}{mark}{row[2]}" for row in rows)


def state_fact(kind, scene, rng):
    """A fact as a sentence."""
    return ask(kind, scene, rng, short=False)[1]


def state_false(kind, scene, rng):
    """A fact of another scene as a sentence. By chance it can be true of this scene too."""
    other = draw_scene(rng)
    if kind == "colour":
        other = replace(scene, colour=other.colour)
    return state_fact(kind, other, rng)


def true_or_false(scene, rng):
    """Two statements about the story, some of them wrong, and whether they are true."""
    kinds = ("who", "where", "animal", "colour", "ending")
    lines = []
    for kind in rng.sample(kinds, 2):
        state = state_fact if rng.random() < 0.5 else state_false
        statement = state(kind, scene, rng)
        true = statement == state_fact(kind, scene, rng)
        lines.append(f"{statement} {true}.")
    return "\n".join(lines)


def plan(scene, rng):
    """A line that says what the story after it is about. From such lines the model learns to tell a requested story."""
    fields = scene_fields(scene)
    rows = [fields["name"], fields["an_animal"], fields["a_thing"]]
    if rng.random() < 0.3:
        rows.append(fields["place"])
    rng.shuffle(rows)
    return rng.choice(TEXT_FORMS["plan"]).format(", ".join(rows))


def document(rng):
    """One document of the base corpus: a story, and often something before or after it."""
    scene = draw_scene(rng)
    story, kind = tell(scene, rng), rng.random()
    if kind < 0.20:
        return story
    if kind < 0.40:
        return plan(scene, rng) + story
    if kind < 0.70:
        return story + "\n" + quiz(scene, rng)
    if kind < 0.82:
        return story + "\n" + dialogue(scene, rng)
    if kind < 0.92:
        return story + "\n" + fact_list(scene, rng)
    if kind < 0.96:
        return story + "\n" + true_or_false(scene, rng)
    return fact_list(scene, rng) + "\n" + story


def documents(n, seed, split="train"):
    """n documents of the base corpus."""
    rng = random.Random(f"documents/{split}/{seed}")
    return [document(rng) for _ in range(n)]


def stories(n, seed, split="train"):
    """n stories, with nothing before or after them."""
    rng = random.Random(f"stories/{split}/{seed}")
    return [tell(draw_scene(rng), rng) for _ in range(n)]
