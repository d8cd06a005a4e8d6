"""Tune the base on some rows, and score it: the same steps of the same number of tokens for every way.

Left out: a search for the best learning rate of each way, and validation (each takes the weights of the last step).
"""

from statistics import fmean

import torch

from minift.evaluation.metrics import distinct_n, exact_match, rouge_l
from minift.formats.checkpoint import load_model
from minift.methods.sft import encode_examples, tune_on_examples
from minift.text.answers import sample_answers
from minift.text.chat import encode_chat, encode_prompt
from minift.ways.self_instruct import Pool
from minift.ways.templates import instantiate
from minift.world.tasks import TASKS, world_rows

TOKENS_A_STEP, STEPS, LR = 2048, 80, 5e-4
N_TEST, ANSWER_TOKENS, N_DIVERSITY = 224, 48, 150
# Clusters in which many answers are right. Many are right in the task last_sentence, too.
OPEN = ("generation", "inversion")
TESTED = tuple(task for task, (cluster, _) in TASKS.items() if cluster not in OPEN and task != "last_sentence")


def fit(base, rows, seed, steps=STEPS):
    """(model, tokenizer): the base after some steps on the rows, each of about TOKENS_A_STEP tokens."""
    torch.manual_seed(seed)
    model, tokenizer = load_model(base)
    examples = encode_examples([encode_chat(tokenizer, row["messages"]) for row in rows], model.config.context_length)
    length = fmean(len(example["input_ids"]) for example in examples)
    batch_size = max(1, round(TOKENS_A_STEP / length))
    tune_on_examples(model, tokenizer, examples, batch_size=batch_size, steps=steps, lr=LR, seed=seed)
    return model.eval(), tokenizer


def tests(maker, n=N_TEST):
    """{"tasks": held-out stories in held-out wordings, "people": rows by people that no way trains on}."""
    rows = instantiate(
        world_rows(n, maker.seed, "test", TESTED), maker.templates, split="held-out", seed=maker.seed,
        inverted=False)
    room = load_model(maker.base)[0].config.context_length - ANSWER_TOKENS

    def fitting(rows):
        prepared = [first_answer(row) for row in rows]
        return [row for row in prepared if len(encode_prompt(maker.tokenizer, row["prompt"])) <= room]

    return {"tasks": fitting(rows), "people": fitting(maker.held_out)}


def first_answer(row):
    """A chat as {"prompt": the messages before the first answer, "right": that answer, "cluster"}."""
    messages = row["messages"]
    at = [message["role"] for message in messages].index("assistant")
    return {"prompt": messages[:at], "right": messages[at]["content"], "cluster": row["cluster"]}


def score(model, tokenizer, rows):
    """Scores of the greedy answers: exact match (of all, and by cluster), ROUGE-L, the share that ends with <eos>."""
    answers = sample_answers(
        model, tokenizer, [row["prompt"] for row in rows], temperature=0.0,
        max_new_tokens=ANSWER_TOKENS)
    hits = [exact_match([answer.text], [row["right"]]) for answer, row in zip(answers, rows)]
    by_cluster = {}
    for row, hit in zip(rows, hits):
        by_cluster.setdefault(row["cluster"], []).append(hit)
    return {
        "exact": fmean(hits),
        "rouge": fmean(rouge_l(answer.text, row["right"]) for answer, row in zip(answers, rows)),
        "ended": fmean(answer.ended for answer in answers),
        "clusters": {name: fmean(by_cluster[name]) for name in sorted(by_cluster)}}


def diversity(rows):
    """{"distinct_2": of all texts, "nearest": mean ROUGE-L of a user's turn with the turn most similar to it}.

    With more rows, distinct-2 falls and the similarity rises, so both are measured on the first N_DIVERSITY rows.
    """
    texts, turns, pool = [], [], Pool()
    for row in rows[:N_DIVERSITY]:
        texts += [message["content"] for message in row["messages"]]
        turns.append(first_answer(row)["prompt"][-1]["content"])
        pool.add(turns[-1])
    return {
        "distinct_2": distinct_n(texts, 2),
        "nearest": fmean(pool.nearest(turn, skip=i) for i, turn in enumerate(turns))}
