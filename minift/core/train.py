"""One loop for every method on fixed data: a method is a loss.

`train` asks `loss_fn(batch)` for (loss, metrics), where the loss is a mean over metrics["n_tokens"] items (tokens, rows
or pairs), and does the rest: schedule, accumulation, evaluation, a history, a state to resume from, a clean Ctrl-C.
The step is in `core.step`, the state in `core.resume`. PPO makes its own data; its loop shares `take_step`.
Left out: early stopping (on_best keeps the best model), several processes.
"""

import json
import math
import warnings

import torch

from minift.core.files import write_text
from minift.core.logprobs import eval_mode
from minift.core.resume import CtrlC, TrainingState, check_writable, move_batch, random_state, set_random_state
from minift.core.step import learning_rate, make_optimizer, take_step
from minift.errors import MiniftError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")    # in a notebook without ipywidgets tqdm.auto warns, then takes the plain bar
    from tqdm.auto import tqdm

__all__ = ["learning_rate", "make_optimizer", "move_batch", "take_step", "train"]


def train(model, batches, loss_fn, *, steps, lr, warmup=None, min_lr=None, weight_decay=0.1, betas=(0.9, 0.95),
          accumulate=1, clip=1.0, evaluate=None, eval_every=0, on_best=None, state_path=None, save_every=0,
          resume=False, metrics_path=None, device=None, dtype="float32", name="train", progress=True):
    """Train `model` for `steps` steps of `accumulate` batches each; returns the history, a list of dicts, one a step.

    batches: re-iterable of dicts of tensors; every new iter() is an epoch, ordered by the iterable's own seed.
    loss_fn(batch) -> (loss, metrics). warmup: steps, default steps // 20. min_lr: default lr / 10.
    evaluate() -> dict, every `eval_every` steps and after the last; on_best(row) whenever its "valid_loss" improves.
    state_path: file of the training state, written every `save_every` steps, after the last and at Ctrl-C; resume=True
    goes on from it bit for bit. metrics_path: the history as JSON lines, as it grows. device=None: where the model is.
    """
    # 1. Refuse bad settings before anything is touched.
    _check_settings(steps, lr, warmup, accumulate, clip, dtype)
    warmup = max(1, steps // 20) if warmup is None else warmup
    schedule = {"lr": lr, "steps": steps, "warmup": warmup, "min_lr": 0.1 * lr if min_lr is None else min_lr}
    device = _place(model, device, dtype)
    loss_fn = _autocast(loss_fn, device, dtype)

    # 2. Start, or go on where a state was saved.
    optimizer = make_optimizer(model, lr=lr, weight_decay=weight_decay, betas=betas)
    settings = {**schedule, "weight_decay": weight_decay, "betas": list(betas), "accumulate": accumulate, "clip": clip}
    state = TrainingState(model, optimizer, batches, device, settings)
    _start(state, state_path, resume, metrics_path)

    # 3. Step, evaluate, save, until it is done or Ctrl-C asks to stop.
    bar = tqdm(total=steps, initial=state.step, desc=name, disable=not progress, mininterval=0.5)
    with eval_mode(model), CtrlC() as ctrl_c, bar:        # eval_mode gives each module its own mode back at the end
        while state.step < steps:
            row = _step(state, loss_fn, schedule, accumulate, clip)
            if evaluate and _due(state.step, eval_every, steps):
                _evaluate(state, row, evaluate, on_best)
            _report(bar, state.history, metrics_path)
            stop = ctrl_c.asked
            if state_path and (stop or _due(state.step, save_every, steps)):
                state.save(state_path)
            if stop:
                raise KeyboardInterrupt(f"stopped after step {state.step} of {steps}")
    _check_learned(state)
    return state.history


def _start(state, state_path, resume, metrics_path):
    """Load the saved state when resuming; begin the metrics with its rows, which drops those that came after it."""
    if resume:
        state.load(state_path)
    if state_path is not None:
        check_writable(state_path)
    if metrics_path is not None:
        write_text(metrics_path, "".join(json.dumps(row) + "\n" for row in state.history))


def _step(state, loss_fn, schedule, accumulate, clip):
    """Take the next step and append its row to the history; an error gets the number of the step in front."""
    state.model.train()
    number = state.step + 1
    lr = learning_rate(number, **schedule)
    batches = (state.next_batch() for _ in range(accumulate))
    try:
        metrics = take_step(state.optimizer, batches, loss_fn, lr=lr, clip=clip)
    except MiniftError as error:
        raise MiniftError(f"step {number} (batch {state.n_batches}): {error}") from error
    _warn_untrained(state, metrics)
    state.step = number
    row = {"step": number, **metrics}
    state.history.append(row)
    return row


def _evaluate(state, row, evaluate, on_best):
    """Add evaluate()'s numbers to the row; evaluating neither trains nor moves the random numbers of the training."""
    random = random_state(state.device)
    with eval_mode(state.model), torch.no_grad():
        result = evaluate()
    if not isinstance(result, dict):
        raise MiniftError(f'evaluate() must return a dict such as {{"valid_loss": 1.2}}; got {type(result).__name__}')
    row.update({name: value.item() if hasattr(value, "item") else value for name, value in result.items()})
    set_random_state(random, state.device)
    loss = row.get("valid_loss")
    if loss is None and on_best is not None:
        raise MiniftError('on_best needs evaluate() to return a dict with "valid_loss"')
    if loss is not None and math.isfinite(loss) and (state.best is None or loss < state.best):
        state.best = loss
        if on_best is not None:
            on_best(row)


def _due(step, every, steps):
    return step == steps or (every > 0 and step % every == 0)


def _check_settings(steps, lr, warmup, accumulate, clip, dtype):
    for name, value in {"steps": steps, "accumulate": accumulate}.items():
        if value < 1:
            raise MiniftError(f"{name} must be at least 1, got {value}")
    if not 0 < lr < math.inf:
        raise MiniftError(f"lr must be a positive number, got {lr}")
    if warmup is not None and warmup < 0:
        raise MiniftError(f"warmup must be 0 or more steps, got {warmup}")
    if clip is not None and not clip > 0:
        raise MiniftError(f"clip must be positive, or None for no clipping, got {clip}")
    if dtype not in ("float32", "bfloat16"):
        raise MiniftError(f"dtype must be 'float32' or 'bfloat16', got {dtype!r}")


def _place(model, device, dtype):
    """Move the model to `device` when one is given; returns the device on which it is."""
    if device is not None:
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise MiniftError(f"cannot use device {str(device)!r} ({str(error).splitlines()[0]}); use 'cpu'") from error
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if dtype == "bfloat16" and device.type != "cuda":
        raise MiniftError(f"bfloat16 is slower than float32 on {device.type}: use dtype='float32', or a CUDA device")
    return device


def _autocast(loss_fn, device, dtype):
    """The loss with its matrix products in bfloat16 where asked for; weights, gradients and sums stay float32."""
    def cast_loss_fn(batch):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return loss_fn(batch)
    return cast_loss_fn if dtype == "bfloat16" else loss_fn


def _warn_untrained(state, metrics):
    """Once a run, after its first real step: name the trainable parameters that the loss does not reach."""
    if state.checked_gradients or metrics.get("skipped"):
        return
    state.checked_gradients = True
    missing = [name for name, parameter in state.parameters().items() if parameter.grad is None]
    if missing:
        warnings.warn(f"{len(missing)} trainable parameters received no gradient, so they are not being trained: "
                      f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}", stacklevel=4)


def _check_learned(state):
    if all(row.get("skipped") for row in state.history):
        raise MiniftError("nothing was learned: no batch held a single token to learn (every label is -100)")
    n_skipped = sum(row.get("skipped", False) for row in state.history)
    if n_skipped:
        warnings.warn(f"{n_skipped} of {state.step} steps were skipped: their batches held no token to learn",
                      stacklevel=3)


def _report(bar, history, metrics_path):
    """Append the newest row to the metrics file, and move the bar on, with the mean loss of the last 20 steps."""
    if metrics_path is not None:
        with open(metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(history[-1]) + "\n")
    recent = [row["loss"] for row in history[-20:] if not row.get("skipped")]
    if recent:
        bar.set_postfix(loss=f"{sum(recent) / len(recent):.4f}", lr=f"{history[-1]['lr']:.1e}", refresh=False)
    bar.update()
