"""Every method of preference alignment, trained in the same small setting: train(arena, beta, settings, judge).

Each function trains a copy of the arena's SFT model and returns the points at which `judge` looked at it. judge(policy)
-> a dict with "kl", "gold" and more. settings: "steps" for methods on pairs, "iterations" and "batch_size" for
rollouts. Left out: a learning rate for each method; methods of one kind share one.
"""

import copy
from functools import partial

import torch

from minift.core.heads import TokenScorer
from minift.core.logprobs import make_reference
from minift.core.train import train
from minift.evaluation.exact import best_of_n_kl_bound
from minift.methods import dpo, kto
from minift.methods.grpo import GRPOConfig, train_grpo
from minift.methods.ppo_loop import PPOConfig, train_ppo, zero_head
from minift.methods.reward import reward_from_model
from minift.methods.sft import tune_on_chats
from minift.studies import note
from minift.studies.stories import TEMPERATURE, gold_reward, gold_score
from minift.text.answers import sample_answers
from minift.text.batches import Batches
from minift.text.chat import encode_prompt
from minift.text.pairs import collate_pairs, encode_answers, encode_pairs
from minift.ways.preferences import annotate, sample_pairs
from minift.world.instructions import story_requests

# Each run is judged so many times, at equal distances.
MOMENTS = 4
PAIR_LR, ROLLOUT_LR = 1.5e-4, 2.5e-4
# Pairs in a step.
BATCH = 16


def every(n, moments=MOMENTS):
    """Steps from one judgement to the next in a run of n steps."""
    return max(1, n // moments)


# ---- methods that write their own answers ----


def on_rollouts(
        arena, beta, settings, judge, method, gold=False, lr=ROLLOUT_LR, missing_eos_penalty=2.0,
        values_from_reward=False):
    """PPO, or one of grpo.METHODS, on the learned reward or on the gold score (in units of its spread).

    missing_eos_penalty: in standard deviations of the score. values_from_reward: PPO's value model starts as a copy of
    the reward model; else as one of the policy, with a head of 0.
    """
    # The prompts, and the reward of a story.
    torch.manual_seed(arena.seed)
    n = settings["iterations"] * settings["batch_size"]
    requests = story_requests(n, arena.seed, "ppo")
    scenes = {tuple(encode_prompt(arena.tokenizer, prompt)): scene for prompt, scene in requests}
    reward_fn = scaled_gold(arena, scenes) if gold else reward_from_model(arena.reward_model)
    policy, points = arena.copy_policy(), []

    def watch(row):
        if row["iteration"] % every(settings["iterations"], settings.get("moments", MOMENTS)) == 0:
            points.append(judge(policy))

    # Train.
    common = {
        "beta": beta, "lr": lr, "minibatch_size": 16, "epochs": 2, "temperature": TEMPERATURE,
        "max_new_tokens": arena.max_new_tokens, "missing_eos_penalty": missing_eos_penalty}
    running = {
        "iterations": settings["iterations"], "batch_size": settings["batch_size"], "eos_id": arena.tokenizer.eos_id,
        "pad_id": arena.tokenizer.pad_id, "seed": arena.seed, "on_iteration": watch, "progress": False}
    reference, prompts = make_reference(arena.policy, TEMPERATURE), [list(ids) for ids in scenes]
    if method == "ppo":
        config = PPOConfig(value_coef=0.5, **common)
        values = copy.deepcopy(arena.reward_model)
        if not values_from_reward:
            values = zero_head(TokenScorer(copy.deepcopy(policy.body)))
        train_ppo(policy, reference, values, reward_fn, prompts, config, **running)
    else:
        kl_in = "reward" if method == "rloo" else "loss"
        config = GRPOConfig(method=method, group_size=4, kl_in=kl_in, **common)
        train_grpo(policy, reference, reward_fn, prompts, config, **running)
    return points


def scaled_gold(arena, scenes):
    """The gold score as a reward, with mean 0 and standard deviation 1 over the arena's stories."""
    scores = torch.tensor([row["gold"] for row in arena.rows], dtype=torch.float64)  # (N, 2)
    mean, std, gold = scores.mean().item(), scores.std().item(), gold_reward(arena.tokenizer, scenes)
    return lambda generation: (gold(generation) - mean) / std


def online_dpo(arena, beta, settings, judge, gold=False):
    """DPO in rounds: the policy writes two stories to each request, reward model or rubric choose, DPO trains on it."""
    policy, points = arena.copy_policy(), []
    steps = every(settings["steps"])
    for number in range(settings["steps"] // steps):
        torch.manual_seed(arena.seed)
        requests = story_requests(steps * BATCH, arena.seed, f"online/{number}")
        pairs = sample_pairs(
            policy, arena.tokenizer, [prompt for prompt, _ in requests], max_new_tokens=arena.max_new_tokens,
            temperature=TEMPERATURE, batch_size=128, seed=arena.seed)
        score = partial(gold_score, dict(requests)) if gold else arena.score_table(pairs)
        rows = annotate(pairs, score, noise=0.0, seed=arena.seed)
        fit_pairs(arena, policy, rows, dpo.make_dpo_loss(policy, beta), steps)
        points.append(judge(policy))
    return points


# ---- methods on the pairs that are there ----


def on_pairs(arena, beta, settings, judge, make_loss):
    """DPO and its family on the arena's pairs. make_loss(policy, beta) -> loss_fn."""
    policy, points = arena.copy_policy(), []
    torch.manual_seed(arena.seed)
    steps = settings["steps"]
    fit_pairs(
        arena, policy, arena.rows, make_loss(policy, beta), steps, evaluate=note(points, judge, policy),
        eval_every=every(steps))
    return points


def fit_pairs(arena, policy, rows, loss_fn, steps, **watching):
    """Train the policy on preference rows; the arena's SFT model is the reference. Returns the history."""
    pad_id = arena.tokenizer.pad_id
    examples = encode_pairs(arena.tokenizer, rows, policy.config.context_length)
    dpo.add_reference_logprobs(examples, make_reference(arena.policy), pad_id)
    batches = Batches(examples, BATCH, partial(collate_pairs, pad_id=pad_id), seed=arena.seed)
    return train(policy, batches, loss_fn, steps=steps, lr=PAIR_LR, progress=False, **watching)


def on_single_answers(arena, beta, settings, judge):
    """KTO on the arena's pairs, each read as a wanted and an unwanted answer."""
    policy, points, tokenizer = arena.copy_policy(), [], arena.tokenizer
    context, examples = policy.config.context_length, []
    for row in arena.rows:
        answers, _ = encode_answers(tokenizer, row["prompt"], [row["chosen"], row["rejected"]], context)
        for (ids, mask), wanted in zip(answers, (True, False)):
            examples.append({"answer_input_ids": ids, "answer_response_mask": mask, "wanted": wanted})
    kto.add_other_answers(examples, context)
    dpo.add_reference_logprobs(examples, make_reference(arena.policy), tokenizer.pad_id, sides=kto.SIDES)

    torch.manual_seed(arena.seed)
    steps, collate = settings["steps"], partial(kto.collate_judged, pad_id=tokenizer.pad_id)
    train(
        policy, Batches(examples, 2 * BATCH, collate, seed=arena.seed), kto.make_kto_loss(policy, beta), steps=steps,
        lr=PAIR_LR, progress=False, evaluate=note(points, judge, policy), eval_every=every(steps))
    return points


def on_chosen(arena, beta, settings, judge):
    """SFT on the chosen answers alone. beta has no meaning here."""
    policy, points = arena.copy_policy(), []

    chats = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]}
        for row in arena.rows]
    torch.manual_seed(arena.seed)
    steps = settings["steps"]
    tune_on_chats(
        policy, arena.tokenizer, chats, batch_size=BATCH, steps=steps, lr=PAIR_LR, seed=arena.seed,
        evaluate=note(points, judge, policy), eval_every=every(steps))
    return points


