"""The contents of an adapter's file: which tensors a model puts there, and whether those of a file fit a model.

They are LoRA's A and B, and the extras: other parameters that were trained in full, such as a new head.
"""

import torch
from torch import nn

from minift.core.heads import LanguageModel
from minift.core.resize import vocabulary_parameters
from minift.errors import MiniftError
from minift.formats.adapter_file import lora_keys, peft_key, peft_name
from minift.formats.weights import check_finite, check_shapes, is_tied, plain_parameters
from minift.methods.lora import find_lora, lora_layers

EMBED, OUTPUT = "body.embed.weight", "head.weight"


def extra_parameters(model):
    """name -> parameter, for each trainable parameter that is not LoRA's: the caller of add_lora unfroze it."""
    return {name: parameter for name, parameter in plain_parameters(model).items() if parameter.requires_grad}


def collect_contents(model, family):
    """(tensors under PEFT's names, PEFT's config) of a model's LoRA and of its extras."""
    # The file has one number for each setting, so all layers must share them.
    layers, extras = lora_layers(model), extra_parameters(model)
    settings = {(layer.rank, layer.alpha, layer.dropout.p) for layer in layers.values()}
    if len(settings) > 1:
        raise MiniftError(f"an adapter file has one rank, alpha and dropout, but the layers have {sorted(settings)}")
    rank, alpha, dropout = settings.pop()
    # Collect the tensors: the extras, then A and B of each layer.
    tensors = {peft_key(name, family): parameter for name, parameter in extras.items()}
    for name, layer in layers.items():
        key_a, key_b = lora_keys(name, family)
        tensors |= {key_a: layer.lora_A, key_b: layer.lora_B}
    # Describe them in PEFT's words.
    task = "CAUSAL_LM" if isinstance(model, LanguageModel) else None
    if hasattr(model, "score"):
        task = "SEQ_CLS"
    modules = {peft_name(name.rpartition(".")[0], family) for name in extras}
    config = {
        "task_type": task,
        # GPT-2's layers are Conv1D, whose matrices are (in, out).
        "fan_in_fan_out": family == "gpt2",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": target_names(model, family),
        "modules_to_save": sorted(modules) or None}
    if EMBED in extras and is_tied(model):
        # PEFT writes the one matrix under both names.
        config["ensure_weight_tying"] = True
        tensors[peft_key(OUTPUT, family)] = extras[EMBED]
    return tensors, config


def target_names(model, family):
    """PEFT's target_modules: which layers have LoRA.

    A short name ("q_proj") means every layer of this name. A Llama gets short names if that is true of its LoRA; other
    models get each layer's whole name.
    """
    layers = find_lora(model)
    short = {name.rpartition(".")[2] for name in layers}
    plain = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    left_out = any(name.rpartition(".")[2] in short for name in plain)
    if left_out or family != "llama":
        return sorted(peft_name(name, family) for name in layers)
    return sorted(short)


def match_contents(model, tensors, rank, path, family):
    """(layers, extras): the names of those to which a file's tensors belong; MiniftError when the tensors do not fit.

    rank: the file's. If the model already has LoRA, the file must have it in the same layers and with the same rank.
    """
    # LoRA's layers: those of the model, or, when it has none yet, the linear layers that the file names.
    layers, targets, shapes = find_lora(model), [], {}
    for name, module in model.named_modules():
        key_a, key_b = lora_keys(name, family)
        if name in layers:
            linear, n = module.linear, module.rank
        elif not layers and key_a in tensors and isinstance(module, nn.Linear):
            linear, n = module, rank
        else:
            continue
        targets.append(name)
        shapes |= {key_a: (n, linear.in_features), key_b: (linear.out_features, n)}

    # The extras. Their embedding and output layer may have more rows than the model's: the rows of new tokens.
    parameters = plain_parameters(model)
    embed, output = peft_key(EMBED, family), peft_key(OUTPUT, family)
    extras = [name for name in parameters if peft_key(name, family) in tensors]
    grown = vocabulary_parameters(model) if EMBED in extras else ()
    for name in extras:
        shape = parameters[name].shape
        n_row = max(shape[0], len(tensors[embed])) if name in grown else shape[0]
        shapes[peft_key(name, family)] = (n_row, *shape[1:])
    tied = EMBED in extras and is_tied(model)
    if tied:
        shapes[output] = shapes[embed]

    # Check all tensors against what was expected.
    check_shapes(tensors, shapes, path)
    check_finite(tensors, path)
    if not targets:
        raise MiniftError(f"{path} does not fit this model: no LoRA for any of its layers")
    if tied and not torch.equal(tensors[embed], tensors[output]):
        raise MiniftError(
            f"{path}: {output} is not {embed}, but the model has one matrix for both (PEFT's "
            "ensure_weight_tying)")
    return targets, extras
