"""One training run, whatever the method: its folder, its record, its Ctrl-C, and the best weights so far.

In --out: the model (with --lora: the adapter), run.json (the command, its data and its results) and metrics.jsonl (one
row a step). Until the run is finished there is also state.safetensors, from which --resume goes on.
"""

import argparse
import contextlib
import copy
import math
import platform
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from minift.cli.folders import check_out, clear, command
from minift.cli.models import context_of, is_adapter, open_kind, open_model, pick_device, plain_copy
from minift.cli.options import settle
from minift.core.files import read_json, remove, write_json
from minift.core.heads import LanguageModel
from minift.core.logprobs import eval_mode
from minift.core.resume import machine_record, move_batch
from minift.core.step import WeightedMeans
from minift.core.train import train
from minift.errors import MiniftError
from minift.formats.adapter import load_adapter, save_adapter
from minift.formats.checkpoint import save_model
from minift.methods.lora import add_lora
from minift.text.batches import Batches

# Options that may change when a run is resumed.
MAY_DIFFER = ("resume", "overwrite", "device", "checkpointing", "argv")
# LoRA's alpha / rank.
ALPHA = 2


@dataclass(eq=False)
class Run:
    """A training run from its options to its result; the verbs call its methods in the order in which they stand."""

    # The options of the command line.
    options: argparse.Namespace
    # What --model must be: a class of core.heads, or a tuple of them.
    kind: type | tuple = LanguageModel

    def __post_init__(self):
        """Open the model, settle what the options leave open, and begin the record."""
        # Check the device and the folder before the model is read.
        options, self.start, self.out = self.options, time.time(), Path(self.options.out)
        self.state_path, self.metrics_path = self.out / "state.safetensors", self.out / "metrics.jsonl"
        self.device = pick_device(options.device)
        if getattr(options, "dtype", "") == "bfloat16" and self.device.type != "cuda":
            raise MiniftError(f"--dtype bfloat16 is slower than float32 on {self.device}; leave it out, or use CUDA")
        check_out(self.out, options.resume, options.overwrite, [options.model])
        torch.manual_seed(options.seed)
        self.model, self.tokenizer = open_kind(options.model, self.kind, options.verb)
        # Note with which settings, versions and device the run begins.
        self.settings = settle(options, self.model)
        recorded = {
            name: getattr(self.settings, name, value) for name, value in vars(options).items()
            if name not in MAY_DIFFER}
        self.record = {
            "status": "running", "command": command(options.argv), "seed": options.seed, "settings": recorded,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": str(self.device), **machine_record()}
        # The base that a saved adapter belongs to.
        self.base = Path(options.model)
        # With --lora and an adapter as --model: the base with that adapter merged. It is saved as the new base.
        self.new_base = None
        if is_adapter(options.model):
            self.model = plain_copy(self.model)
            # These weights stay frozen, so both models share them.
            shared = {id(p): p for p in self.model.parameters()}
            self.new_base = copy.deepcopy(self.model, shared) if options.lora else None
        self.context = context_of(self.model, self.settings.context)

    def set_data(self, data):
        """Note the data in the record. With --resume, data and settings must equal those of the run's beginning."""
        self.record |= {
            "data": data.files, "validation": data.valid_from,
            "rows": {name: vars(tally) for name, tally in data.tallies.items()},
            "examples": {"train": len(data.train), "valid": len(data.valid)}}
        if not self.options.resume:
            return
        old = read_json(self.out / "run.json")
        for now, before in ((self.record["settings"], old["settings"]), (self.record["data"], old["data"])):
            for name in sorted(now.keys() | before.keys()):
                if now.get(name) != before.get(name):
                    raise MiniftError(
                        f"--resume goes on with the same run, but {name} was {before.get(name)} and is "
                        f"{now.get(name)}; repeat the command that stands in {self.out / 'run.json'}")

    def set_model(self, model):
        """Put the model to train on the device. With --lora only an adapter and a score head, if any, are trained."""
        self.model = with_lora(model, self.options.lora).to(self.device)
        self.model.body.checkpointing = self.options.checkpointing
        n_all = sum(p.numel() for p in model.parameters())
        n_trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.record["parameters"] = {"all": n_all, "trained": n_trained}
        print(f"trains {n_trained:,} of {n_all:,} parameters on {self.device}", flush=True)

    def batches(self, examples, collate, shuffle=True):
        """Batches of --batch-size, made by collate(part, pad_id); an empty list when there are no examples."""
        if not examples:
            return []
        collate = partial(collate, pad_id=self.tokenizer.pad_id)
        return Batches(examples, self.settings.batch_size, collate, self.options.seed, shuffle)

    def train(self, loss_fn, batches, valid_batches):
        """Train by `loss_fn`, and keep the weights that are best on valid_batches (without any: the last).

        Returns the validation metrics before the training and those of the weights that were kept.
        """
        o, settings, valid = self.options, self.settings, len(valid_batches) > 0
        # Measure before the first step, and settle the number of steps.
        evaluate = partial(mean_metrics, self.model, loss_fn, valid_batches, self.device)
        before = evaluate()
        steps = o.steps or max(1, math.ceil(o.epochs * len(batches) / settings.accumulate))
        every = o.eval_every or max(1, steps // 10)
        # Train. With validation data, each new best is saved; without, the last.
        watch = {}
        if valid:
            watch = {"evaluate": evaluate, "on_best": lambda row: self.save()}
        with self.recorded():
            history = train(
                self.model, batches, loss_fn, steps=steps, lr=settings.lr, accumulate=settings.accumulate,
                eval_every=every, save_every=every, state_path=self.state_path, resume=o.resume,
                metrics_path=self.metrics_path, dtype=o.dtype, name=o.verb, **watch)
        if not valid:
            self.save()
        # Report the weights that were kept.
        self.reload()
        measured = [row for row in history if "valid_loss" in row]
        best = min(measured, key=lambda row: row["valid_loss"], default=history[-1])
        after = {name: best[name] for name in before}
        self.record |= {
            "steps": steps, "best_step": best["step"], "loss": [history[0]["loss"], history[-1]["loss"]],
            "before": before, "result": after}
        return before, after

    @contextlib.contextmanager
    def recorded(self):
        """Write run.json, and an adapter's new base, before the work begins.

        When Ctrl-C or an error ends the work, note it in run.json and say how to go on.
        """
        if self.options.overwrite and not self.options.resume:
            clear(self.out)
        write_json(self.out / "run.json", self.record)
        try:
            if self.new_base is not None:
                self.base = self.out / "base"
                save_model(self.new_base, self.tokenizer, self.base)
                self.new_base = None
            yield
        except MiniftError as error:
            write_json(self.out / "run.json", self.record | {"status": f"failed: {error}"})
            raise
        except KeyboardInterrupt as error:
            write_json(self.out / "run.json", self.record | {"status": "interrupted"})
            how = "to go on, repeat the command with --resume" if self.state_path.exists() else (
                "nothing was saved yet, so repeat the command with --overwrite")
            raise KeyboardInterrupt(f"{error or 'stopped'}; {how}") from error

    def save(self):
        """Write the model, or the adapter alone, to --out."""
        if not self.options.lora:
            save_model(self.model, self.tokenizer, self.out)
            return
        save_adapter(self.model, self.out, base=self.base.as_posix())

    def reload(self):
        """Load the best weights, which are in --out, into the model; an adapter's base is in it already."""
        if self.options.lora:
            load_adapter(self.model, self.out)
        else:
            self.model.load_state_dict(open_model(self.out)[0].state_dict())
        self.model.eval()

    def finish(self, **result):
        """Write the final run.json, remove the training state, and print the results."""
        before, result = self.record.get("before", {}), {**self.record.get("result", {}), **result}
        self.record |= {"result": result, "status": "finished", "seconds": round(time.time() - self.start, 1)}
        write_json(self.out / "run.json", self.record)
        remove(self.state_path)
        for name, value in result.items():
            if isinstance(value, (int, float)):
                print(f"{name}: {f'{before[name]:.4g} before, ' if name in before else ''}{value:.4g}")
        best = f"best step {self.record['best_step']} of {self.record['steps']}" if before else "last step"
        print(f"{best}; written to {self.out} in {self.record['seconds']} s")


def repeat_recipe(options, recipe):
    """Make data/{recipe} anew when --recipe asks for it, from nothing but its seed; returns whether it did.

    Raises MiniftError when neither --recipe is given nor --model and --data.
    """
    if options.recipe:
        # The recipes need the whole world, which other runs do not.
        from minift.world import recipes
        check_out(options.out, overwrite=options.overwrite)
        manifest = getattr(recipes, f"pretrain_{recipe}")(options.out)
        print(f"the model of {manifest['n_parameters']:,} parameters is in {options.out}")
    elif not options.model or not options.data:
        raise MiniftError(
            f"{options.verb} needs --model DIR and --data FILE (or --recipe {recipe}, which begins from nothing)")
    return options.recipe is not None


def with_lora(model, rank):
    """The model; with a rank, its attention gets LoRA, and a score head, if there is one, is trained too."""
    if rank:
        add_lora(model, rank, ALPHA * rank)
        if hasattr(model, "score"):
            model.score.requires_grad_(True)
    return model


@torch.no_grad()
def mean_metrics(model, loss_fn, batches, device):
    """{"valid_loss": ..., "valid_accuracy": ...}: means of loss and metrics over all items; {} without batches."""
    means = WeightedMeans()
    with eval_mode(model):
        for batch in batches:
            loss, metrics = loss_fn(move_batch(batch, device))
            if metrics["n_tokens"]:
                means.add({**metrics, "loss": loss}, weight=metrics["n_tokens"])
    return {f"valid_{name}": value for name, value in means.result().items()}
