"""PPO's own loop, because PPO makes its own data: write, score, reward, credit, update, report.

Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2. The formulas are in ppo.py; what
the group methods do in the same way is in rollout.py. Left out: an entropy bonus,
several processes.
"""

import time
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from minift.core import logprobs as lp
from minift.core.settings import check_number
from minift.errors import MiniftError
from minift.methods import rollout as shared
from minift.methods.ppo import AdaptiveKL, explained_variance, gae, policy_loss, token_rewards, value_loss


@dataclass(frozen=True)
class PPOConfig(shared.RolloutConfig):
    """The settings of a PPO run: those of RolloutConfig, and these. MiniftError for a value that cannot work."""

    # The KL that AdaptiveKL aims at by changing beta, in nats per response; None: beta stays.
    target_kl: float | None = None
    # How many responses AdaptiveKL takes to react; more: it changes beta more slowly.
    kl_horizon: int = 10_000
    # The discount of a reward, per token.
    gamma: float = 1.0
    # GAE's decay, per token: 1 uses all later rewards, 0 only the token's own reward and the next value.
    lam: float = 0.95
    # How far a value may move from the rollout's; None: freely.
    value_clip_range: float | None = 0.2
    # The weight of the value loss.
    value_coef: float = 0.1
    # Divide the token rewards by their standard deviation; their mean stays.
    whiten_rewards: bool = False
    # Shift and scale the advantages of a rollout to mean 0 and standard deviation 1.
    whiten_advantages: bool = True
    # Whether the value model is a head on the policy's own body, TokenScorer(policy.body): two losses pull on one body.
    share_body: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("target_kl", "value_clip_range"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        check_number("kl_horizon", self.kl_horizon, above=0)
        check_number("value_coef", self.value_coef, least=0)
        for name in ("gamma", "lam"):
            check_number(name, getattr(self, name), least=0, most=1)


def train_ppo(
        policy, reference, value_model, reward_fn, prompts, config, *, iterations, batch_size, eos_id, pad_id,
        seed=0, on_iteration=None, state_path=None, save_every=1, resume=False, progress=True):
    """Train `policy` (a LanguageModel) and `value_model` (a TokenScorer with its own body). Returns the history.

    reference: callable (input_ids, attention_mask) -> logprobs (B, T-1): make_reference(model, config.temperature).
    reward_fn(generation) -> (B,) scores. prompts: lists of ids; each iteration takes the next batch_size of them from a
    seeded shuffle. eos_id=None: all responses have max_new_tokens. on_iteration(row) sees each row of the history.
    state_path: the training state, written every `save_every` iterations, after the last and at Ctrl-C; resume=True
    goes on from it. Raises MiniftError when the results would be meaningless (the end of rollout.py).
    """
    shared.refuse_settings(policy, reference, prompts, iterations, batch_size)
    if value_model.body is policy.body and not config.share_body:
        raise MiniftError(
            "policy and value model share one body; give the value model copy.deepcopy(policy.body), or set share_body")

    def iterate(optimizer, history, number, lr, first):
        beta = history[-1]["next_beta"] if history else config.beta
        drawn = shared.draw_prompts(prompts, batch_size, number, seed)
        row = ppo_iteration(
            policy, reference, value_model, reward_fn, optimizer, drawn, config, beta=beta, lr=lr, eos_id=eos_id,
            pad_id=pad_id, seed=seed, iteration=number, check_reference=first)
        controller = AdaptiveKL(beta, config.target_kl, config.kl_horizon)
        row["next_beta"] = controller.update(row["kl"], batch_size) if config.target_kl else beta
        return row

    return shared.run_iterations(
        nn.ModuleList([policy, value_model]), config, iterate, name="ppo", iterations=iterations,
        batch_size=batch_size, seed=seed, on_iteration=on_iteration, state_path=state_path, save_every=save_every,
        resume=resume, progress=progress)


def ppo_iteration(
        policy, reference, value_model, reward_fn, optimizer, prompts, config, *, beta, lr, eos_id, pad_id,
        seed=0, iteration=0, check_reference=True):
    """One iteration, in six numbered steps: one response to each prompt, then `epochs` passes of updates over them.

    beta, lr: of this iteration. The random numbers depend on seed and iteration. check_reference: test that the first
    update did not change the reference. The rest is as in train_ppo. Returns the row of the history.
    """
    clock = [time.perf_counter()]

    # 1. Rollout: the policy writes. The old log-probs are those that the sampler returns.
    generation = shared.write_answers(
        policy, prompts, config, eos_id=eos_id, pad_id=pad_id, seed=seed, iteration=iteration)
    mask, old_logprobs = generation.response_mask[:, 1:], generation.logprobs  # (B, T-1)
    clock.append(time.perf_counter())

    # 2. Score each response; one without an end token gets the penalty.
    scores, paid = shared.score_answers(generation, reward_fn, config, eos_id)  # (B,)

    with torch.no_grad():
        # 3. Reward each token: -beta times its KL term, plus the score at the last token.
        ref_logprobs = shared.reference_logprobs(generation, reference)  # (B, T-1)
        in_reward = beta if config.kl_in == "reward" else 0.0
        rewards = token_rewards(paid, old_logprobs, ref_logprobs, mask, in_reward)
        if config.whiten_rewards:
            rewards = lp.masked_whiten(rewards, mask, keep_mean=True)

        # 4. Advantage of each token: how much better than its value was the reward from there on?
        values = value_model(generation.input_ids, generation.attention_mask)[:, :-1]  # (B, T-1)
        advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
        if config.whiten_advantages:
            advantages = lp.masked_whiten(advantages, mask)
    clock.append(time.perf_counter())

    # 5. Update on shuffled minibatches; each response is used once in each epoch.
    shared.refuse_dropout(policy=policy, value_model=value_model)
    rollout = {
        "input_ids": generation.input_ids, "attention_mask": generation.attention_mask, "response_mask": mask,
        "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, "old_values": values, "returns": returns,
        "advantages": advantages}
    unmoved = partial(shared.refuse_moving, reference, generation, ref_logprobs) if check_reference else None
    updates = shared.update_on(
        rollout, partial(ppo_loss, policy, value_model, config=config, beta=beta), optimizer, config, lr=lr, seed=seed,
        iteration=iteration, after_first=unmoved)
    clock.append(time.perf_counter())

    # 6. Report the metrics.
    seconds = {f"seconds_{name}": clock[i + 1] - clock[i] for i, name in enumerate(("rollout", "scoring", "update"))}
    return {
        "iteration": iteration + 1, "beta": beta, **seconds,
        **shared.answer_metrics(generation, scores, ref_logprobs, eos_id),
        "explained_variance": explained_variance(values, returns, mask), **shared.mean_metrics(updates)}


def ppo_loss(policy, value_model, batch, config, untouched=False, beta=0.0):
    """policy_loss + value_coef * value_loss, on rows of a rollout -> (loss, metrics).

    beta: the price of the KL, which counts here with kl_in="loss" only: beta * the mean k3 of the response tokens.
    untouched: the policy is still the one that wrote the rollout, so each ratio must be 1 (else a MiniftError).
    """
    input_ids, attention_mask, mask = batch["input_ids"], batch["attention_mask"], batch["response_mask"]
    hidden = policy.body(input_ids, attention_mask)  # (B, T, D)
    logprobs = lp.response_logprobs(hidden, policy.head, input_ids, mask, config.temperature)  # (B, T-1)
    values = value_model(input_ids, attention_mask)[:, :-1]  # (B, T-1)
    loss, metrics = policy_loss(
        logprobs, batch["old_logprobs"], batch["advantages"], mask, config.clip_range)
    if untouched:
        shared.check_untouched(metrics)
    value_part = value_loss(
        values, batch["old_values"], batch["returns"], mask, config.value_clip_range)
    metrics |= {"policy_loss": loss.item(), "value_loss": value_part.item(), "n_tokens": int(mask.sum())}
    loss = loss + config.value_coef * value_part
    if config.kl_in == "loss":
        kl = lp.kl_estimate(logprobs, batch["ref_logprobs"], "k3")  # (B, T-1)
        loss = loss + beta * lp.masked_mean(kl, mask)
    return loss, metrics


@torch.no_grad()
def zero_head(value_model):
    """Set the score head of a TokenScorer to 0, so that each first value is exactly 0. Returns the model."""
    value_model.score.weight.zero_()
    value_model.score.bias.zero_()
    return value_model
