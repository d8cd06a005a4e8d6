"""A model on disk: a folder with config.json, model.safetensors and tokenizer.json, checked when it is opened.

A damaged or mixed-up folder would not fail, it would compute wrong numbers. So model.safetensors repeats the
configuration and the tokenizer's hash, and names, shapes, types and values are checked one by one. Models of other
programs are opened by pretrained.py.
"""

import dataclasses
from pathlib import Path

import torch

from minift.core import files
from minift.core.files import read_json, read_tensors, write_json, write_tensors, write_text
from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel, SequenceClassifier, TokenScorer
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError
from minift.text.tokenizer import Tokenizer

KINDS = (LanguageModel, MaskedLanguageModel, Encoder, SequenceClassifier, TokenScorer)
__all__ = ["fingerprint", "load_model", "plain_state_dict", "read_tensors", "save_model", "write_json", "write_tensors",
           "write_text"]


def is_lora(module):
    """Whether a module is LoRA's wrapper around a linear layer, told by its parts, since core knows no method."""
    return all(hasattr(module, part) for part in ("linear", "lora_A", "lora_B", "merged"))


def plain_tensors(model):
    """name -> tensor of all that the model stores: tied ones once, LoRA's wrappers seen through, its parts left out."""
    wrappers = [name for name, module in model.named_modules() if is_lora(module)]
    plain, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        wrapper = next((w for w in wrappers if name.startswith(w + ".")), None)
        if wrapper is not None:
            if not name.startswith(wrapper + ".linear."):
                continue
            name = wrapper + name.removeprefix(wrapper + ".linear")
        if id(tensor) not in seen:
            seen.add(id(tensor))
            plain[name] = tensor.detach()
    return plain


def plain_state_dict(model):
    """The model's tensors under the names of a model without LoRA, tied ones once.

    Raises MiniftError when an adapter is not merged: its effect would be lost.
    """
    for name, module in model.named_modules():
        if is_lora(module) and not module.merged:
            raise MiniftError(f"{name} has a LoRA adapter that is not merged: call merge_lora(model) first, "
                              "or write the adapter alone with save_adapter")
    return plain_tensors(model)


def fingerprint(model, skip=()):
    """sha256 hex of the body's weights without LoRA's parts: the base that an adapter was made for.

    Heads are not counted, they may be new. skip: further plain names to leave out ("body.embed.weight").
    Raises MiniftError when LoRA is merged, because the base's own weights are then not in place.
    """
    for name, module in model.named_modules():
        if is_lora(module) and module.merged:
            raise MiniftError(f"{name} has a merged LoRA adapter, the base is not in place: call unmerge_lora first")
    tensors = plain_tensors(model)
    return files.digest({name: tensors[name] for name in tensors if name.startswith("body.") and name not in skip}, {})


def save_model(model, tokenizer, path):
    """Write a model folder that load_model opens; parameters are stored as float32.

    model.safetensors is written last and repeats the configuration and the tokenizer's hash, so that a folder left half
    old and half new is noticed. Raises MiniftError for an unmerged adapter, a NaN, or a folder of another program.
    """
    path = Path(path)
    config = describe(model)
    tensors = plain_state_dict(model)
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    check_finite(tensors, "the model to save")
    check_vocabulary(tokenizer, model.config, "the model to save")
    if (path / "config.json").exists() and b'"minift-model"' not in files.read_bytes(path / "config.json"):
        raise MiniftError(f"{path} holds a model of another program; choose another folder to save into")
    if tokenizer is not None:
        tokenizer.save(path / "tokenizer.json")
    write_json(path / "config.json", config)
    write_tensors(path / "model.safetensors", tensors,
                  {"config": config, "tokenizer": None if tokenizer is None else tokenizer.hash()})
    if tokenizer is None:
        files.remove(path / "tokenizer.json")


def describe(model):
    """What config.json says: enough to build the model again, without its weights."""
    if type(model) not in KINDS:
        raise MiniftError(f"save_model knows {', '.join(kind.__name__ for kind in KINDS)}; got {type(model).__name__}")
    config = {"format": "minift-model", "version": files.VERSION, "kind": type(model).__name__,
              "config": dataclasses.asdict(model.config)}
    if isinstance(model, LanguageModel):
        config["tie_embeddings"] = model.head.weight is model.body.embed.weight
    if isinstance(model, SequenceClassifier):
        config |= {"labels": model.labels, "pooling": model.pooling}
    return config


