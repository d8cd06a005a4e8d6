"""Recipes: how the checkpoints that come with the repository were made from a seed.

`python -m minift pretrain --recipe base` trains the decoder in data/base/ again, `mlm --recipe encoder` the encoder in
data/encoder/. Each takes one or two hours on one core. The decoder reads documents first, then mostly worksheets.
"""

import random

import torch

from minift.core.files import DATA
from minift.core.heads import LanguageModel, MaskedLanguageModel
from minift.core.transformer import TransformerConfig
from minift.evaluation.masked import Bigrams, masked_accuracy
from minift.evaluation.metrics import language_model_nll
from minift.formats.checkpoint import load_model
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
from minift.world.train_recipe import train_by_recipe

BASE = {
    "seed": 0,
    "steps": 2400,
    "batch_size": 32,
    "lr": 3e-3,
    "warmup": 150,
    "eval_every": 250,
    "n_documents": 175_000,
    "vocab_size": 2048,
    "config": {
        "context_length": 256,
        "n_layer": 4, "n_head": 4, "d_model": 128, "d_ff": 344},
    # The second phase.
    "practice": {
        "steps": 2000,
        "batch_size": 32,
        "lr": 3e-3,
        "warmup": 50,
        "n_worksheets": 62_000,
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
    # The share of tokens to fill in. With few steps, more than BERT's 0.15 learns faster.
    "hidden": 0.3,
    # Standard deviation of all matrices at the start. BERT's 0.02 belongs to a width of 768.
    "init_std": 0.06,
    "config": {
        "context_length": 256,
        "n_layer": 4, "n_head": 4, "d_model": 128, "d_ff": 512,
        "causal": False, "norm_first": False, "norm": "layernorm",
        "positions": "learned", "mlp": "gelu", "bias": True}}


def base_tokenizer(seed=BASE["seed"]):
    """The tokenizer of the base: byte-level BPE on documents of the world."""
    texts = documents(6000, f"tokenizer/{seed}")
    return Tokenizer.train(texts, BASE["vocab_size"])


def join(tokenizer, texts):
    """All texts as one row of ids, <eos> after each."""
    row = []
    for text in texts:
        row += [*tokenizer.encode(text), tokenizer.eos_id]
    return row


def text_loss(model, tokenizer, texts):
    """Mean negative log-likelihood of separate texts in nats per token, without each text's first token."""
    rows = []
    for text in texts:
        ids = join(tokenizer, [text])
        rows.append({"input_ids": ids, "labels": ids})
    batches = [
        collate(part, tokenizer.pad_id) for part in chunks(rows, 32)]
    total, count = language_model_nll(model, batches)
    return total / count


def pretrain_base(out, recipe=BASE, progress=True):
    """Train the decoder of data/base and write it to the folder `out`, with log.jsonl and manifest.json (returned)."""
    torch.manual_seed(recipe["seed"])
    tokenizer = base_tokenizer(recipe["seed"])
    model = LanguageModel(config_of(recipe, tokenizer))
    return train_by_recipe(
        out, recipe, model, tokenizer,
        base_phases(tokenizer, recipe),
        make_pretrain_loss(model),
        base_evaluation(model, tokenizer, recipe["seed"]),
        progress,
        command="python -m minift pretrain --recipe base --out data/base")


def config_of(recipe, tokenizer):
    """The TransformerConfig of a recipe's model."""
    return TransformerConfig(
        vocab_size=tokenizer.vocab_size, **recipe["config"])


def base_phases(tokenizer, recipe=BASE):
    """Yield (batches, settings) for the two phases of the base: documents, then worksheets mixed with documents."""
    seed, practice = recipe["seed"], recipe["practice"]
    length = recipe["config"]["context_length"]
    read_first = documents(recipe["n_documents"], seed)
    mixed = worksheets(practice["n_worksheets"], seed)
    mixed += documents(practice["n_documents"], f"{seed}/practice")
    random.Random(seed).shuffle(mixed)
    for settings, texts in ((recipe, read_first), (practice, mixed)):
        ids = join(tokenizer, texts)
        yield Windows(ids, length, settings["batch_size"], seed), settings


def base_evaluation(model, tokenizer, seed):
    """The function evaluate() for `train`: losses on held-out stories, documents and worksheets, in nats per token."""
    kinds = {
        "stories": stories,
        "documents": documents,
        "worksheets": worksheets}
    room = model.config.context_length

    def fits(text):
        return len(tokenizer.encode(text)) < room

    valid = {}
    for name, kind in kinds.items():
        valid[name] = [text for text in kind(200, seed, "valid") if fits(text)]

    def evaluate():
        return {
            f"valid_{name}_loss": text_loss(model, tokenizer, texts)
            for name, texts in valid.items()}

    return evaluate


def story_writer(steps=20, seed=0, base=DATA / "base"):
    """(model, tokenizer): the base after a few steps of SFT on requests for stories, ready to train on preferences."""
    torch.manual_seed(seed)
    model, tokenizer = load_model(base)
    rows = instructions(16 * steps, seed, tasks=("story",))
    tune_on_chats(
        model, tokenizer, rows,
        steps=steps, lr=1.5e-3, batch_size=16, seed=seed)
    return model.eval(), tokenizer


def encoder_rows(tokenizer, n, seed, split, context_length):
    """n encoded texts (lists of ids) for the encoder: documents of the base corpus, and stories with statements.

    The first line of a text, most often a story, is the first segment. The rest (a quiz, facts, statements) is the
    second segment.
    """
    n_statements = round(ENCODER["statements"] * n)
    texts = documents(n - n_statements, seed, split)
    texts += statements(n_statements, seed, split)
    rows = []
    for text in texts:
        first, _, second = text.partition("\n")
        ids, _ = encode_segments(
            tokenizer, first, second or None, context_length)
        rows.append(ids)
    return rows


def masked_batches(tokenizer, rows, batch_size, seed=0, hidden=0.15, fresh=True, shuffle=True):
    """Batches of rows of ids in which a share `hidden` of the tokens is masked; fresh=False: always the same tokens."""
    def collate_rows(part):
        ids = [row["input_ids"] for row in part]
        return collate_ids(ids, tokenizer.pad_id)

    examples = [{"input_ids": ids} for ids in rows]
    batches = Batches(examples, batch_size, collate_rows, seed, shuffle)
    return Masked(
        batches,
        mask_id=tokenizer.special_id("<mask>"),
        special_ids=tokenizer.special.values(),
        vocab_size=tokenizer.vocab_size,
        seed=seed, probability=hidden, fresh=fresh)


@torch.no_grad()
def init_encoder(model, std):
    """Draw all matrices with standard deviation `std`; start positions as sinusoids (Vaswani et al. 2017, section 3.5).

    If the learned positions start as noise, an encoder of this size needs millions of tokens to learn which tokens are
    neighbours. After 0.7M tokens, accuracy on the hidden tokens was 0.12 without these two changes and 0.21 with them.
    """
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=std)
    positions = model.body.positions.weight  # (C, D)
    n, d = positions.shape
    period = 10_000 ** (torch.arange(0, d, 2) / d)  # (D/2,)
    angle = torch.arange(n)[:, None] / period  # (C, D/2)
    waves = torch.stack((angle.sin(), angle.cos()), dim=-1)  # (C, D/2, 2)
    # A sinusoid of amplitude 1 has a standard deviation of 1 / sqrt(2).
    positions.copy_(std * 2**0.5 * waves.flatten(1))


