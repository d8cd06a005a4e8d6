"""The config.json of a Hugging Face model and our TransformerConfig: one table for both directions.

GPT-2: learned positions, LayerNorm first, GELU by its tanh approximation, biases. Llama: rotary positions, RMSNorm,
SwiGLU, several query heads for one key head. BERT: both directions, learned positions, LayerNorm after each addition,
exact GELU, biases. Left out: variants that compute something else; each is refused by the key that says so.
"""

from dataclasses import dataclass

from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats.settings import explain_errors, require
from minift.formats.weights import is_tied


@dataclass(frozen=True)
class Family:
    """How the config.json of a family expresses a TransformerConfig.

    parts: our fields that have one value in the whole family. sizes: our other fields -> their keys. activation,
    norm_eps, dropouts: the keys of these. defaults: key -> its value where a config.json leaves it out. known: key ->
    the values with which minift computes the same (None: the key is missing); the first one is written.
    """

    parts: dict
    sizes: dict
    activation: str
    norm_eps: str
    dropouts: tuple
    defaults: dict
    known: dict


OFF = (False, None)
# `known` of every family.
KNOWN = {"quantization_config": None, "add_cross_attention": OFF, "is_decoder": OFF}
SIZES = {
    "context_length": "max_position_embeddings", "d_model": "hidden_size", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "d_ff": "intermediate_size"}
FAMILIES = {
    "llama": Family(
        parts={
            "causal": True, "norm_first": True, "norm": "rmsnorm",
            "positions": "rotary", "mlp": "swiglu", "bias": False},
        sizes=SIZES | {"n_kv_head": "num_key_value_heads"},
        activation="hidden_act",
        norm_eps="rms_norm_eps",
        dropouts=("attention_dropout",),
        defaults={"num_key_value_heads": None, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
        known={"hidden_act": ("silu", None), "attention_bias": OFF, "mlp_bias": OFF}),
    "gpt2": Family(
        parts={
            "causal": True, "norm_first": True, "norm": "layernorm",
            "positions": "learned", "mlp": "gelu_tanh", "bias": True},
        sizes={
            "context_length": "n_positions", "d_model": "n_embd", "n_layer": "n_layer",
            "n_head": "n_head", "d_ff": "n_inner"},
        activation="activation_function",
        norm_eps="layer_norm_epsilon",
        dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        defaults={"n_inner": None, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        known={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", None),
            "scale_attn_weights": (True, None), "scale_attn_by_inverse_layer_idx": OFF}),
    "bert": Family(
        parts={
            "causal": False, "norm_first": False, "norm": "layernorm",
            "positions": "learned", "mlp": "gelu", "bias": True},
        sizes=SIZES,
        activation="hidden_act",
        norm_eps="layer_norm_eps",
        dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob"),
        defaults={"layer_norm_eps": 1e-12, "tie_word_embeddings": True},
        known={
            "hidden_act": ("gelu", None), "position_embedding_type": ("absolute", None),
            "tie_word_embeddings": True})}
# The four numbers of our rope_scaling.
STRETCH = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def find_family(config):
    """The family of a TransformerConfig; MiniftError when its parts are combined as in none of them."""
    grouped = config.n_kv_head != config.n_head
    for name, family in FAMILIES.items():
        same = all(getattr(config, field) == value for field, value in family.parts.items())
        if same and (name == "llama" or not grouped):
            return name
    raise MiniftError(f"no family that minift can write for Hugging Face is built like {config}")


def read_config(config, where):
    """(family, TransformerConfig, whether the output layer is tied) of a config.json. where: its name in errors."""
    name = config.get("model_type") if isinstance(config, dict) else None
    if name not in list(FAMILIES):
        raise MiniftError(
            f"{where} has the model_type {name!r}; minift reads {', '.join(FAMILIES)} of Hugging Face, "
            "and what it saved itself")
    family = FAMILIES[name]
    config = family.defaults | config
    with explain_errors(where):
        require(where, config, KNOWN | family.known)
        sizes = {field: config[key] for field, key in family.sizes.items()}
        sizes["norm_eps"] = config[family.norm_eps]
        if name == "gpt2" and not sizes["d_ff"]:
            sizes["d_ff"] = 4 * sizes["d_model"]
        if name == "llama":
            require(where, config, {"head_dim": (None, sizes["d_model"] // sizes["n_head"])})
            sizes |= read_rope(config, where)
        sizes = TransformerConfig(vocab_size=config["vocab_size"], **sizes, **family.parts)
    return name, sizes, config["tie_word_embeddings"]


def read_rope(config, where):
    """Our rope_theta and rope_scaling. transformers 5 has them in rope_parameters, older versions in two keys."""
    rope = config.get("rope_parameters") or {}
    scaling = (config.get("rope_scaling") or {}) | rope
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    require(where, {"rope_type": kind}, {"rope_type": ("default", "llama3")})
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    numbers = None
    if kind == "llama3":
        numbers = tuple(float(scaling[key]) for key in STRETCH)
    return {"rope_theta": float(theta), "rope_scaling": numbers}


def write_config(model, name):
    """The config.json of a model of ours as one of the family `name`."""
    family, config = FAMILIES[name], model.config
    tied = name == "bert" or is_tied(model)
    theirs = {"model_type": name, "vocab_size": config.vocab_size, "tie_word_embeddings": tied}
    for field, key in family.sizes.items():
        theirs[key] = getattr(config, field)
    theirs[family.activation] = family.known[family.activation][0]
    theirs[family.norm_eps] = config.norm_eps
    if name == "bert":
        theirs["type_vocab_size"] = 2
    for key in family.dropouts:
        theirs[key] = config.dropout
    if name == "llama":
        theirs |= {"rope_theta": config.rope_theta, "rope_scaling": None}
        if config.rope_scaling is not None:
            numbers = zip(STRETCH, config.rope_scaling, strict=True)
            theirs["rope_scaling"] = {"rope_type": "llama3", **dict(numbers)}
    return theirs
