"""One training loop for every method on fixed data; the methods differ in their loss only.

`train` asks `loss_fn(batch)` for (loss, metrics). The loss is a mean over metrics["n_tokens"] items: tokens, rows or
pairs. PPO makes its own data, so it has its own loop (methods/ppo_loop.py), which shares `take_step` and `Run`.
Left out: early stopping (on_best keeps the best model), several processes.
"""

import math
import warnings
from dataclasses import dataclass, fields, replace

import torch

from minift.core.logprobs import eval_mode
from minift.core.resume import TrainingState, random_state, set_random_state
from minift.core.run import Run
from minift.core.settings import check_number, check_whole
from minift.core.step import WeightedMeans, check_loss, count_tokens, learning_rate, make_optimizer, reduce_gradients
from minift.errors import MiniftError


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run. MiniftError for a value that cannot work."""

    # Optimizer steps in all.
    steps: int
    # The highest learning rate, reached after the warm-up.
    lr: float
    # Steps in which the learning rate rises from 0; None: a twentieth of all steps.
    warmup: int | None = None
    # The learning rate of the last step, at the end of a half cosine; None: lr / 10.
    min_lr: float | None = None
    # AdamW's weight decay of the matrices, per step and per unit of learning rate.
    weight_decay: float = 0.1
    # AdamW's decay rates of the mean gradient and of the mean squared gradient, per step.
    betas: tuple[float, float] = (0.9, 0.95)
    # Batches in one step; every token counts the same, as in one big batch.
    accumulate: int = 1
    # The largest norm of the whole gradient; None: no clipping.
    clip: float | None = 1.0
    # Steps from one evaluation to the next; 0: only after the last step.
    eval_every: int = 0
    # The file of the training state; None: nothing is saved.
    state_path: str | None = None
    # Steps from one save of the state to the next; 0: only after the last step and at Ctrl-C.
    save_every: int = 0
    # Whether to go on from the state in state_path.
    resume: bool = False
    # A file of JSON lines for the history, one more line after each step; None: no file.
    metrics_path: str | None = None
    # Where to train, such as "cuda"; None: where the model is.
    device: str | None = None
    # The type of the matrix products: "float32", or "bfloat16" on a GPU.
    dtype: str = "float32"
    # What the progress bar is called.
    name: str = "train"
    # Whether there is a progress bar.
    progress: bool = True

    def __post_init__(self):
        for name in ("steps", "accumulate"):
            check_whole(name, getattr(self, name), least=1)
        for name in ("eval_every", "save_every"):
            check_whole(name, getattr(self, name), least=0)
        check_number("lr", self.lr, above=0)
        check_number("weight_decay", self.weight_decay, least=0)
        for beta in self.betas:
            check_number("betas", beta, least=0, most=1)
        if self.warmup is not None:
            check_whole("warmup", self.warmup, least=0)
        if self.min_lr is not None:
            check_number("min_lr", self.min_lr, least=0)
        if self.clip is not None:
            check_number("clip", self.clip, above=0)
        if self.dtype not in ("float32", "bfloat16"):
            raise MiniftError(f"dtype is {self.dtype!r}; expected 'float32' or 'bfloat16'")

    def schedule(self):
        """The arguments of `learning_rate`, with the defaults filled in."""
        warmup = max(1, self.steps // 20) if self.warmup is None else self.warmup
        min_lr = 0.1 * self.lr if self.min_lr is None else self.min_lr
        return {"lr": self.lr, "steps": self.steps, "warmup": warmup, "min_lr": min_lr}


def train(model, batches, loss_fn, config=None, *, evaluate=None, on_best=None, **settings):
    """Train `model` for config.steps steps. Returns the history, a list of dicts, one for each step.

    batches: re-iterable of dicts of tensors; every new iter() is an epoch, ordered by the iterable's own seed.
    loss_fn(batch) -> (loss, metrics). config: a TrainConfig; settings: its fields as keywords (steps=100, lr=1e-3).
    evaluate() -> dict of numbers, called when an evaluation is due. on_best(row): called when "valid_loss" improves.
    """
    # Settings, optimizer, and the state that a resumed run goes on from.
    config = make_config(config, settings)
    device = place_model(model, config)
    loss_fn = in_dtype(loss_fn, config.dtype, device)
    optimizer = make_optimizer(
        model, lr=config.lr, weight_decay=config.weight_decay, betas=config.betas)
    state = TrainingState(model, optimizer, batches, device, recorded_settings(config))
    run = Run(
        state, config.steps, name=config.name, state_path=config.state_path, save_every=config.save_every,
        resume=config.resume, metrics_path=config.metrics_path, progress=config.progress)

    # The loop. eval_mode gives each module its own mode back at the end.
    with eval_mode(model), run:
        for step in run:
            model.train()
            lr = learning_rate(step, **config.schedule())
            micro_batches = (state.next_batch() for _ in range(config.accumulate))
            try:
                metrics = take_step(optimizer, micro_batches, loss_fn, lr=lr, clip=config.clip)
            except MiniftError as error:
                raise MiniftError(f"step {step} (batch {state.n_batches}): {error}") from error
            warn_untrained(state, metrics)
            row = {"step": step, **metrics}
            if evaluate and run.is_due(step, config.eval_every):
                add_evaluation(row, state, evaluate, on_best)
            run.record(row, **shown_numbers(row, state.history))
    check_learned(state.history)
    return state.history


def take_step(optimizer, batches, loss_fn, *, lr, clip=1.0):
    """One optimizer step on the micro-batches of `batches`, as if they were one big batch.

    Each loss is a mean over its own n_tokens, so it is multiplied by n_tokens; the sum of the gradients is divided by
    the number of all tokens once.
    lr: the learning rate of this step. clip: largest norm of the whole gradient, None for no clipping.
    Returns the token-weighted means of the scalar metrics, with loss, lr, grad_norm (before clipping) and n_tokens;
    a step without any token changes nothing and has skipped=True.
    Raises MiniftError, with the weights unchanged, when the loss or its gradient is not finite or reaches no parameter.
    """
    optimizer.zero_grad(set_to_none=True)
    means, n_tokens = WeightedMeans(), 0
    for batch in batches:
        loss, metrics = loss_fn(batch)  # forward
        n = count_tokens(metrics)
        if n == 0:
            continue
        check_loss(loss)
        (loss * n).backward()  # backward
        n_tokens += n
        means.add({**metrics, "loss": loss}, weight=n)
    if n_tokens == 0:
        return {"loss": 0.0, "lr": lr, "grad_norm": 0.0, "n_tokens": 0, "skipped": True}

    grad_norm = reduce_gradients(optimizer, n_tokens, clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()  # step
    return {**means.result(), "lr": lr, "grad_norm": grad_norm, "n_tokens": n_tokens}


def make_config(config, settings):
    """The TrainConfig from what `train` was given. Raises MiniftError for a keyword that it does not have."""
    known = {field.name for field in fields(TrainConfig)}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise MiniftError(
            f"train has no setting {unknown[0]!r}; the settings are {', '.join(sorted(known))}")
    if config is not None:
        return replace(config, **settings)
    missing = [name for name in ("steps", "lr") if name not in settings]
    if missing:
        raise MiniftError(f"train needs {' and '.join(missing)}, or a TrainConfig")
    return TrainConfig(**settings)


def recorded_settings(config):
    """The settings that a resumed run must share with the run that was stopped."""
    return {
        **config.schedule(), "weight_decay": config.weight_decay, "betas": list(config.betas),
        "accumulate": config.accumulate, "clip": config.clip}


def place_model(model, config):
    """Move the model to config.device when one is given. Returns the device on which it is."""
    if config.device is not None:
        try:
            model.to(config.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise MiniftError(f"cannot use device {str(config.device)!r} ({reason}); use 'cpu'") from error
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    if config.dtype == "bfloat16" and device.type != "cuda":
        raise MiniftError(
            f"bfloat16 is slower than float32 on {device.type}: use dtype='float32', or a CUDA device")
    return device


def in_dtype(loss_fn, dtype, device):
    """The loss with its matrix products in `dtype`; weights, gradients and sums stay float32."""
    def cast_loss_fn(batch):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return loss_fn(batch)
    return cast_loss_fn if dtype == "bfloat16" else loss_fn


def add_evaluation(row, state, evaluate, on_best):
    """Add evaluate()'s numbers to the row. Weights and random numbers of the training stay as they were."""
    random = random_state(state.device)
    with eval_mode(state.model), torch.no_grad():
        result = evaluate()
    if not isinstance(result, dict):
        raise MiniftError(
            f'evaluate() must return a dict such as {{"valid_loss": 1.2}}; got {type(result).__name__}')
    for name, value in result.items():
        row[name] = value.item() if hasattr(value, "item") else value
    set_random_state(random, state.device)

    loss = row.get("valid_loss")
    if loss is None and on_best is not None:
        raise MiniftError('on_best needs evaluate() to return a dict with "valid_loss"')
    if loss is not None and math.isfinite(loss) and (state.best is None or loss < state.best):
        state.best = loss
        if on_best is not None:
            on_best(row)


