"""One body for decoders (GPT-2, Llama) and encoders (BERT): token ids in, hidden states out.

Vaswani et al. 2017, "Attention Is All You Need", section 3; norm first: Radford et al. 2019 (GPT-2), section 2.3;
SwiGLU: Shazeer 2020, eq. 6; RMSNorm: Zhang & Sennrich 2019, eq. 4; activation checkpointing: Chen et al. 2016,
"Training Deep Nets with Sublinear Memory Cost". Left out: mixtures of experts, segment embeddings.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minift.core.attention import Attention, Sight, default_positions, rotary_angles, visible
from minift.core.settings import check_number, check_whole
from minift.errors import MiniftError

CHOICES = {"norm": ("layernorm", "rmsnorm"), "positions": ("learned", "rotary"), "mlp": ("swiglu", "gelu", "gelu_tanh")}


@dataclass(frozen=True)
class TransformerConfig:
    """The settings that turn the body into one model family. MiniftError for a combination that cannot work."""

    # V, how many token ids there are.
    vocab_size: int
    # The longest input, in tokens (Hugging Face: max_position_embeddings; elsewhere block_size).
    context_length: int
    # Blocks, each attention + MLP (num_hidden_layers).
    n_layer: int
    # H, query heads.
    n_head: int
    # D, the width of the hidden states (hidden_size; n_embd).
    d_model: int
    # F, the width inside the MLP (intermediate_size).
    d_ff: int
    # K, key/value heads, shared by groups of query heads; None: one for each query head.
    n_kv_head: int | None = None
    # Each token attends to itself and to the tokens before it; False: to all tokens.
    causal: bool = True
    # Normalise before each sublayer (GPT-2, Llama); False: after the addition (BERT).
    norm_first: bool = True
    # The norm: "rmsnorm" or "layernorm".
    norm: str = "rmsnorm"
    # Added to the variance, inside the root.
    norm_eps: float = 1e-5
    # Positions: "rotary", or "learned", one vector per position.
    positions: str = "rotary"
    # Rotary wavelengths run from 2 pi to 2 pi rope_theta tokens.
    rope_theta: float = 10000.0
    # The MLP: "swiglu", "gelu" (exact) or "gelu_tanh" (GPT-2's approximation).
    mlp: str = "swiglu"
    # Additive biases in linear layers and LayerNorms.
    bias: bool = False
    # Share of activations set to zero while training.
    dropout: float = 0.0
    # (factor, low, high, context) of attention.stretch, for long contexts.
    rope_scaling: tuple | None = None

    def __post_init__(self):
        # Defaults and types: a config.json gives rope_scaling as a list.
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", tuple(self.rope_scaling))
            if len(self.rope_scaling) != 4 or not 0 < self.rope_scaling[1] < self.rope_scaling[2]:
                raise MiniftError(
                    f"rope_scaling is {self.rope_scaling}; expected (factor, low, high, context)")
        # Each setting alone.
        for name in (
                "vocab_size", "context_length", "n_layer", "n_head", "d_model", "d_ff", "n_kv_head"):
            check_whole(name, getattr(self, name), least=1)
        for name in ("norm_eps", "rope_theta"):
            check_number(name, getattr(self, name), above=0)
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise MiniftError(
                    f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        # Settings that must fit each other.
        if self.d_model % self.n_head:
            raise MiniftError(
                f"d_model {self.d_model} is not a multiple of n_head {self.n_head}; change one")
        if self.n_head % self.n_kv_head:
            raise MiniftError(
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}; change one")
        if self.positions == "rotary" and self.d_head % 2:
            raise MiniftError(
                f"rotary positions need an even head width; d_model / n_head is {self.d_head}")
        if not 0 <= self.dropout < 1:
            raise MiniftError(f"dropout is {self.dropout}; expected 0 <= dropout < 1")

    @property
    def d_head(self):
        """E, the width of one head."""
        return self.d_model // self.n_head


class MLP(nn.Module):
    """down(gelu(up(x))), or with a gate, SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config):
        super().__init__()
        self.kind = config.mlp
        self.approximate = "tanh" if self.kind == "gelu_tanh" else "none"
        if self.kind == "swiglu":
            self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x):
        if self.kind == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # (B, T, F) inside
        return self.down_proj(F.gelu(self.up_proj(x), approximate=self.approximate))


def make_norm(config):
    """The norm that the config names, over the last dimension (D)."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.bias)
    return nn.RMSNorm(config.d_model, eps=config.norm_eps)


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream; norm_first: a norm before each, else after each sum."""

    def __init__(self, config):
        super().__init__()
        self.norm_first, self.dropout = config.norm_first, config.dropout
        self.attn_norm, self.mlp_norm = make_norm(config), make_norm(config)
        self.attn, self.mlp = Attention(config), MLP(config)

    def forward(self, x, sight, cache=None, layer=0):
        if self.norm_first:
            x = x + self.drop(self.attn(self.attn_norm(x), sight, cache, layer))
            return x + self.drop(self.mlp(self.mlp_norm(x)))  # (B, T, D)
        x = self.attn_norm(x + self.drop(self.attn(x, sight, cache, layer)))
        return self.mlp_norm(x + self.drop(self.mlp(x)))  # (B, T, D)

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training)


