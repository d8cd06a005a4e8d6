"""Instructions over the world's scenes, in named clusters, as chats; and the prompts that ask for a story.

Each example is a dict with `messages` (user, assistant), `task`, `cluster` and `id`. Every task has several phrasings.
None of the phrasings occurs in the base corpus. The answer is a full sentence and is checked by exact match. Left out:
system turns, several turns.
"""

import random

from minift.ways.templates import fill
from minift.world.corpus import TEXT_FORMS, ask
from minift.world.facts import scene_fields
from minift.world.scenes import draw_scenes, tell

# {story}: the told scene; {question}: a question of the corpus.
READING = TEXT_FORMS["instruction"]["reading"]
LISTING = TEXT_FORMS["instruction"]["listing"]
ASKING = TEXT_FORMS["instruction"]["asking"]
# Task -> (cluster, phrasings).
TASKS = {
    "who": ("lookup", READING),
    "where": ("lookup", READING),
    "animal": ("lookup", READING),
    "thing": ("lookup", READING),
    "colour": ("lookup", READING),
    "trouble": ("events", READING),
    "ending": ("sentiment", READING),
    "facts": ("extraction", LISTING),
    "story": ("writing", ASKING)}
WRITING = ("story",)


def instruct(task, scene, rng):
    """(request, response) of one task about one scene."""
    phrasing = rng.choice(TASKS[task][1])
    if task in WRITING:
        request = fill(phrasing, scene_fields(scene))
        return request, tell(scene, rng)
    question = ""
    response = fill(
        "Child: {name}. Animal: {animal}. Place: {place}.",
        scene_fields(scene))
    if task != "facts":
        question, response = ask(task, scene, rng, short=False)
    story = tell(scene, rng)
    return fill(phrasing, {"story": story, "question": question}), response


def instructions(n, seed, split="train", tasks=tuple(TASKS)):
    """n chats, each about a newly drawn scene. The tasks take turns."""
    rng = random.Random(f"instructions/{split}/{seed}")
    rows = []
    for i, scene in enumerate(draw_scenes(n, f"instructions/{seed}", split)):
        task = tasks[i % len(tasks)]
        request, response = instruct(task, scene, rng)
        messages = [
            {"role": "user", "content": request},
            {"role": "assistant", "content": response}]
        row = {
            "messages": messages,
            "task": task,
            "cluster": TASKS[task][0],
            "id": f"{task}-{split}-{seed}-{i}"}
        rows.append(row)
    return rows


def story_requests(n, seed, split="train"):
    """n pairs (prompt, scene): a request for a story, and the scene that it names. It does not name the ending."""
    rng = random.Random(f"requests/{split}/{seed}")
    scenes = draw_scenes(n, f"requests/{seed}", split)
    return [(instruct("story", scene, rng)[0], scene) for scene in scenes]
