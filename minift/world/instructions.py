"""Instruction tasks over the world's scenes, in named clusters, as chats; and the prompts that ask for a story.

Each example is a dict with `messages` (user, assistant), `task`, `cluster` and `id`. Every task has several phrasings,
none of which occurs in the base corpus; the answer is a full sentence and is checked by exact match.
"""

import random

from minift.world.corpus import ask
from minift.world.scenes import draw_scenes, tell, with_articles

# task -> (cluster, phrasings); {story} is the told scene, {question} a question of the corpus
READING = ("Read the story and answer the question.\n{story}\n{question}", "{question} Here is the story.\n{story}",
           "{story}\nPlease tell me: {question}", "Use the text to reply to this: {question}\nText: {story}")
TASKS = {
    "who": ("lookup", READING), "where": ("lookup", READING), "animal": ("lookup", READING),
    "thing": ("lookup", READING), "colour": ("lookup", READING), "trouble": ("events", READING),
    "ending": ("sentiment", READING),
    "facts": ("extraction", (
        "List the child, the animal and the place of this story.\n{story}",
        "{story}\nWrite down child, animal and place.",
        "Give me the child, the animal and the place.\nText: {story}")),
    "story": ("writing", (
        "Write a story about {name}, a {animal} and a {thing}.",
        "Tell me a story with a child called {name}, a {thing} and a {animal}.",
        "I would like to hear about {name}, who has a {animal} and a {thing}.",
        "Please make up a tale. Child: {name}. Animal: {animal}. Thing: {thing}.")),
}
WRITING = ("story",)


def instance(task, scene, rng):
    """(instruction, response) of one task about one scene."""
    phrasing = rng.choice(TASKS[task][1])
    if task in WRITING:
        request = phrasing.format(name=scene.name, animal=scene.animal, thing=scene.thing)
        return with_articles(request), tell(scene, rng)
    question, answer = ("", f"Child: {scene.name}. Animal: {scene.animal}. Place: {scene.place}.")
    if task != "facts":
        question, answer = ask(task, scene, rng, short=False)
    return phrasing.format(story=tell(scene, rng), question=question), answer


def instructions(n, seed, split="train", tasks=tuple(TASKS)):
    """n chats, the tasks in turn, each about a scene of its own."""
    rng = random.Random(f"instructions/{split}/{seed}")
    rows = []
    for i, scene in enumerate(draw_scenes(n, f"instructions/{seed}", split)):
        task = tasks[i % len(tasks)]
        request, response = instance(task, scene, rng)
        rows.append({"messages": [{"role": "user", "content": request}, {"role": "assistant", "content": response}],
                     "task": task, "cluster": TASKS[task][0], "id": f"{task}-{split}-{seed}-{i}"})
    return rows


def story_requests(n, seed, split="train"):
    """n (prompt, scene): requests for a story and the scene that they name (its ending is not asked for)."""
    rng = random.Random(f"requests/{split}/{seed}")
    scenes = draw_scenes(n, f"requests/{seed}", split)
    return [(instance("story", scene, rng)[0], scene) for scene in scenes]