def family_loss(function, policy, beta):
    """A loss of DPO's family with sums of the reference, at this beta."""
    return dpo.make_dpo_loss(policy, beta, loss=function)


def free_loss(function, policy, beta):
    """SimPO or ORPO, which need no reference; beta is its scale or its weight."""
    return dpo.make_reference_free_loss(policy, lambda chosen, rejected: function(chosen, rejected, beta))


# Method -> its function.
ONLINE = {
    "PPO": partial(on_rollouts, method="ppo"), "PPO, gold reward": partial(on_rollouts, method="ppo", gold=True),
    "RLOO": partial(on_rollouts, method="rloo"), "GRPO": partial(on_rollouts, method="grpo"),
    "online DPO": online_dpo, "online DPO, gold labels": partial(online_dpo, gold=True)}
OFFLINE = {
    "DPO": partial(on_pairs, make_loss=dpo.make_dpo_loss),
    "IPO": partial(on_pairs, make_loss=partial(family_loss, dpo.ipo_loss)),
    "SimPO": partial(on_pairs, make_loss=partial(free_loss, dpo.simpo_loss)),
    "ORPO": partial(on_pairs, make_loss=partial(free_loss, dpo.orpo_loss)),
    "KTO": on_single_answers, "SFT on chosen": on_chosen}


# ---- no training at all ----


def pick_best(arena, requests, most):
    """n -> (gold scores, learned scores) of the best of n stories by the reward model; n = 2, 4, ... up to `most`."""
    prompts = []
    for prompt, _ in requests:
        prompts += [prompt] * most
    answers = sample_answers(
        arena.policy, arena.tokenizer, prompts, max_new_tokens=arena.max_new_tokens, temperature=TEMPERATURE,
        batch_size=256, seed=arena.seed)
    learned, scenes = arena.learned(answers), dict(requests)
    found, n = {}, 2
    while n <= most:
        gold, best = [], []
        for start in range(0, len(answers), most):
            place = max(range(start, start + n), key=learned.__getitem__)
            gold.append(gold_score(scenes, answers[place].prompt, answers[place].text))
            best.append(learned[place])
        found[n] = gold, best
        n *= 2
    return found


def best_of_n(arena, requests, most):
    """A point for each n of pick_best, with keys of Arena.judge. Its KL is the bound log n - (n - 1) / n."""
    points = []
    for n, (gold, learned) in pick_best(arena, requests, most).items():
        means = {"gold": sum(gold) / len(gold), "learned": sum(learned) / len(learned)}
        points.append({"n": n, "kl": best_of_n_kl_bound(n), **means, "scores": gold})
    return points
