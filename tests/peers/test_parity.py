"""The same weights in Hugging Face transformers and in minift: equal logits and equal gradients.

Needs the packages of tests/peers/requirements.txt; without them every test here is skipped, and says so.
"""

import pytest
import torch
from torch.nn import functional as F

from minift.core.generate import generate
from minift.core.heads import LanguageModel
from minift.core.transformer import Transformer, TransformerConfig
from tests.peers.shaken import shaken

transformers = pytest.importorskip(
    "transformers", reason="transformers is missing: pip install -r tests/peers/requirements.txt compares with it")

V, C, N_LAYER, D, FF = 61, 40, 3, 48, 80


def llama(n_head, n_kv_head, tied, theta=10000.0):
    """A tiny random LlamaForCausalLM, large weights, and our model with the same weights; names map one to one."""
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=FF, num_hidden_layers=N_LAYER, num_attention_heads=n_head,
        num_key_value_heads=n_kv_head, max_position_embeddings=C, rms_norm_eps=1e-5, tie_word_embeddings=tied,
        initializer_range=0.1, rope_parameters={"rope_type": "default", "rope_theta": theta})).eval()
    ours = LanguageModel(TransformerConfig(V, C, N_LAYER, n_head, D, FF, n_kv_head=n_kv_head, rope_theta=theta), tied)
    names = {"body.embed.weight": "model.embed_tokens.weight", "body.norm.weight": "model.norm.weight"}
    if not tied:
        names["head.weight"] = "lm_head.weight"
    for i in range(N_LAYER):
        here, there = f"body.layers.{i}.", f"model.layers.{i}."
        for name in "qkvo":
            names[f"{here}attn.{name}_proj.weight"] = f"{there}self_attn.{name}_proj.weight"
        for name in ("gate", "up", "down"):
            names[f"{here}mlp.{name}_proj.weight"] = f"{there}mlp.{name}_proj.weight"
        names[here + "attn_norm.weight"] = there + "input_layernorm.weight"
        names[here + "mlp_norm.weight"] = there + "post_attention_layernorm.weight"
    return theirs, ours, lambda tensors: {name: tensors[there] for name, there in names.items()}


def gpt2():
    """A tiny random GPT2LMHeadModel and ours; its Conv1D weights are transposed, q, k and v are fused in c_attn."""
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_positions=C, n_embd=D, n_layer=N_LAYER, n_head=4, n_inner=FF, initializer_range=0.1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()
    ours = LanguageModel(TransformerConfig(V, C, N_LAYER, 4, D, FF, norm="layernorm", positions="learned",
                                           mlp="gelu_tanh", bias=True))

    def convert(tensors):
        out = {"body.embed.weight": tensors["transformer.wte.weight"],
               "body.positions.weight": tensors["transformer.wpe.weight"]}
        norms = [("body.norm", "transformer.ln_f")]
        for i in range(N_LAYER):
            here, there = f"body.layers.{i}.", f"transformer.h.{i}."
            norms += [(here + "attn_norm", there + "ln_1"), (here + "mlp_norm", there + "ln_2")]
            for part in ("weight", "bias"):
                fused = tensors[f"{there}attn.c_attn.{part}"]                # (D, 3 D) or (3 D,)
                for name, piece in zip("qkv", fused.split(D, dim=-1)):
                    out[f"{here}attn.{name}_proj.{part}"] = piece.T if part == "weight" else piece
                for name, theirs_name in (("attn.o_proj", "attn.c_proj"), ("mlp.up_proj", "mlp.c_fc"),
                                          ("mlp.down_proj", "mlp.c_proj")):
                    tensor = tensors[f"{there}{theirs_name}.{part}"]
                    out[f"{here}{name}.{part}"] = tensor.T if part == "weight" else tensor
        for name, theirs_name in norms:
            for part in ("weight", "bias"):
                out[f"{name}.{part}"] = tensors[f"{theirs_name}.{part}"]
        return out

    return theirs, ours, convert


CASES = {
    "llama": lambda: llama(4, 4, tied=False), "llama-tied": lambda: llama(4, 4, tied=True),
    "llama-grouped": lambda: llama(6, 2, tied=False), "llama-grouped-tied": lambda: llama(4, 1, tied=True, theta=5e5),
    "gpt2": gpt2,
}


