"""Policy gradients without a critic: several answers to each prompt are compared with each other.

| method | advantage of answer i in a group of G | weight of a token | paper |
|---|---|---|---|
| reinforce | r_i | the answer is one action | Williams 1992 |
| rloo | r_i - mean of the other answers | the answer is one action | Ahmadian et al. 2024, "Back to Basics", eq. 8 |
| grpo | (r_i - mean) / (std + eps) | 1 / (answers * its length) | Shao et al. 2024, "DeepSeekMath", eq. 3 |
| dr_grpo | r_i - mean | 1 / (answers * longest length allowed) | Liu et al. 2025, "Understanding R1-Zero", eq. 5 |
| dapo | (r_i - mean) / (std + eps) | 1 / tokens of the batch | Yu et al. 2025, "DAPO", eq. 8 |

The rollout is PPO's (rollout.py), and so is the clipped loss (ppo.policy_loss); no network predicts values. Left out:
sampling again until the batch is full (DAPO, section 3.2: here groups without variance only leave the update), a
soft penalty of long answers, an entropy bonus.
"""

import time
from dataclasses import dataclass
from functools import partial

import torch

from minift.core import logprobs as lp
from minift.core.settings import check_number, check_whole
from minift.errors import MiniftError
from minift.methods import rollout as shared
from minift.methods.ppo import policy_loss

METHODS = ("reinforce", "rloo", "grpo", "dr_grpo", "dapo")
# In these the whole answer is one action, with one ratio; in the others each token is an action.
WHOLE_ANSWER = ("reinforce", "rloo")
# Added to the standard deviation, as in TRL.
EPS = 1e-4
# Rewards of a group that differ by no more than this are equal.
EQUAL = 1e-6


@dataclass(frozen=True)
class GRPOConfig(shared.RolloutConfig):
    """The settings of a run: those of RolloutConfig, and these. MiniftError for a value that cannot work."""

    # One of METHODS.
    method: str = "grpo"
    # Answers to each prompt.
    group_size: int = 8
    # How far a ratio may move upwards; None: as far as downwards, clip_range (DAPO's "clip-higher" is .28 after .2).
    clip_range_high: float | None = None
    # Answers without an end token: leave them out of the update. Their reward still counts in their group.
    mask_truncated: bool = False
    # Most papers do not penalise the KL when rewards can be verified.
    beta: float = 0.0
    # As in GRPO; RLOO has it in the reward.
    kl_in: str = "loss"
    # One pass over the rollout: the policy gradient itself, without clipping.
    epochs: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.method not in METHODS:
            raise MiniftError(f"method is {self.method!r}; expected one of {', '.join(METHODS)}")
        smallest = 1 if self.method == "reinforce" else 2
        check_whole("group_size", self.group_size, least=smallest)
        if self.clip_range_high is not None:
            check_number("clip_range_high", self.clip_range_high, above=0)


# ---- the formulas ----


def group_advantages(rewards, group_size, method="grpo", eps=EPS):
    """How much better is an answer than the other answers to its prompt? (B,) -> (B,), by one of METHODS.

    rewards: the group_size answers to the first prompt, then those to the second, and so on. The standard deviation
    divides by G - 1, as in TRL; in a group of equal rewards all advantages are 0, but for "reinforce".
    """
    if len(rewards) % group_size:
        raise MiniftError(
            f"{len(rewards)} rewards cannot be split into groups of {group_size}")
    if method == "reinforce":
        return rewards
    groups = rewards.view(-1, group_size)  # (P, G)
    advantages = groups - groups.mean(1, keepdim=True)
    if method == "rloo":
        # r_i - (sum - r_i) / (G - 1) = (r_i - mean) * G / (G - 1)
        advantages = advantages * group_size / (group_size - 1)
    elif method != "dr_grpo":
        advantages = advantages / (groups.std(1, keepdim=True) + eps)
    return torch.where(varies(groups), advantages, 0.0).reshape(-1)


def varies(groups):
    """Is there a difference between the rewards of a group? (P, G) -> (P, 1) bool. Without one it teaches nothing.

    A KL in the reward differs by rounding at the start, so a difference counts from EQUAL on.
    """
    return groups.amax(1, keepdim=True) - groups.amin(1, keepdim=True) > EQUAL


