"""Recipes: how the checkpoints that come with the repository were made, from nothing but a seed.

`python -m minift pretrain --recipe base` repeats the decoder in data/base/, `mlm --recipe encoder` the encoder in
data/encoder/. Each takes an hour or two on one core. The decoder reads documents first, then mostly worksheets.
"""

import hashlib
import json
import platform
import random
import time
from pathlib import Path

import torch

from minift.core.files import DATA, write_json, write_text
from minift.core.heads import LanguageModel, MaskedLanguageModel
from minift.core.train import train
from minift.core.transformer import TransformerConfig
from minift.evaluation.masked import Bigrams, masked_accuracy
from minift.evaluation.metrics import language_model_nll
from minift.formats.checkpoint import load_model, save_model
from minift.methods.mlm import Masked, make_mlm_loss
from minift.methods.pretrain import make_pretrain_loss
from minift.methods.sft import tune_on_chats
from minift.text.batches import Batches, Windows, chunks, collate
from minift.text.segments import collate_ids, encode_segments
from minift.text.tokenizer import Tokenizer
from minift.world.corpus import documents, stories
from minift.world.instructions import instructions
from minift.world.labelled import statements
from minift.world.practice import worksheets

BASE = {"seed": 0, "steps": 2400, "batch_size": 32, "lr": 3e-3, "warmup": 150, "eval_every": 250,
        "n_documents": 175_000, "vocab_size": 2048,
        "config": {"context_length": 256, "n_layer": 4, "n_head": 4, "d_model": 128, "d_ff": 344},
        "practice": {"steps": 2000, "batch_size": 32, "lr": 3e-3, "warmup": 50, "n_worksheets": 62_000,
                     "n_documents": 36_500}}

ENCODER = {
    "seed": 0,
    "steps": 16_000,
    "batch_size": 16,
    "lr": 2e-3,
    "warmup": 200,
    "eval_every": 1000,
    "n_documents": 140_000,
    # The share of documents that are a story and statements about it.
    "statements": 0.3,
    # The share of tokens to fill in; on small budgets more than BERT's 0.15 learns faster.
    "hidden": 0.3,
    # Of all matrices: BERT's 0.02 belongs to a width of 768.
    "init_std": 0.06,
    "config": {"context_length": 256, "n_layer": 4, "n_head": 4, "d_model": 128, "d_ff": 512, "causal": False,
               "norm_first": False, "norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True},
}


def base_tokenizer(seed=BASE["seed"]):
    """The tokenizer of the base: byte-level BPE on documents of the world."""
    return Tokenizer.train(documents(6000, f"tokenizer/{seed}"), BASE["vocab_size"])


def join(tokenizer, texts):
    """All texts as one row of ids, <eos> after each."""
    return [token for text in texts for token in (*tokenizer.encode(text), tokenizer.eos_id)]


def text_loss(model, tokenizer, texts, batch_size=32):
    """Mean negative log-likelihood of some texts, each on its own, in nats per token (the first token is given)."""
    ended = (tokenizer.encode(text) + [tokenizer.eos_id] for text in texts)
    rows = [{"input_ids": ids, "labels": ids} for ids in ended]
    total, count = language_model_nll(model, [collate(part, tokenizer.pad_id) for part in chunks(rows, batch_size)])
    return total / count


def pretrain_base(out, recipe=BASE, progress=True):
    """Train the decoder of data/base and write it to the folder `out`, with log.jsonl and manifest.json (returned)."""
    torch.manual_seed(recipe["seed"])
    tokenizer = base_tokenizer(recipe["seed"])
    model = LanguageModel(TransformerConfig(vocab_size=tokenizer.vocab_size, **recipe["config"]))
    command = "python -m minift pretrain --recipe base --out data/base"
    return make(out, command, recipe, model, tokenizer, base_phases(tokenizer, recipe), make_pretrain_loss(model),
                base_evaluation(model, tokenizer, recipe["seed"]), progress)


def base_phases(tokenizer, recipe=BASE):
    """The two phases of the base, (batches, settings): all kinds of documents, then worksheets among documents."""
    seed, practice, length = recipe["seed"], recipe["practice"], recipe["config"]["context_length"]
    texts = worksheets(practice["n_worksheets"], seed) + documents(practice["n_documents"], f"{seed}/practice")
    random.Random(seed).shuffle(texts)
    for settings, ids in ((recipe, join(tokenizer, documents(recipe["n_documents"], seed))),
                          (practice, join(tokenizer, texts))):
        yield Windows(ids, length, settings["batch_size"], seed), settings


def base_evaluation(model, tokenizer, seed):
    """evaluate() for `train`: the loss of unread stories, documents and worksheets."""
    kinds = {"stories": stories, "documents": documents, "worksheets": worksheets}
    room = model.config.context_length
    valid = {name: [text for text in kind(200, seed, "valid") if len(tokenizer.encode(text)) < room]
             for name, kind in kinds.items()}
    return lambda: {f"valid_{name}_loss": text_loss(model, tokenizer, texts) for name, texts in valid.items()}


def story_writer(steps=20, seed=0, base=DATA / "base"):
    """(model, tokenizer): the base after a few steps of SFT on requests for stories, where preferences begin."""
    torch.manual_seed(seed)
    model, tokenizer = load_model(base)
    rows = instructions(16 * steps, seed, tasks=("story",))
    tune_on_chats(model, tokenizer, rows, steps=steps, lr=1.5e-3, batch_size=16, seed=seed)
    return model.eval(), tokenizer


def encoder_rows(tokenizer, n, seed, split, context_length):
    """n texts as the encoder of data/encoder reads them: documents of the base corpus, and stories with statements.

    What stands behind a story's line (a quiz, facts, statements) becomes the second segment.
    """
    n_statements = round(ENCODER["statements"] * n)
    texts = documents(n - n_statements, seed, split) + statements(n_statements, seed, split)
    parts = (text.partition("\n") for text in texts)
    return [encode_segments(tokenizer, first, second or None, context_length)[0] for first, _, second in parts]


def masked_batches(tokenizer, rows, batch_size, seed=0, hidden=0.15, fresh=True, shuffle=True):
    """Batches of rows of ids with a share `hidden` of the tokens to fill in; fresh=False: always the same ones."""
    batches = Batches([{"input_ids": ids} for ids in rows], batch_size,
                      lambda part: collate_ids([row["input_ids"] for row in part], tokenizer.pad_id), seed, shuffle)
    return Masked(batches, mask_id=tokenizer.special_id("<mask>"), special_ids=tokenizer.special.values(),
                  vocab_size=tokenizer.vocab_size, seed=seed, probability=hidden, fresh=fresh)


@torch.no_grad()
def init_encoder(model, std):
    """Scale all matrices to a standard deviation, and begin the learned positions as waves (Vaswani et al. 2017, 3.5).

    From positions that are noise, an encoder of this size needs millions of tokens to find out what stands beside what:
    after 0.7M tokens 0.12 of the hidden tokens were right without these two, 0.21 with them.
    """
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=std)
    positions = model.body.positions.weight                                  # (C, D)
    n, d = positions.shape
    angle = torch.arange(n)[:, None] / 10_000 ** (torch.arange(0, d, 2) / d)     # (C, D/2)
    positions.copy_(std * 2**0.5 * torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1))