class Transformer(nn.Module):
    """The body: embeddings, blocks, and one extra norm (at the end if norm_first, else right after the embedding).

    checkpointing: if set to True, training keeps only the input of each block and computes the rest again in the
    backward pass. Loss and gradients are the same, in less memory; a step takes a third longer, with LoRA up to half.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.checkpointing = config, False
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.context_length, config.d_model) if config.positions == "learned" else None
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config)
        self.apply(init_weights)
        # 2 n_layer sublayers add to the residual stream: smaller weights keep its variance from growing with depth.
        for block in self.layers:
            for projection in (block.attn.o_proj, block.mlp.down_proj):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * config.n_layer))

    def forward(
            self, input_ids, attention_mask=None, position_ids=None, segment_ids=None, cache=None):
        """Hidden states (B, T, D) of input_ids (B, T).

        attention_mask: (B, T) bool, True at real tokens; with a cache (B, cached + T). position_ids: (B, T), by default
        the number of real tokens before each one. segment_ids: (B, T): tokens attend within one segment only.
        cache: a KVCache, to which the new tokens are added. MiniftError for ids, lengths or shapes that cannot work.
        """
        # Where the new tokens stand: T of them, S together with the cached ones.
        config = self.config
        past = 0 if cache is None else cache.length
        attention_mask = self.check(input_ids, attention_mask, position_ids, segment_ids, cache)
        T, S, device = input_ids.shape[1], past + input_ids.shape[1], input_ids.device
        if position_ids is None:
            position_ids = default_positions(T, S, attention_mask, segment_ids, device)
        # Embeddings; positions are added here, or enter each attention as rotary angles.
        x = self.embed(input_ids)  # (B, T, D)
        angles = None
        if self.positions is None:
            angles = rotary_angles(
                position_ids, config.d_head, config.rope_theta, x.dtype, config.rope_scaling)
        else:
            x = x + self.positions(position_ids)
        # Which tokens attend to which. Without a mask to build or to read, attention is faster.
        if attention_mask is None and segment_ids is None and (past == 0 or T == 1):
            sight = Sight(None, config.causal and past == 0, angles)
        else:
            mask = visible(T, S, config.causal, attention_mask, segment_ids, device)
            sight = Sight(mask, False, angles)
        # The blocks.
        x = x if config.norm_first else self.norm(x)
        x = F.dropout(x, config.dropout, self.training)
        again = self.checkpointing and torch.is_grad_enabled() and cache is None
        for layer, block in enumerate(self.layers):
            x = checkpoint(block, x, sight, use_reentrant=False) if again else block(x, sight, cache, layer)
        if cache is not None:
            cache.length = S
        return self.norm(x) if config.norm_first else x  # (B, T, D)

    def check(self, input_ids, attention_mask, position_ids, segment_ids, cache):
        """MiniftError for inputs that would fail later or give wrong results. Returns attention_mask as bool."""
        # The ids must be whole numbers in two dimensions.
        if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise MiniftError(
                f"input_ids must be whole numbers (torch.long) of shape (B, T); got {input_ids.dtype} "
                f"of shape {tuple(input_ids.shape)}")
        # The tokens must fit into the context, together with those in the cache.
        past, room, limit = 0, self.config.context_length, "context"
        if cache is not None:
            past = cache.length
            if cache.keys.shape[3] < room:
                room, limit = cache.keys.shape[3], "cache"
            if segment_ids is not None or not self.config.causal:
                raise MiniftError(
                    "a cache needs a causal body and one sample a row; leave out cache or segment_ids")
        (B, T), S = input_ids.shape, past + input_ids.shape[1]
        if S > room:
            raise MiniftError(
                f"length {S} is beyond the {limit} of {room} tokens; shorten or split the input")
        # The optional inputs must have their shapes.
        for name, given, shapes in (
                ("attention_mask", attention_mask, [(B, S)]),
                ("segment_ids", segment_ids, [(B, T)]),
                ("position_ids", position_ids, [(B, T), (1, T)])):
            if given is not None and given.shape not in shapes:
                raise MiniftError(
                    f"{name} has shape {tuple(given.shape)}; expected {shapes[0]}")
        # Each id and each position must have a row in its embedding.
        check_range(input_ids, self.config.vocab_size, "token id", "the vocabulary")
        if position_ids is not None and self.positions is not None:
            check_range(position_ids, self.config.context_length, "position", "the context")
        return None if attention_mask is None else attention_mask.bool()


def check_range(ids, size, what, whose):
    """MiniftError for the first id outside 0..size-1. Only on the CPU: a GPU would have to wait."""
    if ids.device.type != "cpu" or ids.numel() == 0:
        return
    low, high = torch.aminmax(ids)
    if low < 0 or high >= size:
        row, column = ((ids < 0) | (ids >= size)).nonzero()[0].tolist()
        raise MiniftError(
            f"{what} {ids[row, column].item()} at row {row}, column {column}; {whose} has {size}")


def init_weights(module):
    """Normal with std 0.02 for matrices, zero for biases (GPT-2): the first loss is then near ln V."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