def pair(case):
    theirs, ours, convert = CASES[case]()
    shaken(theirs)
    missing, unexpected = ours.load_state_dict(convert(dict(theirs.named_parameters())), strict=False)
    assert unexpected == [] and missing in ([], ["head.weight"])             # tied: the head is the embedding
    return theirs, ours.eval(), convert


def batch(side=None):
    ids = torch.randint(0, V, (3, C), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(3, C, dtype=torch.bool)
    if side == "left":
        mask[0, :13] = mask[1, :1] = False
    if side == "right":
        mask[0, -13:] = mask[1, -1:] = False
    return ids, mask


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(case):
    """The logits, and the gradient of the cross-entropy at every parameter, are the published model's to 1e-5."""
    theirs, ours, convert = pair(case)
    ids, _ = batch()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    their_logits, our_logits = theirs(ids).logits, ours(ids)
    assert their_logits.std() > 0.5                                          # not a comparison of noughts
    torch.testing.assert_close(our_logits, their_logits, atol=1e-5, rtol=0)
    for logits in (their_logits, our_logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    theirs_by_our_names = convert({name: p.grad for name, p in theirs.named_parameters()})
    compared = 0
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, theirs_by_our_names[name], atol=1e-5, rtol=0, msg=lambda m: f"{name}: {m}")
        assert p.grad.abs().max() > 1e-5 or "k_proj.bias" in name            # a key bias cancels in the softmax
        compared += 1
    assert compared == len(list(ours.parameters())) == len(list(theirs.parameters())) + 4 * N_LAYER * (case == "gpt2")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_padded_logits(case, side):
    """With padding on either side, real positions have the published model's logits (its positions given by hand)."""
    theirs, ours, _ = pair(case)
    ids, mask = batch(side)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask.long(), position_ids=positions).logits
    torch.testing.assert_close(ours(ids, mask)[mask], expected[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_greedy_generation(case):
    """Greedy continuations of left-padded prompts are those of the published model's generate."""
    theirs, ours, _ = pair(case)
    ids, mask = (x[:, :16] for x in batch("left"))
    expected = theirs.generate(ids, attention_mask=mask.long(), max_new_tokens=20, do_sample=False, eos_token_id=None,
                               pad_token_id=0)
    out = generate(ours, ids, mask, max_new_tokens=20, temperature=0, eos_id=None, pad_id=0)
    assert torch.equal(out.input_ids, expected)


def test_encoder():
    """A BertModel's hidden states: post-norm, seeing both sides, its segment embedding folded into the positions."""
    torch.manual_seed(0)
    theirs = shaken(transformers.BertModel(transformers.BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=N_LAYER, num_attention_heads=4, intermediate_size=FF,
        max_position_embeddings=C, initializer_range=0.1), add_pooling_layer=False).eval())
    ours = Transformer(TransformerConfig(V, C, N_LAYER, 4, D, FF, causal=False, norm_first=False, norm="layernorm",
                                         norm_eps=1e-12, positions="learned", mlp="gelu", bias=True)).eval()
    tensors, out = theirs.state_dict(), {}
    out["embed.weight"] = tensors["embeddings.word_embeddings.weight"]
    segment = tensors["embeddings.token_type_embeddings.weight"][0]
    out["positions.weight"] = tensors["embeddings.position_embeddings.weight"] + segment
    names = [("norm", "embeddings.LayerNorm")]
    for i in range(N_LAYER):
        names += [(f"layers.{i}.{name}", f"encoder.layer.{i}.{theirs_name}") for name, theirs_name in (
            ("attn.q_proj", "attention.self.query"), ("attn.k_proj", "attention.self.key"),
            ("attn.v_proj", "attention.self.value"), ("attn.o_proj", "attention.output.dense"),
            ("attn_norm", "attention.output.LayerNorm"), ("mlp.up_proj", "intermediate.dense"),
            ("mlp.down_proj", "output.dense"), ("mlp_norm", "output.LayerNorm"))]
    for name, theirs_name in names:
        for part in ("weight", "bias"):
            out[f"{name}.{part}"] = tensors[f"{theirs_name}.{part}"]
    ours.load_state_dict(out)
    ids, mask = batch("right")
    expected = theirs(ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(ours(ids, mask)[mask], expected[mask], atol=1e-5, rtol=0)
