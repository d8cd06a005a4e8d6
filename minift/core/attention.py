"""Attention: which token attends to which, how positions enter, and the cache of keys and values.

Vaswani et al. 2017, "Attention Is All You Need", eq. 1; rotary positions: Su et al. 2021, "RoFormer", eq. 34, in the
half-split form of Llama; grouped queries: Ainslie et al. 2023. Left out: sliding windows, cross-attention, YaRN.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class Sight(NamedTuple):
    """What every layer needs to know about the tokens of one forward pass."""

    # (B or 1, 1, T, S) bool, True: token t may attend to token s. None: see is_causal.
    mask: torch.Tensor | None
    # Without a mask: True, each token attends to itself and to all before it; False, to all tokens.
    is_causal: bool
    # Rotary cos and sin, (B or 1, T, 1, E).
    angles: tuple[torch.Tensor, torch.Tensor] | None


class KVCache:
    """Keys and values of the tokens already seen, so that only the new token must be computed. Use under no_grad."""

    def __init__(self, config, batch_size, max_length, device=None, dtype=None):
        shape = (config.n_layer, batch_size, 2 * config.n_kv_head, max_length, config.d_head)
        self.both = torch.zeros(shape, device=device, dtype=dtype)  # (n_layer, B, 2 K, C, E)
        # Views, each (n_layer, B, K, C, E).
        self.keys, self.values = self.both.chunk(2, dim=2)
        # Tokens held; the body updates it when all layers have appended.
        self.length = 0

    def append(self, layer, k, v):
        """Write the new k, v (B, K, T, E) after the `length` old ones; returns views of all, (B, K, length + T, E)."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length:end] = k
        self.values[layer, :, :, self.length:end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    """softmax(q k^T / sqrt(E)) v in H heads; each group of H / K heads shares one head of keys and values."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        d_kv = config.n_kv_head * config.d_head
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.k_proj = nn.Linear(config.d_model, d_kv, bias=config.bias)
        self.v_proj = nn.Linear(config.d_model, d_kv, bias=config.bias)
        self.o_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    def forward(self, x, sight, cache=None, layer=0):
        """x: (B, T, D) -> (B, T, D). cache: the KVCache of earlier tokens, if any. layer: the index in it."""
        B, T, _ = x.shape
        E = self.config.d_head
        q = self.q_proj(x).view(B, T, -1, E)  # (B, T, H, E)
        k = self.k_proj(x).view(B, T, -1, E)  # (B, T, K, E)
        v = self.v_proj(x).view(B, T, -1, E)  # (B, T, K, E)
        if sight.angles is not None:
            q, k = rotate(q, *sight.angles), rotate(k, *sight.angles)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or K, T, E)
        if cache is not None:
            k, v = cache.append(layer, k, v)  # (B, K, S, E)
        dropout = self.config.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(  # (B, H, T, E); divides by sqrt(E) itself
            q, k, v, attn_mask=sight.mask, is_causal=sight.is_causal, dropout_p=dropout,
            enable_gqa=k.shape[1] != q.shape[1])
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))  # (B, T, D)


def rotary_angles(position_ids, d_head, theta, dtype=torch.float32, scaling=None):
    """cos and sin of position / theta^(2i/E), each (B, T, 1, E); computed in at least float32, returned in `dtype`."""
    precise = torch.promote_types(dtype, torch.float32)
    even = torch.arange(0, d_head, 2, device=position_ids.device).to(precise)  # (E/2,) 2i
    frequency = 1.0 / theta ** (even / d_head)  # (E/2,) radians per token
    if scaling is not None:
        frequency = frequency / stretch(frequency, *scaling)
    angle = position_ids[:, :, None, None].to(precise) * frequency  # (B, T, 1, E/2)
    angle = torch.cat((angle, angle), dim=-1)  # (B, T, 1, E)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def stretch(frequency, factor, low, high, context):
    """The factor by which each rotary wavelength grows, (E/2,): a model trained on `context` tokens can then read more.

    A wavelength above context / low tokens grows by `factor`, one below context / high does not grow; in between, the
    change is smooth (the published code of Llama 3.1).
    """
    # How many full turns each wave makes within the context.
    turns = context * frequency / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / (kept + (1 - kept) / factor)


def rotate(x, cos, sin):
    """Rotate each pair (x[i], x[i + E/2]) by its angle: q . k then depends on the distance of the two tokens only."""
    # x: (B, T, H, E)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin  # (B, T, H, E)


def visible(n_new, n_total, causal, attention_mask, segment_ids, device):
    """(B or 1, 1, T, S) bool: may new token t attend to token s? The new tokens are the last T of all S."""
    query = torch.arange(n_total - n_new, n_total, device=device)[:, None]  # (T, 1)
    key = torch.arange(n_total, device=device)[None, :]  # (1, S)
    allowed = (key <= query if causal else key >= 0)[None, None]  # (1, 1, T or 1, S)
    if attention_mask is not None:
        allowed = allowed & attention_mask[:, None, None, :]
    if segment_ids is not None:
        allowed = allowed & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    # Each token attends to itself, so that the softmax in a row of padding stays finite.
    return allowed | (key == query)


def default_positions(n_new, n_total, attention_mask, segment_ids, device):
    """(B or 1, T): the number of real tokens before each new token, within its segment where there are segments."""
    if segment_ids is not None:
        before = torch.ones(n_total, n_total, dtype=torch.bool, device=device).tril(-1)
        before = before & (segment_ids[:, :, None] == segment_ids[:, None, :])  # (B, T, T)
        if attention_mask is not None:
            before = before & attention_mask[:, None, :]
        return before.sum(-1)
    if attention_mask is None:
        return torch.arange(n_total - n_new, n_total, device=device)[None]
    return (attention_mask.cumsum(-1) - attention_mask.long())[:, n_total - n_new:]


@torch.no_grad()
def attention_weights(body, input_ids, attention_mask=None, *, layer):
    """The attention weights of one layer of a Transformer: (B, H, T, T), each row t sums to 1. No gradient.

    scaled_dot_product_attention returns no weights, so they are computed again from the layer's own input.
    """
    module, seen = body.layers[layer].attn, []
    hook = module.register_forward_pre_hook(lambda module, args: seen.extend(args[:2]))
    try:
        body(input_ids, attention_mask)
    finally:
        hook.remove()
    (x, sight), T, E = seen, input_ids.shape[1], body.config.d_head
    q, k = module.q_proj(x).unflatten(-1, (-1, E)), module.k_proj(x).unflatten(-1, (-1, E))  # (B, T, H or K, E)
    if sight.angles is not None:
        q, k = rotate(q, *sight.angles), rotate(k, *sight.angles)
    k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)  # (B, T, H, E)
    scores = torch.einsum("bthe,bshe->bhts", q, k) / E**0.5   # (B, H, T, T)
    mask = visible(T, T, sight.is_causal, None, None, x.device) if sight.mask is None else sight.mask
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)
