"""The newest token alone through a decoder's body, almost as fast as its matrices can be read: chat and sampling.

For one token the products of matrices with a vector are done so soon that the general code around them, hundreds of
small calls in a deep model, takes as long again. So this is `Transformer.forward` once more for one token a row, as
plain functions: no modules' machinery, no transposes, no mask without padding, the rotary angles worked out once.
Left out: fusing q, k and v into one matrix (a copy of the weights, for a few percent).
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from minift.core.attention import default_positions, rotary_angles


def make_step(body, length):
    """A function (token (B, 1), attention_mask (B, S) or None, cache) -> hidden (B, 1, D), which body(...) would give.

    length: the largest S, cached tokens and the new one. Under no_grad and in evaluation mode only; the body must not
    change meanwhile. One that is no decoder, or that has hooks on its modules, is called as it is.
    """
    config, layers = body.config, [direct_block(block) for block in body.layers]
    if not (config.causal and config.norm_first) or any(
            module._forward_hooks or module._forward_pre_hooks for module in body.modules()):
        return lambda token, mask, cache: body(token, mask, cache=cache)
    half, norm, learned = config.d_head // 2, direct(body.norm), body.positions
    if learned is None:
        places = torch.arange(length, device=body.embed.weight.device)[:, None]
        cos, sin = rotary_angles(places, config.d_head, config.rope_theta, body.embed.weight.dtype, config.rope_scaling)
        sin[..., :half].neg_()                       # (length, 1, 1, E): with it, rotate is one roll

    def step(token, mask, cache):
        place = default_positions(1, cache.length + 1, mask, None, token.device)[:, 0]      # (B or 1,)
        x = body.embed(token)                                                               # (B, 1, D)
        if learned is None:
            cos_now, sin_now = cos[place], sin[place]                                       # (B or 1, 1, 1, E)
        else:
            x = x + learned(place)[:, None]
        for i, (attn_norm, q_proj, k_proj, v_proj, o_proj, mlp_norm, mlp) in enumerate(layers):
            z = attn_norm(x)
            q, k, v = (proj(z).view(len(z), -1, 1, config.d_head) for proj in (q_proj, k_proj, v_proj))
            if learned is None:                                                             # (B, H or K, 1, E)
                q, k = (y * cos_now + y.roll(half, -1) * sin_now for y in (q, k))
            k, v = cache.append(i, k, v)                                                    # (B, K, S, E)
            out = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None],
                                                 enable_gqa=k.shape[1] != q.shape[1])       # (B, H, 1, E)
            x = x + o_proj(out.view(x.shape))
            x = x + mlp(mlp_norm(x))
        cache.length += 1
        return norm(x)
    return step


def direct_block(block):
    """A block's functions: attn_norm, q_proj, k_proj, v_proj, o_proj, mlp_norm, mlp."""
    attn, mlp = block.attn, block.mlp
    up, down = direct(mlp.up_proj), direct(mlp.down_proj)
    if mlp.kind == "swiglu":
        gate = direct(mlp.gate_proj)

    def run(x):
        if mlp.kind == "swiglu":
            return down(F.silu(gate(x)) * up(x))
        return down(F.gelu(up(x), approximate="tanh" if mlp.kind == "gelu_tanh" else "none"))
    parts = block.attn_norm, attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, block.mlp_norm
    return *map(direct, parts), run


def direct(module):
    """What a linear layer or a norm computes, as a plain function; another module (LoRA) is called as it is."""
    if type(module) is nn.Linear:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    if type(module) is nn.RMSNorm:
        return partial(F.rms_norm, normalized_shape=module.normalized_shape, weight=module.weight, eps=module.eps)
    if type(module) is nn.LayerNorm:
        return partial(F.layer_norm, normalized_shape=module.normalized_shape, weight=module.weight, bias=module.bias,
                       eps=module.eps)
    return module
