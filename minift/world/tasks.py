"""Labelled examples of many tasks about the world's scenes: fields that templates turn into instructions.

Each task draws from a scene a story and what is asked of it. The answer is taken from the scene or from the told text,
so that it is true; yes and no are equally likely, and so are both places of the right option. The templates are in
data/instructions/templates.json. Left out: tasks without a story, answers that are a matter of taste.
"""

import random
import re
from dataclasses import replace
from functools import partial

from minift.errors import MiniftError
from minift.ways.templates import fill
from minift.world import lexicon as words
from minift.world.facts import FACTS, another, fact, known, mentions, phrase, retell, told
from minift.world.rubric import ROLES, VERBS, sentences, skeleton
from minift.world.scenes import draw_scenes, tell, with_articles

# Each equally likely.
COUNTS = {"sentences": (5, 6, 7, 8, 9), "name": (2, 3, 4, 5), "animal": (1, 2, 3, 4)}
# Either may come first.
PAIRS = (("name", "animal"), ("animal", "place"), ("object", "helper"), ("helper", "food"))
# Role of a sentence, what it has, the event as a clause.
EVENTS = (
    ("detail", " met the ", "they met the {helper}"), ("detail", " ate some ", "they ate some {food}"),
    ("detail", " sniffed ", "the {animal} sniffed at the {object}"), ("detail", " played ", "they played"),
    ("trouble", "", "{trouble}"), ("speech", " said the ", "the {helper} said something"),
    ("speech", "", "{name} said something"),
    ("kindness", " shared ", "{name} shared some {food}"), ("kindness", " helped ", "{name} helped the {helper}"),
    ("kindness", " gave ", "{name} gave the {animal} some {food}"),
)
# Sentences of a text that is to be rewritten; the third at the latest names the thing.
PASSAGE = 3
SUMMARY = "{name} and {an_animal} at {place}: {trouble}, and it ended {ending}."
REQUEST = "Write a story about {name}, {an_animal} and {a_thing}."


# ---- tasks: (scene, rng) -> fields; "answer" is what is to be answered ----


def look_up(kind, scene, rng):
    fields = told(scene, rng)
    return {**fields, "answer": fact(kind, fields)[2]}


def ended_well(scene, rng):
    return {**told(scene, rng), "answer": "yes" if scene.happy else "no"}


def somebody_speaks(scene, rng):
    speech = rng.random() < 0.5
    return {**told(replace(scene, speech=speech), rng), "answer": "yes" if speech else "no"}


def is_it(kind, scene, rng):
    """Is the animal (or colour) the one that is asked about?"""
    true = rng.random() < 0.5
    asked = getattr(scene, kind) if true else another(kind, scene, rng)
    return {**told(scene, rng), "asked": asked, "an_asked": with_articles(f"a {asked}"),
            "answer": "yes" if true else "no"}


def either(kind, scene, rng):
    """Which of two is it?"""
    right, wrong = phrase(kind, getattr(scene, kind)), phrase(kind, another(kind, scene, rng))
    one, two = rng.sample((right, wrong), 2)
    return {**told(scene, rng), "one": one, "two": two, "answer": right}


def mood(scene, rng):
    fields = told(scene, rng)
    return {**fields, "answer": fields["mood"]}


def feeling(scene, rng):
    """The word for what the child felt in the end; endings with "not" or without such a word are told anew."""
    def last_feelings(story):
        last = re.findall(r"[\w-]+", sentences(story)[-1])
        return [] if "not" in last else [word for word in last if word in words.GLAD + words.SORRY]

    fields = retell(scene, rng, lambda story, _: last_feelings(story))
    return {**fields, "answer": last_feelings(fields["story"])[0]}


def count(what, scene, rng):
    """How many sentences, or how often is the child (or the animal) named?"""
    number = rng.choice(COUNTS[what])

    def tally(story, fields):
        return len(sentences(story)) if what == "sentences" else len(mentions(fields[what], story))

    return {**retell(scene, rng, lambda story, fields: tally(story, fields) == number), "answer": str(number)}


def first_event(scene, rng):
    """Which of two things happened first?"""
    def events(story, fields):
        found = [next((clause for role, part, clause in EVENTS if role == ROLES.get(skeleton(line)) and part in line),
                      None) for line in sentences(story)]
        return [fill(clause, {**fields, "helper": scene.helper, "food": scene.food}) for clause in found if clause]

    fields = retell(scene, rng, lambda story, fields: len(events(story, fields)) > 1)
    happened = events(fields["story"], fields)
    earlier, later = (happened[i] for i in sorted(rng.sample(range(len(happened)), 2)))
    return {**fields, **in_any_order(earlier, later, rng), "answer": earlier}


def first_named(scene, rng):
    """Which of two words comes first in the text?"""
    kinds = rng.sample(rng.choice(PAIRS), 2)
    first, second = (getattr(scene, kind).split()[-1] for kind in kinds)

    def in_order(story, _):
        places = [mentions(word, story) for word in (first, second)]
        return all(places) and places[0][0].start() < places[1][0].start()

    earlier, later = ({"name": scene.name, "place": scene.place}.get(kind, f"the {getattr(scene, kind)}")
                      for kind in kinds)
    return {**retell(scene, rng, in_order), **in_any_order(earlier, later, rng), "answer": earlier}