def pretrain_encoder(out, recipe=ENCODER, progress=True):
    """Train the encoder of data/encoder and write it, like pretrain_base.

    The manifest also has the accuracy of two simple guesses, to compare the encoder's accuracy with.
    """
    seed, length = recipe["seed"], recipe["config"]["context_length"]
    torch.manual_seed(seed)
    tokenizer = base_tokenizer(seed)
    # Documents to learn from, and others to measure on.
    n = recipe["n_documents"]
    rows = encoder_rows(tokenizer, n, seed, "train", length)
    valid_rows = encoder_rows(tokenizer, 400, seed, "valid", length)
    model = MaskedLanguageModel(config_of(recipe, tokenizer))
    init_encoder(model, recipe["init_std"])
    # Fresh masks in every epoch for training, the same masks each time for validation.
    batches = masked_batches(
        tokenizer, rows, recipe["batch_size"], seed, recipe["hidden"])
    valid = masked_batches(
        tokenizer, valid_rows, 64, fresh=False, shuffle=False)
    # The accuracy of two guesses without a network, to compare with.
    bigrams = Bigrams(
        rows[:20_000], tokenizer.vocab_size, tokenizer.special.values())
    frequent, bigram = bigrams.accuracies(valid)

    def evaluate():
        return {"valid_accuracy": masked_accuracy(model, valid)}

    return train_by_recipe(
        out, recipe, model, tokenizer,
        [(batches, recipe)], make_mlm_loss(model), evaluate, progress,
        command="python -m minift mlm --recipe encoder --out data/encoder",
        valid_accuracy_most_frequent_token=frequent,
        valid_accuracy_bigram=bigram)
