"""Hugging Face's BertForMaskedLM with the same weights: equal hidden states, loss and gradients; BERT-base's size.

Needs the packages of tests/peers/requirements.txt; without them every test here is skipped, and says so.
"""

import pytest
import torch

from minift.core.heads import MaskedLanguageModel
from minift.core.transformer import TransformerConfig
from minift.methods.mlm import make_mlm_loss, mlm_loss

transformers = pytest.importorskip(
    "transformers", reason="transformers is missing: pip install -r tests/peers/requirements.txt compares with it")

V, C, N_LAYER, D, FF = 61, 24, 3, 48, 80
LAYER = {"attn.q_proj": "attention.self.query", "attn.k_proj": "attention.self.key",
         "attn.v_proj": "attention.self.value", "attn.o_proj": "attention.output.dense",
         "attn_norm": "attention.output.LayerNorm", "mlp.up_proj": "intermediate.dense",
         "mlp.down_proj": "output.dense", "mlp_norm": "output.LayerNorm"}


def names():
    """Our name -> theirs, for every parameter that has the same value in both."""
    modules = {"body.norm": "bert.embeddings.LayerNorm", "head.dense": "cls.predictions.transform.dense",
               "head.norm": "cls.predictions.transform.LayerNorm"}
    for i in range(N_LAYER):
        modules |= {f"body.layers.{i}.{ours}": f"bert.encoder.layer.{i}.{theirs}" for ours, theirs in LAYER.items()}
    both = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in modules.items() for part in ("weight", "bias")}
    return both | {"body.embed.weight": "bert.embeddings.word_embeddings.weight",
                   "head.decoder.bias": "cls.predictions.bias"}


def pair(layer_norm_eps=1e-12):
    """A tiny random BertForMaskedLM with large weights and no parameter of 1 or 0, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=N_LAYER, num_attention_heads=4, intermediate_size=FF,
        max_position_embeddings=C, initializer_range=0.1, layer_norm_eps=layer_norm_eps, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0)).eval()
    ours = MaskedLanguageModel(TransformerConfig(
        V, C, N_LAYER, 4, D, FF, causal=False, norm_first=False, norm="layernorm", norm_eps=layer_norm_eps,
        positions="learned", mlp="gelu", bias=True)).eval()
    tensors = dict(theirs.named_parameters())
    with torch.no_grad():
        for p in tensors.values():
            if p.ndim == 1:
                p.add_(0.2 * torch.randn(p.shape))
        parameters = dict(ours.named_parameters())
        for here, there in names().items():
            parameters[here].copy_(tensors[there])
        segment = tensors["bert.embeddings.token_type_embeddings.weight"][0]
        parameters["body.positions.weight"].copy_(tensors["bert.embeddings.position_embeddings.weight"] + segment)
    assert parameters.keys() == names().keys() | {"body.positions.weight"}
    assert tensors.keys() == set(names().values()) | {f"bert.embeddings.{name}_embeddings.weight"
                                                      for name in ("position", "token_type")}
    return ours, theirs


def batch(side):
    """ids (3, C) above the pad's 0, attention_mask with padding on a side, labels at a third of the real places."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, V, (3, C), generator=generator)
    mask = torch.ones(3, C, dtype=torch.bool)
    if side == "right":
        mask[0, -9:] = mask[1, -1:] = False
    if side == "left":
        mask[0, :9] = mask[1, :1] = False
    selected = (torch.rand(3, C, generator=generator) < 0.3) & mask
    labels = torch.randint(V, (3, C), generator=generator).masked_fill(~selected, -100)
    return ids.masked_fill(~mask, 0), mask, labels


def their_arguments(ids, mask):
    """Their positions count padding too, so for padding on the left they are given by hand."""
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def close(got, expected, name):
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0, msg=lambda message: f"{name}: {message}")


@pytest.mark.parametrize("side", [None, "right", "left"])
def test_hidden_states_and_logits(side):
    """At real tokens the hidden states and the logits are the published model's to 1e-5."""
    ours, theirs = pair()
    ids, mask, _ = batch(side)
    expected = theirs(**their_arguments(ids, mask), output_hidden_states=True)
    close(ours.body(ids, mask)[mask], expected.hidden_states[-1][mask], "hidden")
    close(ours(ids, mask)[mask], expected.logits[mask], "logits")
    assert expected.logits.std() > 0.5                                       # not a comparison of noughts


@pytest.mark.parametrize("side", [None, "right", "left"])
@pytest.mark.parametrize("layer_norm_eps", [1e-12, 1e-2])
def test_loss_and_every_gradient(side, layer_norm_eps):
    """The loss on the selected tokens and its gradient at every parameter are the published model's to 1e-5.

    Their segment vector is added at every place, as our positions are: its gradient is the sum of ours at them.
    """
    ours, theirs = pair(layer_norm_eps)
    ids, mask, labels = batch(side)
    expected = theirs(**their_arguments(ids, mask), labels=labels).loss
    loss, metrics = make_mlm_loss(ours)({"input_ids": ids, "attention_mask": mask, "labels": labels})
    close(loss, expected, "loss")
    close(mlm_loss(ours(ids, mask), labels), expected, "loss of all logits")
    assert metrics["n_tokens"] == int((labels != -100).sum()) and expected > 1
    loss.backward()
    expected.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    parameters = dict(ours.named_parameters())
    for here, there in names().items():
        close(parameters[here].grad, gradients[there], here)
        assert parameters[here].grad.abs().max() > 1e-5 or "k_proj.bias" in here      # it cancels in the softmax
    positions = parameters["body.positions.weight"].grad
    close(positions, gradients["bert.embeddings.position_embeddings.weight"], "positions")
    close(positions.sum(0), gradients["bert.embeddings.token_type_embeddings.weight"][0], "segment")


def test_the_size_of_bert_base():
    """BERT-base has 109,482,240 parameters there; here the body lacks its pooler and its two segment vectors, and the
    masked model lacks nothing but those segments."""
    with torch.device("meta"):
        config = transformers.BertConfig()
        bert, masked = transformers.BertModel(config), transformers.BertForMaskedLM(config)
        ours = MaskedLanguageModel(TransformerConfig(
            config.vocab_size, config.max_position_embeddings, config.num_hidden_layers, config.num_attention_heads,
            config.hidden_size, config.intermediate_size, causal=False, norm_first=False, norm="layernorm",
            norm_eps=config.layer_norm_eps, positions="learned", mlp="gelu", bias=True))
    def size(module):
        return sum(p.numel() for p in module.parameters())
    segments = size(bert.embeddings.token_type_embeddings)
    assert size(bert) == 109_482_240 == size(ours.body) + size(bert.pooler) + segments
    assert size(masked) == size(ours) + segments
