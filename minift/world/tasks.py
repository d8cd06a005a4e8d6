"""Labelled examples of many tasks about the world's scenes: fields that templates turn into instructions.

A task draws an exercise about a scene and tells the story for it. Yes and no are equally likely. The right option is
equally often the first and the second. The templates are in data/instructions/templates.json. Left out: tasks without
a story.
"""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

from minift.core.files import read_json
from minift.errors import MiniftError
from minift.ways.templates import fill
from minift.world import exercises
from minift.world.exercises import look_up, write, yes_no
from minift.world.facts import answer_phrase, draw_other, find_word, scene_fields, tell_fields, tell_until
from minift.world.rubric import VERBS, role_of, sentences
from minift.world.scenes import draw_scenes, tell, with_articles

# Tasks about one fact -> the kind of fact: the fact is asked for, or it is one of two options.
LOOKUPS = {
    "who": "who",
    "where": "where",
    "animal": "animal",
    "thing": "thing",
    "colour": "colour",
    "what_went_wrong": "trouble"}
CHOICES = {
    "animal_or": "animal",
    "colour_or": "colour",
    "place_or": "place"}
# What is counted -> the right numbers, each equally likely.
COUNTS = {
    "sentences": (5, 6, 7, 8, 9),
    "name": (2, 3, 4, 5),
    "animal": (1, 2, 3, 4)}
# Either of the two may come first.
PAIRS = (
    ("name", "animal"),
    ("animal", "place"),
    ("object", "helper"),
    ("helper", "food"))
# Each event: the role of its sentence, a part of the sentence, and the event as a clause.
EVENTS = read_json(Path(__file__).with_name("events.json"))
# How many sentences are to be rewritten. One of the first three names the thing.
PASSAGE = 3
REQUEST = "Write a story about {name}, {an_animal} and {a_thing}."
# Label of a line -> the field that it states.
FACT_LINES = {
    "child": "name",
    "animal": "animal",
    "thing": "thing",
    "place": "place",
    "trouble": "trouble",
    "end": "mood"}


# ---- tasks: (scene, rng) -> fields; "answer" is the right answer ----


def about_story(exercise):
    """The task that tells a story and then sets an exercise about it."""
    def task(scene, rng):
        fields = tell_fields(scene, rng)
        return {**fields, **exercise(scene, fields, rng)}

    return task


def is_it(kind, scene, rng):
    asked = exercises.is_it(kind, scene, rng)
    with_article = with_articles(f"a {asked['asked']}")
    fields = tell_fields(scene, rng)
    return {**fields, **asked, "an_asked": with_article}


def either(kind, scene, rng):
    options = exercises.either(kind, scene, rng)
    return {**tell_fields(scene, rng), **options}


def somebody_speaks(scene, rng):
    """Does somebody speak? Half of the stories are told with speech; in the world's own stories it is two of five."""
    speech = rng.random() < 0.5
    fields = tell_fields(replace(scene, speech=speech), rng)
    return {**fields, "answer": yes_no(speech)}


def feeling(scene, rng):
    """The word for what the child felt in the end. The scene is told again until its ending has such a word."""
    def says_it(story, fields):
        return exercises.feelings_at_the_end(story)

    fields = tell_until(scene, rng, says_it)
    return {**fields, **exercises.feeling(scene, fields, rng)}


def count(what, scene, rng):
    """How many sentences are there, or how often is the child (or the animal) named?"""
    number = rng.choice(COUNTS[what])

    def has_number(story, fields):
        if what == "sentences":
            return len(sentences(story)) == number
        return len(find_word(fields[what], story)) == number

    return {**tell_until(scene, rng, has_number), "answer": str(number)}


def event_of(sentence):
    """The event of a sentence, as a form for a clause; None if the sentence tells no event."""
    own = role_of(sentence)
    for role, part, clause in EVENTS:
        if role == own and part in sentence:
            return clause
    return None


def first_event(scene, rng):
    """Which of two things happened first?"""
    def events(story, fields):
        clauses = [event_of(line) for line in sentences(story)]
        more = {"helper": scene.helper, "food": scene.food}
        return [fill(clause, {**fields, **more}) for clause in clauses if clause]

    def has_two(story, fields):
        return len(events(story, fields)) > 1

    fields = tell_until(scene, rng, has_two)
    happened = events(fields["story"], fields)
    earlier, later = exercises.two_in_order(happened, rng)
    return {**fields, **first_of(earlier, later, rng)}


def first_of(earlier, later, rng):
    """Two options in random order; the earlier one is the answer."""
    options = exercises.two_options(earlier, later, rng)
    return {**options, "earlier": earlier, "later": later, "answer": earlier}


