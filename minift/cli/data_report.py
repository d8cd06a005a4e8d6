"""check-data: what files will become, before an hour is spent on them."""

import os
import statistics
import sys
import time
from collections import Counter
from itertools import groupby

import torch

from minift.cli.classes import in_order
from minift.cli.encoders import (
    encode_dialogue,
    encode_judged,
    encode_labelled_row,
    encode_pieces,
    encode_preference,
    encode_request,
    encode_text,
)
from minift.cli.examples import Tally, encode_row, without_duplicates
from minift.cli.models import context_of, open_kind, pick_device, plain_copy
from minift.cli.options import settle, window
from minift.cli.rows import FORMS, find_files, read_rows
from minift.core.heads import LanguageModel, MaskedLanguageModel
from minift.core.logprobs import CHUNK_LOGITS, IGNORE_INDEX
from minift.errors import MiniftError
from minift.methods.mlm import make_mlm_loss
from minift.methods.sft import make_labels, make_sft_loss
from minift.text.batches import collate

USED_BY = {
    "messages": "sft, evaluate, ppo, grpo", "completion": "sft, evaluate, ppo, grpo", "judged": "dpo --loss kto",
    "pair": "reward, dpo, evaluate, ppo, grpo", "prompt": "ppo, grpo, generate",
    "text": "pretrain, evaluate, ppo, grpo", "label": "classify, evaluate"}
# For the estimate an encoder predicts every 7th token: 15 % of them, as mlm does.
HIDDEN = 7
GREEN, GREY, PLAIN = "\x1b[1;32m", "\x1b[90m", "\x1b[0m"
PROBLEMS_SHOWN = 20


def check_data(options):
    """Print what becomes of the rows of --data; MiniftError in the end when some are bad."""
    files = find_files(options.data)
    model, tokenizer = open_kind(options.model, (LanguageModel, MaskedLanguageModel), "check-data")
    model = plain_copy(model).to(pick_device(options.device))
    context = context_of(model, options.context)
    batch_size = settle(options, model).batch_size
    # Encode the rows of each form as training would; collect the bad ones instead of stopping at the first.
    bad, sequences = [], []
    encoder = isinstance(model, MaskedLanguageModel)
    forms = [form for form in FORMS if form == "text" or encoder == (form == "label")]
    rows = read_rows(files, forms, bad)
    for form in forms:
        part = [row for row in rows if row.form == form]
        if part:
            make = pieces_of if encoder and form == "text" else sequences_of
            length = window(model, options.context) if form == "text" and not encoder else context
            sequences += check_form(form, make, part, tokenizer, length, bad, options.show)
    # Show the problems, then the time and memory that the good rows would need.
    for problem in bad[:PROBLEMS_SHOWN]:
        print(f"problem: {problem}")
    learned = [ids[:context] for ids, labels in sequences if any(label != IGNORE_INDEX for label in labels)]
    if learned:
        estimate(model, tokenizer, learned, batch_size)
    if bad:
        raise MiniftError(f"{len(bad)} rows are bad (the first: {bad[0]}); mend them, or train with --skip-bad")


def check_form(form, make, rows, tokenizer, context, bad, n_show):
    """Report on the rows of one form; returns their sequences, [(ids, labels)].

    make: the function that turns a row into its sequences. Of rows with a label only the label is learned.
    """
    # Encode the rows; each sequence keeps its row's label, if it has one.
    tally, sequences, names = Tally(read=len(rows)), [], []
    for row in without_duplicates(rows, tally, drop=False):
        found = encode_row(lambda row, tally: make(row, tally, tokenizer, context), row, tally, bad) or []
        tally.used += bool(found)
        sequences += found
        names += [str(row.values.get("label"))] * len(found)
    used_by, learned = USED_BY[form], "are learned"
    if make is pieces_of:
        used_by, learned = "mlm, classify --predict", "may be hidden"
    print(f"{{{', '.join(FORMS[form])}}}, for {used_by}: {tally}")
    if not sequences:
        return []
    # Say how long they are, and what is learned of them.
    n = print_lengths([ids for ids, _ in sequences], context)
    if form == "label":
        counts = Counter(names)
        print(f"  tokens in all: {n:,}")
        print(f"  rows of each label: {', '.join(f'{name!r} {counts[name]}' for name in in_order(counts))}")
    else:
        n_learned = sum(len(labels) - labels.count(IGNORE_INDEX) for _, labels in sequences)
        print(f"  tokens in all: {n:,}, of which {n_learned:,} {learned} ({n_learned / n:.0%})")
    # Show some of them.
    for name, (ids, labels) in zip(names[:n_show], sequences):
        text = coloured(tokenizer, ids[:context], labels[:context])
        if form == "label":
            text = f"{name}: " + coloured(tokenizer, ids, [IGNORE_INDEX] * len(ids))
        print("  | " + text.replace("\n", "\n  | "))
    return sequences


