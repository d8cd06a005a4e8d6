"""The newest token alone through a decoder's body, almost as fast as its matrices can be read: chat and sampling.

For one token the products of matrices with a vector are done so soon that the general code around them, hundreds of
small calls in a deep model, takes as long again. So this is `Transformer.forward` once more for one token a row, as
plain functions: no modules' machinery, no dimension T, no mask without padding, the rotary angles worked out once, q, k
and v from one product (of a copy of their weights, an eighth of a small model). Left out: the same for the MLP.
"""

import torch
from torch import nn
from torch.nn import functional as F

from minift.core.attention import default_positions, rotary_angles


def make_step(body, length):
    """A function (token (B, 1), attention_mask (B, S) or None, cache) -> hidden (B, 1, D), which body(...) would give.

    length: the largest S, cached tokens and the new one. Under no_grad and in evaluation mode only; the body must not
    change meanwhile. One that is no decoder, or that has hooks on its modules, is called as it is.
    """
    config, learned = body.config, body.positions
    if not (config.causal and config.norm_first) or any(
            module._forward_hooks or module._forward_pre_hooks for module in body.modules()):
        return lambda token, mask, cache: body(token, mask, cache=cache)
    layers, norm = [direct_block(block) for block in body.layers], direct(body.norm)
    E, H, K = config.d_head, config.n_head, config.n_kv_head
    if learned is None:
        places = torch.arange(length, device=body.embed.weight.device)[:, None]
        cos, sin = rotary_angles(
            places, E, config.rope_theta, body.embed.weight.dtype, config.rope_scaling)
        sin[..., :E // 2].neg_()  # (length, 1, 1, E): with it, rotate is one roll

    def step(token, mask, cache):
        S = cache.length + 1
        token, place = token[:, 0], default_positions(1, S, mask, None, token.device)[:, 0]
        seen = None if mask is None else mask[:, None, None]  # (B, 1, 1, S)
        x = body.embed(token)                                 # (B, D)
        if learned is None:
            # Queries and keys are turned; values stay as they are.
            turned = (len(place), H + K, 1, E)
            cos_now = F.pad(cos[place].expand(turned), (0, 0, 0, 0, 0, K), value=1.0)  # (B or 1, H + 2 K, 1, E)
            sin_now = F.pad(sin[place].expand(turned), (0, 0, 0, 0, 0, K))             # (B or 1, H + 2 K, 1, E)
        else:
            x = x + learned(place)
        kept = cache.keys[..., :S, :], cache.values[..., :S, :], cache.both[..., S - 1:S, :]
        for (attn_norm, qkv_proj, o_proj, mlp_norm, mlp), keys, values, newest in zip(layers, *kept):
            qkv = qkv_proj(attn_norm(x)).view(len(x), -1, 1, E)  # (B, H + 2 K, 1, E)
            if learned is None:
                qkv = qkv * cos_now + qkv.roll(E // 2, -1) * sin_now
            # Keys and values go into the cache.
            newest.copy_(qkv[:, H:])
            # Queries that share a key in a row.
            q = qkv[:, :H].view(len(x), K, -1, E)
            out = F.scaled_dot_product_attention(q, keys, values, seen)  # (B, K, H / K, E)
            x = o_proj(out.reshape(x.shape), x)
            x = mlp(mlp_norm(x), x)
        cache.length += 1
        return norm(x)[:, None]
    return step


def direct_block(block):
    """A block's functions of (B, D): attn_norm, qkv_proj, o_proj, mlp_norm, mlp; o_proj and mlp add to their second."""
    attn, mlp = block.attn, block.mlp
    up, down = direct(mlp.up_proj), added(mlp.down_proj)
    if mlp.kind == "swiglu":
        gate = direct(mlp.gate_proj)

    def run(x, rest):
        if mlp.kind == "swiglu":
            return down(F.silu(gate(x)) * up(x), rest)
        return down(
            F.gelu(up(x), approximate="tanh" if mlp.kind == "gelu_tanh" else "none"), rest)
    qkv_proj = together(attn.q_proj, attn.k_proj, attn.v_proj)
    return direct(block.attn_norm), qkv_proj, added(attn.o_proj), direct(block.mlp_norm), run


def together(*modules):
    """The outputs of several layers side by side: of plain linear layers without bias in one product."""
    modules = list(map(as_linear, modules))
    if all(type(module) is nn.Linear and module.bias is None for module in modules):
        weight = torch.cat([module.weight for module in modules]).T
        return lambda x: torch.mm(x, weight)
    return lambda x: torch.cat([module(x) for module in modules], -1)


def added(module):
    """rest + what a layer computes: of a plain linear layer without bias one call."""
    module = as_linear(module)
    if type(module) is nn.Linear and module.bias is None:
        weight = module.weight.T
        return lambda x, rest: torch.addmm(rest, x, weight)
    compute = direct(module)
    return lambda x, rest: rest + compute(x)


def direct(module):
    """What a linear layer or a norm computes, as plain calls of PyTorch; another module (LoRA) is called as it is."""
    module = as_linear(module)
    if type(module) is nn.Linear:
        # A view of shape (in, out).
        weight = module.weight.T
        if module.bias is None:
            return lambda x: torch.mm(x, weight)
        return lambda x: torch.addmm(module.bias, x, weight)
    # LayerNorm of x beside -x, whose mean is 0: one kernel, not eight.
    if type(module) is nn.RMSNorm:
        d, both = module.weight.numel(), torch.cat((module.weight, module.weight))
        return lambda x: F.layer_norm(torch.cat((x, -x), -1), (2 * d,), both, None, module.eps)[:, :d]
    return module


def as_linear(module):
    """The linear layer to which a wrapper says that it amounts (LoRA, merged or off); else the module itself."""
    return getattr(module, "as_linear", module)
