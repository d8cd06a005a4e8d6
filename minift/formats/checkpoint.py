"""A model on disk: a folder with config.json, model.safetensors and tokenizer.json, checked when it is opened.

A damaged folder, or one with files of two models, could be opened and would compute wrong numbers. So
model.safetensors repeats the configuration and the tokenizer's hash, and each tensor's name, shape, type and values are
checked. Models of other programs are opened by pretrained.py.
"""

import dataclasses
from pathlib import Path

import torch

from minift.core import files
from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel, SequenceClassifier, TokenScorer
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError
from minift.formats import weights
from minift.formats.pretrained import load_pretrained
from minift.formats.settings import explain_errors
from minift.text.tokenizer import Tokenizer

KINDS = {
    kind.__name__: kind for kind in
    (LanguageModel, MaskedLanguageModel, Encoder, SequenceClassifier, TokenScorer)}


def save_model(model, tokenizer, path):
    """Write a model folder that load_model opens; parameters are stored as float32.

    model.safetensors is written last and repeats the configuration and the tokenizer's hash, so that load_model notices
    a mixture of old and new files. Raises MiniftError for an unmerged adapter, a NaN, or a folder of another program.
    """
    path = Path(path)
    config = describe_model(model)
    tensors = {name: tensor.float() for name, tensor in weights.plain_state_dict(model).items()}
    weights.check_model(tensors, tokenizer, model.config, "the model to save")
    if find_writer(path) == "another program":
        raise MiniftError(f"{path} holds a model of another program; choose another folder")
    metadata = {"config": config, "tokenizer": None}
    if tokenizer is not None:
        tokenizer.save(path / "tokenizer.json")
        metadata["tokenizer"] = tokenizer.hash()
    files.write_json(path / "config.json", config)
    files.write_tensors(path / "model.safetensors", tensors, metadata)
    if tokenizer is None:
        files.remove(path / "tokenizer.json")


def load_model(path):
    """Open a model folder: (model, tokenizer), float32 on the CPU, in evaluation mode; tokenizer None if saved without.

    Whatever load_pretrained knows (a Hugging Face folder, a .gguf file, a name) is opened as well. Raises MiniftError
    when a file is missing, damaged, of a newer version, or does not belong to the others.
    """
    path = Path(path)
    if find_writer(path) != "minift":
        return load_pretrained(path)
    config = read_config(path / "config.json")
    file = path / "model.safetensors"
    tensors, metadata = files.read_tensors(file)
    if metadata.get("config") != config:
        raise MiniftError(f"{file} was saved with another config.json; save the model again")
    tokenizer = None
    if metadata["tokenizer"] is not None:
        tokenizer = Tokenizer.load(path / "tokenizer.json")
        if tokenizer.hash() != metadata["tokenizer"]:
            raise MiniftError(f"{path / 'tokenizer.json'} is not the tokenizer with which the model was saved")
    model = build_model(config, path / "config.json")
    weights.check_vocabulary(tokenizer, model.config, path)
    copy_weights(model, tensors, file)
    return model.eval(), tokenizer


def find_writer(path):
    """Who wrote the model in a folder: "minift" or "another program"; None when there is no model."""
    file = path / "config.json"
    if not file.is_file():
        return None
    ours = b'"minift-model"' in files.read_bytes(file)
    return "minift" if ours else "another program"


def describe_model(model):
    """What config.json says: enough to build the model again, without its weights."""
    kind = type(model).__name__
    if type(model) not in KINDS.values():
        raise MiniftError(f"save_model knows {', '.join(KINDS)}; got {kind}")
    config = {"format": "minift-model", "version": files.VERSION, "kind": kind}
    config["config"] = dataclasses.asdict(model.config)
    if isinstance(model, LanguageModel):
        config["tie_embeddings"] = weights.is_tied(model)
    if isinstance(model, SequenceClassifier):
        config |= {"labels": model.labels, "pooling": model.pooling}
    return config


def read_config(file):
    """The contents of our config.json; MiniftError when it is damaged or of a newer version."""
    config = files.read_json(file)
    if not isinstance(config, dict) or config.get("format") != "minift-model":
        raise MiniftError(f"{file} is corrupted: expected an object of the format minift-model")
    if config.get("version") != files.VERSION:
        raise MiniftError(f"{file} has version {config.get('version')}, not {files.VERSION}; update minift")
    return config


def build_model(config, file):
    """A new model as config.json describes it; the caller's random numbers are not used up."""
    kind = config.get("kind")
    if kind not in list(KINDS):
        raise MiniftError(f"{file} names a model of the unknown kind {kind!r}; update minift")
    with explain_errors(file):
        sizes = TransformerConfig(**config["config"])
        with torch.random.fork_rng(devices=[]):
            if kind == "LanguageModel":
                return LanguageModel(sizes, config["tie_embeddings"])
            if kind == "SequenceClassifier":
                labels = config["labels"]
                return SequenceClassifier(Transformer(sizes), len(labels), config["pooling"], labels)
            if kind == "TokenScorer":
                return TokenScorer(Transformer(sizes))
            # The other kinds have no settings but the sizes.
            return KINDS[kind](sizes)


def copy_weights(model, tensors, where):
    """Copy tensors into the model's own (tied weights stay tied), after checking names, shapes, types and values."""
    own = weights.plain_state_dict(model)
    weights.check_shapes(tensors, {name: tensor.shape for name, tensor in own.items()}, where)
    weights.check_finite(tensors, where)
    for name, tensor in tensors.items():
        if tensor.dtype != own[name].dtype:
            raise MiniftError(f"{where}: {name} is {tensor.dtype}, expected {own[name].dtype}")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
