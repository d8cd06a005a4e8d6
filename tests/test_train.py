"""The training loop: schedule, optimizer, one step, and a run that can be stopped, resumed and repeated to the
last bit."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minift.core import train as training
from minift.core.resume import move_batch
from minift.core.step import learning_rate, make_optimizer
from minift.errors import MiniftError

ROOT = Path(training.__file__).parents[2]


class Tiny(nn.Module):
    """Predicts the next of 7 tokens from this one, through dropout, so that a run uses random numbers."""

    def __init__(self, dropout=0.2):
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 7)

    def forward(self, input_ids):
        return self.out(self.norm(self.drop(self.embed(input_ids))))    # (B, T, 7)


class Shuffled:
    """Batches in a new order each epoch, from its own seed and epoch counter."""

    def __init__(self, batches, seed=0):
        self.batches, self.seed, self.epoch = batches, seed, 0

    def __iter__(self):
        order = torch.randperm(len(self.batches), generator=torch.Generator().manual_seed(100 * self.seed + self.epoch))
        self.epoch += 1
        return iter([self.batches[i] for i in order])


def make_model(seed=0, dropout=0.2):
    torch.manual_seed(seed)
    return Tiny(dropout)


def make_batches(n=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(7, (2, 4 + i), generator=generator)} for i in range(n)]


def make_loss(model):
    def loss_fn(batch):
        ids = batch["input_ids"]
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        return loss, {"n_tokens": ids[:, 1:].numel(), "first": ids[0, 0].float()}
    return loss_fn


def run(train=training.train, steps=10, seed=0, stop_at=None, **options):
    """A run of 10 steps over 3 batches that evaluates as it goes; returns its model, history, and the rows
    given to on_best."""
    model, batches, best = make_model(seed), Shuffled(make_batches()), []
    loss_fn, calls = make_loss(model), []

    def stoppable(batch):
        calls.append(batch)
        if stop_at is not None and len(calls) == stop_at:
            signal.raise_signal(signal.SIGINT)
        return loss_fn(batch)

    options = {"evaluate": lambda: {"valid_loss": float(loss_fn(make_batches(1, seed=5)[0])[0])}, "eval_every": 2,
               "on_best": lambda row: best.append(row["step"]), "lr": 0.05, "warmup": 3, "progress": False} | options
    history = train(model, batches, stoppable, steps=steps, **options)
    return model, history, best


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class One(nn.Module):
    """A model of one parameter."""

    def __init__(self, value):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(value))


# ---- schedule ----


def test_learning_rate_follows_warmup_and_cosine(learning_rate=learning_rate):
    """Warm-up 4 of 10 steps, largest 1, smallest 0.1: steps 0, 2, 4, 7, 10, 11 have 0, 0.5, 1, 0.55, 0.1, 0.1."""
    rates = [learning_rate(step, lr=1.0, steps=10, warmup=4, min_lr=0.1) for step in (0, 2, 4, 7, 10, 11)]
    assert rates == pytest.approx([0, 0.5, 1, 0.55, 0.1, 0.1], abs=1e-9)


def test_learning_rate_equals_torchs_cosine_after_the_warmup(learning_rate=learning_rate):
    """After the warm-up the rates are those of torch's CosineAnnealingLR."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.03)
    for step in range(5, 26):
        rate = learning_rate(step, lr=0.3, steps=25, warmup=5, min_lr=0.03)
        assert rate == pytest.approx(scheduler.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_no_step_is_taken_at_a_rate_of_zero(train=training.train, learning_rate=learning_rate):
    """Step s of a run has the rate learning_rate(s), counted from 1: the first is not 0, and the last is the
    smallest."""
    _, history, _ = run(train, lr=0.1, warmup=4, min_lr=0.02)
    expected = [learning_rate(step, lr=0.1, steps=10, warmup=4, min_lr=0.02) for step in range(1, 11)]
    assert [row["lr"] for row in history] == expected
    assert expected[0] == pytest.approx(0.025) and expected[-1] == 0.02


# ---- optimizer ----


def test_adamw_step_by_hand(make_optimizer=make_optimizer):
    """Weight 1, gradient 0.1, rate 1e-3, decay 0.01: 1 - 1e-3 * 0.01 - 1e-3 = 0.99899 after the first step."""
    model = One([[1.0]]).double()
    optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.01)
    model.p.grad = torch.full_like(model.p, 0.1)
    optimizer.step()
    assert model.p.item() == pytest.approx(0.99899, abs=1e-8)


