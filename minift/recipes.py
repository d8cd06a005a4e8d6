"""Recipes: how the checkpoints that come with the repository were made, from nothing but a seed.

`python -m minift pretrain --recipe base` repeats the decoder in data/base/. It takes about an hour on one core.
"""

import hashlib
import json
import platform
import time
from pathlib import Path

import torch

from minift.core.checkpoint import save_model
from minift.core.files import write_json, write_text
from minift.core.heads import LanguageModel
from minift.core.tokenizer import Tokenizer
from minift.core.train import train
from minift.core.transformer import TransformerConfig
from minift.datasets.batches import Windows, chunks, collate
from minift.datasets.corpus import documents, stories
from minift.methods.pretrain import make_pretrain_loss

BASE = {
    "seed": 0,
    "steps": 2400,
    "batch_size": 32,
    "lr": 3e-3,
    "n_documents": 175_000,
    "vocab_size": 2048,
    "config": {"context_length": 256, "n_layer": 4, "n_head": 4, "d_model": 128, "d_ff": 344},
}


def base_tokenizer(seed=BASE["seed"]):
    """The tokenizer of the base: byte-level BPE on documents of the world."""
    return Tokenizer.train(documents(6000, f"tokenizer/{seed}"), BASE["vocab_size"])


def join(tokenizer, texts):
    """All texts as one row of ids, <eos> after each."""
    return [token for text in texts for token in (*tokenizer.encode(text), tokenizer.eos_id)]


@torch.no_grad()
def text_loss(model, tokenizer, texts, batch_size=32):
    """Mean negative log-likelihood of some texts, each on its own, in nats per token (the first token is given)."""
    loss_fn, total, count = make_pretrain_loss(model), 0.0, 0
    for part in chunks([tokenizer.encode(text) + [tokenizer.eos_id] for text in texts], batch_size):
        loss, metrics = loss_fn(collate([{"input_ids": ids, "labels": ids} for ids in part], tokenizer.pad_id))
        total, count = total + loss.item() * metrics["n_tokens"], count + metrics["n_tokens"]
    return total / count


def pretrain_base(out, recipe=BASE, progress=True):
    """Train the decoder of data/base and write it to the folder `out`, with log.jsonl and manifest.json (returned)."""
    torch.manual_seed(recipe["seed"])
    start, out = time.time(), Path(out)
    tokenizer = base_tokenizer(recipe["seed"])
    ids = join(tokenizer, documents(recipe["n_documents"], recipe["seed"]))
    model = LanguageModel(TransformerConfig(vocab_size=tokenizer.vocab_size, **recipe["config"]))
    valid = {"stories": stories(200, recipe["seed"], "valid"), "documents": documents(200, recipe["seed"], "valid")}

    def evaluate():
        save_model(model, tokenizer, out)
        return {f"valid_{name}_loss": text_loss(model, tokenizer, texts) for name, texts in valid.items()}

    windows = Windows(ids, recipe["config"]["context_length"], recipe["batch_size"], recipe["seed"])
    history = train(
        model,
        windows,
        make_pretrain_loss(model),
        steps=recipe["steps"],
        lr=recipe["lr"],
        warmup=150,
        evaluate=evaluate,
        eval_every=250,
        state_path=out.parent / f"{out.name}.state",
        save_every=250,
        name="base",
        progress=progress,
    )
    model.eval()
    save_model(model, tokenizer, out)
    rows = [row for row in history if row["step"] % 25 == 0 or row["step"] == 1]
    write_text(out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    manifest = {
        "command": "python -m minift pretrain --recipe base --out data/base",
        **recipe,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "tokens": sum(row["n_tokens"] for row in history),
        "wall_seconds": round(time.time() - start),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "first_loss": history[0]["loss"],
        **{name: value for name, value in history[-1].items() if name.startswith("valid")},
        "sha256": {
            name: hashlib.sha256((out / name).read_bytes()).hexdigest()
            for name in ("config.json", "model.safetensors", "tokenizer.json")
        },
    }
    write_json(out / "manifest.json", manifest)
    return manifest
