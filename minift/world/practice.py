"""Worksheets: a story, and exercises of many kinds about it, each in one of many wordings, with its answer.

Real pre-training text is full of quizzes, school books and lists of questions. From these a model learns many skills
before it is fine-tuned. The world's worksheets do the same for the base. They have every kind of exercise of the
instruction tasks, but in other words and other printed forms, and never in the chat template. wordings.json has the
wordings of each kind. No wording is that of an instruction template, because the templates are for tuning and judging.
Left out: exercises about more than one story, worked solutions.
"""

import random
import re
from pathlib import Path

from minift.core.files import read_json
from minift.ways.templates import fill
from minift.world import exercises
from minift.world import lexicon as words
from minift.world.corpus import TEXT_FORMS
from minift.world.exercises import look_up, write
from minift.world.facts import answer_phrase, draw_other, find_word, scene_fields, whole_word
from minift.world.rubric import sentences
from minift.world.scenes import draw_scene, tell, with_articles

# Kind of exercise -> its wordings, with {fields} of a told scene.
WORDINGS = read_json(Path(__file__).with_name("wordings.json"))
# How a sheet is printed. "forms": one request with its answer; "heads": lines
# before the requests and before the answers; "leads" and "tails": a few words
# before or after a request, such as people write, that do not change it.
SHEET = TEXT_FORMS["worksheet"]
# These requests end with a text. Words after it would seem to belong to it.
QUOTING = ("order", "gap", "finish", "next", "rewrite")
# Kind of exercise -> its weight when kinds are drawn; 1 for all others. What is harder to learn is drawn more often.
OFTEN = {
    "is it": 3,
    "either": 2,
    "rewrite": 2,
    "mood": 2,
    "first": 2,
    "gap": 2,
    "question": 2,
    "order": 0.5}


# ---- kinds of exercises that only worksheets have: (scene, fields, rng) -> what they add, or None ----


def is_it(scene, fields, rng):
    """An animal, colour or name that is in the story, or is not."""
    kind = rng.choice(("animal", "colour", "name"))
    asked = exercises.is_it(kind, scene, rng)
    return {**asked, "an_asked": answer_phrase(kind, asked["asked"])}


def either(scene, fields, rng):
    kind = rng.choice(("animal", "colour", "place", "name"))
    return exercises.either(kind, scene, rng)


def count_sentences(scene, fields, rng):
    return {"answer": str(len(sentences(fields["story"])))}


def count_word(scene, fields, rng):
    word = rng.choice((scene.name, scene.animal, scene.object))
    number = len(find_word(word, fields["story"]))
    return {"word": word, "answer": str(number)}


def first(scene, fields, rng):
    """Which of two words stands first in the story?"""
    kinds = ("name", "place", "animal", "object", "helper", "food")
    # Name in the story -> index of the character where it first stands.
    places = {}
    for kind in kinds:
        name = exercises.name_of(kind, scene)
        found = find_word(name.split()[-1], fields["story"])
        if found:
            places[name] = found[0].start()
    a, b = rng.sample(list(places), 2)
    options = exercises.two_options(a, b, rng)
    return {**options, "answer": min(a, b, key=places.get)}


def gap(scene, fields, rng):
    """A sentence of the story with ___ for a word."""
    facts = (scene.name, scene.animal, scene.object, scene.colour)
    word = rng.choice(facts)
    lines = [part for part in sentences(fields["story"]) if find_word(word, part)]
    line = rng.choice(lines)
    match = rng.choice(find_word(word, line))
    return {"gapped": exercises.put_gap(line, match), "answer": word}


def next_sentence(scene, fields, rng):
    parts = sentences(fields["story"])
    i = rng.randrange(len(parts) - 1)
    return {"sentence": parts[i], "answer": parts[i + 1]}


