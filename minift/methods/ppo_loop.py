"""PPO's own loop, because PPO makes its own data: write, score, reward, credit, update, report.

Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2. The formulas are in ppo.py.
Left out: one network for both policy and values, an entropy bonus, stopping an update early, several processes.
"""

import hashlib
import time
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import nn

from minift.core import logprobs as lp
from minift.core.generate import generate, left_pad
from minift.core.resume import TrainingState
from minift.core.run import Run
from minift.core.settings import check_number, check_whole
from minift.core.step import make_optimizer
from minift.core.train import take_step
from minift.errors import MiniftError
from minift.methods.ppo import AdaptiveKL, explained_variance, gae, policy_loss, token_rewards, value_loss


@dataclass(frozen=True)
class PPOConfig:
    """The settings of a PPO run. MiniftError for a value that cannot work."""

    # The weight of the KL to the reference, in units of reward per nat; 0: no penalty.
    beta: float = 0.1
    # The KL that AdaptiveKL aims at by changing beta, in nats per response; None: beta stays.
    target_kl: float | None = None
    # How many responses AdaptiveKL takes to react; more: it changes beta more slowly.
    kl_horizon: int = 10_000
    # The discount of a reward, per token.
    gamma: float = 1.0
    # GAE's decay, per token: 1 uses all later rewards, 0 only the token's own reward and the next value.
    lam: float = 0.95
    # How far a ratio may move from 1 before its token stops counting.
    clip_range: float = 0.2
    # How far a value may move from the rollout's; None: freely.
    value_clip_range: float | None = 0.2
    # The weight of the value loss.
    value_coef: float = 0.1
    # Passes of updates over each rollout.
    epochs: int = 4
    # Responses in one optimizer step.
    minibatch_size: int = 16
    # The learning rate of the first iteration; it falls linearly towards 0, once per iteration.
    lr: float = 1e-4
    # The largest gradient norm; None: no clipping.
    clip: float | None = 1.0
    # Divides the logits in sampling and update; give the reference the same.
    temperature: float = 1.0
    # The longest response, in tokens.
    max_new_tokens: int = 32
    # Subtracted from the score of a response that was cut before its end token.
    missing_eos_penalty: float = 0.0
    # Divide the token rewards by their standard deviation; their mean stays.
    whiten_rewards: bool = False

    def __post_init__(self):
        for name in ("target_kl", "value_clip_range", "clip"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        for name in ("clip_range", "lr", "temperature", "kl_horizon"):
            check_number(name, getattr(self, name), above=0)
        for name in ("beta", "value_coef", "missing_eos_penalty"):
            check_number(name, getattr(self, name), least=0)
        for name in ("gamma", "lam"):
            check_number(name, getattr(self, name), least=0, most=1)
        for name in ("epochs", "minibatch_size", "max_new_tokens"):
            check_whole(name, getattr(self, name), least=1)


def train_ppo(
        policy, reference, value_model, reward_fn, prompts, config, *, iterations, batch_size, eos_id, pad_id,
        seed=0, on_iteration=None, state_path=None, save_every=1, resume=False, progress=True):
    """Train `policy` (a LanguageModel) and `value_model` (a TokenScorer with its own body). Returns the history.

    reference: callable (input_ids, attention_mask) -> logprobs (B, T-1): make_reference(model, config.temperature).
    reward_fn(generation) -> (B,) scores. prompts: lists of ids; each iteration takes the next batch_size of them from a
    seeded shuffle. eos_id=None: all responses have max_new_tokens. on_iteration(row) sees each row of the history.
    state_path: the training state, written every `save_every` iterations, after the last and at Ctrl-C; resume=True
    goes on from it. Raises MiniftError when the results would be meaningless (the _refuse functions).
    """
    # Models, optimizer, and the state that a resumed run goes on from.
    _refuse_settings(policy, reference, value_model, prompts, iterations, batch_size)
    models, device = nn.ModuleList([policy, value_model]), next(policy.parameters()).device
    optimizer = make_optimizer(
        models, lr=config.lr, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-5)
    settings = {**asdict(config), "iterations": iterations, "batch_size": batch_size, "seed": seed}
    state = TrainingState(models, optimizer, (), device, settings)
    run = Run(
        state, iterations, name="ppo", unit="iteration", state_path=state_path, save_every=save_every,
        resume=resume, progress=progress)
    beta, first = state.history[-1]["next_beta"] if state.history else config.beta, state.step + 1
    controller = AdaptiveKL(beta, config.target_kl, config.kl_horizon)

    # The loop. No dropout: the ratio must be 1 before the first update.
    with lp.eval_mode(models), run:
        for number in run:
            row = ppo_iteration(
                policy, reference, value_model, reward_fn, optimizer,
                draw_prompts(prompts, batch_size, number - 1, seed), config, beta=controller.beta,
                lr=config.lr * (1 - (number - 1) / iterations), eos_id=eos_id, pad_id=pad_id,
                seed=seed, iteration=number - 1, check_reference=number == first)
            row["next_beta"] = controller.update(row["kl"], batch_size) if config.target_kl else controller.beta
            run.record(row, score=f"{row['score']:.3f}", kl=f"{row['kl']:.3f}")
            if on_iteration is not None:
                on_iteration(row)
    return state.history


def ppo_iteration(
        policy, reference, value_model, reward_fn, optimizer, prompts, config, *, beta, lr, eos_id, pad_id,
        seed=0, iteration=0, check_reference=True):
    """One iteration, in six numbered steps: one response to each prompt, then `epochs` passes of updates over them.

    beta, lr: of this iteration. The random numbers depend on seed and iteration. check_reference: test that the first
    update did not change the reference. The rest is as in train_ppo. Returns the row of the history.
    """
    device, clock = next(policy.parameters()).device, [time.perf_counter()]

    # 1. Rollout: the policy writes. The old log-probs are those that the sampler returns.
    generation = generate(
        policy, *left_pad(prompts, pad_id, device), max_new_tokens=config.max_new_tokens,
        temperature=config.temperature, eos_id=eos_id, pad_id=pad_id,
        generator=_generator(device, seed, "sample", iteration))
    input_ids, attention_mask = generation.input_ids, generation.attention_mask  # (B, T)
    mask, old_logprobs = generation.response_mask[:, 1:], generation.logprobs    # (B, T-1)
    clock.append(time.perf_counter())
    with torch.no_grad():
        # 2. Score each response; one without an end token gets the penalty.
        scores = _check_scores(reward_fn(generation), len(prompts)).to(old_logprobs)  # (B,)
        ended = generation.ended(eos_id)  # (B,)
        paid = scores - config.missing_eos_penalty * (~ended).to(scores.dtype)

        # 3. Reward each token: -beta times its KL term, plus the score at the last token.
        ref_logprobs = _check_reference(reference(input_ids, attention_mask), old_logprobs)
        rewards = token_rewards(paid, old_logprobs, ref_logprobs, mask, beta)
        if config.whiten_rewards:
            rewards = lp.masked_whiten(rewards, mask, keep_mean=True)

        # 4. Advantage of each token: how much better than its value was the reward from there on?
        values = value_model(input_ids, attention_mask)[:, :-1]  # (B, T-1)
        advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)
        rollout = {
            "input_ids": input_ids, "attention_mask": attention_mask, "response_mask": mask,
            "old_logprobs": old_logprobs, "old_values": values, "returns": returns,
            "advantages": lp.masked_whiten(advantages, mask)}
    clock.append(time.perf_counter())

    # 5. Update on shuffled minibatches; each response is used once in each epoch.
    _refuse_dropout(policy, value_model)
    updates, shuffle = [], _generator("cpu", seed, "shuffle", iteration)
    for _ in range(config.epochs):
        for rows in torch.randperm(len(prompts), generator=shuffle).split(config.minibatch_size):
            minibatch = {name: x[rows.to(device)] for name, x in rollout.items()}
            loss_fn = partial(
                ppo_loss, policy, value_model, config=config, untouched=not updates)
            updates.append(take_step(optimizer, [minibatch], loss_fn, lr=lr, clip=config.clip))
            if check_reference and len(updates) == 1:
                _refuse_moving(reference, input_ids, attention_mask, ref_logprobs)
    clock.append(time.perf_counter())

    # 6. Report the metrics.
    seconds = {f"seconds_{name}": clock[i + 1] - clock[i] for i, name in enumerate(("rollout", "scoring", "update"))}
    return {
        "iteration": iteration + 1, "beta": beta, **seconds,
        **_rollout_metrics(rollout, scores, ref_logprobs, ended), **_mean_metrics(updates)}


