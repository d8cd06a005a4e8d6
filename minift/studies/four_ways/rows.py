"""The rows of each way: by people, by templates over labelled data, by a crowd, by a language model; and a mixture.

All rows have the same form, {"messages", "task", "cluster", "source", "id"}, and are written to JSONL files that `sft`
can read. The minutes of a person's time that a way costs are assumptions; they are constants here. A language model
wrote data/instructions/written.jsonl, the rows "by people": their minutes are those that a person would have needed.
"""

import random
from functools import partial
from pathlib import Path

import torch

from minift.core.files import DATA, read_json, write_json
from minift.core.logprobs import IGNORE_INDEX
from minift.core.train import train
from minift.formats.checkpoint import load_model, save_model
from minift.methods.sft import make_sft_loss
from minift.studies import keep_templates
from minift.studies.four_ways.tuning import STEPS, TOKENS_A_STEP
from minift.text.batches import chunks, collate
from minift.text.chat import encode_chat
from minift.text.jsonl import read_jsonl, write_jsonl
from minift.ways import crowd
from minift.ways.self_instruct import ModelWriter, prompt_of, self_instruct, task_of_row
from minift.ways.templates import instantiate, read_templates
from minift.world import checker as world_check
from minift.world.tasks import TASKS, world_rows

INSTRUCTIONS = DATA / "instructions"
# Tokens of each way: about as many as the rows by people have.
N_TOKENS = 26_000
# Rows by people for the tests.
N_HELD_OUT = 100
N_SEED_TASKS, WRITER_STEPS, WRITER_LR, ATTEMPTS, TEMPERATURE = 175, 300, 1.5e-3, 500, 0.6
# Minutes of a person's time.
MINUTES = {"pair": 3.0, "template": 2.0, "guidelines": 240.0, "label": crowd.MINUTES}


class Maker:
    """What the ways need: a seed, the base (it is tuned, and the writer is made from it), and a folder."""

    def __init__(self, seed, base, out, n_tokens=N_TOKENS, n_many=STEPS * TOKENS_A_STEP, writer_steps=WRITER_STEPS):
        self.seed, self.base, self.out, self.writer_steps = seed, base, Path(out), writer_steps
        self.n_tokens, self.n_many = n_tokens, n_many
        self.tokenizer = load_model(base)[1]
        self.templates = read_templates(INSTRUCTIONS / "templates.json")
        written = read_jsonl(INSTRUCTIONS / "written.jsonl")
        shuffled = random.Random(f"written/{seed}").sample(written, len(written))
        self.held_out, self.written = shuffled[:N_HELD_OUT], shuffled[N_HELD_OUT:]

    def make(self, way):
        """(rows, facts) of a way; read from the folder if they are there. facts: minutes, label_error, ..."""
        path = self.out / f"seed-{self.seed}" / f"{way.replace(', ', '-')}.jsonl"
        facts_path = path.with_suffix(".json")
        if not facts_path.exists():
            rows, facts = WAYS[way](self)
            write_jsonl(path, rows)
            write_json(facts_path, facts)
        return read_jsonl(path), read_json(facts_path)

    def cut(self, rows, n_tokens):
        """The first rows that have at most n_tokens together, prompts and answers."""
        kept, left = [], n_tokens
        for row in rows:
            left -= len(encode_chat(self.tokenizer, row["messages"])[0])
            if left < 0:
                break
            kept.append(row)
        return kept

    def writer(self):
        """(model, tokenizer) of the writer, made once for all seeds."""
        path = self.out / "writer"
        if not path.exists():
            save_model(*make_writer(self.base, self.templates, self.writer_steps), path)
        return load_model(path)


def by_people(maker):
    rows = maker.cut(maker.written, maker.n_tokens)
    return rows, {"minutes": len(rows) * MINUTES["pair"]}


