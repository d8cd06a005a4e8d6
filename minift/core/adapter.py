"""An adapter on disk, in PEFT's format: adapter_config.json and adapter_model.safetensors in one folder.

The tensors carry the names that PEFT gives them around a Hugging Face Llama, which our decoder is under other names.
Left out: several adapters in a folder, and PEFT's options that are more than plain LoRA (refused, not ignored).
"""

import math
import re
from pathlib import Path

from minift.core.checkpoint import check_finite
from minift.core.files import read_json, read_tensors, write_json, write_tensors
from minift.errors import MiniftError

PREFIX = "base_model.model."        # PEFT's path to the model inside its own wrappers
TO_LLAMA = {                        # applied in this order
    r"^body\.": "model.", r"^model\.embed\b": "model.embed_tokens", r"^head\b": "lm_head", r"\.attn\b": ".self_attn",
    r"\.attn_norm\b": ".input_layernorm", r"\.mlp_norm\b": ".post_attention_layernorm",
}
PLAIN = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True,
         "inference_mode": True}
INITS = (None, True, False, "gaussian", "orthogonal")       # other ways to start change the base's own weights
BEYOND = ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "fan_in_fan_out", "trainable_token_indices")


def peft_name(name):
    """Our name of a layer or parameter -> its name in a Hugging Face Llama."""
    for ours, theirs in TO_LLAMA.items():
        name = re.sub(ours, theirs, name)
    return name


def peft_key(name):
    """Our name of a layer or parameter -> where PEFT's file has it."""
    return PREFIX + peft_name(name)


def write_adapter(path, tensors, config, fingerprint):
    """Write the folder; the tensors last, and with them what tells whether they belong to the config and to a base.

    config: the entries of PEFT's LoraConfig that vary. fingerprint: of the frozen base. MiniftError: NaN, no space.
    """
    check_finite(tensors, "the adapter to save")
    write_json(Path(path) / "adapter_config.json", PLAIN | config)
    write_tensors(Path(path) / "adapter_model.safetensors", tensors,
                  {"fingerprint": fingerprint, "r": config["r"], "lora_alpha": config["lora_alpha"]})


def read_adapter(path):
    """The folder's config (r, lora_alpha, lora_dropout), tensors and metadata (empty when PEFT wrote it).

    Raises MiniftError when something is missing, damaged, not finite, from two adapters, or beyond plain LoRA.
    """
    path = Path(path)
    config = read_json(path / "adapter_config.json")
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise MiniftError(f"{path / 'adapter_config.json'} does not describe a LoRA adapter (peft_type must be LORA)")
    check_plain(config, path)
    tensors, metadata = read_tensors(path / "adapter_model.safetensors", foreign=True)
    check_finite(tensors, path)
    if any(metadata.get(key, config[key]) != config[key] for key in ("r", "lora_alpha")):
        raise MiniftError(f"{path}: adapter_config.json and adapter_model.safetensors are from two different adapters; "
                          "save or copy the folder again")
    rank, alpha = config["r"], config["lora_alpha"]
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)                            # there the scale is alpha / sqrt(rank)
    return {"r": rank, "lora_alpha": alpha, "lora_dropout": config.get("lora_dropout", 0.0)}, tensors, metadata


def check_plain(config, path):
    """MiniftError when an adapter needs more than h = W x + scale B A x over the base's own W."""
    beyond = [key for key in BEYOND if config.get(key)]
    beyond += ["bias"] if config.get("bias", "none") != "none" else []
    beyond += ["init_lora_weights"] if config.get("init_lora_weights") not in INITS else []
    if beyond:
        raise MiniftError(f"{path} uses {', '.join(beyond)}, which minift's LoRA does not have; train a plain LoRA")
    for key, kind in (("r", int), ("lora_alpha", (int, float))):
        if not isinstance(config.get(key), kind):
            raise MiniftError(f"{path / 'adapter_config.json'}: {key} is {config.get(key)!r}; expected a number")