def ppo_loss(policy, value_model, batch, config, untouched=False):
    """policy_loss + value_coef * value_loss, on rows of a rollout -> (loss, metrics).

    untouched: the policy is still the one that wrote the rollout, so each ratio must be 1 (else a MiniftError).
    """
    input_ids, attention_mask, mask = batch["input_ids"], batch["attention_mask"], batch["response_mask"]
    hidden = policy.body(input_ids, attention_mask)  # (B, T, D)
    logprobs = lp.response_logprobs(hidden, policy.head, input_ids, mask, config.temperature)  # (B, T-1)
    values = value_model(input_ids, attention_mask)[:, :-1]  # (B, T-1)
    loss, metrics = policy_loss(
        logprobs, batch["old_logprobs"], batch["advantages"], mask, config.clip_range)
    if untouched and not metrics["ratio_error"] <= 1e-3:
        raise MiniftError(
            f"before the first update a ratio is {metrics['ratio_error']:.2g} away from 1: sampling and "
            "update see different policies (check dropout, temperature, padding and precision)")
    value_part = value_loss(
        values, batch["old_values"], batch["returns"], mask, config.value_clip_range)
    metrics |= {"policy_loss": loss.item(), "value_loss": value_part.item(), "n_tokens": int(mask.sum())}
    return loss + config.value_coef * value_part, metrics