def token_weights(response_mask, method, longest, dtype=torch.float32):
    """The weight of each token in the loss, which is then a weighted sum: (B, T-1) bool -> (B, T-1).

    longest: max_new_tokens. With answers of 2 and 8 tokens and a limit of 8, a token of each weighs 1/4 and 1/16
    (grpo: a token of a long wrong answer is punished less), 1/10 and 1/10 (dapo), 1/16 and 1/16 (dr_grpo).
    """
    mask = response_mask.to(dtype)
    if method == "grpo":
        return mask / (len(mask) * mask.sum(1, keepdim=True).clamp(min=1))
    if method == "dapo":
        return mask / mask.sum().clamp(min=1)
    if method == "dr_grpo":
        return mask / (len(mask) * longest)
    return mask / len(mask)


def group_loss(logprobs, ref_logprobs, batch, config, weights=None):
    """The loss of one of METHODS on rows of a rollout -> (loss, metrics).

    logprobs: (B, T-1), of the policy. ref_logprobs: the same of the reference; only needed for a KL in the loss. batch:
    old_logprobs, response_mask (B, T-1), advantages (B,). weights: of the tokens (B, T-1); None: token_weights of these
    rows. For each token, given its prefix, the gradient of k3 is that of KL(reference || policy), not of
    KL(policy || reference); both pull towards the reference.
    """
    mask, old_logprobs = batch["response_mask"], batch["old_logprobs"]
    advantages = batch["advantages"].unsqueeze(1)  # (B, 1)
    if weights is None:
        weights = token_weights(mask, config.method, config.max_new_tokens, logprobs.dtype)
    limits = {"clip_range": config.clip_range, "clip_range_high": config.clip_range_high}
    if config.method in WHOLE_ANSWER:
        # One action a row: its log-probability is the sum over its tokens.
        new, old = (lp.masked_sum(x, mask, 1).unsqueeze(1) for x in (logprobs, old_logprobs))  # (B, 1)
        loss, metrics = policy_loss(
            new, old, advantages, mask.any(1, keepdim=True), **limits, weights=weights.amax(1, keepdim=True))
    else:
        loss, metrics = policy_loss(logprobs, old_logprobs, advantages, mask, **limits, weights=weights)
    metrics |= {"policy_loss": loss.item(), "n_tokens": int(mask.sum())}
    if config.beta and config.kl_in == "loss":
        kl = lp.kl_estimate(logprobs, ref_logprobs, "k3")  # (B, T-1)
        loss = loss + config.beta * lp.masked_sum(weights * kl, mask)
    return loss, metrics


# ---- the loop ----