def by_templates(maker, many=False):
    """The world's labels through templates. Somebody writes the templates once, for any number of rows.

    many: make so many rows that training sees no row twice.
    """
    n_tokens = maker.n_many if many else maker.n_tokens
    # A row has more than 60 tokens on average, so these are enough rows.
    rows = instantiate(world_rows(n_tokens // 60, maker.seed), maker.templates, seed=maker.seed)
    return maker.cut(rows, n_tokens), {"minutes": template_minutes(maker, TASKS), "label_error": 0.0}


def by_crowd(maker, guidelines="clear", n_annotators=3):
    """Labels of simulated annotators who follow guidelines; guidelines and templates are written once."""
    items = world_rows(maker.n_tokens // 60, f"crowd/{maker.seed}", tasks=crowd.TASKS)
    labelled, error = crowd.labelled_rows(items, maker.seed, guidelines, n_annotators)
    rows = instantiate(labelled, maker.templates, seed=maker.seed, source="crowd", inverted=False)
    rows = maker.cut(rows, maker.n_tokens)
    minutes = template_minutes(maker, crowd.TASKS) + MINUTES["guidelines"] + len(rows) * n_annotators * MINUTES["label"]
    return rows, {"minutes": minutes, "label_error": error}


def by_model(maker, checked=True):
    """Self-instruct from seed tasks that people have written.

    checked: keep a row only if the world's checker finds that its answer is true.
    """
    seeds = seed_tasks(maker.templates, N_SEED_TASKS, maker.seed)
    verdict = world_check.make_verdict(maker.templates)
    writer = ModelWriter(*maker.writer(), max_new_tokens=128, temperature=TEMPERATURE, seed=maker.seed)

    def is_true(turn, answer):
        return verdict(turn, answer) is True

    rows, statistics = self_instruct(
        seeds, writer, n=maker.n_tokens // 110, max_attempts=ATTEMPTS, n_seed_demos=1, whole=True, seed=maker.seed,
        checker=is_true if checked else None)
    rows = maker.cut(rows, maker.n_tokens)
    found = []
    for row in rows:
        turn, answer = row["messages"]
        found.append(verdict(turn["content"], answer["content"]))
    return rows, {
        "minutes": N_SEED_TASKS * MINUTES["pair"], "model_tokens": writer.n_tokens, "statistics": statistics,
        "label_error": found.count(False) / len(rows), "unclear": found.count(None) / len(rows)}


def mixture(maker):
    """A quarter of the tokens from each of the four ways."""
    ways = ("people", "templates", "crowd", "model")
    rows = []
    for way in ways:
        rows += maker.cut(maker.make(way)[0], maker.n_tokens // len(ways))
    return rows, {}


WAYS = {
    "people": by_people, "templates": by_templates, "crowd": by_crowd, "model": by_model, "mixture": mixture,
    "crowd, vague": partial(by_crowd, guidelines="vague", n_annotators=1),
    "model, unchecked": partial(by_model, checked=False),
    "templates, many": partial(by_templates, many=True)}


def template_minutes(maker, tasks):
    splits = []
    for task in tasks:
        splits += [one["split"] for one in maker.templates[task]["templates"]]
    return splits.count("seen") * MINUTES["template"]


# ---- the fourth way's writer ----


def make_writer(base, templates, steps, seed=0):
    """(model, tokenizer): the base tuned on tasks in self-instruct's form, 16 new ones in each step.

    It stands for a larger model, and has read more tasks than any model of the study. Half of its examples show another
    task first, as the prompts of self-instruct do. The steps alternate: one learns the whole new task, the next its
    answer alone. In the whole task, the few tokens of the answer have little weight in the loss.
    """
    torch.manual_seed(seed)
    model, tokenizer = load_model(base)
    # Encode each example: a shown text, and a new one to learn.
    rng, examples = random.Random(f"writer/{seed}"), []
    rows = seed_tasks(templates, steps * 16, f"writer/{seed}")
    tasks = [task_of_row(row, number) for number, row in enumerate(rows, start=1)]
    for number, task in enumerate(tasks):
        others = [rng.choice(tasks)] if rng.random() < 0.5 else []
        shown, new = prompt_of(others), prompt_of([task]).removesuffix("\nTask:")
        new = new.removeprefix("Task:").rstrip()
        if number // 16 % 2:
            new, answer = new[:-len(task[2])].rstrip(), f" {task[2]}"
            shown, new = shown + new, answer
        given, learned = tokenizer.encode(shown), [*tokenizer.encode(new), tokenizer.eos_id]
        examples.append({"input_ids": given + learned, "labels": [IGNORE_INDEX] * len(given) + learned})
    # Leave out the examples that are longer than the context, and train on the others.
    batches = []
    for part in chunks(examples, 16):
        short = [one for one in part if len(one["input_ids"]) <= model.config.context_length]
        batches.append(collate(short, tokenizer.pad_id))
    train(model, batches, make_sft_loss(model), steps=steps, lr=WRITER_LR, progress=False)
    return model.eval(), tokenizer


def seed_tasks(templates, n, seed):
    """n rows that the checker can parse: one line of instruction, then a story."""
    single = keep_templates(templates, world_check.TASKS, begins_with_task)
    return instantiate(world_rows(n, f"seeds/{seed}", tasks=world_check.TASKS), single, seed=seed, inverted=False)


def begins_with_task(template):
    """Is the template one line of instruction, and then the story?"""
    first, _, rest = template["instruction"].partition("\n")
    return "{story}" not in first and rest.strip() == "{story}"
