"""One token at a time, by the shorter way: the hidden states of the body itself, whatever it is built like."""

from dataclasses import replace

import pytest
import torch

from minift.core import decode
from minift.core.attention import KVCache
from minift.core.generate import generate
from minift.core.heads import LanguageModel
from minift.core.transformer import Transformer, TransformerConfig
from minift.methods import lora

LLAMA = TransformerConfig(31, 24, 3, 4, 32, 48, n_kv_head=2, rope_theta=50.0, norm_eps=0.1)
GPT2 = replace(LLAMA, n_kv_head=4, norm="layernorm", positions="learned", mlp="gelu_tanh", bias=True, dropout=0.5)
KINDS = {"llama": LLAMA, "gpt2": GPT2, "stretched": replace(LLAMA, rope_scaling=(8.0, 1.0, 4.0, 8.0)),
         "exact gelu": replace(LLAMA, mlp="gelu", bias=True), "norm last": replace(LLAMA, norm_first=False)}


def make(config, seed=0):
    """A body in float64, norms and biases away from 1 and 0."""
    torch.manual_seed(seed)
    body = Transformer(config).double().eval()
    with torch.no_grad():
        for p in body.parameters():
            p.mul_(8) if p.ndim == 2 else p.add_(0.3 * torch.randn_like(p))
    return body


def assert_same(body, make_step, mask):
    """Six tokens at once, then one by one: all hidden states are those of one pass over the whole."""
    ids = torch.randint(0, 31, (3, 14), generator=torch.Generator().manual_seed(1))
    cache = KVCache(body.config, 3, 14, dtype=torch.float64)
    with torch.no_grad():
        expected = body(ids, mask)
        body(ids[:, :6], None if mask is None else mask[:, :6], cache=cache)
        step = make_step(body, 14)
        for t in range(6, 14):
            hidden = step(ids[:, t:t + 1], None if mask is None else mask[:, :t + 1], cache)
            torch.testing.assert_close(hidden, expected[:, t:t + 1], atol=1e-9, rtol=0)
            assert cache.length == t + 1


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_hidden_states_of_the_body(kind, padded, make_step=decode.make_step):
    """With grouped queries, either kind of positions, norm and MLP; with padding on the left and without; to 1e-9."""
    mask = torch.ones(3, 14, dtype=torch.bool)
    mask[0, :5] = mask[1, :2] = False
    assert_same(make(KINDS[kind]), make_step, mask if padded else None)


@pytest.mark.parametrize("targets", [lora.ATTENTION, ("gate_proj", "up_proj", "down_proj")])
def test_with_an_adapter(targets, make_step=decode.make_step):
    """LoRA, which is no plain linear layer, takes part: off, on and merged."""
    body = lora.add_lora(make(LLAMA), 2, 4, targets)
    for layer in lora.lora_layers(body).values():
        torch.nn.init.normal_(layer.lora_B)
        layer.double()
    assert_same(body, make_step, None)
    with lora.without_lora(body):
        assert_same(body, make_step, None)
    lora.merge_lora(body)
    assert_same(body, make_step, None)


def test_lora_costs_nothing_when_merged_or_off(as_linear=decode.as_linear):
    """Merged, or switched off while not, it is computed as one linear layer; else it takes part as it is."""
    layer = lora.LoRALinear(torch.nn.Linear(4, 4), 2, 4)
    assert as_linear(layer) is layer and as_linear(layer.linear) is layer.linear
    layer.merge()
    assert as_linear(layer) is layer.linear
    layer.enabled = False
    assert as_linear(layer) is layer
    layer.unmerge()
    assert as_linear(layer) is layer.linear


def test_hooks_are_called(make_step=decode.make_step, generate=generate):
    """Whoever watches a module, or shards it, has a hook on it: it then sees each token that is written."""
    torch.manual_seed(0)
    model, seen = LanguageModel(LLAMA), []
    ids = torch.tensor([[1, 2, 3]])
    plain = generate(model, ids, max_new_tokens=5, temperature=0, eos_id=None, pad_id=0)
    model.body.layers[2].attn.register_forward_hook(lambda module, inputs, out: seen.append(out.shape[1]))
    watched = generate(model, ids, max_new_tokens=5, temperature=0, eos_id=None, pad_id=0)
    assert seen == [3, 1, 1, 1, 1] and torch.equal(watched.input_ids, plain.input_ids)
