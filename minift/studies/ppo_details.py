"""PPO's details one at a time, on a world whose optimum is known: what does each one buy?

Huang et al. 2022, "The 37 Implementation Details of PPO"; Huang et al. 2024, "The N+ Implementation Details of RLHF
with PPO". Each variant differs from the first row in one detail. It is judged by its regret: how far J = E[reward] -
beta * KL is below that of the optimum, summed exactly over all 4,096 answers. Left out: other sizes and rates.
"""

import copy
from functools import partial

import torch

from minift import show
from minift.core.heads import TokenScorer
from minift.evaluation import exact
from minift.methods.ppo_loop import zero_head
from minift.methods.reward import make_reward_loss
from minift.studies import mean_and_std, show_interval, show_spread
from minift.studies.align import on_rollouts
from minift.studies.exact_runs import PROMPT, train_on_choices, train_on_rewards
from minift.studies.stories import open_arena
from minift.world.instructions import story_requests

SETTINGS = {
    "seeds": tuple(range(10)), "iterations": 20, "batch_size": 256, "beta": 0.5, "choices": 2000,
    "story_seeds": (0, 1, 2), "sft_steps": 60, "pairs": 400, "story_iterations": 8, "story_batch": 64, "requests": 96,
    "max_new_tokens": 80}
QUICK = {
    "seeds": (0, 1), "iterations": 2, "batch_size": 32, "choices": 64, "story_seeds": (0,), "sft_steps": 2, "pairs": 8,
    "story_iterations": 2, "story_batch": 8, "requests": 4, "max_new_tokens": 24}
LENGTH, LR = 4, 5e-3
# Name of a variant -> what it changes: settings of PPOConfig, or "scale" (of reward and beta) and "values" (the start
# of the value model: "zero", "reward model", or "shared", a head on the policy's body).
VARIANTS = {
    "PPO": {},
    "values not clipped": {"value_clip_range": None},
    "advantages not whitened": {"whiten_advantages": False},
    "rewards whitened": {"whiten_rewards": True},
    "lambda 1 (no bootstrapping)": {"lam": 1.0},
    "lambda 0 (one step)": {"lam": 0.0},
    "KL in the loss": {"kl_in": "loss"},
    "KL in the loss, advantages not whitened": {"kl_in": "loss", "whiten_advantages": False},
    "adaptive beta": {"target_kl": "optimum", "kl_horizon": 1000},
    "reward not normalised (10 times as large)": {"scale": 10.0},
    "updates end at a KL of 0.02": {"stop_kl": 0.02},
    "value model from the reward model": {"values": "reward model"},
    "one body for policy and values": {"values": "shared", "share_body": True}}
# The same on stories, for details of language models: what a variant changes in align.on_rollouts.
STORY_VARIANTS = {
    "PPO": {},
    "no penalty for a missing end": {"missing_eos_penalty": 0.0},
    "value model from the reward model": {"values_from_reward": True}}


def measure(cells, settings):
    """{"optimum": J, "runs": variant -> what run_seed found for each seed, "stories": variant -> points}."""
    world = World(settings["beta"])
    runs = {}
    for number, (name, changes) in enumerate(VARIANTS.items()):
        part = partial(run_seed, world, changes)
        runs[name] = [cells(f"{number}-{seed}", part, seed, settings) for seed in settings["seeds"]]
    return {"optimum": world.best, "reference": world.start, "runs": runs, "stories": try_stories(cells, settings)}


def try_stories(cells, settings):
    """"before" and each of STORY_VARIANTS -> for each seed how stories are: at most 80 tokens, so that many are cut."""
    found = {"before": []}
    rollouts = {"iterations": settings["story_iterations"], "batch_size": settings["story_batch"]}
    for seed in settings["story_seeds"]:
        arena = open_arena(cells, seed, settings)
        judge = partial(arena.judge, requests=story_requests(settings["requests"], seed, "test"), seed=seed)
        found["before"].append(cells(f"stories-before-{seed}", judge, arena.policy))
        for number, (name, changes) in enumerate(STORY_VARIANTS.items()):
            points = cells(
                f"stories-{number}-{seed}", on_rollouts, arena, 0.05, rollouts, judge, method="ppo", **changes)
            found.setdefault(name, []).append(points[-1])
    return found