@torch.no_grad()
def zero_head(value_model):
    """Set the score head of a TokenScorer to 0, so that each first value is exactly 0. Returns the model."""
    value_model.score.weight.zero_()
    value_model.score.bias.zero_()
    return value_model


# ---- the loop's parts ----


def draw_prompts(prompts, batch_size, iteration, seed):
    """The next batch_size prompts of a stream that goes through all of them again and again, each time reshuffled."""
    n, first = len(prompts), iteration * batch_size
    passes = range(first // n, (first + batch_size - 1) // n + 1)
    order = torch.cat(
        [torch.randperm(n, generator=_generator("cpu", seed, "prompts", number)) for number in passes])
    skip = first - passes[0] * n
    return [prompts[i] for i in order[skip:skip + batch_size].tolist()]


def _generator(device, *key):
    """Random numbers that depend on the key alone: an iteration draws the same ones, resumed or not."""
    digest = hashlib.sha256(repr(key).encode("utf-8")).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


def _rollout_metrics(rollout, scores, ref_logprobs, ended):
    """Metrics of the policy that wrote the rollout. KL: nats, summed over a response, the mean over responses."""
    mask, logprobs = rollout["response_mask"], rollout["old_logprobs"]
    k1 = lp.masked_sum(lp.kl_estimate(logprobs, ref_logprobs, "k1"), mask, 1)  # (B,)
    k3 = lp.masked_sum(lp.kl_estimate(logprobs, ref_logprobs, "k3"), mask, 1)  # (B,)
    return {
        "score": scores.mean().item(),
        "score_std": scores.std(unbiased=False).item(),
        "kl": k1.mean().item(),
        "kl_k3": k3.mean().item(),
        # Nats per token: the mean -log p of sampled tokens is an unbiased estimate.
        "entropy": -lp.masked_mean(logprobs, mask).item(),
        "response_length": mask.sum(1).float().mean().item(),
        "eos_share": ended.float().mean().item(),
        "explained_variance": explained_variance(rollout["old_values"], rollout["returns"], mask)}


def _mean_metrics(updates):
    """The means over an iteration's updates; for ratio_error the maximum."""
    means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0] if name != "n_tokens"}
    return means | {"ratio_error": max(update["ratio_error"] for update in updates)}


def _check_scores(scores, batch_size):
    scores = torch.as_tensor(scores).detach()
    if scores.shape != (batch_size,):
        raise MiniftError(
            f"reward_fn returned shape {tuple(scores.shape)}; expected ({batch_size},), one score each")
    bad = (~torch.isfinite(scores)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise MiniftError(
            f"the score of row {row} is {scores[row].item()}; reward_fn must return finite numbers")
    return scores


def _check_reference(ref_logprobs, old_logprobs):
    if ref_logprobs.shape != old_logprobs.shape:
        raise MiniftError(
            f"reference returned shape {tuple(ref_logprobs.shape)}; expected log-probs of shape "
            f"{tuple(old_logprobs.shape)}: wrap a model with make_reference(model)")
    return ref_logprobs


def _refuse_settings(policy, reference, value_model, prompts, iterations, batch_size):
    """MiniftError when models share what they must not share, or when there is nothing to do."""
    if reference is policy or getattr(reference, "model", None) is policy:
        raise MiniftError(
            "the reference is the policy itself, so that the KL is always 0; give it a copy")
    if value_model.body is policy.body:
        raise MiniftError(
            "policy and value model share one body; give the value model copy.deepcopy(policy.body)")
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise MiniftError(
            "prompts must be a list of lists of ids, with at least one id in each")
    check_whole("iterations", iterations, least=1)
    check_whole("batch_size", batch_size, least=1)


def _refuse_dropout(*models):
    for model in models:
        if any(module.training for module in model.modules()):
            raise MiniftError(
                "the policy or the value model was put into training mode during PPO, where dropout changes "
                "the ratio; reward_fn and on_iteration must leave both in eval mode")


def _refuse_moving(reference, input_ids, attention_mask, before):
    """After the first update the reference must give the same log-probabilities as before, to the last bit."""
    with torch.no_grad():
        after = reference(input_ids, attention_mask)
    if not torch.equal(before, after):
        raise MiniftError(
            "the reference changed with the first update: it shares weights with the policy (give it a "
            "deep copy, or switch the adapter off for it), or its dropout is active")
