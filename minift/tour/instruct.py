"""Stage 4: instruction tuning. The base continues a text; the tuned model answers."""

import torch

from minift.evaluation.metrics import exact_match
from minift.formats.checkpoint import save_model
from minift.methods.sft import tune_on_chats
from minift.studies.stories import READING, mix_chats
from minift.text.answers import sample_answers
from minift.tour import draw
from minift.tour.common import Result, change, mean
from minift.world.instructions import TASKS, instructions


def sft(tour):
    """4. Supervised fine-tuning on a mixture of instruction data; exact match on the eight reading tasks, held out."""
    s = tour.settings
    torch.manual_seed(tour.seed)
    model, tokenizer = tour.load("base")
    # Ask the base before training.
    held_out = instructions(s.n_answers, tour.seed, "test", READING)
    before = ask_all(model, tokenizer, held_out, tour.seed)
    # Tune it on the mixture, then ask again.
    rows = mix_chats(s.n_instructions, tour.seed)
    history = tune_on_chats(
        model, tokenizer, rows, steps=s.sft_steps, lr=s.sft_lr, batch_size=s.sft_batch,
        seed=tour.seed, name="sft", progress=True)
    model.eval()
    save_model(model, tokenizer, tour.out / "sft")
    after = ask_all(model, tokenizer, held_out, tour.seed)
    # Score each task before and after.
    table = []
    for task in READING:
        scores = {"base": score(before, held_out, task), "SFT": score(after, held_out, task)}
        table.append({"task": task, "cluster": TASKS[task][0], **scores})
    measures = {
        "exact_match_before": score(before, held_out), "exact_match": score(after, held_out),
        "ends_with_eos": mean([answer.ended for answer in after]),
        **{f"exact_match_{row['task']}": row["SFT"] for row in table}}
    # Draw the training, and show two answers before and after.
    draw.draw_sft(tour, tokenizer, rows, history)
    texts = []
    for i in range(2):
        texts += [(f"instruction {i + 1}", before[i].prompt), ("base continues", before[i].text),
                  ("SFT answers", after[i].text)]
    return Result(
        f"The base answers {measures['exact_match_before']:.0%} of the held-out questions, the tuned model "
        f"{measures['exact_match']:.0%}, and {measures['ends_with_eos']:.1%} of its answers end by themselves.",
        measures,
        change("exact match, held out", measures["exact_match_before"], measures["exact_match"]),
        texts=texts,
        rows=table,
        pictures=[tour.picture("sft-mask"), tour.picture("sft")])


def ask_all(model, tokenizer, rows, seed):
    """The model's greedy answers to the instructions of some chats."""
    prompts = [row["messages"][0]["content"] for row in rows]
    return sample_answers(model, tokenizer, prompts, max_new_tokens=32, temperature=0.0, seed=seed)


def score(answers, rows, task=None):
    """Exact match over the rows of one task, or of all."""
    pairs = [
        (answer.text, row["messages"][1]["content"])
        for answer, row in zip(answers, rows, strict=True)
        if task is None or row["task"] == task]
    return exact_match(*zip(*pairs)) if pairs else float("nan")
