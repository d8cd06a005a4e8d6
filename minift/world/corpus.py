"""The text that the base model is pretrained on: stories, and people who talk, ask and write about them.

Half of the documents carry questions and answers, fact lists or retellings in many forms, none of them the chat
template: from these a small model learns to look facts up in its context. All of it is drawn from a seed.
Two further domains, a harbour's log and a kitchen's recipes, are kept out of the base for continued pre-training.
"""

import random

from minift.world import lexicon as words
from minift.world.scenes import draw_scene, tell, with_articles

# what one can ask about a scene: kind -> (questions, short answer, answer in a sentence)
QUESTIONS = {
    "who": (
        ("Who is the story about?", "Which child is in the story?", "What is the name of the child?",
         "What is the child called?"),
        "{name}",
        "The child is called {name}.",
    ),
    "where": (
        ("Where did it happen?", "Where was {name}?", "At which place was {name}?", "Where does the story take place?"),
        "at {place}",
        "It happened at {place}.",
    ),
    "animal": (
        ("Which animal was there?", "What animal did {name} have?", "Who went with {name}?",
         "What kind of animal is in the story?"),
        "a {animal}",
        "The animal was a {animal}.",
    ),
    "thing": (
        ("What did {name} have?", "What was {colour}?", "Which thing is the story about?",
         "What thing did {name} carry?"),
        "a {object}",
        "It was a {object}.",
    ),
    "colour": (
        ("What colour was the {object}?", "Which colour did the {object} have?", "Of what colour was the {object}?",
         "The {object} had which colour?"),
        "{colour}",
        "The {object} was {colour}.",
    ),
    "trouble": (("What went wrong?", "What bad thing happened?", "What was the trouble?", "What happened to {name}?"),
                "{trouble}", "The trouble was that {trouble}."),
    "ending": (("How did it end?", "Did it end well?", "How was {name} in the end?", "Was the end good or bad?"),
               "{ending}", "The story ended {ending}."),
}


def ask(kind, scene, rng, short=None):
    """(question, answer) about one fact of the scene. short: the bare fact instead of a sentence; None draws it."""
    questions, fact, sentence = QUESTIONS[kind]
    short = rng.random() < 0.5 if short is None else short
    facts = {"trouble": scene.trouble_text, "ending": "happily" if scene.happy else "sadly"}
    named = {key: getattr(scene, key) for key in ("name", "place", "animal", "object", "colour")}
    question = rng.choice(questions).format(**named)
    return question, with_articles((fact if short else sentence).format(**named, **facts))


def some_questions(scene, rng, n):
    return [ask(kind, scene, rng) for kind in rng.sample(tuple(QUESTIONS), n)]


def quiz(scene, rng):
    """Questions and answers in one of several printed forms."""
    form = rng.choice(
        ("Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "Q. {q} A. {a}", "{q} - {a}", "{q}\n{a}",
         "Teacher: {q}\nPupil: {a}", "({n}) {q} {a}", "* {q}\n  {a}", "Ask: {q} Say: {a}")
    )
    lines = [form.format(q=q, a=a, n=i + 1) for i, (q, a) in enumerate(some_questions(scene, rng, rng.randint(2, 4)))]
    return rng.choice(("Questions\n", "Quiz\n", "", "What do you remember?\n")) + "\n".join(lines)


def dialogue(scene, rng):
    """Two people talk about what happened."""
    one, two = rng.sample(words.GIRLS + words.BOYS, 2)
    quoted = rng.random() < 0.5
    lines = []
    for question, answer in some_questions(scene, rng, rng.randint(2, 3)):
        if quoted:
            lines.append(f'"{question}" asked {one}. "{answer.rstrip(".")}," said {two}.')
        else:
            lines.append(f"{one}: {question}\n{two}: {answer}")
    return "\n".join(lines)


def facts(scene, rng):
    """The story's facts as a list, in any order."""
    rows = [("Child", "Name", scene.name), ("Place", "Where", scene.place),
            ("Animal", "Pet", with_articles(f"a {scene.animal}")), ("Thing", "Object", scene.object),
            ("Colour", "Its colour", scene.colour), ("Trouble", "What happened", scene.trouble_text),
            ("End", "How it ended", "happily" if scene.happy else "sadly")]
    pick, mark = rng.randrange(2), rng.choice((": ", " = ", " - "))
    rows = rng.sample(rows, rng.randint(3, 6))
    return "\n".join(f"{row[pick]}{mark}{row[2]}" for row in rows)


def true_or_false(scene, rng):
    """Statements about the story, some of them wrong."""
    lines = []
    for kind in rng.sample(("who", "where", "animal", "colour", "ending"), 2):
        true = rng.random() < 0.5
        told = scene if true else draw_scene(rng)
        told = told if kind != "colour" else fill_colour(scene, told)
        statement = ask(kind, told, rng, short=False)[1]
        true = statement == ask(kind, scene, rng, short=False)[1]
        lines.append(f"{statement} {'True' if true else 'False'}.")
    return "\n".join(lines)


def fill_colour(scene, other):
    """The same scene with another scene's colour."""
    return type(scene)(**{**vars(scene), "colour": other.colour})


def plan(scene, rng):
    """What a story is to be about, before it is told: makes telling to order worth learning."""
    rows = [scene.name, with_articles(f"a {scene.animal}"), with_articles(f"a {scene.thing}")]
    rows += [scene.place] if rng.random() < 0.3 else []
    rng.shuffle(rows)
    form = rng.choice(("About: {}\n", "Words: {}\n", "Plan: {}.\nStory: ", "A story with {}:\n", "({})\n"))
    return form.format(", ".join(rows))


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
        return story + "\n" + facts(scene, rng)
    if kind < 0.96:
        return story + "\n" + true_or_false(scene, rng)
    return facts(scene, rng) + "\n" + story


def documents(n, seed, split="train"):
    """n documents of the base corpus."""
    rng = random.Random(f"documents/{split}/{seed}")
    return [document(rng) for _ in range(n)]


def stories(n, seed, split="train"):
    """n bare stories."""
    rng = random.Random(f"stories/{split}/{seed}")
    return [tell(draw_scene(rng), rng) for _ in range(n)]