def train_grpo(
        policy, reference, reward_fn, prompts, config, *, iterations, batch_size, eos_id, pad_id,
        seed=0, on_iteration=None, state_path=None, save_every=1, resume=False, progress=True):
    """Train `policy` (a LanguageModel) on its own answers. Returns the history.

    batch_size: answers in an iteration, a multiple of config.group_size. All else is as in train_ppo, but for the
    value model, which no method here has.
    """
    shared.refuse_settings(policy, reference, prompts, iterations, batch_size)
    if batch_size % config.group_size:
        raise MiniftError(
            f"batch_size is {batch_size}; expected a multiple of group_size, {config.group_size}")

    def iterate(optimizer, history, number, lr, first):
        drawn = shared.draw_prompts(prompts, batch_size // config.group_size, number, seed)
        return grpo_iteration(
            policy, reference, reward_fn, optimizer, drawn, config, lr=lr, eos_id=eos_id, pad_id=pad_id,
            seed=seed, iteration=number, check_reference=first)

    return shared.run_iterations(
        policy, config, iterate, name=config.method, iterations=iterations, batch_size=batch_size, seed=seed,
        on_iteration=on_iteration, state_path=state_path, save_every=save_every, resume=resume, progress=progress)


def grpo_iteration(
        policy, reference, reward_fn, optimizer, prompts, config, *, lr, eos_id, pad_id,
        seed=0, iteration=0, check_reference=True):
    """One iteration, in six numbered steps: group_size responses to each prompt, then updates on them.

    The arguments are those of ppo_iteration. Returns the row of the history.
    """
    clock = [time.perf_counter()]

    # 1. Rollout: the policy writes several answers to each prompt.
    repeated = []
    for prompt in prompts:
        repeated += [prompt] * config.group_size
    generation = shared.write_answers(
        policy, repeated, config, eos_id=eos_id, pad_id=pad_id, seed=seed, iteration=iteration)
    mask, old_logprobs = generation.response_mask[:, 1:], generation.logprobs  # (B, T-1)
    clock.append(time.perf_counter())

    # 2. Score each response; one without an end token gets the penalty.
    scores, rewards = shared.score_answers(generation, reward_fn, config, eos_id)  # (B,)

    # 3. With the KL in the reward: subtract it from the score of the answer.
    ref_logprobs = shared.reference_logprobs(generation, reference)  # (B, T-1)
    if config.kl_in == "reward":
        rewards = rewards - config.beta * lp.masked_sum(old_logprobs - ref_logprobs, mask, 1)

    # 4. Advantage of each answer: how much better is it than the others in its group?
    advantages = group_advantages(rewards, config.group_size, config.method)  # (B,)
    clock.append(time.perf_counter())

    # 5. Update on shuffled minibatches. Answers that teach nothing are left out; the weights still count them.
    shared.refuse_dropout(policy=policy)
    counted = generation.ended(eos_id) if config.mask_truncated else torch.ones_like(rewards, dtype=torch.bool)  # (B,)
    kept = counted & answers_to_learn(rewards, config)  # (B,)
    weights = token_weights(mask & counted.unsqueeze(1), config.method, config.max_new_tokens)  # (B, T-1)
    rollout = {
        "input_ids": generation.input_ids, "attention_mask": generation.attention_mask, "response_mask": mask,
        "old_logprobs": old_logprobs, "ref_logprobs": ref_logprobs, "advantages": advantages,
        "weights": weights * kept.sum()}
    unmoved = partial(shared.refuse_moving, reference, generation, ref_logprobs) if check_reference else None
    updates = shared.update_on(
        {name: x[kept] for name, x in rollout.items()}, partial(grpo_loss, policy, config=config), optimizer,
        config, lr=lr, seed=seed, iteration=iteration, after_first=unmoved)
    clock.append(time.perf_counter())

    # 6. Report the metrics.
    groups = scores.view(-1, config.group_size)  # (P, G)
    seconds = {f"seconds_{name}": clock[i + 1] - clock[i] for i, name in enumerate(("rollout", "scoring", "update"))}
    return {
        "iteration": iteration + 1, "beta": config.beta, **seconds,
        **shared.answer_metrics(generation, scores, ref_logprobs, eos_id),
        # The spread within a group, and the share of groups whose answers all have one score.
        "group_std": groups.std(1, unbiased=False).mean().item(),
        "equal_groups": (~varies(groups)).float().mean().item(),
        "answers_left_out": int((~kept).sum()), **shared.mean_metrics(updates)}


def answers_to_learn(rewards, config):
    """(B,) bool: not the answers of groups without variance, whose advantages are 0.

    REINFORCE learns from all; and a KL in the loss pulls on all.
    """
    if config.method == "reinforce" or (config.beta and config.kl_in == "loss"):
        return torch.ones_like(rewards, dtype=torch.bool)
    groups = rewards.view(-1, config.group_size)  # (P, G)
    return varies(groups).expand_as(groups).reshape(-1)


def grpo_loss(policy, batch, config, untouched=False):
    """group_loss of the policy on rows of a rollout: an estimate of the loss of all its rows. untouched: see ppo_loss.

    batch["weights"] are token_weights of all rows, times the number of rows that were kept.
    """
    input_ids, mask = batch["input_ids"], batch["response_mask"]
    hidden = policy.body(input_ids, batch["attention_mask"])  # (B, T, D)
    logprobs = lp.response_logprobs(hidden, policy.head, input_ids, mask, config.temperature)  # (B, T-1)
    weights = batch["weights"].to(logprobs.dtype) / len(mask)
    loss, metrics = group_loss(logprobs, batch["ref_logprobs"], batch, config, weights)
    if untouched:
        shared.check_untouched(metrics)
    return loss, metrics
