"""Save a model's LoRA as an adapter folder, and load one: PEFT's own file format.

What is in the file is in adapter_contents.py; how it is written and read is in adapter_file.py.
"""

import torch

from minift.core.resize import resize_vocabulary
from minift.errors import MiniftError
from minift.formats.adapter_contents import EMBED, collect_contents, extra_parameters, match_contents
from minift.formats.adapter_file import adapter_family, lora_keys, peft_key, read_adapter, write_adapter
from minift.formats.weights import fingerprint, plain_parameters
from minift.methods.lora import add_lora, find_lora, lora_layers


def save_adapter(model, path, base=None):
    """Write the adapter alone, as PEFT would: adapter_config.json and adapter_model.safetensors in the folder `path`.

    Other trainable parameters, such as a new head, are written too. base: where the base model comes from, a note for
    readers of the file; the base's fingerprint is always stored. Raises MiniftError when the model has no LoRA, or when
    its LoRA is merged.
    """
    family = adapter_family(model)
    tensors, config = collect_contents(model, family)
    config["base_model_name_or_path"] = base
    write_adapter(path, tensors, config, fingerprint(model, skip=extra_parameters(model)), family)


def load_adapter(model, path, force=False):
    """Read a folder that save_adapter or PEFT wrote into `model`, adding LoRA if it has none; returns the model.

    Raises MiniftError, with the model untouched, when names, shapes or rank do not fit, when a number is not finite, or
    when the adapter was made for another base. With force=True the last of these is allowed.
    """
    # Everything is checked before the model is changed.
    config, tensors, metadata = read_adapter(path)
    family = adapter_family(model)
    targets, extras = match_contents(model, tensors, config["r"], path, family)
    base = fingerprint(model, skip=extras)
    if not force and metadata.get("fingerprint", base) != base:
        raise MiniftError(f"{path} was made for a base model with other weights; load that base, or use force=True")

    # Make room for the adapter: add LoRA's layers, and rows for the new tokens that the adapter was trained with.
    if not find_lora(model):
        add_lora(model, config["r"], config["lora_alpha"], targets, config["lora_dropout"])
    if EMBED in extras:
        resize_vocabulary(model, len(tensors[peft_key(EMBED, family)]))

    # Copy the file's numbers into the model. The extras were trained, so they stay trainable.
    layers, parameters = lora_layers(model), plain_parameters(model)
    with torch.no_grad():
        for name in targets:
            key_a, key_b = lora_keys(name, family)
            layers[name].alpha = config["lora_alpha"]
            layers[name].lora_A.copy_(tensors[key_a])
            layers[name].lora_B.copy_(tensors[key_b])
        for name in extras:
            parameters[name].copy_(tensors[peft_key(name, family)])
            parameters[name].requires_grad_(True)
    return model
