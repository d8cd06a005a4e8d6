"""Is an answer true of the story that it is about? Stories, questions and answers are read back, and compared.

This is the world's own checker for instructions that a model has written (way 4). It reads a story with the lexicon, a
question with the templates of `datasets.templates`, and knows the tasks whose answer the facts decide. What it cannot
read it leaves open. Left out: stories that the world would not tell, questions in free words.
"""

import random
import re

from minift.ways.templates import MARK, fill
from minift.world import lexicon as words
from minift.world.facts import FACTS, phrase
from minift.world.rubric import KINDS, ROLES, VERBS, sentences, skeleton
from minift.world.scenes import TROUBLE, Scene, with_articles
from minift.world.scenes import fill as fill_form

LOOKUPS = {"who": "who", "where": "where", "animal": "animal", "thing": "thing", "colour": "colour",
           # Task -> kind of fact.
           "what_went_wrong": "trouble"}
CHOICES = {"animal_or": "animal", "colour_or": "colour", "place_or": "place"}
TASKS = (*LOOKUPS, "ended_well", "is_animal", "is_colour", "somebody_speaks", *CHOICES, "mood")
# Slots that a question fills with what it likes.
NOT_FACTS = ("story", "one", "two", "asked", "an_asked")


def _slots():
    """slot -> what can stand in it, as a regular expression: words of the lexicon, where they leave no doubt."""
    name, animal, thing, colour, place, near = (
        f"(?:{'|'.join(group)})" for group in (words.GIRLS + words.BOYS, words.ANIMALS, words.OBJECTS, words.COLOURS,
                                               words.PLACES, words.PLACE_ADJECTIVES))
    choice = f"(?:at the (?:{near} )?{place}|an? {animal}|{colour})"
    return {"story": ".+", "name": name, "animal": animal, "object": thing, "colour": colour, "one": choice,
            "two": choice, "asked": f"(?:{animal}|{colour})", "an_asked": f"an? {animal}"}


SLOTS = _slots()


def _troubles():
    """skeleton of a sentence -> what went wrong, as a clause with slots."""
    sample = Scene("Ada", True, "the mill", "fox", "kite", "red", "baker", "bread", "sunny", "day", "small", "plain",
                   "the {object} broke", True, False, False, False)
    rng = random.Random(0)
    return {skeleton(part): trouble for trouble, forms in TROUBLE.items() for form in forms
            for part in sentences(fill_form(form, sample, rng))}


TROUBLES = _troubles()


def read_story(story):
    """The facts of a story as fields (see world_facts.known), without those that it does not tell, or tells twice."""
    parts = sentences(story)
    found = re.findall(r"[A-Za-z][A-Za-z-]*", story)
    places = re.findall(r"\bthe (?:[a-z-]+ )?[a-z-]+", story)
    seen = {"name": {word for word in found if KINDS.get(word) == "NAME"},
            "animal": {word for word in found if KINDS.get(word) == "ANIMAL"},
            "object": {word for before, word in zip(["", *found], found) if KINDS.get(word) == "OBJECT"
                       and (word not in VERBS or before == "the" or KINDS.get(before) == "COLOUR")},
            "colour": {word for word in found if KINDS.get(word) == "COLOUR"},
            "place": {place for place in map(place_in, places) if place},
            "trouble": {TROUBLES[skeleton(part)] for part in parts if skeleton(part) in TROUBLES}}
    facts = {key: next(iter(values)) for key, values in seen.items() if len(values) == 1}
    if "object" not in facts or "animal" not in facts:
        facts.pop("trouble", None)
    if "trouble" in facts:
        facts["trouble"] = facts["trouble"].format(**facts)
    facts |= {f"an_{key}": with_articles(f"a {facts[key]}") for key in ("animal", "object") if key in facts}
    if "colour" in facts and "object" in facts:
        facts["thing"] = f"{facts['colour']} {facts['object']}"
        facts["a_thing"] = with_articles(f"a {facts['thing']}")
    end = ROLES.get(skeleton(parts[-1])) if parts else None
    if end in ("happy", "sad"):
        facts |= {"mood": end, "ending": "happily" if end == "happy" else "sadly"}
    return facts


def place_in(words):
    """"the old mill" as it is, "the mill when" without its last word; None where no place is named."""
    found = words.split()
    for n in (3, 2):
        if len(found) >= n and KINDS.get(found[n - 1]) == "PLACE" and (n == 2 or KINDS.get(found[1]) == "NEAR"):
            return " ".join(found[:n])
    return None


def make_verdict(templates):
    """verdict(user_turn, answer) -> True, False, or None where that cannot be told. templates: of read_templates.

    True: the turn is one of the templates with a story in it, what the question takes for granted is so in the story,
    and the answer is the one that the template has for it. White space does not count.
    """
    known = [(task, pattern(template["instruction"]), template["response"]) for task in TASKS
             for template in templates[task]["templates"] if not template["inverted"]]

    def verdict(user_turn, answer):
        turn, said = (" ".join(text.split()) for text in (user_turn, answer))
        matches = [(task, form.fullmatch(turn), response) for task, form, response in known]
        found = [judge(task, match.groupdict(), response, said) for task, match, response in matches if match]
        return True if True in found else False if False in found else None
    return verdict


def pattern(instruction):
    """A template as a regular expression with a group for each slot."""
    text, parts, end, seen = " ".join(instruction.split()), [], 0, set()
    for mark in MARK.finditer(text):
        parts.append(re.escape(text[end:mark.start()]))
        name, end = mark[1], mark.end()
        if name is None:
            parts.append(re.escape(mark[0][0]))
        else:
            parts.append(f"(?P={name})" if name in seen else f"(?P<{name}>{SLOTS.get(name, '[^.?!]+?')})")
            seen.add(name)
    return re.compile("".join([*parts, re.escape(text[end:])]))


def judge(task, slots, response, said):
    """Whether `said` is the template's response for the story in the slots; None when the story does not tell."""
    facts = read_story(slots["story"])
    if any(slots[name] != facts.get(name, slots[name]) for name in slots if name not in NOT_FACTS):
        # The question is about another child, animal or thing.
        return False
    right = answer_of(task, facts, slots)
    return None if right is None else said == fill(response, {**facts, **slots, "answer": right})


def answer_of(task, facts, slots):
    """The right answer of a task about a story with these facts; None when they do not decide it."""
    if task in LOOKUPS:
        text = FACTS[LOOKUPS[task]][2]
        return fill(text, facts) if all(name in facts for name in re.findall(r"{(\w+)}", text)) else None
    if task == "somebody_speaks":
        return "yes" if '"' in slots["story"] else "no"
    if task in ("ended_well", "mood"):
        mood = facts.get("mood")
        return mood if task == "mood" or mood is None else "yes" if mood == "happy" else "no"
    kind = CHOICES.get(task, task.removeprefix("is_"))
    if kind not in facts:
        return None
    if task in CHOICES:
        right = phrase(kind, facts[kind])
        return right if right in (slots["one"], slots["two"]) else None
    asked = slots.get("asked", slots.get("an_asked"))
    return "yes" if asked in (facts[kind], with_articles(f"a {facts[kind]}")) else "no"