def load_model(path):
    """Open a model folder: (model, tokenizer), float32 on the CPU, in evaluation mode; tokenizer None if saved without.

    Whatever load_pretrained knows (a Hugging Face folder, a .gguf file, a name) is opened as well. Raises MiniftError
    when a file is missing, damaged, of a newer version, or does not belong to the others.
    """
    path = Path(path)
    if is_foreign(path):
        from minift.formats.pretrained import load_pretrained  # which imports this module
        return load_pretrained(path)
    config = read_config(path)
    tensors, metadata = read_tensors(path / "model.safetensors")
    if metadata.get("config") != config:
        raise MiniftError(f"{path / 'model.safetensors'} was made for another configuration than the config.json "
                          "beside it says; the folder is half of one model and half of another, save it again")
    tokenizer = None
    if metadata["tokenizer"] is not None:
        tokenizer = Tokenizer.load(path / "tokenizer.json")
        if tokenizer.hash() != metadata["tokenizer"]:
            raise MiniftError(f"{path / 'tokenizer.json'} is not the tokenizer that the model beside it was saved with")
    model = build_model(config, path)
    check_vocabulary(tokenizer, model.config, path)
    fill(model, tensors, path / "model.safetensors")
    return model.eval(), tokenizer


def is_foreign(path):
    """Whether a path is one for load_pretrained: no folder here, a .gguf file, or a Hugging Face config.json."""
    if not (path / "config.json").is_file():
        return not path.exists() or path.suffix == ".gguf"
    config = read_json(path / "config.json")
    return isinstance(config, dict) and ("model_type" in config or "architectures" in config)


def read_config(path):
    """config.json of a model folder, checked; MiniftError says what the folder is instead."""
    file = path / "config.json"
    if not path.is_dir():
        raise MiniftError(f"{path} is a file; expected the folder of a model, or a .gguf file")
    if not file.exists():
        raise MiniftError(f"{path} has no config.json, so it is not the folder of a model")
    config = read_json(file)
    if not isinstance(config, dict):
        raise MiniftError(f"{file} is corrupted: expected an object")
    if config.get("format") != "minift-model":
        raise MiniftError(f"{file} is not the configuration of a model that minift saved")
    if config.get("version") != files.VERSION:
        raise MiniftError(f"{file} has version {config.get('version')}, this minift reads version {files.VERSION}; "
                          "update minift")
    return config


def build_model(config, path):
    """A fresh model of the kind that config.json names; the caller's random numbers are not used up."""
    kind = config.get("kind")
    try:
        sizes = TransformerConfig(**config["config"])
        with torch.random.fork_rng(devices=[]):
            if kind == "LanguageModel":
                return LanguageModel(sizes, tie_embeddings=config["tie_embeddings"])
            if kind == "MaskedLanguageModel":
                return MaskedLanguageModel(sizes)
            if kind == "Encoder":
                return Encoder(sizes)
            if kind == "SequenceClassifier":
                labels = config["labels"]
                return SequenceClassifier(Transformer(sizes), len(labels), config["pooling"], labels)
            if kind == "TokenScorer":
                return TokenScorer(Transformer(sizes))
    except (KeyError, TypeError, MiniftError) as error:
        raise MiniftError(f"{path / 'config.json'} is corrupted: {error}") from error
    raise MiniftError(f"{path / 'config.json'} names a model of the unknown kind {kind!r}; update minift")


def fill(model, tensors, file):
    """Copy tensors into the model in place (tied weights stay tied), after checking names, shapes, types, values."""
    wanted = plain_state_dict(model)
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        raise MiniftError(f"{file} does not fit its model: missing {missing[:3]}, unexpected {unexpected[:3]} "
                          f"({len(missing)} and {len(unexpected)} in all)")
    for name, tensor in tensors.items():
        expected = wanted[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise MiniftError(f"{file}: {name} is {tuple(tensor.shape)} {tensor.dtype}, "
                              f"expected {tuple(expected.shape)} {expected.dtype}")
    check_finite(tensors, file)
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)


def check_finite(tensors, where):
    """MiniftError when a tensor holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():      # no copy is made
            raise MiniftError(f"{where}: {name} holds NaN or infinity; training has diverged, use an earlier model")


def check_vocabulary(tokenizer, config, where):
    """MiniftError when the tokenizer has ids for which the model has no embedding."""
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise MiniftError(f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has "
                          f"{config.vocab_size}; they do not belong together")