def print_lengths(rows, context):
    """Say how long some lists of ids are; returns the sum."""
    lengths = sorted(map(len, rows))
    print(
        f"  tokens in a sequence: {lengths[0]} to {lengths[-1]}, median {statistics.median(lengths):.0f}, 95 % "
        f"have at most {lengths[int(0.95 * (len(lengths) - 1))]}; a row may have {context}")
    return sum(lengths)


def sequences_of(row, tally, tokenizer, context):
    """The sequences of a row, [(ids, labels)]: two of a pair, none of a dropped row, several of a long text."""
    if row.form == "pair":
        pair = encode_preference(row, tally, tokenizer, context)
        return [
            (pair[f"{side}_input_ids"], make_labels(pair[f"{side}_input_ids"], pair[f"{side}_response_mask"]))
            for side in ("chosen", "rejected")] if pair else []
    if row.form == "judged":
        examples = encode_judged(row, tally, tokenizer, context) or []
        return [
            (one["answer_input_ids"], make_labels(one["answer_input_ids"], one["answer_response_mask"]))
            for one in examples]
    if row.form == "prompt":
        example = encode_request(row, tally, tokenizer, context - 1)
        return [(example["input_ids"], [IGNORE_INDEX] * len(example["input_ids"]))] if example else []
    if row.form == "text":
        example = encode_text(row, tally, tokenizer)
        ids = example["input_ids"] if example else []
        return [(ids[start:start + context],) * 2 for start in range(0, len(ids), context)]
    if row.form == "label":
        example = encode_labelled_row(row, tally, tokenizer, context)
        return [(example["input_ids"], example["input_ids"])] if example else []
    example = encode_dialogue(row, tally, tokenizer, context)
    return [(example["input_ids"], example["labels"])] if example else []


def pieces_of(row, tally, tokenizer, context):
    """The same for an encoder: the pieces of a text; [CLS] and [SEP] are not learned."""
    special = set(tokenizer.special.values())
    return [
        (piece["input_ids"], [IGNORE_INDEX if i in special else i for i in piece["input_ids"]])
        for piece in encode_pieces(row, tally, tokenizer, context) or []]


def coloured(tokenizer, ids, labels):
    """The text, learned tokens green and the others grey; without colours, learned ones in «guillemets»."""
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    text = ""
    for learned, run in groupby(zip(ids, labels), key=lambda pair: pair[1] != IGNORE_INDEX):
        part = tokenizer.decode([i for i, _ in run])
        text += f"{GREEN if learned else GREY}{part}{PLAIN}" if colours else f"«{part}»" if learned else part
    return text


def estimate(model, tokenizer, sequences, batch_size):
    """Print the time of one epoch, from a training step measured here and now, and the memory, from the sizes."""
    device, config = next(model.parameters()).device, model.config
    # Take a step on the sequences of middle length.
    middle = max(0, len(sequences) // 2 - batch_size // 2)
    part = sorted(sequences, key=len)[middle:middle + batch_size]
    batch = collate([{"input_ids": ids, "labels": ids} for ids in part], tokenizer.pad_id)
    batch = {name: x.to(device) for name, x in batch.items()}
    encoder = isinstance(model, MaskedLanguageModel)
    loss_fn, epoch, cheap = make_sft_loss(model), "one epoch", "--lora"
    if encoder:
        loss_fn, epoch, cheap = make_mlm_loss(model), "one epoch (mlm, or classify --full)", "classify --freeze"
        hidden = torch.arange(batch["labels"].shape[1], device=device) % HIDDEN == 1
        batch["labels"] = batch["labels"].masked_fill(~hidden, IGNORE_INDEX)
    # The first step only warms up.
    for _ in range(2):
        start = time.perf_counter()
        loss_fn(batch)[0].backward()
        # Waits for an accelerator.
        next(model.parameters()).grad.sum().item()
        seconds = time.perf_counter() - start
    total, speed = sum(map(len, sequences)), sum(map(len, part)) / seconds
    print(
        f"{epoch} of {total:,} tokens: about {total / speed:,.0f} s "
        f"({speed:,.0f} tokens/s, measured on {device} with a batch of {len(part)})")
    n = sum(p.numel() for p in model.parameters())
    tokens, a_token = batch["input_ids"].numel(), config.n_layer * (10 * config.d_model + 4 * config.d_ff)
    logits = tokens * config.vocab_size // HIDDEN if encoder else min(tokens * config.vocab_size, CHUNK_LOGITS)
    activations = 4 * (tokens * a_token + 3 * logits)
    print(
        f"memory: about {(16 * n + activations) / 2**20:,.0f} MiB (16 bytes a parameter for weights, gradients and "
        f"AdamW; activations {activations / 2**20:,.0f}), with {cheap} "
        f"{(4 * n + activations) / 2**20:,.0f} MiB; besides, PyTorch itself: some 300")
