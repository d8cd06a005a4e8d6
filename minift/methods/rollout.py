"""What PPO and the group methods share: the policy writes, a reward scores, the update learns from these answers.

One iteration makes its own data, so there is no dataset and no `train`: each iteration is a rollout and some updates.
Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.1. Left out: updates that begin
while the next answers are written, several processes.
"""

import hashlib
from dataclasses import asdict, dataclass
from functools import partial

import torch

from minift.core import logprobs as lp
from minift.core.generate import generate, left_pad
from minift.core.resume import TrainingState
from minift.core.run import Run
from minift.core.settings import check_number, check_whole
from minift.core.step import make_optimizer
from minift.core.train import take_step
from minift.errors import MiniftError


@dataclass(frozen=True)
class RolloutConfig:
    """The settings of rollouts and updates, whatever the method. MiniftError for a value that cannot work."""

    # The weight of the KL to the reference, in units of reward per nat; 0: no penalty.
    beta: float = 0.1
    # Where the KL is paid: in the "reward" (k1 of the rollout), or in the "loss" (k3 of each token, with a gradient).
    kl_in: str = "reward"
    # How far a ratio may move from 1 before its token stops counting.
    clip_range: float = 0.2
    # Passes of updates over each rollout.
    epochs: int = 4
    # Responses in one optimizer step.
    minibatch_size: int = 16
    # End an iteration's updates when approx_kl, nats a token, goes above it; None: never.
    stop_kl: float | None = None
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

    def __post_init__(self):
        for name in ("clip_range", "lr", "temperature"):
            check_number(name, getattr(self, name), above=0)
        for name in ("beta", "missing_eos_penalty"):
            check_number(name, getattr(self, name), least=0)
        for name in ("epochs", "minibatch_size", "max_new_tokens"):
            check_whole(name, getattr(self, name), least=1)
        for name in ("clip", "stop_kl"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if self.kl_in not in ("loss", "reward"):
            raise MiniftError(f"kl_in is {self.kl_in!r}; expected 'loss' or 'reward'")


def run_iterations(
        models, config, iterate, *, name, iterations, batch_size, seed, on_iteration, state_path, save_every,
        resume, progress):
    """Call `iterate` for each iteration, and keep the training state. Returns the history.

    models: a module with all trained parameters. iterate(optimizer, history, number, lr, first) -> the row of the
    history; number: from 0; first: whether this is the first iteration of this process.
    The other arguments are those of train_ppo.
    """
    device = next(models.parameters()).device
    optimizer = make_optimizer(
        models, lr=config.lr, weight_decay=0.0, betas=(0.9, 0.999), eps=1e-5)
    settings = {**asdict(config), "iterations": iterations, "batch_size": batch_size, "seed": seed}
    state = TrainingState(models, optimizer, (), device, settings)
    run = Run(
        state, iterations, name=name, unit="iteration", state_path=state_path, save_every=save_every,
        resume=resume, progress=progress)
    first = state.step
    # No dropout: the ratio must be 1 before the first update.
    with lp.eval_mode(models), run:
        for number in run:
            lr = config.lr * (1 - (number - 1) / iterations)
            row = iterate(optimizer, state.history, number - 1, lr, number - 1 == first)
            run.record(row, score=f"{row['score']:.3f}", kl=f"{row['kl']:.3f}")
            if on_iteration is not None:
                on_iteration(row)
    return state.history


def write_answers(policy, prompts, config, *, eos_id, pad_id, seed, iteration):
    """One sampled answer to each prompt -> Generation, with the log-probabilities of the policy that wrote them."""
    device = next(policy.parameters()).device
    return generate(
        policy, *left_pad(prompts, pad_id, device), max_new_tokens=config.max_new_tokens,
        temperature=config.temperature, eos_id=eos_id, pad_id=pad_id,
        generator=seeded_generator(device, seed, "sample", iteration))


@torch.no_grad()
def score_answers(generation, reward_fn, config, eos_id):
    """(scores, rewards): what reward_fn says, and the same less the penalty of answers without an end; (B,) each."""
    scores = check_scores(reward_fn(generation), len(generation.input_ids)).to(generation.logprobs)
    cut = ~generation.ended(eos_id)  # (B,)
    return scores, scores - config.missing_eos_penalty * cut.to(scores.dtype)


@torch.no_grad()
def reference_logprobs(generation, reference):
    """The reference's log-probabilities of the answers: (B, T-1)."""
    ref_logprobs = reference(generation.input_ids, generation.attention_mask)
    if ref_logprobs.shape != generation.logprobs.shape:
        raise MiniftError(
            f"reference returned shape {tuple(ref_logprobs.shape)}; expected log-probs of shape "
            f"{tuple(generation.logprobs.shape)}: wrap a model with make_reference(model)")
    return ref_logprobs


def update_on(rollout, loss_fn, optimizer, config, *, lr, seed, iteration, after_first=None):
    """`epochs` passes over shuffled minibatches of the rollout; each answer is used once in a pass.

    rollout: name -> tensor, one row an answer. loss_fn(minibatch, untouched=bool) -> (loss, metrics); untouched: before
    the first update, when each ratio must be 1. after_first() is called after that update. Returns the metrics of each
    update: an empty list for an empty rollout.
    """
    n = len(rollout["input_ids"])
    epochs = config.epochs if n else 0
    updates, shuffle = [], seeded_generator("cpu", seed, "shuffle", iteration)
    for _ in range(epochs):
        for rows in torch.randperm(n, generator=shuffle).split(config.minibatch_size):
            minibatch = {name: x[rows.to(x.device)] for name, x in rollout.items()}
            untouched = partial(loss_fn, untouched=not updates)
            updates.append(take_step(optimizer, [minibatch], untouched, lr=lr, clip=config.clip))
            if after_first is not None and len(updates) == 1:
                after_first()
            if config.stop_kl is not None and updates[-1]["approx_kl"] > config.stop_kl:
                return updates
    return updates


def draw_prompts(prompts, n, iteration, seed):
    """The next n prompts of a stream that goes through all of them again and again, each time reshuffled."""
    total, first = len(prompts), iteration * n
    passes = range(first // total, (first + n - 1) // total + 1)
    order = torch.cat(
        [torch.randperm(total, generator=seeded_generator("cpu", seed, "prompts", number)) for number in passes])
    skip = first - passes[0] * total
    return [prompts[i] for i in order[skip:skip + n].tolist()]


def seeded_generator(device, *key):
    """Random numbers that depend on the key alone: an iteration draws the same ones, resumed or not."""
    digest = hashlib.sha256(repr(key).encode("utf-8")).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


# ---- metrics ----


def answer_metrics(generation, scores, ref_logprobs, eos_id):
    """Metrics of the policy that wrote the answers. KL: nats, summed over a response, the mean over responses."""
    mask, logprobs = generation.response_mask[:, 1:], generation.logprobs
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
        "eos_share": generation.ended(eos_id).float().mean().item()}


def mean_metrics(updates):
    """The means over an iteration's updates, for ratio_error the maximum; {} without updates."""
    if not updates:
        return {}
    means = {name: sum(update[name] for update in updates) / len(updates) for name in updates[0] if name != "n_tokens"}
    return means | {"ratio_error": max(update["ratio_error"] for update in updates)}


# ---- what would make the results meaningless ----


def check_scores(scores, batch_size):
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


def check_untouched(metrics):
    """Before the first update the policy is the one that wrote the answers: MiniftError unless each ratio is 1."""
    if not metrics["ratio_error"] <= 1e-3:
        raise MiniftError(
            f"before the first update a ratio is {metrics['ratio_error']:.2g} away from 1: sampling and "
            "update see different policies (check dropout, temperature, padding and precision)")


def refuse_settings(policy, reference, prompts, iterations, batch_size):
    """MiniftError when the reference is the policy, or when there is nothing to do."""
    if reference is policy or getattr(reference, "model", None) is policy:
        raise MiniftError(
            "the reference is the policy itself, so that the KL is always 0; give it a copy")
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise MiniftError(
            "prompts must be a list of lists of ids, with at least one id in each")
    check_whole("iterations", iterations, least=1)
    check_whole("batch_size", batch_size, least=1)


def refuse_dropout(**models):
    for name, model in models.items():
        if any(module.training for module in model.modules()):
            raise MiniftError(
                f"the {name.replace('_', ' ')} was put into training mode during the training, where dropout changes "
                "the ratio; reward_fn and on_iteration must leave it in eval mode")


def refuse_moving(reference, generation, before):
    """After the first update the reference must give the same log-probabilities as before, to the last bit."""
    if not torch.equal(before, reference_logprobs(generation, reference)):
        raise MiniftError(
            "the reference changed with the first update: it shares weights with the policy (give it a "
            "deep copy, or switch the adapter off for it), or its dropout is active")