def sort_sentences(scene, rng):
    """In which order do two sentences stand in the story: "A, B" or "B, A"?"""
    fields = told(scene, rng)
    parts = sentences(fields["story"])
    earlier, later = (parts[i] for i in sorted(rng.sample(range(len(parts)), 2)))
    options = in_any_order(earlier, later, rng)
    return {**fields, **options, "answer": "A, B" if options["one"] == earlier else "B, A"}


def in_any_order(earlier, later, rng):
    one, two = rng.sample((earlier, later), 2)
    return {"one": one, "two": two, "earlier": earlier, "later": later}


def change(kind, scene, rng):
    """The beginning of the story with another name, animal or colour: two scenes told with the same choices."""
    seed, new = rng.random(), another(kind, scene, rng)
    stories = [tell(version, random.Random(seed)) for version in (scene, replace(scene, **{kind: new}))]
    passage, answer = (" ".join(sentences(story)[:PASSAGE]) for story in stories)
    return {**known(scene, stories[0]), "passage": passage, "old": getattr(scene, kind), "new": new,
            "an_old": phrase(kind, getattr(scene, kind)), "a_new": phrase(kind, new), "answer": answer}


def missing_word(scene, rng):
    """A story with ___ for a word that it has elsewhere too."""
    fields = told(scene, rng)
    again = [mentions(fields[kind], fields["story"])[1:] for kind in ("name", "animal", "object", "colour")
             if fields[kind] not in VERBS]
    gap = rng.choice(rng.choice([found for found in again if found]))
    return {**fields, "gapped": fields["story"][:gap.start()] + "___" + fields["story"][gap.end():], "answer": gap[0]}


def finish_fact(scene, rng):
    fields = told(scene, rng)
    _, stem, answer = fact(rng.choice(tuple(FACTS)), fields)
    return {**fields, "stem": stem, "answer": answer}


def last_sentence(scene, rng):
    fields = told(scene, rng)
    parts = sentences(fields["story"])
    return {**fields, "beginning": " ".join(parts[:-1]), "answer": parts[-1]}


def written(form, scene, rng):
    """A text of a fixed form that is filled with the facts: a summary, a title, the story itself."""
    fields = told(scene, rng)
    return {**fields, "answer": fill(form, fields)}


def question_for_answer(scene, rng):
    """An answer is given: what was the question?"""
    fields = told(scene, rng)
    question, _, given = fact(rng.choice(tuple(FACTS)), fields)
    return {**fields, "fact": given, "answer": question}


def story_from_facts(scene, rng):
    fields = told(scene, rng)
    lines = [f"{label}: {fields[key]}" for label, key in (
        ("child", "name"), ("animal", "animal"), ("thing", "thing"), ("place", "place"), ("trouble", "trouble"),
        ("end", "mood"))]
    return {**fields, "facts": "\n".join(rng.sample(lines, len(lines))), "answer": fields["story"]}


# task -> (cluster, its fields from a scene)
TASKS = {
    **{kind: ("lookup", partial(look_up, kind)) for kind in ("who", "where", "animal", "thing", "colour")},
    "what_went_wrong": ("lookup", partial(look_up, "trouble")),
    "ended_well": ("yes_no", ended_well), "is_animal": ("yes_no", partial(is_it, "animal")),
    "is_colour": ("yes_no", partial(is_it, "colour")), "somebody_speaks": ("yes_no", somebody_speaks),
    **{f"{kind}_or": ("choice", partial(either, kind)) for kind in ("animal", "colour", "place")},
    "mood": ("sentiment", mood), "feeling": ("sentiment", feeling),
    **{f"count_{what}": ("counting", partial(count, what)) for what in COUNTS},
    "first_event": ("ordering", first_event), "first_named": ("ordering", first_named),
    "sort_sentences": ("ordering", sort_sentences),
    **{f"change_{kind}": ("rewriting", partial(change, kind)) for kind in ("name", "colour", "animal")},
    "missing_word": ("completion", missing_word), "finish_fact": ("completion", finish_fact),
    "last_sentence": ("completion", last_sentence),
    "summary": ("summarising", partial(written, SUMMARY)),
    "title": ("summarising", partial(written, "{name} and the {thing}")),
    "key_facts": ("summarising", partial(written, "{name}, {an_animal}, {a_thing}, {place}")),
    **{task: ("generation", partial(written, "{story}")) for task in (
        "story_child_animal", "story_ending", "story_thing_place")},
    "question_for_answer": ("inversion", question_for_answer), "story_from_facts": ("inversion", story_from_facts),
    "request_for_story": ("inversion", partial(written, REQUEST)),
}


def world_rows(n, seed, split="train", tasks=tuple(TASKS)):
    """n labelled rows {"task", "cluster", "fields", "id"}, the tasks in turn, each about a scene of its own.

    seed: other seeds, other scenes; no scene is in two splits. Raises MiniftError for a task that there is not.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise MiniftError(f"no task {unknown[0]!r} about the world; there are {', '.join(TASKS)}" if unknown else
                          f"no task was named; there are {', '.join(TASKS)}")
    rng = random.Random(f"world_tasks/{split}/{seed}")
    rows = []
    for i, scene in enumerate(draw_scenes(n, f"world_tasks/{seed}", split)):
        task = tasks[i % len(tasks)]
        cluster, fields = TASKS[task]
        rows.append({"task": task, "cluster": cluster, "fields": fields(scene, rng), "id": f"world-{split}-{seed}-{i}"})
    return rows
