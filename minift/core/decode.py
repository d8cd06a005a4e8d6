"""A fast forward pass of a decoder for the newest token alone: chat and sampling use it.

For one token, the matrix products are so short that the general code around them, hundreds of small calls in a deep
model, takes as long again. So this file writes `Transformer.forward` a second time, for one token in each row, with
plain functions. Linear layers and norms are plain calls of PyTorch, there is no dimension T, and no mask where nothing
is padded. The rotary angles are computed once. One product gives q, k and v; it needs a copy of their weights, an
eighth of a small model. Left out: the same for the MLP.
"""

import torch
from torch import nn
from torch.nn import functional as F

from minift.core.attention import default_positions, rotary_angles


def make_step(body, length):
    """A function (token (B, 1), attention_mask (B, S) or None, cache) -> hidden (B, 1, D), the same as body(...) gives.

    length: the largest S, which counts the cached tokens and the new one. Use the function under no_grad and in
    evaluation mode only, and do not change the body meanwhile. A body that is no decoder with its norms first, or that
    has hooks on its modules, is called directly instead.
    """
    config, learned = body.config, body.positions
    if not (config.causal and config.norm_first) or any(
            module._forward_hooks or module._forward_pre_hooks for module in body.modules()):
        return lambda token, mask, cache: body(token, mask, cache=cache)
    # Once for all steps: the blocks as plain functions, and the rotary angles of all positions.
    layers, norm = [direct_block(block) for block in body.layers], direct(body.norm)
    E, H, K = config.d_head, config.n_head, config.n_kv_head
    if learned is None:
        places = torch.arange(length, device=body.embed.weight.device)[:, None]
        cos, sin = rotary_angles(
            places, E, config.rope_theta, body.embed.weight.dtype, config.rope_scaling)
        # (length, 1, 1, E). With this sign, x * cos + x.roll(E / 2) * sin is attention.rotate.
        sin[..., :E // 2].neg_()

    def step(token, mask, cache):
        # The new token's embedding and position.
        S = cache.length + 1
        token, place = token[:, 0], default_positions(1, S, mask, None, token.device)[:, 0]
        seen = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        x = body.embed(token)  # (B, D)
        if learned is None:
            # Queries and keys are rotated; cos 1 and sin 0 leave the values as they are.
            turned = (len(place), H + K, 1, E)
            cos_now = F.pad(cos[place].expand(turned), (0, 0, 0, 0, 0, K), value=1.0)  # (B or 1, H + 2 K, 1, E)
            sin_now = F.pad(sin[place].expand(turned), (0, 0, 0, 0, 0, K))             # (B or 1, H + 2 K, 1, E)
        else:
            x = x + learned(place)
        # Through the blocks: attention to the cached tokens, then the MLP.
        kept = cache.keys[..., :S, :], cache.values[..., :S, :], cache.both[..., S - 1:S, :]
        for (attn_norm, qkv_proj, o_proj, mlp_norm, mlp), keys, values, newest in zip(layers, *kept):
            qkv = qkv_proj(attn_norm(x)).view(len(x), -1, 1, E)  # (B, H + 2 K, 1, E)
            if learned is None:
                qkv = qkv * cos_now + qkv.roll(E // 2, -1) * sin_now
            # The new keys and values go into the cache.
            newest.copy_(qkv[:, H:])
            # The queries that share one head of keys are grouped.
            q = qkv[:, :H].view(len(x), K, -1, E)
            out = F.scaled_dot_product_attention(q, keys, values, seen)  # (B, K, H / K, E)
            x = o_proj(out.reshape(x.shape), x)
            x = mlp(mlp_norm(x), x)
        cache.length += 1
        return norm(x)[:, None]
    return step


def direct_block(block):
    """A block as functions of (B, D): attn_norm, qkv_proj, o_proj, mlp_norm, mlp. o_proj and mlp add a second input."""
    attn, mlp = block.attn, block.mlp
    up, down = direct(mlp.up_proj), added(mlp.down_proj)
    if mlp.kind == "swiglu":
        gate = direct(mlp.gate_proj)

    def run(x, rest):
        if mlp.kind == "swiglu":
            return down(F.silu(gate(x)) * up(x), rest)
        return down(F.gelu(up(x), approximate=mlp.approximate), rest)
    qkv_proj = together(attn.q_proj, attn.k_proj, attn.v_proj)
    return direct(block.attn_norm), qkv_proj, added(attn.o_proj), direct(block.mlp_norm), run


def together(*modules):
    """A function that gives the outputs of several layers side by side; linear layers without bias take one product."""
    modules = list(map(as_linear, modules))
    if all(type(module) is nn.Linear and module.bias is None for module in modules):
        weight = torch.cat([module.weight for module in modules]).T
        return lambda x: torch.mm(x, weight)
    return lambda x: torch.cat([module(x) for module in modules], -1)


def added(module):
    """A function (x, rest) -> rest + module(x); for a linear layer without bias it is one call of PyTorch."""
    module = as_linear(module)
    if type(module) is nn.Linear and module.bias is None:
        weight = module.weight.T
        return lambda x, rest: torch.addmm(rest, x, weight)
    compute = direct(module)
    return lambda x, rest: rest + compute(x)


def direct(module):
    """A function that does what a linear layer or a norm does, by plain calls of PyTorch; other modules stay (LoRA)."""
    module = as_linear(module)
    if type(module) is nn.Linear:
        # A view of shape (in, out).
        weight = module.weight.T
        if module.bias is None:
            return lambda x: torch.mm(x, weight)
        return lambda x: torch.addmm(module.bias, x, weight)
    # RMSNorm of x as the LayerNorm of (x, -x), whose mean is 0: one kernel instead of eight.
    if type(module) is nn.RMSNorm:
        d, both = module.weight.numel(), torch.cat((module.weight, module.weight))
        return lambda x: F.layer_norm(torch.cat((x, -x), -1), (2 * d,), both, None, module.eps)[:, :d]
    return module


def as_linear(module):
    """The linear layer that computes the same as a wrapper now (LoRA, merged or off); else the module itself."""
    return getattr(module, "as_linear", module)