def test_settings_reach_adamw(make_optimizer=make_optimizer):
    """Learning rate, betas and eps are those of every group of parameters."""
    optimizer = make_optimizer(nn.Linear(2, 2), lr=0.3, betas=(0.5, 0.6), eps=1e-5)
    assert [(group["lr"], group["betas"], group["eps"]) for group in optimizer.param_groups] == [
        (0.3, (0.5, 0.6), 1e-5)] * 2


def test_decay_is_for_matrices_only(make_optimizer=make_optimizer):
    """With a gradient of zero matrices shrink by 1 - lr * weight_decay; biases and norms do not move."""
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        expected = before[name] * 0.95 if p.ndim == 2 else before[name]
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-7)


def test_frozen_parameters_are_not_in_the_optimizer(make_optimizer=make_optimizer):
    """A frozen parameter does not decay, even when someone puts a gradient of zero on it."""
    model = make_model()
    model.embed.weight.requires_grad_(False)
    before = model.embed.weight.clone()
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(model.embed.weight, before)
    assert all(p is not model.embed.weight for group in optimizer.param_groups for p in group["params"])


def test_nothing_to_train_is_an_error(make_optimizer=make_optimizer):
    """A model whose parameters are all frozen is refused with a sentence that says so."""
    with pytest.raises(MiniftError, match="nothing to train"):
        make_optimizer(make_model().requires_grad_(False), lr=0.1)


# ---- one step ----


def linear_loss(model, coefficients):
    """Loss whose gradient is `coefficients`, over one item."""
    return lambda batch: ((model.p * torch.tensor(coefficients)).sum(), {"n_tokens": 1})


