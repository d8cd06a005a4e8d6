"""Worksheets: a story, and exercises of many kinds about it, each in one of many wordings, with its answer.

Real pre-training text is full of quizzes, school books and lists of questions; from these a model knows many skills
before anybody tunes it. The world's worksheets give the base the same start: every kind of exercise that the clusters
of instruction tasks ask for, in other words and other printed forms, never in the chat template. Left out: exercises
about more than one story, worked solutions.
"""

import random
import re

from minift.ways.templates import fill
from minift.world import lexicon as words
from minift.world.facts import FACTS, another, fact, known, mentions, phrase
from minift.world.rubric import sentences
from minift.world.scenes import draw_scene, tell, with_articles
from minift.world.wordings import WORDINGS

FORMS = ("{q}\n{a}", "{q} {a}", "{q} - {a}", "{q} = {a}", "Task: {q}\nSolution: {a}", "Teacher: {q}\nPupil: {a}",
         "Exercise {n}: {q}\nAnswer: {a}", "({n}) {q}\n    {a}", "- {q}\n- {a}", "{one}: {q}\n{two}: {a}", "{q} ({a})",
         "{q} -> {a}", "Do this: {q}\nDone: {a}")
SUMMARY = "{name} and {an_animal} at {place}: {trouble}, and it ended {ending}."
MARKS = ("", "", "{n}. ", "({n}) ", "- ", "Task {n}: ")
HEADS = (("", ""), ("", ""), ("Questions\n", "Answers\n"), ("Find out:\n", "Found:\n"), ("Before you read: ", "Now: "))
LABELS = ("", "", "Story: ", "Text: ", "Read this. ")
LEADS = ("Please: ", "Read the story and answer. ", "Look into the text. ", "I want to know this. ", "My sister asks: ",
         "Now you. ", "Think of the story. ", "Help me. ", "One more thing. ", "I am not sure. ", "For our class: ",
         "My turn to ask. ", "Read well. ")
TAILS = (" Please.", " Only the answer.", " Write nothing else.", " Thank you.", " It is in the text.", " In short.")
# What stands behind such a request would belong to its text.
QUOTING = ("order", "gap", "finish", "next", "rewrite")
# how much more often than others, because they take more practice
OFTEN = {"is it": 3, "either": 2, "rewrite": 2, "mood": 2, "first": 2, "gap": 2, "question": 2, "order": 0.5}


def exercise(kind, scene, story, rng):
    """(request, answer) of one kind of exercise about a told scene, or None where the story does not lend itself."""
    fields = {**known(scene, story), "time": scene.time}
    found = ANSWERS[kind](scene, fields, rng)
    if found is None:
        return None
    request = fill(rng.choice(WORDINGS[kind]), {**fields, **found})
    return request, found["answer"]


def look_up(kind):
    return lambda scene, fields, rng: {"answer": fact(kind, fields)[2]}


def fixed(form):
    return lambda scene, fields, rng: {"answer": fill(form, fields)}


def yes_no(true):
    return "yes" if true else "no"


def is_it(scene, fields, rng):
    """An animal, colour or name that is in the story, or is not."""
    kind, true = rng.choice(("animal", "colour", "name")), rng.random() < 0.5
    asked = getattr(scene, kind) if true else another(kind, scene, rng)
    return {"asked": asked, "an_asked": phrase(kind, asked), "answer": yes_no(true)}


def either(scene, fields, rng):
    kind = rng.choice(("animal", "colour", "place", "name"))
    right, wrong = phrase(kind, getattr(scene, kind)), phrase(kind, another(kind, scene, rng))
    return {**two_of(right, wrong, rng), "answer": right}


def two_of(a, b, rng):
    one, two = rng.sample((a, b), 2)
    return {"one": one, "two": two}


def feeling(scene, fields, rng):
    last = re.findall(r"[\w-]+", sentences(fields["story"])[-1])
    felt = [word for word in last if word in words.GLAD + words.SORRY and "not" not in last]
    return {"answer": felt[0]} if felt else None


def count_word(scene, fields, rng):
    word = rng.choice((scene.name, scene.animal, scene.object))
    return {"word": word, "answer": str(len(mentions(word, fields["story"])))}


def first(scene, fields, rng):
    """Two words of the story: which stands there first?"""
    named = {"name": scene.name, "place": scene.place, **{kind: f"the {getattr(scene, kind)}" for kind in (
        "animal", "object", "helper", "food")}}
    places = {text: mentions(text.split()[-1], fields["story"]) for text in named.values()}
    there = [text for text, found in places.items() if found]
    a, b = rng.sample(there, 2)
    earlier = min(a, b, key=lambda text: places[text][0].start())
    return {**two_of(a, b, rng), "answer": earlier}


