"""The toy world: seeded, consistent, readable; no split shares a scene; the rubric reads back what the world tells."""

import random
import re

import pytest

from minift.world import corpus, domains, facts, lexicon, rubric
from minift.world import instructions as tasks
from minift.world import scenes as world


def kinds_of(word):
    return [name for name, group in vars(lexicon).items() if name.isupper() and word in group]


def test_no_word_belongs_to_two_kinds():
    """A story can be read back only if each word of the lexicon says what kind of thing it is."""
    every = [word for name, group in vars(lexicon).items() if name.isupper() for word in group]
    assert len(every) == len(set(every)), sorted(word for word in every if every.count(word) > 1)


def test_sentence_forms_contain_no_stray_thing():
    """The fixed words of the forms are never a name, animal, object, colour or place, but for one verb."""
    forms = [
        form
        for group in world.FORMS.values()
        for form in (group if isinstance(group, list) else sum(group.values(), []))
    ]
    fixed = {word for form in forms for word in re.findall(r"[A-Za-z-]+", re.sub(r"{\w+}", " ", form))}
    things = {"GIRLS", "BOYS", "ANIMALS", "OBJECTS", "COLOURS", "PLACES"}
    assert {word for word in fixed if set(kinds_of(word)) & things} == rubric.VERBS


def test_same_seed_same_text_other_seed_other_text(documents=corpus.documents):
    """All text comes from its seed."""
    assert documents(20, 3) == documents(20, 3)
    assert documents(20, 3) != documents(20, 4)


def test_splits_share_no_scene(draw_scenes=world.draw_scenes):
    """Training, validation and test scenes are different scenes."""
    splits = [set(draw_scenes(3000, 0, split)) for split in ("train", "valid", "test")]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


def test_no_two_stories_are_alike(stories=corpus.stories):
    """Two thousand stories are all different, and they use a vocabulary of more than a thousand words."""
    told = stories(2000, 0)
    assert len(set(told)) == 2000
    assert len({word for story in told for word in re.findall(r"[a-z-]+", story.lower())}) > 1000


def test_every_fact_of_a_story_can_be_looked_up(tell=world.tell):
    """Name, animal, thing and place are in the text of every story, the thing with its colour."""
    rng = random.Random(0)
    for scene in world.draw_scenes(300, 1):
        story = tell(scene, rng)
        for fact in (scene.name, scene.animal, scene.object, scene.thing, scene.place):
            assert fact in story, (fact, story)


def test_articles_fit(with_articles=world.with_articles):
    """An owl, a fox; the letter after the article decides."""
    assert with_articles("A orange owl met a fox and a otter.") == "An orange owl met a fox and an otter."


def test_answers_are_the_facts(ask=corpus.ask):
    """Each question is answered with the scene's own fact."""
    rng = random.Random(0)
    for scene in world.draw_scenes(50, 2):
        assert ask("who", scene, rng, short=True)[1] == scene.name
        assert scene.place in ask("where", scene, rng)[1] and scene.animal in ask("animal", scene, rng)[1]
        assert scene.object in ask("thing", scene, rng)[1] and scene.colour in ask("colour", scene, rng)[1]
        assert ask("ending", scene, rng, short=True)[1] == ("happily" if scene.happy else "sadly")


def test_true_or_false_tells_the_truth(true_or_false=corpus.true_or_false):
    """A statement is called true exactly if the question about the scene has that answer."""
    rng, called = random.Random(0), {True: 0, False: 0}
    for scene in world.draw_scenes(200, 3):
        right = {ask for kind in facts.FACTS for ask in [corpus.ask(kind, scene, rng, short=False)[1]]}
        for line in true_or_false(scene, rng).splitlines():
            statement, verdict = line.rsplit(" ", 1)
            called[verdict == "True."] += 1
            assert (statement in right) == (verdict == "True.")
    assert min(called.values()) > 100


