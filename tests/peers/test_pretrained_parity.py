"""Folders that transformers writes, opened by load_pretrained: the same hidden states, logits, loss and gradients.

Needs the packages of tests/peers/requirements.txt; without them every test here is skipped, and says so.
"""

import json

import pytest
import torch
from torch.nn import functional as F

from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel
from minift.errors import MiniftError
from minift.formats import families, pretrained
from minift.methods.mlm import mlm_loss
from tests.peers.shaken import shaken

transformers = pytest.importorskip(
    "transformers", reason="transformers is missing: pip install -r tests/peers/requirements.txt compares with it")

V, C, D, FF, N_LAYER = 61, 48, 48, 80, 3
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}


def llama(n_kv_head=4, tied=False, theta=1e4, **options):
    options = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}, **options}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=FF, num_hidden_layers=N_LAYER, num_attention_heads=4,
        num_key_value_heads=n_kv_head, max_position_embeddings=C, tie_word_embeddings=tied, initializer_range=0.1,
        **options))


def gpt2(kind=transformers.GPT2LMHeadModel, **options):
    return kind(transformers.GPT2Config(
        vocab_size=V, n_positions=C, n_embd=D, n_layer=N_LAYER, n_head=4, n_inner=FF, initializer_range=0.1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **options))


def bert(kind=transformers.BertForMaskedLM, **options):
    return kind(transformers.BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=N_LAYER, num_attention_heads=4, intermediate_size=FF,
        max_position_embeddings=C, initializer_range=0.1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        **options))


MODELS = {
    "llama": llama, "llama grouped": lambda: llama(2, rms_norm_eps=1e-3), "llama tied": lambda: llama(1, tied=True),
    "llama 3.1": lambda: llama(2, rope_parameters=LLAMA3), "gpt2": gpt2,
    "gpt2 untied": lambda: gpt2(tie_word_embeddings=False), "bert": bert,
    "bert next sentence": lambda: bert(transformers.BertForPreTraining),
    "bare bert": lambda: bert(transformers.BertModel, add_pooling_layer=True),
    "bare gpt2": lambda: gpt2(transformers.GPT2Model),
    "bare llama": lambda: transformers.LlamaModel(llama(2, tied=True).config),
}
WARN = {"bert next sentence", "bare bert"}


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    """(ours, theirs): theirs saved and opened again, in several files where it is no bare body."""
    torch.manual_seed(0)
    theirs = shaken(MODELS[request.param]()).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="40kB" if "bare" not in request.param else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == ("bare" not in request.param)
    if request.param in WARN:
        with pytest.warns(UserWarning, match="pooler"):
            return pretrained.load_pretrained(tmp_path)[0], theirs
    return pretrained.load_pretrained(tmp_path)[0], theirs


def batch():
    """ids (3, C) above 0 and a mask with padding on the right."""
    ids = torch.randint(1, V, (3, C), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(3, C, dtype=torch.bool)
    mask[0, -11:] = mask[1, -1:] = False
    return ids, mask


def close(got, expected, name="", atol=1e-5):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0, msg=lambda message: f"{name}: {message}")


def test_hidden_states_and_logits(pair):
    """After every layer the hidden states, and the logits where there is a head, are theirs to 1e-5."""
    ours, theirs = pair
    ids, mask = batch()
    expected, layers = theirs(ids, attention_mask=mask.long(), output_hidden_states=True), []
    for block in ours.body.layers:
        block.register_forward_hook(lambda module, inputs, out: layers.append(out))
    hidden = ours.body(ids, mask)
    for i, (mine, other) in enumerate(zip([*layers[:-1], hidden], expected.hidden_states[1:], strict=True)):
        close(mine[mask], other[mask], f"hidden states of layer {i}")
    assert expected.hidden_states[-1].std() > 0.5
    logits = expected.get("logits", expected.get("prediction_logits"))
    if logits is not None:
        close(ours(ids, mask)[mask], logits[mask], "logits")
        assert logits.std() > 0.5
    encoder = Encoder if logits is None else MaskedLanguageModel
    assert type(ours) is (encoder if theirs.config.model_type == "bert" else LanguageModel)


def test_loss_and_every_gradient(pair):
    """The loss of a language model, and its gradient at each of our parameters, are theirs to 1e-5."""
    ours, theirs = pair
    ids, mask = batch()
    family = theirs.config.model_type
    expected = theirs(ids, attention_mask=mask.long())
    logits = expected.get("logits", expected.get("prediction_logits"))
    if logits is None:
        return
    for model, z in ((ours, ours(ids, mask)), (theirs, logits)):
        if family == "bert":
            loss = mlm_loss(z, ids.masked_fill(~mask, -100))
        else:
            loss = F.cross_entropy(z[:, :-1][mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
        loss.backward()
        model.loss = loss.detach()
    close(ours.loss, theirs.loss, "loss")
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        there = families.their_name(name, family)
        expected = gradients[there]
        if "c_attn" in there:
            expected = expected.chunk(3, -1)["qkv".index(name[name.index("_proj") - 1])]
        close(p.grad, expected.T if families.is_transposed(name, family) else expected, name)
        assert p.grad.abs().max() > 1e-5 or "k_proj.bias" in name            # a key bias cancels in the softmax


def test_saved_as_bfloat16(tmp_path, load_pretrained=pretrained.load_pretrained):
    """Weights stored in 16 bits come as float32, the same numbers."""
    torch.manual_seed(0)
    llama(2, tied=True).to(torch.bfloat16).save_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours, _ = load_pretrained(tmp_path)
    ids, _ = batch()
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    close(ours(ids), theirs.eval()(ids).logits)


@pytest.mark.parametrize("change, says", [
    ({"hidden_act": "gelu"}, "hidden_act"), ({"attention_bias": True}, "attention_bias"), ({"head_dim": 8}, "head_dim"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"), ({"model_type": "mistral"}, "mistral"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"num_hidden_layers": 2}, "not use"), ({"num_hidden_layers": 4}, "no tensor"),
    ({"intermediate_size": 40}, "another model: model.layers.0.mlp"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"), ({"num_attention_heads": 0}, "config.json"),
])
def test_what_is_not_ours_is_refused_by_name(tmp_path, change, says, load_pretrained=pretrained.load_pretrained):
    """A variant that would compute something else is a MiniftError that names the key."""
    llama(2, tied=True).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) | change
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(MiniftError, match=says):
        load_pretrained(tmp_path)


def test_older_configs_spell_rope_otherwise(tmp_path, load_pretrained=pretrained.load_pretrained):
    """rope_theta and rope_scaling at the top, as transformers 4 wrote them, mean what rope_parameters mean."""
    torch.manual_seed(0)
    theirs = shaken(llama(2, rope_parameters=LLAMA3)).eval()
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del config["rope_parameters"]
    config["rope_scaling"] = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    config["rope_theta"] = LLAMA3["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    ids, _ = batch()
    close(load_pretrained(tmp_path)[0](ids), theirs(ids).logits)