def first_named(scene, rng):
    """Which of two words comes first in the text?"""
    kinds = rng.sample(rng.choice(PAIRS), 2)
    words = [getattr(scene, kind).split()[-1] for kind in kinds]

    def in_order(story, fields):
        first, second = (find_word(word, story) for word in words)
        if not first or not second:
            return False
        return first[0].start() < second[0].start()

    named = [exercises.name_of(kind, scene) for kind in kinds]
    fields = tell_until(scene, rng, in_order)
    return {**fields, **first_of(*named, rng)}


def change(kind, scene, rng):
    """Rewrite the beginning of the story with another name, animal or colour.

    Two versions of the scene are told with the same random choices, so that they differ in nothing else.
    """
    seed, new = rng.random(), draw_other(kind, scene, rng)
    old = getattr(scene, kind)
    stories = [
        tell(version, random.Random(seed))
        for version in (scene, replace(scene, **{kind: new}))]
    passage, answer = (
        " ".join(sentences(story)[:PASSAGE]) for story in stories)
    return {
        **scene_fields(scene, stories[0]),
        "passage": passage,
        "old": old,
        "new": new,
        "an_old": answer_phrase(kind, old),
        "a_new": answer_phrase(kind, new),
        "answer": answer}


def missing_word(scene, fields, rng):
    """The story with ___ in the place of a word that stands before the gap as well."""
    repeated = []
    for kind in ("name", "animal", "object", "colour"):
        found = find_word(fields[kind], fields["story"])[1:]
        if found and fields[kind] not in VERBS:
            repeated.append(found)
    gap = rng.choice(rng.choice(repeated))
    gapped = exercises.put_gap(fields["story"], gap)
    return {"gapped": gapped, "answer": gap[0]}


def story_from_facts(scene, fields, rng):
    lines = [f"{label}: {fields[key]}" for label, key in FACT_LINES.items()]
    mixed = rng.sample(lines, len(lines))
    return {"facts": "\n".join(mixed), "answer": fields["story"]}


# Cluster -> task -> its fields from a scene.
CLUSTERS = {
    "lookup": {
        task: about_story(look_up(kind))
        for task, kind in LOOKUPS.items()},
    "yes_no": {
        "ended_well": about_story(exercises.ended_well),
        "is_animal": partial(is_it, "animal"),
        "is_colour": partial(is_it, "colour"),
        "somebody_speaks": somebody_speaks},
    "choice": {
        task: partial(either, kind)
        for task, kind in CHOICES.items()},
    "sentiment": {
        "mood": about_story(write("{mood}")),
        "feeling": feeling},
    "counting": {
        "count_sentences": partial(count, "sentences"),
        "count_name": partial(count, "name"),
        "count_animal": partial(count, "animal")},
    "ordering": {
        "first_event": first_event,
        "first_named": first_named,
        "sort_sentences": about_story(exercises.sort_sentences)},
    "rewriting": {
        "change_name": partial(change, "name"),
        "change_colour": partial(change, "colour"),
        "change_animal": partial(change, "animal")},
    "completion": {
        "missing_word": about_story(missing_word),
        "finish_fact": about_story(exercises.finish_fact),
        "last_sentence": about_story(exercises.last_sentence)},
    "summarising": {
        "summary": about_story(write(exercises.SUMMARY)),
        "title": about_story(write(exercises.TITLE)),
        "key_facts": about_story(write(exercises.KEY_FACTS))},
    "generation": {
        "story_child_animal": about_story(write("{story}")),
        "story_ending": about_story(write("{story}")),
        "story_thing_place": about_story(write("{story}"))},
    "inversion": {
        "question_for_answer": about_story(exercises.question_for_answer),
        "story_from_facts": about_story(story_from_facts),
        "request_for_story": about_story(write(REQUEST))}}
# Task -> (its cluster, its fields from a scene).
TASKS = {}
for _cluster, _tasks in CLUSTERS.items():
    for _name, _fields_of in _tasks.items():
        TASKS[_name] = _cluster, _fields_of


def world_rows(n, seed, split="train", tasks=tuple(TASKS)):
    """n labelled rows {"task", "cluster", "fields", "id"}, each about a newly drawn scene. The tasks take turns.

    Each seed and each split draws other scenes. Raises MiniftError for an unknown task, or for none.
    """
    known = f"there are {', '.join(TASKS)}"
    if not tasks:
        raise MiniftError(f"no task was named; {known}")
    for task in tasks:
        if task not in TASKS:
            raise MiniftError(f"no task {task!r} about the world; {known}")
    rng = random.Random(f"world_tasks/{split}/{seed}")
    rows = []
    for i, scene in enumerate(draw_scenes(n, f"world_tasks/{seed}", split)):
        task = tasks[i % len(tasks)]
        cluster, fields_of = TASKS[task]
        row = {
            "task": task,
            "cluster": cluster,
            "fields": fields_of(scene, rng),
            "id": f"world-{split}-{seed}-{i}"}
        rows.append(row)
    return rows