def test_the_domains_are_not_in_the_base_corpus():
    """The new domains bring words that the base has never read."""
    known = set(re.findall(r"[A-Za-z]+", " ".join(corpus.documents(3000, 0))))
    for name in domains.DOMAINS:
        words = re.findall(r"[A-Za-z]+", " ".join(domains.domain_texts(name, 100, 0)))
        assert sum(word not in known for word in words) / len(words) > 0.2


def test_instructions_are_chats_of_all_tasks(instructions=tasks.instructions):
    """Every task comes up; each row has a cluster, an id of its own, and a user turn with its answer."""
    rows = instructions(90, 0)
    assert {row["task"] for row in rows} == set(tasks.TASKS) and len({row["id"] for row in rows}) == 90
    assert all([message["role"] for message in row["messages"]] == ["user", "assistant"] for row in rows)
    assert all(row["cluster"] == tasks.TASKS[row["task"]][0] for row in rows)


def test_instructions_hold_the_answer(instructions=tasks.instructions):
    """A lookup's answer stands in the story of its own instruction."""
    for row in instructions(200, 1, tasks=("who", "colour", "animal", "thing")):
        question, answer = (message["content"] for message in row["messages"])
        assert re.findall(r"[\w-]+", answer)[-1] in question


# ---- the rubric ----


def whole_story(seed=0):
    scene = world.draw_scenes(1, seed)[0]
    return world.tell(scene, random.Random(seed)), scene


def test_the_world_tells_stories_without_faults(judge=rubric.judge):
    """The rubric knows every sentence form: a told story is whole, keeps what was asked, and has no fault."""
    rng = random.Random(0)
    for scene in world.draw_scenes(500, 4):
        story = world.tell(scene, rng)
        seen = judge(story, scene)
        assert (seen.whole, seen.asked, seen.faults) == (1, 1, 0), (story, seen)
        assert (seen.happy, seen.kind, seen.speech) == (scene.happy, scene.kind, scene.speech)


def test_points_add_up_to_ten(judge=rubric.judge):
    """A whole, happy, kind story in which somebody speaks has 10 points; a plain sad one 4.5."""
    rng = random.Random(1)
    best = [scene for scene in world.draw_scenes(400, 5) if scene.happy and scene.kind and scene.speech]
    plain = [scene for scene in world.draw_scenes(400, 5) if not (scene.happy or scene.kind or scene.speech)]
    assert best and all(judge(world.tell(scene, rng), scene).score == 10 for scene in best)
    assert plain and all(judge(world.tell(scene, rng), scene).score == 4.5 for scene in plain)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda story, scene: story[:60],  # a fragment
        lambda story, scene: story + " " + story,  # said twice
        lambda story, scene: " ".join(reversed(story.split())),  # a heap of words
        lambda story, scene: f"{scene.name} was glad with the {scene.animal} and the {scene.thing}.",
        lambda story, scene: story.replace(scene.animal, "owl" if scene.animal != "owl" else "fox"),
        lambda story, scene: story.replace(scene.colour, "red" if scene.colour != "red" else "blue"),
        lambda story, scene: story.replace(scene.name, "Zoe" if scene.name != "Zoe" else "Ada"),
        lambda story, scene: story.rsplit(". ", 1)[0],  # the ending is missing
        lambda story, scene: story.split(". ", 1)[1],  # the opening is missing
        lambda story, scene: "",
    ],
)
def test_spoiled_stories_lose_points(spoil, judge=rubric.judge):
    """Fragments, repetition, babble, strangers and missing parts all score below the story that they come from."""
    for seed in range(20):
        story, scene = whole_story(seed)
        assert judge(spoil(story, scene), scene).score < judge(story, scene).score, (seed, spoil(story, scene))


def test_an_ending_that_contradicts_the_story_is_a_fault(judge=rubric.judge):
    """Nobody reached the kite, and yet all were happy: the reader notices."""
    scene = next(s for s in world.draw_scenes(200, 6) if not s.happy and not s.late)
    story = world.tell(scene, random.Random(0))
    happy = world.fill_form("In the end {name} was {glad}.", scene, random.Random(0))
    body = rubric.sentences(story)[:-1]
    assert judge(" ".join([*body, happy]), scene).faults == 1