class World:
    """All answers, their rewards, a reference, and the largest J that any policy can have."""

    def __init__(self, beta):
        self.beta, self.model, self.answers = beta, exact.example_reference(), exact.all_answers()
        self.rewards = exact.example_reward(self.answers)  # (N,)
        self.ref_logprobs = exact.answer_logprobs(self.model, PROMPT)  # (N,)
        self.optimum = exact.optimum(self.ref_logprobs, self.rewards, beta)  # (N,)
        self.best, self.start = self.objective(self.optimum)[0], self.objective(self.ref_logprobs.exp())[0]

    def objective(self, probs):
        """(J, KL) of a distribution over all answers."""
        kl = exact.kl_divergence(probs, self.ref_logprobs.exp())
        return exact.expected_reward(probs, self.rewards) - self.beta * kl, kl


def run_seed(world, changes, seed, settings):
    """Train one variant. Returns {"curve": rows, "regret": at the end}."""
    # Settle what the variant changes; reward and beta in other units have the same optimum.
    changes = dict(changes)
    scale, start = changes.pop("scale", 1.0), changes.pop("values", "zero")
    if changes.get("target_kl") == "optimum":
        changes["target_kl"] = world.objective(world.optimum)[1]
    policy, curve = copy.deepcopy(world.model), []
    torch.manual_seed(seed)

    # Train, and measure J exactly after every second iteration.
    def watch(row):
        if row["iteration"] % 2 == 0:
            objective, kl = world.objective(exact.answer_logprobs(policy, PROMPT).exp())
            curve.append({"iteration": row["iteration"], "regret": world.best - objective, "kl": kl})

    running = {
        "iterations": settings["iterations"], "batch_size": settings["batch_size"], "seed": seed,
        "on_iteration": watch}
    train_on_rewards(
        policy, world.model, lambda answers: scale * exact.example_reward(answers), LENGTH,
        values=first_values(world, policy, start, seed, settings), running=running,
        beta=scale * world.beta, lr=LR, **changes)
    return {"curve": curve, "regret": curve[-1]["regret"]}


def first_values(world, policy, start, seed, settings):
    """The value model: a copy of the policy with a head of 0, a head on the policy itself, or a reward model."""
    if start == "shared":
        return zero_head(TokenScorer(policy.body))
    model = TokenScorer(copy.deepcopy(world.model.body))
    if start == "zero":
        return zero_head(model)
    rows = exact.sample_choices(world.answers, world.ref_logprobs, world.rewards, settings["choices"], PROMPT, seed)
    train_on_choices(model, rows, make_reward_loss(model), seed, weight_decay=0.1, lr=3e-3)
    return model.eval()


def tables(results):
    """For each variant: regret at the end and on the way, and the difference to the first row, seed by seed."""
    rows, base = [], [one["regret"] for one in results["runs"]["PPO"]]
    for name, seeds in results["runs"].items():
        ends = [one["regret"] for one in seeds]
        way = [mean_regret(one) for one in seeds]
        gaps = [end - other for end, other in zip(ends, base, strict=True)]
        rows.append({
            "variant": name, "regret": show_spread(ends, 3), "mean regret on the way": show_spread(way, 3),
            "KL": show_spread([one["curve"][-1]["kl"] for one in seeds]),
            "regret minus that of PPO (95 %)": show_interval(gaps, 3)})
    gap, stories = results["optimum"] - results["reference"], []
    for name, seeds in results["stories"].items():
        row = {"variant": name}
        for key in ("ended", "length", "gold", "learned", "kl"):
            row[key] = show_spread([one[key] for one in seeds])
        stories.append(row)
    return {
        f"Regret: how far J is below the optimum's (the reference: {gap:.3f}), mean ± std over seeds": rows,
        "Stories of at most 80 tokens, before and after PPO": stories}


def mean_regret(run):
    return sum(row["regret"] for row in run["curve"]) / len(run["curve"])


def draw(results):
    """Draw the regret of each variant: at the end, and the mean over the training."""
    fig, axis = show.figure(width=9, height=7)
    series = {}
    for name, pick in (("at the end", lambda one: one["regret"]), ("mean over the training", mean_regret)):
        found = [[pick(one) for one in seeds] for seeds in results["runs"].values()]
        stats = [mean_and_std(values) for values in found]
        series[name] = ([one["mean"] for one in stats], [one["std"] for one in stats])
    show.grouped_bars(
        axis, list(results["runs"]), series, xlabel="regret: J of the optimum minus J (mean and std over seeds)")
    return fig