def rewrite(scene, fields, rng):
    """One or two sentences with another name, animal or colour; None if they do not have the old one."""
    kind = rng.choice(("name", "animal", "colour"))
    old, new = getattr(scene, kind), draw_other(kind, scene, rng)
    parts = sentences(fields["story"])
    start = rng.randrange(len(parts) - 1)
    text = " ".join(parts[start:start + rng.choice((1, 2))])
    if not find_word(old, text):
        return None
    changed = re.sub(whole_word(old), new, text)
    # Make the article fit the new word: an owl, a fox.
    changed = re.sub(rf"\b([Aa])n (?={re.escape(new)}\b)", r"\1 ", changed)
    return {
        "old": old,
        "new": new,
        "sentence": text,
        "answer": with_articles(changed)}


KINDS = {
    "who": look_up("who"),
    "where": look_up("where"),
    "animal": look_up("animal"),
    "thing": look_up("thing"),
    "colour": look_up("colour"),
    "trouble": look_up("trouble"),
    "ended well": exercises.ended_well,
    "speaks": exercises.somebody_speaks,
    "is it": is_it,
    "either": either,
    "mood": write("{mood}"),
    "feeling": exercises.feeling,
    "count sentences": count_sentences,
    "count word": count_word,
    "first": first,
    "order": exercises.sort_sentences,
    "gap": gap,
    "finish": exercises.finish_fact,
    "next": next_sentence,
    "last": exercises.last_sentence,
    "summary": write(exercises.SUMMARY),
    "title": write(exercises.TITLE),
    "key facts": write(exercises.KEY_FACTS),
    "rewrite": rewrite,
    "question": exercises.question_for_answer}


# ---- sheets ----


def exercise(kind, scene, story, rng):
    """(request, answer) of one kind of exercise about a told scene; None if this story has no such exercise."""
    fields = {**scene_fields(scene, story), "time": scene.time}
    found = KINDS[kind](scene, fields, rng)
    if found is None:
        return None
    wording = rng.choice(WORDINGS[kind])
    return fill(wording, {**fields, **found}), found["answer"]


def worksheet(rng):
    """A worksheet: the story, then exercises with their answers; or exercises, then the story, then the answers."""
    scene = draw_scene(rng)
    story = tell(scene, rng)
    weights = [OFTEN.get(kind, 1) for kind in KINDS]
    drawn = rng.choices(tuple(KINDS), weights, k=6)
    # Draw all exercises before the words around them: the text of a seed depends on the order of the draws.
    found = {}
    for kind in dict.fromkeys(drawn):
        pair = exercise(kind, scene, story, rng)
        if pair is not None:
            found[kind] = pair
    pairs = [
        (wrap_request(kind, request, rng), answer)
        for kind, (request, answer) in found.items()]
    if rng.random() < 0.5:
        return story_first(story, pairs, rng)
    return exercises_first(story, pairs, rng)


def wrap_request(kind, request, rng):
    """The request, often with a few words before or after it."""
    lead = tail = ""
    if rng.random() < 0.4:
        lead = rng.choice(SHEET["leads"])
    if kind not in QUOTING and rng.random() < 0.25:
        tail = rng.choice(SHEET["tails"])
    return lead + request + tail


def story_first(story, pairs, rng):
    """The story, then each exercise with its answer, all printed in one form."""
    form = rng.choice(SHEET["forms"])
    one, two = rng.sample(words.GIRLS + words.BOYS, 2)
    lines = [story]
    for n, (q, a) in enumerate(pairs, start=1):
        lines.append(form.format(q=q, a=a, n=n, one=one, two=two))
    return "\n".join(lines)


def exercises_first(story, pairs, rng):
    """Up to four exercises, then the story, then the answers."""
    pairs = pairs[:rng.randint(1, 4)]
    mark = rng.choice(SHEET["marks"])
    head, answers_head = rng.choice(SHEET["heads"])
    asked, answered = [], []
    for n, (request, answer) in enumerate(pairs, start=1):
        asked.append(mark.format(n=n) + request)
        answered.append(mark.format(n=n) + answer)
    label = rng.choice(SHEET["story labels"])
    text = [*asked, label + story, answers_head + "\n".join(answered)]
    return head + "\n".join(text)


def worksheets(n, seed, split="train"):
    """n worksheets."""
    rng = random.Random(f"worksheets/{split}/{seed}")
    return [worksheet(rng) for _ in range(n)]
