"""The frontier of reward and KL on a world that can be enumerated: how near does each method come to the optimum?

No policy has more reward at its KL than ref * exp(reward / beta) / Z (exact.frontier). Every method starts from the
same reference. It sees the true reward, or choices that were drawn from it by Bradley and Terry's model. Reward and KL
are exact sums over all 4,096 answers. Left out: choices with errors (over-optimisation has them).
"""

import copy
from functools import partial

import torch

from minift import show
from minift.evaluation import exact
from minift.methods import dpo
from minift.studies import mean_and_std, show_spread
from minift.studies.exact_runs import PROMPT, train_on_choices, train_on_rewards

SETTINGS = {
    "seeds": (0, 1, 2), "betas": (1.0, 0.5, 0.25), "iterations": 30, "batch_size": 256, "choices": 4000, "steps": 250}
QUICK = {"seeds": (0,), "betas": (0.5,), "iterations": 2, "batch_size": 32, "choices": 64, "steps": 4}
LENGTH, LR = 4, 5e-3
# The KL of the curve of best policies, from a beta of 30 to one of 0.05.
CURVE = [30 / 1.25 ** power for power in range(29)]


def measure(cells, settings):
    """{"curve", "best_of_n", "runs": "METHOD" -> for each beta and seed {"beta", "kl", "reward", "below"}}."""
    model, answers = exact.example_reference(), exact.all_answers()
    rewards, ref_logprobs = exact.example_reward(answers), exact.answer_logprobs(model, PROMPT)
    world = {"model": model, "answers": answers, "rewards": rewards, "ref_logprobs": ref_logprobs}
    runs = {}
    for name, method in METHODS.items():
        runs[name] = []
        for beta in settings["betas"]:
            for seed in settings["seeds"]:
                part = partial(run_seed, world, method)
                runs[name].append(cells(f"{name}-{beta:g}-{seed}", part, beta, seed, settings))
    best = [judge(world, exact.best_of_n(ref_logprobs, rewards, n)) | {"n": n} for n in (1, 2, 4, 8, 16, 32, 64)]
    return {"curve": exact.frontier(ref_logprobs, rewards, CURVE), "best_of_n": best, "runs": runs}


def run_seed(world, method, beta, seed, settings):
    """Train one method at one beta, and judge the policy."""
    torch.manual_seed(seed)
    policy = copy.deepcopy(world["model"])
    method(world, policy, beta, seed, settings)
    return {"beta": beta} | judge(world, exact.answer_logprobs(policy, PROMPT).exp())


def judge(world, probs):
    """{"kl", "reward", "below"}: below is how far the reward is under that of the best policy with the same KL."""
    kl = exact.kl_divergence(probs, world["ref_logprobs"].exp())
    reward = exact.expected_reward(probs, world["rewards"])
    return {"kl": kl, "reward": reward, "below": best_reward(world, kl) - reward}


def best_reward(world, kl):
    """The largest reward of any policy with this KL, found by halving the interval of log beta."""
    low, high = -8.0, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        point, = exact.frontier(world["ref_logprobs"], world["rewards"], [2.0 ** middle])
        low, high = (middle, high) if point["kl"] > kl else (low, middle)
    return point["reward"]


# ---- the methods ----


def on_rewards(world, policy, beta, seed, settings, method):
    """PPO, or one of grpo.METHODS, with the true reward."""
    running = {
        "iterations": settings["iterations"], "batch_size": settings["batch_size"], "seed": seed}
    kl_in = "loss" if method == "grpo" else "reward"
    train_on_rewards(
        policy, world["model"], exact.example_reward, LENGTH, method, running=running, beta=beta,
        lr=LR, kl_in=kl_in)


def on_choices(world, policy, beta, seed, settings, make_loss):
    """DPO and its family, on sampled choices. make_loss(policy, beta) -> loss_fn."""
    rows = exact.sample_choices(
        world["answers"], world["ref_logprobs"], world["rewards"], settings["choices"], PROMPT, seed)
    train_on_choices(policy, rows, make_loss(policy, beta), seed, settings["steps"], lr=LR)


def with_reference(loss, policy, beta):
    return dpo.make_dpo_loss(policy, beta, loss=loss)


def without_reference(loss, policy, beta):
    """SimPO with a scale of beta; ORPO with a weight of 1 / beta. So a smaller beta goes further here too."""
    scale = 1 / beta if loss is dpo.orpo_loss else beta
    return dpo.make_reference_free_loss(policy, lambda chosen, rejected: loss(chosen, rejected, scale))


METHODS = {
    "PPO": partial(on_rewards, method="ppo"), "RLOO": partial(on_rewards, method="rloo"),
    "Dr. GRPO": partial(on_rewards, method="dr_grpo"), "GRPO, KL in the loss": partial(on_rewards, method="grpo"),
    "DPO": partial(on_choices, make_loss=dpo.make_dpo_loss),
    "IPO": partial(on_choices, make_loss=partial(with_reference, dpo.ipo_loss)),
    "hinge": partial(on_choices, make_loss=partial(with_reference, dpo.hinge_loss)),
    "SimPO": partial(on_choices, make_loss=partial(without_reference, dpo.simpo_loss)),
    "ORPO": partial(on_choices, make_loss=partial(without_reference, dpo.orpo_loss))}


# ---- results ----


def tables(results):
    """For each method and beta: reward, KL, and how far the reward is below the best at this KL."""
    rows = []
    for name, points in results["runs"].items():
        for beta in sorted({point["beta"] for point in points}, reverse=True):
            mine = [point for point in points if point["beta"] == beta]
            row = {"method": name, "beta": f"{beta:g}"}
            for key in ("reward", "kl", "below"):
                row[key] = show_spread([point[key] for point in mine], 3)
            rows.append(row)
    for point in results["best_of_n"][1:]:
        row = {key: f"{point[key]:.3f}" for key in ("reward", "kl", "below")}
        rows.append({"method": f"best of {point['n']}, exact", "beta": None, **row})
    return {"Expected reward, KL to the reference, and distance below the best policy with that KL (mean ± std)": rows}


def draw(results):
    """Left: each method's points and the curve of best policies. Right: how far each method is below the curve."""
    fig, (left, right) = show.figure(1, 2, width=13, height=5.5)
    curve, most = results["curve"], 0.0
    for points in results["runs"].values():
        most = max([most, *(point["kl"] for point in points)])
    inside = [point for point in curve if point["kl"] <= 1.1 * most]
    series = {"best policies": ([point["kl"] for point in inside], [point["reward"] for point in inside])}
    best = results["best_of_n"]
    series["best of n"] = ([point["kl"] for point in best], [point["reward"] for point in best])
    for name, points in results["runs"].items():
        ordered = sorted(means_of(points), key=lambda point: point["kl"])
        series[name] = ([point["kl"] for point in ordered], [point["reward"] for point in ordered])
    show.curves(left, series, xlabel="KL to the reference (nats)", ylabel="expected reward")
    names = list(results["runs"])
    found = [mean_and_std([point["below"] for point in results["runs"][name]]) for name in names]
    bars = ([one["mean"] for one in found], [one["std"] for one in found])
    show.grouped_bars(right, names, {"all betas": bars}, xlabel="reward below the best policy at equal KL")
    return fig


def means_of(points):
    """The mean point of each beta."""
    found = []
    for beta in sorted({point["beta"] for point in points}):
        mine = [point for point in points if point["beta"] == beta]
        found.append({key: mean_and_std([point[key] for point in mine])["mean"] for key in ("kl", "reward")})
    return found
