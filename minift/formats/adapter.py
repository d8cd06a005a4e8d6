"""Save a model's LoRA as an adapter folder, and load one: PEFT's own file format.

What is in the file is in adapter_contents.py; how it is written and read is in adapter_file.py.
"""

import torch

from minift.core.resize import resize_vocabulary
from minift.errors import MiniftError
from minift.formats.adapter_contents import EMBED, adapter_contents, extra_parameters, match_adapter
from minift.formats.adapter_file import adapter_family, peft_key, read_adapter, write_adapter
from minift.formats.weights import fingerprint, plain_parameters
from minift.methods.lora import add_lora, find_lora, lora_layers


def save_adapter(model, path, base=None):
    """Write the adapter alone, as PEFT would: adapter_config.json and adapter_model.safetensors in the folder `path`.

    Other trainable parameters, such as a new head, go along. base: where the base model is from, for the reader of the
    file; the base's fingerprint is stored too. Raises MiniftError when the model has no LoRA, or has it merged.
    """
    layers, family = lora_layers(model), adapter_family(model)
    extras = extra_parameters(model)
    tensors, config = adapter_contents(model, layers, extras, family)
    write_adapter(path, tensors, config | {"base_model_name_or_path": base}, fingerprint(model, skip=tuple(extras)),
                  family)


def load_adapter(model, path, force=False):
    """Read a folder that save_adapter or PEFT wrote into `model`, adding LoRA if it has none; returns the model.

    Raises MiniftError, with the model untouched, when names, shapes or rank do not fit, when a number is not finite, or
    when the adapter was made for another base (force=True overrules this one: the fingerprints then may differ).
    """
    config, tensors, metadata = read_adapter(path)
    layers = find_lora(model)
    if any(layer.merged for layer in layers.values()):
        raise MiniftError("the model has a merged LoRA; call unmerge_lora(model) before loading an adapter")
    family = adapter_family(model)
    names, extras = match_adapter(model, layers, tensors, config["r"], path, family)
    if "fingerprint" in metadata and not force and metadata["fingerprint"] != fingerprint(model, skip=tuple(extras)):
        raise MiniftError(f"{path} was made for a base model with other weights; load that base, or use force=True")
    if not layers:
        layers = lora_layers(add_lora(model, config["r"], config["lora_alpha"], tuple(names), config["lora_dropout"]))
    if EMBED in extras:                              # the adapter may have come with new tokens
        resize_vocabulary(model, len(tensors[peft_key(EMBED, family)]))
    parameters = plain_parameters(model)
    with torch.no_grad():
        for name in names:
            layers[name].alpha = config["lora_alpha"]
            layers[name].lora_A.copy_(tensors[f"{peft_key(name, family)}.lora_A.weight"])
            layers[name].lora_B.copy_(tensors[f"{peft_key(name, family)}.lora_B.weight"])
        for name in extras:
            parameters[name].copy_(tensors[peft_key(name, family)])
            parameters[name].requires_grad_(True)
    return model
