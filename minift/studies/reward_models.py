"""Reward models looked at: how many pairs do they need, how much noise do they bear, do they like long answers?

Each model is trained on preferences between stories of one SFT model, and judged on held-out pairs by the gold order.
Stiennon et al. 2020, "Learning to summarize from human feedback", section 4.3 (accuracy against data); Gao et al. 2022,
"Scaling Laws for Reward Model Overoptimization", section 3 (noise); Singhal et al. 2023, "A Long Way to Go" (length);
Zhu et al. 2024, "Iterative Data Smoothing" (repeated comparisons). Left out: models of several sizes.
"""

import random

import torch

from minift import show
from minift.evaluation.metrics import expected_calibration_error, reliability_curve
from minift.studies import mean_and_std, show_spread
from minift.studies.stories import gold_score, open_arena, score_rows, train_reward_model
from minift.ways.preferences import annotate
from minift.world.instructions import story_requests

SETTINGS = {
    "seeds": (0, 1, 2), "sft_steps": 60, "pairs": 1600, "valid_pairs": 300, "sizes": (100, 200, 400, 800, 1600),
    "noises": (0.0, 0.5, 1.0, 2.0, 4.0), "noise_pairs": 800, "repeats": (1, 2, 4, 8), "repeat_pairs": 100, "lr": 1e-3,
    "noise": 0.5, "max_new_tokens": 144}
QUICK = {
    "seeds": (0,), "sft_steps": 2, "pairs": 24, "valid_pairs": 24, "sizes": (12, 24), "noises": (0.0, 4.0),
    "noise_pairs": 24, "repeats": (1, 2), "repeat_pairs": 12, "max_new_tokens": 24}


def measure(cells, settings):
    """{"sizes", "noises", "repeats": value -> what `judge` found for each seed}, of models that differ in one thing."""
    found = {"sizes": {}, "noises": {}, "repeats": {}}
    for seed in settings["seeds"]:
        arena = open_arena(cells, seed, settings)
        for kind, value, rows, epochs in jobs(arena, seed, settings):
            result = cells(f"{kind}-{value:g}-{seed}", train_and_judge, arena, rows, epochs, seed, settings)
            found[kind].setdefault(f"{value:g}", []).append(result)
    return found


def jobs(arena, seed, settings):
    """Yield (kind, value, rows to train on, epochs): all models of one seed."""
    for n in settings["sizes"]:
        yield "sizes", n, arena.rows[:n], 1
    for noise in settings["noises"]:
        yield "noises", noise, choose_again(arena, arena.rows[:settings["noise_pairs"]], noise, seed, settings), 1
    # The same few pairs several times: one pass over them and their copies.
    for copies in settings["repeats"]:
        yield "repeats", copies, arena.rows[:settings["repeat_pairs"]], copies


def choose_again(arena, rows, noise, seed, settings):
    """The same pairs of stories, chosen anew by annotators with another noise (in points of the rubric)."""
    scenes = dict(story_requests(settings["pairs"], seed, "train"))
    rng, pairs = random.Random(f"order/{seed}"), []
    for row in rows:
        answers = [row["chosen"], row["rejected"]]
        rng.shuffle(answers)
        pairs.append({"prompt": row["prompt"], "answers": answers})
    return annotate(pairs, lambda prompt, text: gold_score(scenes, prompt, text), noise=noise, seed=seed)


def train_and_judge(arena, rows, epochs, seed, settings):
    """Train a reward model on the rows, and judge it."""
    torch.manual_seed(seed)
    body = arena.copy_policy().body
    model, history = train_reward_model(
        body, arena.tokenizer, rows, epochs=epochs, lr=settings["lr"], seed=seed, progress=False)
    last = history[-max(1, len(rows) // 16):]
    return {"train_accuracy": mean([row["accuracy"] for row in last])} | judge(model, arena)


def judge(model, arena):
    """{"gold", "chosen", "calibration", "curve", "longer", "longer_on_ties"} on the held-out pairs.

    gold: share of pairs in the gold order, ties left out; chosen: in the order of the choices. calibration: the
    expected error of its probabilities. longer: how often it prefers the longer story; longer_on_ties: the same where
    gold ties, so that only length and chance are left.
    """
    chosen, rejected, gold = score_rows(model, arena.tokenizer, arena.valid_rows)
    first = (chosen > rejected).tolist()
    right = [ahead == (a > b) for ahead, (a, b) in zip(first, gold) if a != b]
    probability = torch.sigmoid(chosen - rejected).tolist()
    confidence = [max(p, 1 - p) for p in probability]
    rows = [row for row in arena.valid_rows if row["chosen"].strip() != row["rejected"].strip()]
    longer, on_ties = [], []
    for ahead, (a, b), row in zip(first, gold, rows, strict=True):
        lengths = [len(row[side].split()) for side in ("chosen", "rejected")]
        if lengths[0] != lengths[1]:
            prefers_longer = float(ahead == (lengths[0] > lengths[1]))
            longer.append(prefers_longer)
            if a == b:
                on_ties.append(prefers_longer)
    return {
        "gold": mean(right), "chosen": mean(first), "calibration": expected_calibration_error(confidence, first),
        "curve": reliability_curve(confidence, first), "longer": mean(longer), "longer_on_ties": mean(on_ties)}


def mean(values):
    """The mean of some numbers; 0.5, that of chance, when there are none."""
    return sum(values) / len(values) if values else 0.5


# ---- results ----

LINES = (("gold order", "gold"), ("held-out choices", "chosen"), ("training choices", "train_accuracy"))
COLUMNS = {"sizes": "pairs", "noises": "noise", "repeats": "copies"}
TITLES = {
    "sizes": "Pairs to train on (one pass)", "noises": "Noise of the annotators, in points of the rubric",
    "repeats": "Copies of each of a few pairs (passes over them)"}


def tables(results):
    """One table for each thing that was varied."""
    found = {}
    for kind, values in results.items():
        rows = []
        for value, seeds in values.items():
            row = {COLUMNS[kind]: value}
            for title, key in (
                    *LINES, ("calibration error", "calibration"), ("prefers the longer", "longer"),
                    ("the same where gold ties", "longer_on_ties")):
                row[title] = show_spread([one[key] for one in seeds])
            rows.append(row)
        found[f"{TITLES[kind]}; shares of held-out pairs, mean ± std over seeds"] = rows
    return found


def draw(results):
    """Accuracy against pairs, noise and copies; the reliability of the largest model of the first seed."""
    fig, axes = show.figure(1, 4, width=18, height=4.4)
    for axis, (kind, values) in zip(axes, results.items()):
        x = [float(value) for value in values]
        series = {}
        for label, key in LINES:
            stats = [mean_and_std([one[key] for one in seeds]) for seeds in values.values()]
            middle, std = [one["mean"] for one in stats], [one["std"] for one in stats]
            low, high = ([m - s for m, s in zip(middle, std)], [m + s for m, s in zip(middle, std)])
            series[label] = (x, middle, low, high)
        show.curves(axis, series, xlabel=TITLES[kind], ylabel="accuracy")
        if kind != "noises":
            axis.set_xscale("log", base=2)
            axis.set_xticks(x, list(values))
    largest = list(results["sizes"].values())[-1][0]
    columns = [[point[key] for point in largest["curve"]] for key in ("confidence", "accuracy", "count")]
    show.reliability(axes[3], *columns)
    return fig
