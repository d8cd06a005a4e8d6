"""The frontier of reward and KL: how much better do stories get for each nat away from the SFT model?

Rafailov et al. 2023, "Direct Preference Optimization", figure 2. Every method starts from the same SFT model and has
the same preferences, the reward model that was trained on them, or the gold score itself. Each run is judged at several
moments by sampled stories. Left out: a search for each method's best learning rate.
"""

from functools import partial

from minift import show
from minift.evaluation.metrics import win_rate
from minift.studies import interpolate, mean_and_std, show_spread
from minift.studies.align import OFFLINE, ONLINE, best_of_n
from minift.studies.stories import open_arena
from minift.world.instructions import story_requests

SETTINGS = {
    "seeds": (0, 1, 2), "sft_steps": 60, "pairs": 400, "iterations": 8, "batch_size": 64, "steps": 48,
    "requests": 96, "max_new_tokens": 144, "best_of": 32, "levels": (1.0, 3.0, 6.0)}
QUICK = {
    "seeds": (0,), "sft_steps": 2, "pairs": 8, "iterations": 2, "batch_size": 8, "steps": 2, "requests": 4,
    "max_new_tokens": 24, "best_of": 2}
# Method -> its values of beta; for SimPO it is the scale of the margin, for ORPO the weight of the odds ratio.
BETAS = {
    "PPO": (0.05, 0.2), "PPO, gold reward": (0.05,), "RLOO": (0.05, 0.2), "GRPO": (0.05,), "DPO": (0.1, 0.5),
    "IPO": (0.1,), "SimPO": (2.0,), "ORPO": (0.5,), "KTO": (0.1,), "online DPO": (0.1,),
    "online DPO, gold labels": (0.1,), "SFT on chosen": (0.0,)}


def measure(cells, settings):
    """{"start": what the SFT model has for each seed, "runs": "METHOD, beta" -> for each seed a list of points}."""
    runs, start = {}, []
    for seed in settings["seeds"]:
        arena = open_arena(cells, seed, settings)
        requests = story_requests(settings["requests"], seed, "test")
        start.append(cells(f"start-{seed}", arena.judge, arena.policy, requests, seed))
        judge = partial(judge_against, arena, requests, start[-1]["scores"], seed)
        for method, betas in BETAS.items():
            for beta in betas:
                train = ONLINE.get(method) or OFFLINE[method]
                name = f"{method}, {beta:g}" if beta else method
                points = cells(f"{name}-{seed}", train, arena, beta, settings, judge)
                runs.setdefault(name, []).append(points)
        points = cells(f"best-of-n-{seed}", judge_best_of_n, arena, requests, start[-1]["scores"], settings)
        runs.setdefault("best of n", []).append(points)
    return {"start": start, "runs": runs, "levels": settings["levels"]}


def judge_against(arena, requests, scores, seed, policy):
    """What Arena.judge finds, with the win rate against the SFT model's stories, whose gold scores are `scores`."""
    return with_wins(arena.judge(policy, requests, seed), scores)


def with_wins(found, scores):
    """A point with its win rate instead of the score of each story."""
    own = found.pop("scores")
    return {**found, "win_rate": win_rate(own, scores)}


def judge_best_of_n(arena, requests, scores, settings):
    return [with_wins(point, scores) for point in best_of_n(arena, requests, settings["best_of"])]


# ---- results ----


def at_kl(points, level, key, start):
    """The value of `key` where a run crosses a KL, from its start on; None beyond its last point."""
    return interpolate([{"kl": 0.0, key: start}, *points], "kl", level, key)


def tables(results):
    """For each run: gold score, learned score, KL and wins at its end, and the gold score at equal KL."""
    rows, start = [], results["start"]
    rows.append({"method": "SFT", "gold": show_spread([one["gold"] for one in start]),
                 "learned": show_spread([one["learned"] for one in start]), "KL": "0", "wins": "0.50"})
    for name, seeds in results["runs"].items():
        last = [points[-1] for points in seeds]
        row = {"method": name}
        for title, key in (("gold", "gold"), ("learned", "learned"), ("KL", "kl"), ("wins", "win_rate")):
            row[title] = show_spread([point[key] for point in last])
        for level in results["levels"]:
            found = [at_kl(points, level, "gold", one["gold"]) for points, one in zip(seeds, start, strict=True)]
            found = [value for value in found if value is not None]
            enough = len(found) == len(seeds)
            row[f"gold at {level:g} nats"] = show_spread(found) if enough else None
        rows.append(row)
    return {
        "Gold score (0 to 10), learned score, KL to SFT (nats a story), share of stories that beat the SFT model's; "
        "mean ± std over seeds": rows}


def draw(results):
    """Left: the gold score against the KL, the mean over seeds at each moment. Right: the learned score."""
    fig, axes = show.figure(1, 2, width=14, height=6.5)
    for axis, key, label in zip(axes, ("gold", "learned"), ("gold score (0 to 10)", "learned score")):
        first = mean_and_std([one[key] for one in results["start"]])["mean"]
        series = {}
        for name, seeds in results["runs"].items():
            kl, value = [0.0], [first]
            for moment in zip(*seeds, strict=True):
                kl.append(mean_and_std([point["kl"] for point in moment])["mean"])
                value.append(mean_and_std([point[key] for point in moment])["mean"])
            series[name] = (kl, value)
        show.curves(axis, series, xlabel="KL to the SFT model (nats a story)", ylabel=label)
    show.share_legend(fig, list(axes), columns=5)
    return fig
