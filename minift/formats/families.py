"""What Hugging Face calls our weights and our sizes in GPT-2, Llama and BERT; and what llama.cpp calls Llama's.

One body holds the three (transformer.py): a family is a table of names, and a few conventions about how its file lays
out a matrix. Left out: other families, and variants that compute something else, each refused by the key that says so.
"""

import re

from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError

# our name -> theirs, as regular expressions applied in this order
NAMES = {
    "llama": {r"^body\.": "model.", r"^model\.embed\b": "model.embed_tokens", r"^head\b": "lm_head",
              r"\.attn\b": ".self_attn", r"\.attn_norm\b": ".input_layernorm",
              r"\.mlp_norm\b": ".post_attention_layernorm"},
    "gpt2": {r"^body\.": "transformer.", r"\.embed\b": ".wte", r"\.positions\b": ".wpe", r"\.norm\b": ".ln_f",
             r"^head\b": "lm_head", r"\.layers\b": ".h", r"\.attn_norm\b": ".ln_1", r"\.mlp_norm\b": ".ln_2",
             r"\.[qkv]_proj\b": ".c_attn", r"\.o_proj\b": ".c_proj", r"\.up_proj\b": ".c_fc",
             r"\.down_proj\b": ".c_proj"},
    "bert": {r"^body\.layers\b": "bert.encoder.layer", r"^body\.norm\b": "bert.embeddings.LayerNorm",
             r"^body\.embed\b": "bert.embeddings.word_embeddings",
             r"^body\.positions\b": "bert.embeddings.position_embeddings", r"\.attn\.q_proj\b": ".attention.self.query",
             r"\.attn\.k_proj\b": ".attention.self.key", r"\.attn\.v_proj\b": ".attention.self.value",
             r"\.attn\.o_proj\b": ".attention.output.dense", r"\.attn_norm\b": ".attention.output.LayerNorm",
             r"\.mlp\.up_proj\b": ".intermediate.dense", r"\.mlp\.down_proj\b": ".output.dense",
             r"\.mlp_norm\b": ".output.LayerNorm", r"^head\.dense\b": "cls.predictions.transform.dense",
             r"^head\.norm\b": "cls.predictions.transform.LayerNorm", r"^head\.decoder\b": "cls.predictions"},
    "gguf": {r"^body\.embed\b": "token_embd", r"^body\.norm\b": "output_norm", r"^head\b": "output",
             r"^body\.layers\b": "blk", r"\.attn\.o_proj\b": ".attn_output", r"\.attn\.([qkv])_proj\b": r".attn_\1",
             r"\.mlp_norm\b": ".ffn_norm", r"\.mlp\.(gate|up|down)_proj\b": r".ffn_\1"},
}
PREFIX = {"llama": "model.", "gpt2": "transformer.", "bert": "bert."}       # missing from files without a head
SEGMENTS = "bert.embeddings.token_type_embeddings.weight"
COPIES = {"lm_head.weight": "body.embed.weight", "cls.predictions.decoder.weight": "body.embed.weight",
          "cls.predictions.decoder.bias": "head.decoder.bias"}              # tied, though some files have them as well
BUFFERS = r"\.attn\.(masked_)?bias$|\.position_ids$|\.rotary_emb\.inv_freq$"    # nothing learned is in them
UNUSED = r"^bert\.pooler\.|^cls\.seq_relationship\."                        # BERT's next-sentence head


def their_name(name, family):
    """Our name of a layer or parameter -> the family's ("gguf" is Llama in a .gguf file)."""
    for ours, theirs in NAMES[family].items():
        name = re.sub(ours, theirs, name)
    return name


def canonical_names(names, family):
    """name in a file -> name in the family's model with a head: files of bare bodies lack the prefix."""
    prefix = "" if any(name.startswith(PREFIX[family]) for name in names) else PREFIX[family]
    first_berts = {".gamma": ".weight", ".beta": ".bias"}                    # how the first files called them
    return {name: prefix + re.sub(r"\.(gamma|beta)$", lambda old: first_berts[old[0]], name) for name in names}


def read_weight(take, name, family, config):
    """One of our parameters, from the family's file. take(their name) -> tensor, read each time anew."""
    tensor = take(their_name(name, family))
    if family == "gpt2" and re.search(r"\.[qkv]_proj\.", name):              # fused: (D, 3 D) or (3 D,)
        tensor = tensor.chunk(3, dim=-1)["qkv".index(name.rpartition("_proj")[0][-1])]
    if transposed(name, family):
        tensor = tensor.T
    if family == "gguf" and re.search(r"\.[qk]_proj\.", name):
        tensor = halves(tensor, config.d_head)
    if family == "bert" and name == "body.positions.weight":                 # a text alone is all segment 0
        tensor = tensor + take(SEGMENTS)[0]
    return tensor