def warn_untrained(state, metrics):
    """Once per run, after its first real step: warn of trainable parameters that get no gradient."""
    if state.checked_gradients or metrics.get("skipped"):
        return
    state.checked_gradients = True
    missing = [name for name, parameter in state.parameters().items() if parameter.grad is None]
    if missing:
        more = ", ..." if len(missing) > 4 else ""
        warnings.warn(
            f"{len(missing)} trainable parameters received no gradient, so they are not being trained: "
            f"{', '.join(missing[:4])}{more}", stacklevel=3)


def check_learned(history):
    """Warn of steps without a token to learn. MiniftError when no step had one."""
    n_skipped = sum(row.get("skipped", False) for row in history)
    if n_skipped == len(history):
        raise MiniftError(
            "nothing was learned: no batch held a single token to learn (every label is -100)")
    if n_skipped:
        warnings.warn(
            f"{n_skipped} of {len(history)} steps were skipped: their batches held no token to learn",
            stacklevel=3)


def shown_numbers(row, history):
    """What the progress bar shows: the mean loss of the last 20 steps, and the learning rate."""
    losses = [one["loss"] for one in [*history[-19:], row] if not one.get("skipped")]
    if not losses:
        return {}
    return {"loss": f"{sum(losses) / len(losses):.4f}", "lr": f"{row['lr']:.1e}"}
