"""The names of our weights in Hugging Face's GPT-2, Llama and BERT and in a .gguf file, and how each lays them out.

One body holds the three families (transformer.py), so a family is a table of names and a few conventions about its
matrices. Their sizes are in family_config.py. Left out: other families.
"""

import re

# Our name -> theirs: parts of a path of names, replaced in this order.
NAMES = {
    "llama": {
        "body": "model", "embed": "embed_tokens", "head": "lm_head", "attn": "self_attn",
        "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "gpt2": {
        "body": "transformer", "embed": "wte", "positions": "wpe", "norm": "ln_f", "head": "lm_head",
        "layers": "h", "attn_norm": "ln_1", "mlp_norm": "ln_2",
        "q_proj": "c_attn", "k_proj": "c_attn", "v_proj": "c_attn", "o_proj": "c_proj",
        "up_proj": "c_fc", "down_proj": "c_proj"},
    "bert": {
        "body.layers": "bert.encoder.layer",
        "body.embed": "bert.embeddings.word_embeddings",
        "body.positions": "bert.embeddings.position_embeddings",
        "body.norm": "bert.embeddings.LayerNorm",
        "attn.q_proj": "attention.self.query",
        "attn.k_proj": "attention.self.key",
        "attn.v_proj": "attention.self.value",
        "attn.o_proj": "attention.output.dense",
        "attn_norm": "attention.output.LayerNorm",
        "mlp.up_proj": "intermediate.dense",
        "mlp.down_proj": "output.dense",
        "mlp_norm": "output.LayerNorm",
        "head.dense": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "head.decoder": "cls.predictions"},
    # a Llama in a .gguf file
    "gguf": {
        "body.embed": "token_embd", "body.norm": "output_norm", "head": "output", "body.layers": "blk",
        "attn.q_proj": "attn_q", "attn.k_proj": "attn_k", "attn.v_proj": "attn_v", "attn.o_proj": "attn_output",
        "mlp_norm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}}
# How names begin in a model with a head. Files of a body without a head leave this out.
PREFIX = {"llama": "model.", "gpt2": "transformer.", "bert": "bert."}
SEGMENTS = "bert.embeddings.token_type_embeddings.weight"
# Some files store a tied weight a second time: name of the copy -> our name of the original.
COPIES = {
    "lm_head.weight": "body.embed.weight",
    "cls.predictions.decoder.weight": "body.embed.weight",
    "cls.predictions.decoder.bias": "head.decoder.bias"}
# Tensors in which nothing was learned.
BUFFERS = r"\.attn\.(masked_)?bias$|\.position_ids$|\.rotary_emb\.inv_freq$"
# BERT's head for next-sentence prediction, which minift does not have.
UNUSED = r"^bert\.pooler\.|^cls\.seq_relationship\."


def their_name(name, family, fused=True):
    """Our name of a layer or parameter -> the family's. fused: GPT-2's q, k and v are one layer, as in its files."""
    path = f".{name}."
    for ours, theirs in NAMES[family].items():
        if theirs != "c_attn" or fused:
            path = path.replace(f".{ours}.", f".{theirs}.")
    return path.strip(".")


def canonical_name(name, family, bare):
    """A name in a file -> its name in the family's model with a head. bare: the file is of a body without a head."""
    if bare:
        name = PREFIX[family] + name
    # The oldest BERT files call a norm's weight and bias gamma and beta.
    name = re.sub(r"\.gamma$", ".weight", name)
    return re.sub(r"\.beta$", ".bias", name)


def read_weight(take, name, family, config):
    """One of our parameters, from the family's file. take(their name) reads a tensor."""
    tensor = take(their_name(name, family))
    projection = re.search(r"\.([qkv])_proj\.", name)
    if family == "gpt2" and projection:
        # One tensor holds all three, (D, 3 D) or (3 D,).
        tensor = tensor.chunk(3, dim=-1)["qkv".index(projection[1])]
    if is_transposed(name, family):
        tensor = tensor.T
    if family == "gguf" and is_permuted(name):
        tensor = unpermute_rows(tensor, config.d_head)
    if family == "bert" and name == "body.positions.weight":
        # minift has no segments: a whole text is segment 0.
        tensor = tensor + take(SEGMENTS)[0]
    return tensor


def is_transposed(name, family):
    """Whether the family keeps this matrix as (in, out): GPT-2's linear layers are Conv1D."""
    return family == "gpt2" and name.endswith("_proj.weight")


def is_permuted(name):
    """Whether a .gguf file has this matrix with its rows in another order."""
    return bool(re.search(r"\.[qk]_proj\.", name))


def unpermute_rows(weight, d_head):
    """Rows of queries or keys in llama.cpp's order -> in ours, head by head.

    Rotary positions rotate rows in pairs. llama.cpp pairs the neighbours 2i and 2i + 1 of a head; we pair row i of its
    first half with row i of its second, i + E/2. So row 2i goes to row i, and row 2i + 1 to row i + E/2.
    """
    pairs = weight.reshape(-1, d_head // 2, 2, weight.shape[1])  # (H, E/2, 2, in)
    return pairs.transpose(1, 2).reshape_as(weight)


def permute_rows(weight, d_head):
    """The inverse of unpermute_rows."""
    halves = weight.reshape(-1, 2, d_head // 2, weight.shape[1])  # (H, 2, E/2, in)
    return halves.transpose(1, 2).reshape_as(weight)
