"""Over-optimisation of a language model: PPO without a KL penalty, until its stories are no stories.

Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization", figure 1, on the toy: the learned score climbs, the
gold score turns. The same with two KL penalties, and best of n. Left out: reward models of several sizes.
"""

from functools import partial

from minift import show
from minift.studies import mean_and_std, show_spread
from minift.studies.align import best_of_n, on_rollouts
from minift.studies.stories import TEMPERATURE, open_arena
from minift.text.answers import sample_answers
from minift.world.instructions import story_requests

SETTINGS = {
    "seeds": (0, 1, 2), "sft_steps": 60, "pairs": 400, "betas": (0.0, 0.1, 0.5), "iterations": 30, "batch_size": 32,
    "lr": 1e-3, "moments": 10, "requests": 64, "best_of": 64, "max_new_tokens": 144}
QUICK = {
    "seeds": (0,), "sft_steps": 2, "pairs": 8, "betas": (0.0, 0.5), "iterations": 2, "batch_size": 4, "moments": 2,
    "requests": 4, "best_of": 4, "max_new_tokens": 24}


def measure(cells, settings):
    """Name of a run -> for each seed a list of points; the last one of PPO holds a story."""
    runs = {}
    for seed in settings["seeds"]:
        arena = open_arena(cells, seed, settings)
        requests = story_requests(settings["requests"], seed, "test")
        start = cells(f"start-{seed}", look, arena, requests, arena.policy)
        for beta in settings["betas"]:
            name = f"PPO, beta {beta:g}"
            points = cells(f"{name}-{seed}", run_ppo, arena, requests, beta, settings)
            runs.setdefault(name, []).append([start, *points])
        points = cells(f"best-of-n-{seed}", judge_best_of_n, arena, requests, settings["best_of"])
        runs.setdefault("best of n", []).append([start, *points])
    return runs


def run_ppo(arena, requests, beta, settings):
    """PPO with a value model that starts as the reward model, as InstructGPT's does."""
    return on_rollouts(
        arena, beta, settings, partial(look, arena, requests), method="ppo", lr=settings["lr"],
        values_from_reward=True)


def look(arena, requests, policy):
    """What Arena.judge finds, and the story for the first request."""
    found = arena.judge(policy, requests, arena.seed)
    del found["scores"]
    answer, = sample_answers(
        policy, arena.tokenizer, [requests[0][0]], max_new_tokens=arena.max_new_tokens, temperature=TEMPERATURE)
    return found | {"story": answer.text}


def judge_best_of_n(arena, requests, most):
    """The points of best_of_n without the score of each story."""
    points = best_of_n(arena, requests, most)
    for point in points:
        del point["scores"]
    return points


def tables(results):
    """Start, best gold and end of each run; then how a run's story changes."""
    rows, stories = [], []
    for name, seeds in results.items():
        best = [max(points, key=lambda point: point["gold"]) for points in seeds]
        row = {"run": name}
        for title, key, points in (
                ("gold, start", "gold", [one[0] for one in seeds]), ("gold, best", "gold", best),
                ("KL there", "kl", best), ("gold, end", "gold", [one[-1] for one in seeds]),
                ("learned, start", "learned", [one[0] for one in seeds]),
                ("learned, end", "learned", [one[-1] for one in seeds]), ("KL, end", "kl", [one[-1] for one in seeds])):
            row[title] = show_spread([point[key] for point in points])
        rows.append(row)
        if "story" in seeds[0][-1]:
            stories.append(told(name, seeds[0][-1]))
    stories.insert(0, told("SFT", seeds[0][0]))
    return {"Gold score (0 to 10), learned score, KL to SFT (nats a story); mean ± std over seeds": rows,
            "One request's story": stories}


def told(run, point):
    """A row with one story, on one line."""
    return {"run": run, "the story at the end, first seed": point["story"].replace("\n", " / ")}


def draw(results):
    """Gold and learned score against the square root of the KL, the mean over seeds at each moment."""
    fig, axes = show.figure(1, 2, width=12, height=4.8)
    for axis, key, label in zip(axes, ("gold", "learned"), ("gold score (0 to 10)", "learned score")):
        series = {}
        for name, seeds in results.items():
            moments = list(zip(*seeds, strict=True))
            roots = [mean_and_std([max(point["kl"], 0.0) ** 0.5 for point in moment])["mean"] for moment in moments]
            series[name] = (roots, [mean_and_std([point[key] for point in moment])["mean"] for moment in moments])
        show.curves(axis, series, xlabel="square root of the KL to SFT (nats)", ylabel=label)
    return fig
