"""Over-optimisation as PPO, RLOO, GRPO and DPO train it on the world of repeats.py; see overoptimisation.py.

A policy starts at the reference and is judged exactly, over all answers, every few iterations. Left out: a policy that
cannot represent the best one.
"""

import copy
from functools import partial

import torch

from minift.evaluation import exact
from minift.methods.dpo import make_dpo_loss
from minift.studies import note
from minift.studies.exact_runs import PROMPT, train_on_choices, train_on_rewards
from minift.studies.repeats import LENGTH, VOCAB


def on_rewards(world, beta, settings, method):
    """PPO, or one of grpo.METHODS, with the learned reward and a KL penalty, judged every few iterations."""
    learned, policy, points = world.learn(), copy.deepcopy(world.model), []
    powers = VOCAB ** torch.arange(LENGTH - 1, -1, -1)  # an answer's place in all_answers

    def watch(row):
        if row["iteration"] % max(1, settings["iterations"] // 6) == 0:
            points.append(judge(world, policy, learned))

    torch.manual_seed(world.seed)
    running = {
        "iterations": settings["iterations"], "batch_size": settings["batch_size"],
        "seed": world.seed, "on_iteration": watch}
    train_on_rewards(
        policy, world.model, lambda answers: learned[(answers * powers).sum(1)].float(), LENGTH, method,
        running=running, beta=beta, lr=1e-3, kl_in="reward")
    return points


def on_pairs(world, beta, settings, steps="steps"):
    """DPO on the same pairs, without a reward model: the policy can see repeats, and also learn wrong choices."""
    policy, points, learned = copy.deepcopy(world.model), [], world.learn()
    rows = exact.choice_examples(
        world.answers, world.ref_logprobs, world.chosen, world.rejected, PROMPT)

    torch.manual_seed(world.seed)
    train_on_choices(
        policy, rows, make_dpo_loss(policy, beta), world.seed, settings[steps], lr=3e-3,
        evaluate=note(points, partial(judge, world, learned=learned), policy), eval_every=max(1, settings[steps] // 6))
    return points


def judge(world, policy, learned):
    """World.judge of a trained policy, and its expected number of repeats in an answer."""
    probs = exact.answer_logprobs(policy, PROMPT, LENGTH, batch_size=4096).exp()
    return world.judge(probs, learned) | {"repeats": exact.expected_reward(probs, world.repeats)}


# Name -> (how it is trained, the setting that says on how many pairs).
METHODS = {
    "PPO": (partial(on_rewards, method="ppo"), "pairs"), "RLOO": (partial(on_rewards, method="rloo"), "pairs"),
    "GRPO": (partial(on_rewards, method="grpo"), "pairs"), "DPO": (on_pairs, "pairs"),
    "DPO, more pairs": (partial(on_pairs, steps="many_steps"), "many_pairs")}