def pretrain_encoder(out, recipe=ENCODER, progress=True):
    """Train the encoder of data/encoder, like pretrain_base; the manifest states its accuracy beside two guesses."""
    torch.manual_seed(recipe["seed"])
    tokenizer, length = base_tokenizer(recipe["seed"]), recipe["config"]["context_length"]
    rows = encoder_rows(tokenizer, recipe["n_documents"], recipe["seed"], "train", length)
    valid_rows = encoder_rows(tokenizer, 400, recipe["seed"], "valid", length)
    model = MaskedLanguageModel(TransformerConfig(vocab_size=tokenizer.vocab_size, **recipe["config"]))
    init_encoder(model, recipe["init_std"])
    valid = masked_batches(tokenizer, valid_rows, 64, fresh=False, shuffle=False)
    frequent, bigram = Bigrams(rows[:20_000], tokenizer.vocab_size, tokenizer.special.values()).accuracies(valid)

    def evaluate():
        return {"valid_accuracy": masked_accuracy(model, valid)}

    batches = masked_batches(tokenizer, rows, recipe["batch_size"], recipe["seed"], recipe["hidden"])
    command = "python -m minift mlm --recipe encoder --out data/encoder"
    return make(out, command, recipe, model, tokenizer, [(batches, recipe)], make_mlm_loss(model), evaluate, progress,
                valid_accuracy_most_frequent_token=frequent, valid_accuracy_bigram=bigram)


def make(out, command, recipe, model, tokenizer, phases, loss_fn, evaluate, progress, **facts):
    """Train by a recipe; write the model, log.jsonl and manifest.json to the folder `out`. Returns the manifest.

    phases: (batches, {"steps", "lr", "warmup"}), one after the other, each with its own optimizer and schedule.
    """
    start, out, history = time.time(), Path(out), []
    for batches, settings in phases:
        rows = train(model, batches, loss_fn, steps=settings["steps"], lr=settings["lr"], warmup=settings["warmup"],
                     evaluate=evaluate, eval_every=recipe["eval_every"], name=out.name, progress=progress,
                     state_path=out.parent / f"{out.name}.state", save_every=recipe["eval_every"])
        history += [{**row, "step": row["step"] + len(history)} for row in rows]
    save_model(model.eval(), tokenizer, out)
    rows = [row for row in history if row["step"] % 25 == 0 or row["step"] == 1]
    write_text(out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    files = ("config.json", "model.safetensors", "tokenizer.json")
    manifest = {"command": command, **recipe, "n_parameters": sum(p.numel() for p in model.parameters()),
                "tokens": sum(row["n_tokens"] for row in history), "wall_seconds": round(time.time() - start),
                "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
                "first_loss": history[0]["loss"], **facts,
                **{name: value for name, value in history[-1].items() if name.startswith("valid")},
                "sha256": {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in files}}
    write_json(out / "manifest.json", manifest)
    return manifest
