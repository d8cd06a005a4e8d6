"""A model's weights as its files name them, and the checks of weights that all formats share.

In a file a model has no LoRA: a wrapped layer's weight has the name that it had before, and matrices that are tied are
stored once. The names here are ours; families.py turns them into another library's.
"""

import torch

from minift.core.files import digest
from minift.core.heads import LanguageModel
from minift.errors import MiniftError
from minift.methods.lora import find_lora


def plain_parameters(model):
    """name -> parameter, under the names of a model without LoRA; A and B are left out, tied ones come once."""
    layers = find_lora(model)
    plain = {}
    for name, parameter in model.named_parameters():
        owner, _, rest = name.rpartition(".")
        # This is the A or the B of a LoRA.
        if owner in layers:
            continue
        wrapper = owner.removesuffix(".linear")
        plain[f"{wrapper}.{rest}" if wrapper in layers else name] = parameter
    return plain


def plain_state_dict(model):
    """The model's tensors under the names of a model without LoRA.

    Raises MiniftError when an adapter is not merged: its effect would be lost.
    """
    for name, layer in find_lora(model).items():
        if not layer.merged:
            raise MiniftError(f"{name} has a LoRA that is not merged; call merge_lora(model) first, or save_adapter")
    return {name: parameter.detach() for name, parameter in plain_parameters(model).items()}


def fingerprint(model, skip=()):
    """sha256 hex of the body's weights without LoRA: it identifies the base of an adapter.

    Heads are not counted, since they may be new. skip: names of weights to leave out ("body.embed.weight").
    Raises MiniftError when LoRA is merged, because the base's own weights are then not in place.
    """
    for name, layer in find_lora(model).items():
        if layer.merged:
            raise MiniftError(f"{name} has a merged LoRA; call unmerge_lora(model) first")
    body = {}
    for name, parameter in plain_parameters(model).items():
        if name.startswith("body.") and name not in skip:
            body[name] = parameter
    return digest(body, {})


def is_tied(model):
    """Whether a model's output layer is its embedding."""
    return isinstance(model, LanguageModel) and model.head.weight is model.body.embed.weight


def check_model(tensors, tokenizer, config, where):
    """MiniftError when a model should not be written: a number is not finite, or the tokenizer is of another model."""
    check_vocabulary(tokenizer, config, where)
    check_finite(tensors, where)


def check_vocabulary(tokenizer, config, where):
    """MiniftError when the tokenizer has ids for which the model has no embedding."""
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise MiniftError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, but the model knows "
            f"{config.vocab_size}; they do not belong together")


def check_finite(tensors, where):
    """MiniftError when a tensor holds NaN or infinity. No tensor may be empty."""
    for name, tensor in tensors.items():
        # This makes no copy of the tensor.
        extremes = torch.stack(torch.aminmax(tensor))
        if not torch.isfinite(extremes).all():
            raise MiniftError(f"{where}: {name} holds NaN or infinity; training has diverged, use an earlier model")


def check_shapes(tensors, shapes, where):
    """MiniftError unless the tensors have exactly these names and shapes."""
    missing = sorted(shapes.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - shapes.keys())
    if missing or unexpected:
        raise MiniftError(
            f"{where} does not fit this model: {len(missing)} missing tensors {missing[:3]}, "
            f"{len(unexpected)} unexpected ones {unexpected[:3]}")
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        if found != tuple(shape):
            raise MiniftError(f"{where} was made for another model: {name} is {found}, expected {tuple(shape)}")
