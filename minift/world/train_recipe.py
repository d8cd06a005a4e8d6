"""Train a checkpoint of the repository by its recipe, and write its log and manifest beside it.

The manifest records how the checkpoint was made and what came out: command, settings, tokens, losses, versions and the
sha256 of each file. Left out: training on several processes.
"""

import hashlib
import json
import platform
import time
from pathlib import Path

import torch

from minift.core.files import write_json, write_text
from minift.core.train import train
from minift.formats.checkpoint import save_model

# What is hashed in a manifest.
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def train_by_recipe(out, recipe, model, tokenizer, phases, loss_fn, evaluate, progress, *, command, **facts):
    """Train by a recipe; write the model, log.jsonl and manifest.json to the folder `out`. Returns the manifest.

    phases: (batches, {"steps", "lr", "warmup"}), one after the other, each with its own optimizer and schedule.
    facts: further entries of the manifest.
    """
    start, out = time.time(), Path(out)
    # Train each phase. All phases have one history; its steps are numbered from the first phase to the last.
    history = []
    for batches, settings in phases:
        rows = train(
            model, batches, loss_fn,
            steps=settings["steps"],
            lr=settings["lr"],
            warmup=settings["warmup"],
            evaluate=evaluate,
            eval_every=recipe["eval_every"],
            name=out.name,
            progress=progress,
            state_path=out.parent / f"{out.name}.state",
            save_every=recipe["eval_every"])
        before = len(history)
        history += [{**row, "step": row["step"] + before} for row in rows]

    # Write the model, its log, and a manifest that describes them.
    save_model(model.eval(), tokenizer, out)
    write_log(history, out / "log.jsonl")
    last = history[-1].items()
    manifest = {
        "command": command,
        **recipe,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "tokens": sum(row["n_tokens"] for row in history),
        "wall_seconds": round(time.time() - start),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "first_loss": history[0]["loss"],
        **facts,
        **{name: value for name, value in last if name.startswith("valid")},
        "sha256": {name: hash_file(out / name) for name in FILES}}
    write_json(out / "manifest.json", manifest)
    return manifest


def write_log(history, path):
    """Write the first row of a history and every 25th as JSON lines."""
    lines = []
    for row in history:
        if row["step"] == 1 or row["step"] % 25 == 0:
            lines.append(json.dumps(row) + "\n")
    write_text(path, "".join(lines))


def hash_file(path):
    """The sha256 of a file, as hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