def order(scene, fields, rng):
    parts = sentences(fields["story"])
    earlier, later = (parts[i] for i in sorted(rng.sample(range(len(parts)), 2)))
    options = two_of(earlier, later, rng)
    return {**options, "answer": "A, B" if options["one"] == earlier else "B, A"}


def gap(scene, fields, rng):
    """A sentence of the story with ___ for a word."""
    word = rng.choice((scene.name, scene.animal, scene.object, scene.colour))
    line = rng.choice([part for part in sentences(fields["story"]) if mentions(word, part)])
    place = rng.choice(mentions(word, line))
    return {"gapped": line[:place.start()] + "___" + line[place.end():], "answer": word}


def finish(scene, fields, rng):
    _, stem, answer = fact(rng.choice(tuple(FACTS)), fields)
    return {"stem": stem, "answer": answer}


def following(scene, fields, rng):
    parts = sentences(fields["story"])
    i = rng.randrange(len(parts) - 1)
    return {"sentence": parts[i], "answer": parts[i + 1]}


def rewrite(scene, fields, rng):
    """One or two sentences with another name, animal or colour."""
    kind = rng.choice(("name", "animal", "colour"))
    old, new = getattr(scene, kind), another(kind, scene, rng)
    parts = sentences(fields["story"])
    start = rng.randrange(len(parts) - 1)
    text = " ".join(parts[start:start + rng.choice((1, 2))])
    if not mentions(old, text):
        return None
    changed = re.sub(rf"(?<![\w-]){re.escape(old)}(?![\w-])", new, text)
    changed = with_articles(re.sub(rf"\b([Aa])n (?={re.escape(new)}\b)", r"\1 ", changed))
    return {"old": old, "new": new, "sentence": text, "answer": changed}


def question(scene, fields, rng):
    asked, _, answered = fact(rng.choice(tuple(FACTS)), fields)
    return {"answered": answered, "answer": asked}


ANSWERS = {
    **{kind: look_up(kind) for kind in ("who", "where", "animal", "thing", "colour", "trouble")},
    "ended well": lambda scene, fields, rng: {"answer": yes_no(scene.happy)},
    "speaks": lambda scene, fields, rng: {"answer": yes_no(scene.speech)},
    "is it": is_it, "either": either, "mood": fixed("{mood}"), "feeling": feeling,
    "count sentences": lambda scene, fields, rng: {"answer": str(len(sentences(fields["story"])))},
    "count word": count_word, "first": first, "order": order, "gap": gap, "finish": finish, "next": following,
    "last": lambda scene, fields, rng: {"answer": sentences(fields["story"])[-1]},
    "summary": fixed(SUMMARY), "title": fixed("{name} and the {thing}"),
    "key facts": fixed("{name}, {an_animal}, {a_thing}, {place}"), "rewrite": rewrite, "question": question,
}


def worksheet(rng):
    """A story and then some exercises, each with its answer; or the exercises, the story, and then the answers."""
    scene = draw_scene(rng)
    story = tell(scene, rng)
    kinds = dict.fromkeys(rng.choices(tuple(ANSWERS), [OFTEN.get(kind, 1) for kind in ANSWERS], k=6))
    found = {kind: pair for kind in kinds if (pair := exercise(kind, scene, story, rng))}
    pairs = [(wrap(kind, request, rng), answer) for kind, (request, answer) in found.items()]
    return (story_first if rng.random() < 0.5 else exercises_first)(story, pairs, rng)


def wrap(kind, request, rng):
    """Often a few words before or behind a request say nothing about it, as people write."""
    lead = rng.choice(LEADS) if rng.random() < 0.4 else ""
    tail = rng.choice(TAILS) if kind not in QUOTING and rng.random() < 0.25 else ""
    return lead + request + tail


def story_first(story, pairs, rng):
    form = rng.choice(FORMS)
    one, two = rng.sample(words.GIRLS + words.BOYS, 2)
    return "\n".join([story, *(form.format(q=q, a=a, n=n, one=one, two=two) for n, (q, a) in enumerate(pairs, 1))])


def exercises_first(story, pairs, rng):
    pairs = pairs[:rng.randint(1, 4)]
    mark, (head, tail) = rng.choice(MARKS), rng.choice(HEADS)
    asked, answered = ([mark.format(n=n) + pair[i] for n, pair in enumerate(pairs, 1)] for i in (0, 1))
    return "\n".join([head + asked[0], *asked[1:], rng.choice(LABELS) + story, tail + answered[0], *answered[1:]])


def worksheets(n, seed, split="train"):
    """n worksheets."""
    rng = random.Random(f"worksheets/{split}/{seed}")
    return [worksheet(rng) for _ in range(n)]
