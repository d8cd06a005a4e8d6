"""What is in an adapter's file, and whether it fits a model: names, shapes, settings.

`layers` are the wrapped layers of a model, name -> LoRALinear: what is read of one are its .rank, .alpha, .dropout,
.lora_A, .lora_B, and .linear, the frozen layer inside. How the file is written and read is in adapter_file.py.
"""

import torch
from torch import nn

from minift.core.heads import LanguageModel
from minift.core.resize import vocabulary_parameters
from minift.errors import MiniftError
from minift.formats.adapter_file import peft_key, peft_name
from minift.formats.weights import plain_parameters

EMBED, OUTPUT = "body.embed.weight", "head.weight"


def extra_parameters(model):
    """name -> each trainable parameter that is not LoRA's: what add_lora's caller unfroze."""
    return {name: parameter for name, parameter in plain_parameters(model).items() if parameter.requires_grad}


def adapter_contents(model, layers, extras, family):
    """(tensors under PEFT's names, config) of a model's LoRA; extras: its further parameters, plain name -> tensor."""
    settings = {(layer.rank, layer.alpha, layer.dropout.p) for layer in layers.values()}
    if len(settings) > 1:
        raise MiniftError(f"an adapter file has one rank, alpha and dropout, but the layers have {sorted(settings)}")
    (rank, alpha, dropout), = settings
    tensors = {f"{peft_key(name, family)}.lora_{part}.weight": getattr(layer, f"lora_{part}")
               for name, layer in layers.items() for part in "AB"}
    tensors |= {peft_key(name, family): parameter for name, parameter in extras.items()}
    task = "CAUSAL_LM" if isinstance(model, LanguageModel) else "SEQ_CLS" if hasattr(model, "score") else None
    config = {"task_type": task, "fan_in_fan_out": family == "gpt2",        # its layers are Conv1D
              "r": rank, "lora_alpha": alpha, "lora_dropout": dropout,
              "target_modules": target_names(model, layers, family),
              "modules_to_save": sorted({peft_name(name.rpartition(".")[0], family) for name in extras}) or None}
    if EMBED in extras and getattr(model, "tie_embeddings", False):     # PEFT: one matrix, and yet under both names
        config["ensure_weight_tying"] = True
        tensors[peft_key(OUTPUT, family)] = extras[EMBED]
    return tensors, config


def target_names(model, layers, family):
    """PEFT's target_modules: short names ("q_proj") if the family has these, and LoRA is in every layer called so."""
    short = sorted({name.rpartition(".")[2] for name in layers})
    left_out = any(isinstance(module, nn.Linear) and name.rpartition(".")[2] in short
                   for name, module in model.named_modules())
    full = sorted(peft_name(name, family) for name in layers)
    return full if left_out or family != "llama" else short


def match_adapter(model, layers, tensors, rank, path, family):
    """The names of the layers and of the further parameters in a file's tensors; MiniftError when they do not fit.

    layers: empty when the model has no LoRA yet; it will then be of this rank.
    """
    names, shapes = lora_shapes(model, layers, tensors, rank, family)
    parameters = plain_parameters(model)
    extras = [name for name in parameters if peft_key(name, family) in tensors]
    shapes |= extra_shapes(model, {name: parameters[name] for name in extras}, tensors, family)
    missing, unexpected = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or unexpected or not names:
        raise MiniftError(f"{path} does not fit this model: missing {missing[:3]}, unexpected {unexpected[:3]} "
                          f"({len(missing)} and {len(unexpected)} in all)")
    for key, shape in shapes.items():
        if tuple(tensors[key].shape) != shape:
            raise MiniftError(f"{path} was made for another model or rank: {key} is {tuple(tensors[key].shape)}, "
                              f"expected {shape}")
    embed, output = peft_key(EMBED, family), peft_key(OUTPUT, family)
    if EMBED in extras and getattr(model, "tie_embeddings", False) and not torch.equal(tensors[embed], tensors[output]):
        raise MiniftError(f"{path}: {output} differs from {embed}, but this model has one matrix for both; train the "
                          "adapter with ensure_weight_tying")
    return names, extras


def lora_shapes(model, layers, tensors, rank, family):
    """The layers with LoRA (all that are wrapped, or else those in the file), and key -> shape of their A and B."""
    linears = {name: layer.linear for name, layer in layers.items()} or {
        name: module for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{peft_key(name, family)}.lora_A.weight" in tensors}
    shapes = {}
    for name, linear in linears.items():
        r = layers[name].rank if layers else rank
        shapes[f"{peft_key(name, family)}.lora_A.weight"] = (r, linear.in_features)
        shapes[f"{peft_key(name, family)}.lora_B.weight"] = (linear.out_features, r)
    return list(linears), shapes


def extra_shapes(model, extras, tensors, family):
    """key -> shape of the further parameters; embeddings and output layers may have more rows, those of new tokens."""
    shapes = {peft_key(name, family): tuple(parameter.shape) for name, parameter in extras.items()}
    if EMBED in extras:
        rows = max(model.config.vocab_size, len(tensors[peft_key(EMBED, family)]))
        shapes |= {peft_key(name, family): (rows, *extras[name].shape[1:])
                   for name in vocabulary_parameters(model) if name in extras}
        if getattr(model, "tie_embeddings", False):                          # a copy, as PEFT writes it
            shapes[peft_key(OUTPUT, family)] = shapes[peft_key(EMBED, family)]
    return shapes