def transposed(name, family):
    """Whether the family keeps this matrix as (in, out): GPT-2's linear layers are Conv1D."""
    return family == "gpt2" and name.endswith("_proj.weight")


def halves(weight, d_head):
    """llama.cpp turns neighbouring rows (2i, 2i + 1) of a head together, we turn (i, i + E/2): put them back so."""
    rows, columns = weight.shape
    return weight.reshape(-1, d_head // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def neighbours(weight, d_head):
    """The inverse of halves."""
    rows, columns = weight.shape
    return weight.reshape(-1, 2, d_head // 2, columns).transpose(1, 2).reshape(rows, columns)


# ---- sizes: config.json ----


def read_sizes(config, where):
    """(family, TransformerConfig, whether the output layer is tied) of a config.json; `where` names it in errors."""
    readers = {"llama": llama_sizes, "gpt2": gpt2_sizes, "bert": bert_sizes}
    family = config.get("model_type")
    if family not in readers:
        raise MiniftError(f"{where}: a Hugging Face model of the type {family!r}; minift knows {', '.join(readers)}")
    try:
        demand(config, quantization_config=(None,), add_cross_attention=(False,), is_decoder=(False,))
        return family, *readers[family](config)
    except KeyError as error:
        raise MiniftError(f"{where}, of a Hugging Face model, lacks {error}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:     # MiniftError, of sizes that cannot be, is one
        raise MiniftError(f"{where}, of a Hugging Face model: {error}") from error


def demand(config, **known):
    """MiniftError when a key has a value that changes what the model computes and that minift does not have."""
    for key, values in known.items():
        if config.get(key, values[0]) not in values:
            raise MiniftError(f"{key} is {config[key]!r}, which minift does not have; it reads models where it is "
                              f"{' or '.join(map(repr, values))}")


def llama_sizes(config):
    """Rotary positions, RMSNorm, SwiGLU; several query heads may share keys and values."""
    rope = config.get("rope_parameters") or {}                               # transformers 5; before: two keys
    scaling = {**(config.get("rope_scaling") or {}), **rope}
    d_head = config["hidden_size"] // config["num_attention_heads"]
    demand(config, hidden_act=("silu",), attention_bias=(False,), mlp_bias=(False,), head_dim=(d_head, None))
    sizes = TransformerConfig(
        config["vocab_size"], config["max_position_embeddings"], config["num_hidden_layers"],
        config["num_attention_heads"], config["hidden_size"], config["intermediate_size"],
        n_kv_head=config.get("num_key_value_heads"), norm_eps=config.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        rope_scaling=read_scaling(scaling))
    return sizes, config.get("tie_word_embeddings", False)


def read_scaling(scaling):
    """rope_scaling of our config from Hugging Face's dict."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    demand({"rope_type": kind}, rope_type=("default", "llama3"))
    if kind == "default":
        return None
    return tuple(float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor",
                                                 "original_max_position_embeddings"))


def gpt2_sizes(config):
    """Learned positions, LayerNorm first, GELU by its tanh approximation, biases."""
    demand(config, activation_function=("gelu_new", "gelu_pytorch_tanh"), scale_attn_weights=(True,),
           scale_attn_by_inverse_layer_idx=(False,))
    sizes = TransformerConfig(
        config["vocab_size"], config["n_positions"], config["n_layer"], config["n_head"], config["n_embd"],
        config.get("n_inner") or 4 * config["n_embd"], norm="layernorm",
        norm_eps=config.get("layer_norm_epsilon", 1e-5), positions="learned", mlp="gelu_tanh", bias=True)
    return sizes, config.get("tie_word_embeddings", True)


def bert_sizes(config):
    """Both directions, learned positions, LayerNorm after each addition, exact GELU, biases."""
    demand(config, hidden_act=("gelu",), position_embedding_type=("absolute",), tie_word_embeddings=(True,))
    sizes = TransformerConfig(
        config["vocab_size"], config["max_position_embeddings"], config["num_hidden_layers"],
        config["num_attention_heads"], config["hidden_size"], config["intermediate_size"], causal=False,
        norm_first=False, norm="layernorm", norm_eps=config.get("layer_norm_eps", 1e-12), positions="learned",
        mlp="gelu", bias=True)
    return sizes, True


def family_of(config):
    """The family that a TransformerConfig belongs to; MiniftError when its parts are mixed as in none of them."""
    parts = (config.causal, config.norm_first, config.norm, config.positions, config.mlp, config.bias)
    families = {(True, True, "rmsnorm", "rotary", "swiglu", False): "llama",
                (True, True, "layernorm", "learned", "gelu_tanh", True): "gpt2",
                (False, False, "layernorm", "learned", "gelu", True): "bert"}
    if parts not in families or (config.n_kv_head != config.n_head and families[parts] != "llama"):
        raise MiniftError(f"no family that minift can write for Hugging Face is built like {config}")
    return families[parts]
