"""An adapter on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors in one folder.

The tensors carry the names that PEFT gives them around the Hugging Face model of the same family (families.py; a body
of no family goes by Llama's names). GPT-2 has q, k and v in one layer there: three adapters of rank R become one of
rank 3 R, and PEFT's one becomes three that share A. Left out: several adapters in a folder, and PEFT's options that are
more than plain LoRA (refused, not ignored).
"""

import math
import re
from pathlib import Path

import torch

from minift.core.files import read_json, read_tensors, write_json, write_tensors
from minift.errors import MiniftError
from minift.formats.families import NAMES, family_of
from minift.formats.weights import check_finite

PREFIX = "base_model.model."        # PEFT's path to the model inside its own wrappers
PLAIN = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True, "inference_mode": True}
INITS = (None, True, False, "gaussian", "orthogonal")       # other ways to start change the base's own weights
BEYOND = ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "fan_in_fan_out", "trainable_token_indices")
FUSED = "c_attn"                    # GPT-2's layer for q, k and v


def adapter_family(model):
    """The family whose names an adapter of this model has."""
    try:
        return family_of(model.config)
    except (AttributeError, MiniftError):        # no body of ours, or one that no family has
        return "llama"


def peft_name(name, family="llama"):
    """Our name of a layer or parameter -> its name in the family's model; GPT-2's q, k and v stay apart here."""
    for ours, theirs in NAMES[family].items():
        name = name if FUSED in theirs else re.sub(ours, theirs, name)
    return name


def peft_key(name, family="llama"):
    """Our name of a layer or parameter -> where PEFT's file has it."""
    return PREFIX + peft_name(name, family)


def fuse(tensors, config):
    """(tensors, config) with q, k and v of a layer as one: A stacked, B in blocks. MiniftError when one is missing."""
    fused = dict(tensors)
    for key in [key for key in tensors if re.search(r"\.[qkv]_proj\.lora_A\.weight$", key)]:
        owner = re.sub(r"[qkv]_proj\.lora_A\.weight$", "", key)
        keys = {part: [f"{owner}{letter}_proj.lora_{part}.weight" for letter in "qkv"] for part in "AB"}
        if not all(one in tensors for part in "AB" for one in keys[part]):
            raise MiniftError(f"{owner}: GPT-2 has q, k and v in one layer, so an adapter file needs LoRA in all three "
                              "or in none; choose targets so")
        if key.endswith("q_proj.lora_A.weight"):
            fused[f"{owner}{FUSED}.lora_A.weight"] = torch.cat([tensors[one] for one in keys["A"]])
            fused[f"{owner}{FUSED}.lora_B.weight"] = torch.block_diag(*(tensors[one] for one in keys["B"]))
            for one in (*keys["A"], *keys["B"]):
                del fused[one]
    if len(fused) == len(tensors):
        return tensors, config
    targets = sorted({re.sub(r"\.[qkv]_proj$", f".{FUSED}", name) for name in config["target_modules"]})
    return fused, config | {"target_modules": targets, "rank_pattern": {FUSED: 3 * config["r"]},
                            "alpha_pattern": {FUSED: 3 * config["lora_alpha"]}}


def unfuse(tensors, stacked):
    """The inverse of fuse; of an adapter that PEFT made (not stacked), q, k and v each get A and a third of B."""
    apart = {}
    for key, tensor in tensors.items():
        owner, fused, part = key.partition(f".{FUSED}.lora_")
        pieces = tensor.chunk(3) if stacked or part == "B.weight" else [tensor] * 3
        if stacked and part == "B.weight":
            pieces = [piece.chunk(3, dim=1)[i] for i, piece in enumerate(pieces)]
        apart |= {f"{owner}.{letter}_proj.lora_{part}": piece
                  for letter, piece in zip("qkv", pieces)} if fused else {key: tensor}
    return apart


def write_adapter(path, tensors, config, fingerprint, family):
    """Write the folder; the tensors last, and with them what tells whether they belong to the config and to a base.

    config: the entries of PEFT's LoraConfig that vary. fingerprint: of the frozen base. MiniftError: NaN, no space.
    """
    check_finite(tensors, "the adapter to save")
    metadata = {"fingerprint": fingerprint, "r": config["r"], "lora_alpha": config["lora_alpha"]}
    tensors, config = fuse(tensors, config) if family == "gpt2" else (tensors, config)
    write_json(Path(path) / "adapter_config.json", PLAIN | config)
    write_tensors(Path(path) / "adapter_model.safetensors", tensors,
                  metadata | ({"stacked": True} if "rank_pattern" in config else {}))


def read_adapter(path):
    """The folder's config (r, lora_alpha, lora_dropout), tensors and metadata (empty when PEFT wrote it).

    Raises MiniftError when something is missing, damaged, not finite, from two adapters, or beyond plain LoRA.
    """
    path = Path(path)
    config = read_json(path / "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise MiniftError(f"{path / 'adapter_config.json'} does not describe a LoRA adapter (peft_type must be LORA)")
    tensors, metadata = read_tensors(path / "adapter_model.safetensors", foreign=True)
    stacked, fused = metadata.get("stacked", False), any(f".{FUSED}." in key for key in tensors)
    conv = any(re.search(r"\.c_(attn|fc|proj)\.", key) for key in tensors)
    known = ("fan_in_fan_out",) * conv + ("rank_pattern", "alpha_pattern") * stacked
    check_plain(config, path, [key for key in BEYOND if key not in known])
    tensors = unfuse(tensors, stacked) if fused else tensors
    check_finite(tensors, path)
    if any(metadata.get(key, config[key]) != config[key] for key in ("r", "lora_alpha")):
        raise MiniftError(f"{path}: adapter_config.json and adapter_model.safetensors are from two different adapters; "
                          "save or copy the folder again")
    rank, alpha = config["r"], config["lora_alpha"]
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)                            # there the scale is alpha / sqrt(rank)
    return {"r": rank, "lora_alpha": alpha, "lora_dropout": config.get("lora_dropout", 0.0)}, tensors, metadata


def check_plain(config, path, refused):
    """MiniftError when an adapter needs more than h = W x + scale B A x over the base's own W."""
    beyond = [key for key in refused if config.get(key)]
    beyond += ["bias"] if config.get("bias", "none") != "none" else []
    beyond += ["init_lora_weights"] if config.get("init_lora_weights") not in INITS else []
    if beyond:
        raise MiniftError(f"{path} uses {', '.join(beyond)}, which minift's LoRA does not have; train a plain LoRA")
    for key, kind in (("r", int), ("lora_alpha", (int, float))):
        if not isinstance(config.get(key), kind):
            raise MiniftError(f"{path / 'adapter_config.json'}: {key} is {config.get(key)!r}; expected a number")
