"""An adapter on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors in one folder.

The tensors have the names that PEFT gives them when it wraps the Hugging Face model of the same family (families.py). A
body of no family gets Llama's names. In Hugging Face's GPT-2, q, k and v are one layer. So when we write, three
adapters of rank R become one of rank 3 R; when we read PEFT's one adapter, it becomes three that share A. Left out:
several adapters in a folder, and PEFT's options beyond plain LoRA. A file with one of these options is refused.
"""

import math
import re
from pathlib import Path

import torch

from minift.core.files import read_json, read_tensors, write_json, write_tensors
from minift.errors import MiniftError
from minift.formats.families import their_name
from minift.formats.family_config import find_family
from minift.formats.settings import require
from minift.formats.weights import check_finite

# PEFT's path to the model inside its own wrappers.
PREFIX = "base_model.model."
# The entries of adapter_config.json that every plain LoRA has.
PLAIN = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True, "inference_mode": True}
# Options that must be off. Otherwise an adapter computes something else than h = W x + scale B A x.
BEYOND = ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "fan_in_fan_out", "trainable_token_indices")
KNOWN = {"bias": ("none", None), "init_lora_weights": (True, False, None, "gaussian", "orthogonal")}
KNOWN |= dict.fromkeys(BEYOND, (False, None, {}, []))
# GPT-2's layer for q, k and v.
FUSED = "c_attn"


# ---- names ----


def adapter_family(model):
    """The family whose names an adapter of this model has."""
    try:
        return find_family(model.config)
    except (AttributeError, MiniftError):
        # The body is not one of ours, or it belongs to no family.
        return "llama"


def peft_name(name, family):
    """Our name of a layer or parameter -> its name in the family's model; GPT-2's q, k and v stay apart here."""
    return their_name(name, family, fused=False)


def peft_key(name, family):
    """Our name of a parameter -> its key in PEFT's file."""
    return PREFIX + peft_name(name, family)


def lora_keys(name, family):
    """Our name of a layer -> the keys of its A and B in PEFT's file."""
    key = peft_key(name, family)
    return f"{key}.lora_A.weight", f"{key}.lora_B.weight"


# ---- GPT-2's layer for q, k and v ----


def fuse_qkv(tensors, config):
    """(tensors, config) in which q, k and v of a layer are one: A stacked, B as blocks on a diagonal.

    Raises MiniftError when a layer has LoRA in only one or two of them.
    """
    fused, owners = dict(tensors), set()
    for key in tensors:
        owner = re.sub(r"[qkv]_proj\.lora_A\.weight$", "", key)
        if owner != key:
            owners.add(owner)
    for owner in sorted(owners):
        layers = [f"{owner}{letter}_proj" for letter in "qkv"]
        if not all(f"{layer}.lora_A.weight" in tensors for layer in layers):
            raise MiniftError(f"{owner}: GPT-2 has q, k and v in one layer; choose all three or none")
        parts_a = [fused.pop(f"{layer}.lora_A.weight") for layer in layers]
        parts_b = [fused.pop(f"{layer}.lora_B.weight") for layer in layers]
        fused[f"{owner}{FUSED}.lora_A.weight"] = torch.cat(parts_a)
        fused[f"{owner}{FUSED}.lora_B.weight"] = torch.block_diag(*parts_b)
    if owners:
        targets = {re.sub(r"\.[qkv]_proj$", f".{FUSED}", name) for name in config["target_modules"]}
        config = config | {
            "target_modules": sorted(targets),
            "rank_pattern": {FUSED: 3 * config["r"]},
            "alpha_pattern": {FUSED: 3 * config["lora_alpha"]}}
    return fused, config


def split_qkv(tensors, stacked):
    """The inverse of fuse_qkv. stacked: fuse_qkv made the layer. If PEFT made it, q, k, v get A and a third of B."""
    apart = {}
    for key, tensor in tensors.items():
        owner, fused, part = key.partition(f".{FUSED}.lora_")
        if not fused:
            apart[key] = tensor
            continue
        pieces = tensor.chunk(3)
        if part == "A.weight" and not stacked:
            pieces = [tensor] * 3
        for i, (letter, piece) in enumerate(zip("qkv", pieces)):
            if part == "B.weight" and stacked:
                # Take the block on the diagonal; the others are zero.
                piece = piece.chunk(3, dim=1)[i]
            apart[f"{owner}.{letter}_proj.lora_{part}"] = piece
    return apart


# ---- the folder ----


def write_adapter(path, tensors, config, fingerprint, family):
    """Write the folder, the tensors last. Their metadata tells which config and which base they belong to.

    config: the entries of PEFT's LoraConfig that vary. fingerprint: of the frozen base. Raises MiniftError for a NaN,
    and when the folder cannot be written.
    """
    check_finite(tensors, "the adapter to save")
    metadata = {"fingerprint": fingerprint, "r": config["r"], "lora_alpha": config["lora_alpha"]}
    if family == "gpt2":
        tensors, config = fuse_qkv(tensors, config)
    if "rank_pattern" in config:
        metadata["stacked"] = True
    write_json(Path(path) / "adapter_config.json", PLAIN | config)
    write_tensors(Path(path) / "adapter_model.safetensors", tensors, metadata)


def read_adapter(path):
    """The folder's config (r, lora_alpha, lora_dropout), tensors and metadata (empty when PEFT wrote it).

    Raises MiniftError when something is missing, damaged, from two adapters, or beyond plain LoRA.
    """
    # Read both files.
    file = Path(path) / "adapter_config.json"
    config = read_json(file)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise MiniftError(f"{file} does not describe a LoRA adapter (peft_type must be LORA)")
    tensors, metadata = read_tensors(Path(path) / "adapter_model.safetensors", foreign=True)

    # Refuse options beyond plain LoRA, and files of two adapters. Three options are normal in a GPT-2.
    stacked = metadata.get("stacked", False)
    known = dict(KNOWN)
    if any(re.search(r"\.c_(attn|fc|proj)\.", key) for key in tensors):
        del known["fan_in_fan_out"]
    if stacked:
        del known["rank_pattern"], known["alpha_pattern"]
    require(file, config, known)
    for key, kind in (("r", int), ("lora_alpha", (int, float))):
        value = config.get(key)
        if not isinstance(value, kind):
            raise MiniftError(f"{file}: {key} is {value!r}; expected a number")
        if metadata.get(key, value) != value:
            raise MiniftError(f"{path} has the files of two different adapters; copy the folder again")

    # Bring the config and the tensors into our form.
    rank, alpha = config["r"], config["lora_alpha"]
    if config.get("use_rslora"):
        # Its scale is alpha / sqrt(rank), ours is alpha / rank.
        alpha *= math.sqrt(rank)
    config = {"r": rank, "lora_alpha": alpha, "lora_dropout": config.get("lora_dropout", 0.0)}
    return config, split_qkv(tensors, stacked), metadata