def test_clipping_by_the_global_norm(take_step=training.take_step):
    """A gradient of [3, 4] clipped to 1 is [0.6, 0.8]; the norm that is reported is 5, from before; the rate is
    the one given."""
    model = One([0.0, 0.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
    metrics = take_step(optimizer, [{}], linear_loss(model, [3.0, 4.0]), lr=0.5, clip=1.0)
    assert model.p.tolist() == pytest.approx([-0.3, -0.4], abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(5) and metrics["lr"] == 0.5
    model = One([0.0, 0.0])
    take_step(torch.optim.SGD(model.parameters(), lr=99.0), [{}], linear_loss(model, [3.0, 4.0]), lr=1.0, clip=None)
    assert model.p.tolist() == pytest.approx([-3, -4])


def test_accumulation_equals_the_big_batch(take_step=training.take_step):
    """Three steps on micro-batches of unequal length end where three steps on all their tokens at once end."""
    def tokens_loss(model):
        def loss_fn(batch):
            logits = model(batch["x"])
            right = (logits.argmax(-1) == batch["y"]).double().mean()
            return F.cross_entropy(logits, batch["y"]), {"n_tokens": len(logits), "right": right}
        return loss_fn
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=generator, dtype=torch.float64), torch.randint(3, (12,), generator=generator)
    parts = [{"x": a, "y": b} for a, b in zip(x.split([1, 3, 8]), y.split([1, 3, 8]))]
    torch.manual_seed(0)
    models = [nn.Linear(5, 3).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.AdamW(model.parameters()) for model in models]
    for _ in range(3):
        small = take_step(optimizers[0], parts, tokens_loss(models[0]), lr=0.1)
        big = take_step(optimizers[1], [{"x": x, "y": y}], tokens_loss(models[1]), lr=0.1)
        assert small == pytest.approx(big, abs=1e-9) and big["n_tokens"] == 12
    for a, b in zip(*[model.parameters() for model in models]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_metrics_are_weighted_by_tokens(take_step=training.take_step):
    """Losses 2 over 1 token and 1 over 3 tokens: the step's loss is 5 / 4, not 3 / 2; what is not a scalar is
    left out."""
    model = One([1.0])
    def loss_fn(batch):
        metrics = {"n_tokens": batch["n"], "size": torch.tensor(batch["n"]), "all": torch.zeros(2)}
        return model.p.sum() * batch["loss"], metrics
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    metrics = take_step(optimizer, [{"loss": 2.0, "n": 1}, {"loss": 1.0, "n": 3}], loss_fn, lr=0.1)
    assert metrics["loss"] == pytest.approx(1.25) and metrics["n_tokens"] == 4
    assert metrics["size"] == pytest.approx((1 + 9) / 4) and "all" not in metrics


def test_batch_without_tokens_counts_nothing(take_step=training.take_step):
    """A micro-batch with no token adds nothing, whatever its loss; a step of such batches is skipped and
    changes nothing."""
    model = One([1.0, 1.0])
    def loss_fn(batch):
        return (model.p * batch["loss"]).sum(), {"n_tokens": batch["n"]}
    empty, full = {"loss": float("nan"), "n": 0}, {"loss": 2.0, "n": 2}
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.5)
    skipped = take_step(optimizer, [empty, empty], loss_fn, lr=0.1)
    assert skipped["skipped"] is True and skipped["n_tokens"] == 0 and model.p.tolist() == [1, 1]
    metrics = take_step(optimizer, [empty, full], loss_fn, lr=0.1)
    assert metrics["loss"] == pytest.approx(4) and metrics["grad_norm"] == pytest.approx(math.sqrt(8))
    assert "skipped" not in metrics


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_is_refused(bad, take_step=training.take_step):
    """A loss of NaN or infinity raises before the step: weights and moments stay as they are."""
    model = One([[1.0, 2.0]])
    optimizer = torch.optim.AdamW(model.parameters())
    good, poison = {"factor": 1.0}, {"factor": bad}
    def loss_fn(batch):
        return (model.p * batch["factor"]).sum(), {"n_tokens": 2}
    with pytest.raises(MiniftError, match="unchanged"):
        take_step(optimizer, [good, poison], loss_fn, lr=0.1)
    assert model.p.tolist() == [[1.0, 2.0]] and not optimizer.state


def test_gradient_that_is_not_finite_is_refused(take_step=training.take_step):
    """sqrt at 0 has a finite loss and an infinite gradient: refused before the step as well."""
    model = One([0.0, 1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(MiniftError, match="gradient norm"):
        take_step(optimizer, [{}], lambda batch: (model.p.sqrt().sum(), {"n_tokens": 1}), lr=0.1)
    assert model.p.tolist() == [0, 1]


def test_loss_that_reaches_nothing_is_an_error(take_step=training.take_step):
    """A loss that depends on no trainable parameter is refused: such a run would change nothing, for ever."""
    model, other = One([1.0]), One([1.0])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for p in (other.p, other.p.detach()):
        with pytest.raises(MiniftError, match="no trainable parameter received a gradient"):
            take_step(optimizer, [{}], lambda batch, p=p: (p.sum(), {"n_tokens": 1}), lr=0.1)
    with pytest.raises(MiniftError, match="n_tokens"):
        take_step(optimizer, [{}], lambda batch: (model.p.sum(), {}), lr=0.1)
    with pytest.raises(MiniftError, match="shape"):
        take_step(optimizer, [{}], lambda batch: (model.p.repeat(2), {"n_tokens": 2}), lr=0.1)


# ---- the loop ----


def test_history_has_a_row_for_each_step(train=training.train):
    """Rows count steps from 1 and hold loss, lr, grad_norm, n_tokens and the method's own metrics; evaluations
    come along."""
    _, history, _ = run(train)
    assert [row["step"] for row in history] == list(range(1, 11))
    assert all({"loss", "lr", "grad_norm", "n_tokens", "first"} <= row.keys() for row in history)
    assert [row["step"] for row in history if "valid_loss" in row] == [2, 4, 6, 8, 10]


def test_same_seed_same_run(train=training.train):
    """The same seed twice gives the same weights and losses to the last bit; another seed gives others."""
    (a, losses_a, _), (b, losses_b, _), (c, losses_c, _) = run(train), run(train), run(train, seed=1)
    assert same(a, b) and losses_a == losses_b
    assert not same(a, c) and losses_a != losses_c


def test_one_batch_is_learned_by_heart(train=training.train):
    """A model that sees one batch again and again brings its loss below 0.05."""
    model = make_model(dropout=0.0)
    batch = {"input_ids": torch.tensor([[0, 3, 6, 1, 5, 2, 4]])}
    history = train(model, [batch], make_loss(model), steps=80, lr=0.1, weight_decay=0.0, progress=False)
    assert history[0]["loss"] > 1 and history[-1]["loss"] < 0.05


def test_accumulate_takes_several_batches_a_step(train=training.train):
    """accumulate=3 uses three batches a step, all tokens of which are counted."""
    model, batches, seen = make_model(), make_batches(3), []
    loss_fn = make_loss(model)
    def watched(batch):
        seen.append(batch["input_ids"].shape[1])
        return loss_fn(batch)
    history = train(model, batches, watched, steps=2, lr=0.1, accumulate=3, progress=False)
    assert seen == [4, 5, 6, 4, 5, 6] and [row["n_tokens"] for row in history] == [2 * (3 + 4 + 5)] * 2


def test_frozen_parameters_stay_bit_equal(train=training.train):
    """Three steps with weight decay leave what is frozen exactly as it was, and give it no gradient."""
    model = make_model()
    model.embed.weight.requires_grad_(False)
    embed, out = model.embed.weight.clone(), model.out.weight.detach().clone()
    train(model, make_batches(), make_loss(model), steps=3, lr=0.1, weight_decay=0.1, progress=False)
    assert torch.equal(model.embed.weight, embed) and model.embed.weight.grad is None
    assert not torch.equal(model.out.weight, out)


def test_evaluation_does_not_disturb_the_training(train=training.train):
    """evaluate() runs without dropout and gradient, and a run that evaluates ends exactly like one that does not."""
    quiet, _, _ = run(train, evaluate=None, on_best=None)
    seen = []
    model = make_model()
    def evaluate():
        torch.rand(5)
        seen.append((model.training, model.drop.training, torch.is_grad_enabled()))
        return {"valid_loss": 1.0}
    train(model, Shuffled(make_batches()), make_loss(model), steps=10, lr=0.05, warmup=3, evaluate=evaluate,
          eval_every=3, progress=False)
    assert same(model, quiet) and seen == [(False, False, False)] * 4


def test_modes_are_restored(train=training.train):
    """A module in eval mode before training is in train mode during the steps, and back in its own mode afterwards."""
    model, during = make_model().eval(), []
    model.drop.train()
    loss_fn = make_loss(model)
    def watched(batch):
        during.append(model.training)
        return loss_fn(batch)
    train(model, make_batches(), watched, steps=4, lr=0.1, evaluate=lambda: {}, eval_every=1, progress=False)
    assert during == [True] * 4 and not model.training and model.drop.training and not model.norm.training


def test_on_best_is_called_when_the_validation_improves(train=training.train):
    """Validation losses nan, 3, 4, 2, 2 after steps 2, 4, 6, 8, 10: the best rows are 4 and 8."""
    losses = iter([float("nan"), 3.0, 4.0, 2.0, 2.0])
    assert run(train, evaluate=lambda: {"valid_loss": next(losses)})[2] == [4, 8]
    with pytest.raises(MiniftError, match="valid_loss"):
        run(train, evaluate=lambda: {"loss": 1.0})
    with pytest.raises(MiniftError, match="dict"):
        run(train, evaluate=lambda: 1.0)
    assert run(train, evaluate=lambda: {"valid_loss": torch.tensor(0.5)})[1][-1]["valid_loss"] == 0.5


def test_loss_that_is_not_finite_names_the_step(tmp_path, train=training.train):
    """A NaN in step 3 raises with the number of the step; the weights are those after step 2, and no state is
    written."""
    model, twin = make_model(), make_model()
    loss_fn, calls = make_loss(model), []
    def poisoned(batch):
        calls.append(batch)
        loss, metrics = loss_fn(batch)
        return loss * (float("nan") if len(calls) == 3 else 1.0), metrics
    with pytest.raises(MiniftError, match=r"step 3 .*nan"):
        train(model, make_batches(), poisoned, steps=9, lr=0.1, progress=False, state_path=tmp_path / "state",
              save_every=3)
    twin = make_model()
    with pytest.raises(KeyError):
        stop_after_two = iter([make_loss(twin)] * 2)
        def two(batch):
            loss_fn = next(stop_after_two, None)
            if loss_fn is None:
                raise KeyError
            return loss_fn(batch)
        train(twin, make_batches(), two, steps=9, lr=0.1, progress=False)
    assert same(model, twin) and not (tmp_path / "state").exists()


# ---- stop and go on ----


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resume_is_bit_equal(stop, tmp_path, train=training.train):
    """A run stopped by Ctrl-C and resumed ends as if never stopped: weights, dropout, order of the data,
    schedule, best."""
    whole, history, best = run(train)
    with pytest.raises(KeyboardInterrupt):
        run(train, stop_at=stop, state_path=tmp_path / "state", evaluate=None, on_best=None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest, resumed_history, _ = run(train, evaluate=None, on_best=None, state_path=tmp_path / "state", resume=True)
    assert same(whole, rest)
    plain = [{key: value for key, value in row.items() if key != "valid_loss"} for row in history]
    assert resumed_history == plain


def test_a_run_may_be_stopped_twice(tmp_path, train=training.train):
    """Stopped after step 2, resumed, stopped after step 5, resumed: the same weights as in one go."""
    whole, _, _ = run(train, evaluate=None, on_best=None)
    options = {"state_path": tmp_path / "state", "evaluate": None, "on_best": None}
    for stop, resume in ((2, False), (3, True)):
        with pytest.raises(KeyboardInterrupt):
            run(train, stop_at=stop, resume=resume, **options)
    assert same(run(train, resume=True, **options)[0], whole)


def test_resume_in_a_new_process_is_bit_equal(tmp_path, train=training.train):
    """10 steps equal 5, a save, and 5 more in a new process, evaluations and best included."""
    whole, history, best = run(train)
    with pytest.raises(KeyboardInterrupt):
        run(train, stop_at=5, state_path=tmp_path / "state")
    start_python("resume", tmp_path).wait(60)
    rest = make_model()
    rest.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert same(whole, rest)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["history"] == history and report["best"] == [step for step in best if step > 5]


def test_resume_within_a_process_goes_back_to_the_first_epoch(tmp_path, train=training.train):
    """The same data object, already some epochs on, is set back to where the run began before it is passed over."""
    whole, _, _ = run(train, evaluate=None, on_best=None)
    model, batches = make_model(), Shuffled(make_batches())
    options = {"lr": 0.05, "warmup": 3, "progress": False, "state_path": tmp_path / "state", "save_every": 4}
    loss_fn, calls = make_loss(model), []
    def broken(batch):
        calls.append(batch)
        if len(calls) == 7:
            raise OSError("the power went out")
        return loss_fn(batch)
    with pytest.raises(OSError, match="power"):
        train(model, batches, broken, steps=10, **options)
    train(model, batches, loss_fn, steps=10, resume=True, **options)
    assert same(model, whole)


def test_best_is_remembered_over_a_resume(tmp_path, train=training.train):
    """A resumed run does not call on_best for an evaluation that is worse than the best before it was stopped."""
    with pytest.raises(KeyboardInterrupt):
        run(train, stop_at=5, state_path=tmp_path / "state", evaluate=lambda: {"valid_loss": 1.0})
    assert run(train, state_path=tmp_path / "state", resume=True, evaluate=lambda: {"valid_loss": 2.0})[2] == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send SIGINT to one process")
def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    """A real SIGINT from outside: the process says so, saves a state that loads, and ends with KeyboardInterrupt."""
    process = start_python("forever", tmp_path)
    wait_for(tmp_path / "started", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "stopping after this step" in errors and "KeyboardInterrupt: stopped after step" in errors
    step = int(errors.rpartition("stopped after step ")[2].split()[0])
    state, counters = training_state(tmp_path / "state")
    assert counters["step"] == step and state["model.embed.weight"].shape == (7, 8)


def test_second_ctrl_c_stops_at_once(train=training.train):
    """Two SIGINTs within one step: the step is not finished."""
    model, finished = make_model(), []
    def loss_fn(batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        finished.append(batch)
        return make_loss(model)(batch)
    with pytest.raises(KeyboardInterrupt):
        train(model, make_batches(), loss_fn, steps=3, lr=0.1, progress=False)
    assert not finished and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_late_ctrl_c_is_not_lost(tmp_path, train=training.train):
    """Ctrl-C in the last step: the run is complete and saved, and KeyboardInterrupt is still raised."""
    with pytest.raises(KeyboardInterrupt):
        run(train, stop_at=10, state_path=tmp_path / "state")
    assert training_state(tmp_path / "state")[1]["step"] == 10
    model, path = make_model(), SignalOnSave(tmp_path / "late")
    loss_fn = make_loss(model)
    def armed(batch):
        path.armed = True
        return loss_fn(batch)
    with pytest.raises(KeyboardInterrupt, match="after the last step"):
        train(model, make_batches(), armed, steps=1, lr=0.1, state_path=path, progress=False)


class SignalOnSave:
    """A path that raises SIGINT when it is used after the first loss: while the loop saves, its last look behind it."""

    def __init__(self, path):
        self.path, self.armed = path, False

    def __fspath__(self):
        if self.armed:
            self.armed = False
            signal.raise_signal(signal.SIGINT)
        return str(self.path)


def test_train_works_outside_the_main_thread(train=training.train):
    """In another thread, where no signal handler may be set, training works all the same."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run(train)))
    thread.start()
    thread.join()
    assert len(results[0][1]) == 10


def test_resume_refuses_what_does_not_fit(tmp_path, train=training.train):
    """No state, a damaged state, another file or another model: MiniftError naming the file, weights untouched."""
    path = tmp_path / "state"
    with pytest.raises(MiniftError, match="no training state"):
        run(train, resume=True, state_path=path)
    run(train, steps=2, state_path=path)
    other = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7))
    before = other[1].weight.detach().clone()
    with pytest.raises(MiniftError, match="another model"):
        train(other, make_batches(), make_loss(other), steps=4, lr=0.1, state_path=path, resume=True, progress=False)
    assert torch.equal(other[1].weight, before)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MiniftError, match="state"):
        run(train, resume=True, state_path=path)


def test_resume_with_other_settings_warns(tmp_path, train=training.train):
    """Resuming with another learning rate is allowed, and said."""
    run(train, steps=4, min_lr=0.005, state_path=tmp_path / "state")
    with pytest.warns(UserWarning, match="resuming with lr=0.01"):
        _, history, _ = run(train, steps=4, lr=0.01, min_lr=0.005, state_path=tmp_path / "state", resume=True)
    assert len(history) == 4
    for name, value in (("accumulate", 2), ("clip", 0.5), ("weight_decay", 0.3), ("betas", (0.5, 0.6))):
        told = re.escape(f"resuming with {name}={list(value) if name == 'betas' else value}")
        with pytest.warns(UserWarning, match=told):
            run(train, steps=4, min_lr=0.005, state_path=tmp_path / "state", resume=True, **{name: value})


def test_metrics_file_is_the_history(tmp_path, train=training.train):
    """The file holds one JSON object a step; a resumed run drops the rows that came after its state was saved."""
    path = tmp_path / "logs" / "metrics.jsonl"
    _, history, _ = run(train, metrics_path=path)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == history
    with pytest.raises(MiniftError, match="step 6"):
        model = make_model()
        inner, calls = make_loss(model), []
        def loss_fn(batch):
            calls.append(1)
            loss, metrics = inner(batch)
            return loss * (float("inf") if len(calls) == 6 else 1.0), metrics
        train(model, Shuffled(make_batches()), loss_fn, steps=10, lr=0.05, warmup=3, metrics_path=path, progress=False,
              state_path=tmp_path / "state", save_every=3)
    _, history, _ = run(train, metrics_path=path, state_path=tmp_path / "state", resume=True, evaluate=None,
                        on_best=None)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == history and [line["step"] for line in lines] == list(range(1, 11))


# ---- what a user gets wrong ----


def test_parameter_without_gradient_is_named(train=training.train):
    """A trainable parameter that the loss never reaches is named in a warning; one that is reached is not."""
    model = make_model()
    model.unused = nn.Linear(2, 2, bias=False)
    with pytest.warns(UserWarning, match=r"1 trainable parameters received no gradient.*unused\.weight"):
        train(model, make_batches(), make_loss(model), steps=2, lr=0.1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(train)


def test_training_that_changes_nothing_is_an_error(train=training.train):
    """A loss of another model reaches no parameter of this one."""
    model, other = make_model(), make_model()
    with pytest.raises(MiniftError, match="no trainable parameter received a gradient"):
        train(model, make_batches(), make_loss(other), steps=2, lr=0.1, progress=False)


def test_batches_that_run_out_are_an_error(train=training.train):
    """No batches at all, or a generator that can be read once only, is refused instead of looping for ever."""
    model = make_model()
    for batches in ([], (batch for batch in make_batches(2))):
        with pytest.raises(MiniftError, match="no batches"):
            train(model, batches, make_loss(model), steps=4, lr=0.1, progress=False)
    with pytest.raises(MiniftError, match="dict"):
        train(model, [torch.zeros(1)], make_loss(model), steps=1, lr=0.1, progress=False)


def test_nothing_but_empty_batches_is_an_error(train=training.train):
    """If no batch holds a token to learn the run fails; if some do, the skipped steps are counted in a warning."""
    model = make_model()
    loss_fn = make_loss(model)
    def sparse(batch):
        loss, metrics = loss_fn(batch)
        return loss, metrics | {"n_tokens": metrics["n_tokens"] if batch["input_ids"].shape[1] == 4 else 0}
    with pytest.raises(MiniftError, match="nothing was learned"):
        train(model, make_batches(3)[1:], sparse, steps=3, lr=0.1, progress=False)
    with pytest.warns(UserWarning, match="2 of 3 steps were skipped"):
        history = train(model, make_batches(3), sparse, steps=3, lr=0.1, progress=False)
    assert [row.get("skipped", False) for row in history] == [False, True, True]


@pytest.mark.parametrize("bad", [{"steps": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"accumulate": 0}, {"clip": 0.0},
                                 {"warmup": -1}, {"dtype": "float16"}, {"dtype": "bfloat16", "device": "cpu"},
                                 {"device": "nonsense"}])
def test_bad_settings_are_refused(bad, train=training.train):
    """Settings that cannot work raise MiniftError before the first step."""
    model = make_model()
    before = model.out.weight.detach().clone()
    with pytest.raises(MiniftError, match=list(bad)[0] if bad.get("dtype") != "bfloat16" else "slower than float32"):
        train(model, make_batches(), make_loss(model), **{"steps": 2, "lr": 0.1, "progress": False} | bad)
    assert torch.equal(model.out.weight, before)


@pytest.mark.parametrize("bad", [{"lr": "1e-4"}, {"lr": float("inf")}, {"steps": 2.5}, {"steps": True},
                                 {"min_lr": -1.0}, {"weight_decay": -0.1}, {"betas": (0.9, 1.5)}, {"save_every": -1},
                                 {"eval_every": -1}, {"dtype": "half"}])
def test_a_config_checks_itself(bad, TrainConfig=training.TrainConfig):
    """A value of the wrong type, infinite or out of range is a MiniftError that names the setting."""
    with pytest.raises(MiniftError, match=f"^{list(bad)[0]} is"):
        TrainConfig(**{"steps": 2, "lr": 0.1} | bad)


def test_a_config_and_keywords_are_the_same_run(train=training.train, TrainConfig=training.TrainConfig):
    """train(config), train(**keywords) and keywords on top of a config give the same weights; a typo is named."""
    settings = {"steps": 4, "lr": 0.05, "warmup": 2, "weight_decay": 0.3, "clip": 0.1, "progress": False}
    runs = [(TrainConfig(**settings), {}), (None, settings),
            (TrainConfig(**settings | {"lr": 9.0, "clip": None}), {"lr": 0.05, "clip": 0.1})]
    models = []
    for config, keywords in runs:
        models.append(make_model())
        train(models[-1], make_batches(), make_loss(models[-1]), config, **keywords)
    assert same(models[0], models[1]) and same(models[0], models[2])
    with pytest.raises(MiniftError, match="'learning_rate'"):
        train(make_model(), make_batches(), print, steps=1, learning_rate=0.1)
    with pytest.raises(MiniftError, match="needs lr"):
        train(make_model(), make_batches(), print, steps=1)


def test_every_setting_arrives(monkeypatch, train=training.train):
    """Each setting of the optimizer and of the step reaches the function that uses it, at values of its own."""
    made, taken = [], []
    monkeypatch.setattr(training, "make_optimizer", lambda model, **given: made.append(given) or make_optimizer(
        model, **given))
    take_step = training.take_step
    monkeypatch.setattr(training, "take_step", lambda optimizer, batches, loss_fn, **given: taken.append(
        {**given, "batches": len(batches := list(batches))}) or take_step(optimizer, batches, loss_fn, **given))
    model = make_model()
    train(model, make_batches(), make_loss(model), steps=3, lr=0.04, warmup=2, min_lr=0.01, weight_decay=0.3,
          betas=(0.8, 0.7), accumulate=2, clip=0.5, progress=False)
    assert made == [{"lr": 0.04, "weight_decay": 0.3, "betas": (0.8, 0.7)}]
    assert taken == [{"lr": lr, "clip": 0.5, "batches": 2} for lr in (0.02, 0.04, 0.01)]


def test_the_defaults_that_matter(TrainConfig=training.TrainConfig):
    """The recipe of GPT-3 and Llama: beta 2 of .95 follows a changing loss, decay .1, clip 1, decay to a tenth."""
    config = TrainConfig(steps=100, lr=1e-3)
    assert (config.betas, config.weight_decay, config.clip, config.accumulate) == ((0.9, 0.95), 0.1, 1.0, 1)
    assert config.schedule() == {"lr": 1e-3, "steps": 100, "warmup": 5, "min_lr": pytest.approx(1e-4)}
    defaults = make_optimizer(make_model(), lr=0.1).param_groups[0]
    assert (defaults["betas"], defaults["eps"], defaults["weight_decay"]) == ((0.9, 0.95), 1e-8, 0.1)


def test_another_machine_is_not_bit_equal_and_says_so(tmp_path, train=training.train):
    """A state that other threads or instructions wrote is resumed with a warning; on the same machine without one."""
    options = {"state_path": tmp_path / "state", "evaluate": None, "on_best": None}
    with pytest.raises(KeyboardInterrupt):
        run(train, stop_at=2, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyboardInterrupt):
            run(train, stop_at=2, resume=True, **options)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.warns(UserWarning, match=f"not be bit-equal.*written with {threads} threads"):
            run(train, resume=True, **options)
    finally:
        torch.set_num_threads(threads)


def test_place_to_write_is_checked_before_training(tmp_path, train=training.train):
    """A state path below a file, or that is a folder, is refused before the first step, not after the last."""
    (tmp_path / "file").write_text("x")
    calls = []
    for path in (tmp_path / "file" / "state", tmp_path):
        with pytest.raises(MiniftError, match="cannot write"):
            train(make_model(), make_batches(), calls.append, steps=2, lr=0.1, state_path=path, progress=False)
    assert not calls


def test_progress_bar_shows_name_and_loss(capsys, train=training.train):
    """One bar on stderr with the name of the run, its steps and its loss; progress=False prints nothing; stdout
    stays empty."""
    run(train, progress=True, name="tuning")
    out, err = capsys.readouterr()
    assert "tuning" in err and "10/10" in err and "loss=" in err and out == ""
    run(train, progress=False)
    assert capsys.readouterr() == ("", "")


def test_move_batch_moves_tensors_only(move_batch=move_batch):
    """Tensors go to the device, other entries pass through; the given batch stays as it is."""
    batch = {"x": torch.zeros(2), "name": "a"}
    moved = move_batch(batch, torch.device("meta"))
    assert moved["x"].device.type == "meta" and moved["name"] == "a" and batch["x"].device.type == "cpu"


# ---- this file as a program, for the tests that need another process ----


def start_python(what, folder):
    """This file in another process, with as many threads as here: other numbers of threads may round differently."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, what, str(folder), str(torch.get_num_threads())]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(path, process):
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, process.stderr.read()
        threading.Event().wait(0.1)
    raise AssertionError(f"{path} never came")


def training_state(path):
    from minift.core.files import read_tensors
    return read_tensors(path)


def main(what, folder, threads):
    folder = Path(folder)
    torch.set_num_threads(int(threads))
    if what == "resume":
        model, history, best = run(state_path=folder / "state", resume=True)
        torch.save(model.state_dict(), folder / "weights.pt")
        (folder / "report.json").write_text(json.dumps({"history": history, "best": best}))
    if what == "forever":
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run(steps=10_000_000, evaluate=lambda: (folder / "started").touch() or {"valid_loss": 1.0}, eval_every=5,
            state_path=folder / "state")


if __name__ == "__main__":
    main(*sys.argv[1:])
