"""Check whether an answer is true of its story: parse the story, the question and the answer, and compare them.

This is the world's own checker for instructions that a model has written (way 4). It parses a story with the lexicon,
and a question with the templates of `ways.templates`. It knows the tasks whose answer follows from the story's facts.
The verdict on a text that it cannot parse is None. Left out: stories that the world would not tell, questions that
follow no template.
"""

import re

from minift.ways.templates import MARK, fill, slots
from minift.world import lexicon as words
from minift.world.exercises import yes_no
from minift.world.facts import FACTS, answer_phrase
from minift.world.rubric import KINDS, TROUBLES, VERBS, role_of, sentences, skeleton, split_words
from minift.world.scenes import with_articles
from minift.world.tasks import CHOICES, LOOKUPS

# Task -> kind of fact.
COMPARISONS = {"is_animal": "animal", "is_colour": "colour"}
TASKS = (
    *LOOKUPS,
    "ended_well",
    *COMPARISONS,
    "somebody_speaks",
    *CHOICES,
    "mood")


def one_of(group):
    """A regular expression for one word of a list."""
    return f"(?:{'|'.join(group)})"


def slot_patterns():
    """Slot -> a regular expression for the texts that can fill it, made of words of the lexicon."""
    name = one_of(words.GIRLS + words.BOYS)
    animal = one_of(words.ANIMALS)
    thing = one_of(words.OBJECTS)
    colour = one_of(words.COLOURS)
    near = one_of(words.PLACE_ADJECTIVES)
    place = f"at the (?:{near} )?{one_of(words.PLACES)}"
    choice = f"(?:{place}|an? {animal}|{colour})"
    return {
        "story": ".+",
        "name": name,
        "animal": animal,
        "object": thing,
        "colour": colour,
        "one": choice,
        "two": choice,
        "asked": f"(?:{animal}|{colour})",
        "an_asked": f"an? {animal}"}


SLOTS = slot_patterns()


# ---- stories ----


def read_story(story):
    """The facts of a story as fields (see facts.scene_fields); a fact is left out if it has no value or several."""
    facts = {}
    for key, values in words_for_facts(story).items():
        if len(values) == 1:
            facts[key] = values.pop()
    # The text of a trouble names the animal or the thing.
    trouble = facts.pop("trouble", None)
    if trouble and "object" in facts and "animal" in facts:
        facts["trouble"] = trouble.format(**facts)
    if "colour" in facts and "object" in facts:
        facts["thing"] = f"{facts['colour']} {facts['object']}"
    for key in ("animal", "object", "thing"):
        if key in facts:
            article = "a" if key == "thing" else "an"
            facts[f"{article}_{key}"] = with_articles(f"a {facts[key]}")
    return facts | read_ending(story)


def words_for_facts(story):
    """Kind of fact -> the set of its values in the story: words, places or troubles."""
    seen = {key: set() for key in ("name", "animal", "object", "colour", "place", "trouble")}
    before = ""
    for word in split_words(story):
        kind = KINDS.get(word, "").lower()
        # "saw" is a noun in "the saw" and "red saw"; everywhere else it is a verb.
        verb = word in VERBS and before != "the" and KINDS.get(before) != "COLOUR"
        if kind in ("name", "animal", "object", "colour") and not verb:
            seen[kind].add(word)
        before = word
    for found in re.findall(r"\bthe (?:[a-z-]+ )?[a-z-]+", story):
        place = place_in(found)
        if place:
            seen["place"].add(place)
    for sentence in sentences(story):
        form = skeleton(sentence)
        if form in TROUBLES:
            seen["trouble"].add(TROUBLES[form])
    return seen


def place_in(text):
    """The place at the beginning of a text: "the mill" in "the mill when". None if the text begins with no place."""
    found = text.split()
    for n in (3, 2):
        if len(found) < n or KINDS.get(found[n - 1]) != "PLACE":
            continue
        if n == 2 or KINDS.get(found[1]) == "NEAR":
            return " ".join(found[:n])
    return None


def read_ending(story):
    """The fields that say how the story ends, from its last sentence; {} if that sentence is no ending."""
    parts = sentences(story)
    role = role_of(parts[-1]) if parts else None
    if role == "happy":
        return {"mood": "happy", "ending": "happily"}
    if role == "sad":
        return {"mood": "sad", "ending": "sadly"}
    return {}


# ---- questions and answers ----


def make_verdict(templates):
    """A function verdict(user_turn, answer) -> True, False or None (not decidable). templates: of read_templates.

    True: the turn is a filled template, the words in the question (a name, an animal) agree with the story, and the
    answer is the one that the template has for it. Differences in white space do not count.
    """
    known = []
    for task in TASKS:
        for template in templates[task]["templates"]:
            if not template["inverted"]:
                form = pattern(template["instruction"])
                known.append((task, form, template["response"]))

    def verdict(user_turn, answer):
        turn, answer = (" ".join(text.split()) for text in (user_turn, answer))
        found = set()
        for task, form, response in known:
            match = form.fullmatch(turn)
            if match:
                found.add(check_answer(task, match.groupdict(), response, answer))
        if True in found:
            return True
        return False if False in found else None

    return verdict


def pattern(instruction):
    """A template as a regular expression with a group for each slot."""
    text = " ".join(instruction.split())
    parts, end, seen = [], 0, set()
    for mark in MARK.finditer(text):
        parts.append(re.escape(text[end:mark.start()]))
        name, end = mark[1], mark.end()
        if name is None:
            # {{ and }} stand for one brace.
            parts.append(re.escape(mark[0][0]))
        elif name in seen:
            parts.append(f"(?P={name})")
        else:
            # A slot that SLOTS does not list takes any part of a sentence.
            allowed = SLOTS.get(name, "[^.?!]+?")
            parts.append(f"(?P<{name}>{allowed})")
            seen.add(name)
    parts.append(re.escape(text[end:]))
    return re.compile("".join(parts))


def check_answer(task, values, response, answer):
    """Is `answer` the template's response for these values of its slots? None: the facts do not decide it."""
    facts = read_story(values["story"])
    for name, value in values.items():
        # The question is about another child, animal or thing.
        if value != facts.get(name, value):
            return False
    right = right_answer(task, facts, values)
    if right is None:
        return None
    return answer == fill(response, {**facts, **values, "answer": right})


def right_answer(task, facts, values):
    """The right answer of a task about a story with these facts; None when they do not decide it."""
    if task in LOOKUPS:
        form = FACTS[LOOKUPS[task]]["answer"]
        told = all(name in facts for name in slots(form))
        return fill(form, facts) if told else None
    if task == "somebody_speaks":
        return yes_no('"' in values["story"])
    if task == "mood":
        return facts.get("mood")
    if task == "ended_well":
        return yes_no(facts["mood"] == "happy") if "mood" in facts else None
    if task in COMPARISONS:
        return right_comparison(facts.get(COMPARISONS[task]), values)
    return right_choice(CHOICES[task], facts, values)


def right_comparison(own, values):
    """Is the story's own animal or colour the one that is asked about?"""
    if own is None:
        return None
    asked = values.get("asked", values.get("an_asked"))
    return yes_no(asked in (own, with_articles(f"a {own}")))


def right_choice(kind, facts, values):
    """The one of the two options that is true of the story; None if neither is."""
    if kind not in facts:
        return None
    right = answer_phrase(kind, facts[kind])
    return right if right in (values["one"], values["two"]) else None
