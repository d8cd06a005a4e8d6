"""LoRA and its files beside PEFT's own, on a tiny Llama of transformers with the same weights."""

import pytest
import safetensors.torch
import torch

from minift.core.heads import LanguageModel
from minift.core.resize import resize_vocabulary
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats import adapter
from minift.formats.adapter_file import peft_name
from minift.methods import lora

try:
    import peft
    import transformers
except ImportError as error:
    pytest.skip(f"{error.name} is not installed: pip install -r tests/peers/requirements.txt", allow_module_level=True)

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
IDS = torch.tensor([[1, 5, 3, 2, 8, 4], [7, 7, 0, 9, 6, 1]])


def make_ours(seed=0, tied=False):
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size=10, context_length=16, n_layer=2, n_head=4, n_kv_head=2, d_model=64, d_ff=96)
    model = LanguageModel(config, tie_embeddings=tied)
    with torch.no_grad():
        for p in model.parameters():            # logits of the size of 1, so that 1e-5 means something
            if p.ndim == 2:
                p.mul_(5)
    return model.eval()


def make_llama(tied=False):
    """transformers' Llama with the weights of make_ours()."""
    config = transformers.LlamaConfig(vocab_size=10, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
                                      rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config)
    ours = make_ours(tied=tied).state_dict()
    model.load_state_dict({peft_name(name, "llama"): tensor for name, tensor in ours.items()}, strict=True)
    return model.eval()


def make_peft(seed=1, **options):
    """PEFT's LoRA on that Llama, A and B random."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(make_llama(), config).eval()
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    return model


def make_tuned(tied=False, seed=2):
    model = lora.add_lora(make_ours(tied=tied), 4, 8)
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    return model


def assert_equal_logits(ours, theirs, base):
    theirs = theirs(input_ids=IDS).logits
    torch.testing.assert_close(ours(IDS), theirs, rtol=0, atol=1e-5)
    assert (theirs - base(input_ids=IDS).logits).abs().max() > 0.1


def test_the_bases_agree():
    """Without LoRA the two models give the same logits."""
    torch.testing.assert_close(make_ours()(IDS), make_llama()(input_ids=IDS).logits, rtol=0, atol=1e-5)


def test_same_a_and_b_give_the_same_logits():
    """A and B copied from PEFT's layers into ours: the same logits, unmerged and merged."""
    theirs, ours = make_peft(), lora.add_lora(make_ours(), 4, 8)
    tensors = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, layer in lora.lora_layers(ours).items():
            layer.lora_A.copy_(tensors[f"base_model.model.{peft_name(name, 'llama')}.lora_A.default.weight"])
            layer.lora_B.copy_(tensors[f"base_model.model.{peft_name(name, 'llama')}.lora_B.default.weight"])
    assert_equal_logits(ours, theirs, make_llama())
    lora.merge_lora(ours)
    assert_equal_logits(ours, theirs.merge_and_unload(), make_llama())


def test_the_same_parameters_train_and_have_the_same_gradients():
    """One backward pass of the same loss gives every A and B PEFT's gradient."""
    theirs, ours = make_peft(), lora.add_lora(make_ours(), 4, 8)
    tensors = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    pairs = {f"base_model.model.{peft_name(name, 'llama')}.lora_{part}.default.weight": getattr(layer, f"lora_{part}")
             for name, layer in lora.lora_layers(ours).items() for part in "AB"}
    trainable = {id(p) for p in ours.parameters() if p.requires_grad}
    assert pairs.keys() == tensors.keys() and {id(p) for p in pairs.values()} == trainable
    with torch.no_grad():
        for name, p in pairs.items():
            p.copy_(tensors[name])
    ours(IDS).square().mean().backward()
    theirs(input_ids=IDS).logits.square().mean().backward()
    for name, p in pairs.items():
        torch.testing.assert_close(p.grad, tensors[name].grad, rtol=1e-4, atol=1e-6)


def test_peft_loads_what_we_save(tmp_path):
    """PeftModel.from_pretrained opens a folder that save_adapter wrote, and computes the same logits."""
    ours = make_tuned()
    adapter.save_adapter(ours, tmp_path, base="tiny")
    assert_equal_logits(ours, peft.PeftModel.from_pretrained(make_llama(), tmp_path).eval(), make_llama())


def test_peft_loads_an_adapter_of_one_layer(tmp_path):
    """LoRA in a single layer: PEFT puts it into that layer only, and finds every tensor."""
    ours = lora.add_lora(make_ours(), 4, 8, targets=("layers.1.attn.q_proj",))
    torch.nn.init.normal_(ours.body.layers[1].attn.q_proj.lora_B)
    adapter.save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make_llama(), tmp_path).eval()
    assert sum("lora_A" in name for name, _ in theirs.named_parameters()) == 1
    assert_equal_logits(ours, theirs, make_llama())


def test_we_load_what_peft_saves(tmp_path):
    """load_adapter opens a folder that PEFT's save_pretrained wrote, and computes the same logits; rsLoRA included."""
    for i, options in enumerate(({}, {"use_rslora": True})):
        theirs = make_peft(**options)
        theirs.save_pretrained(tmp_path / str(i))
        assert_equal_logits(adapter.load_adapter(make_ours(), tmp_path / str(i)), theirs, make_llama())


def test_a_trained_norm_travels_both_ways(tmp_path):
    """A parameter that is trained in full, beside LoRA, is PEFT's modules_to_save."""
    ours = make_tuned()
    ours.body.norm.weight.requires_grad_(True).data.mul_(2)
    adapter.save_adapter(ours, tmp_path / "ours")
    assert_equal_logits(ours, peft.PeftModel.from_pretrained(make_llama(), tmp_path / "ours").eval(), make_llama())
    theirs = make_peft(modules_to_save=["model.norm"])
    theirs.base_model.model.model.norm.modules_to_save["default"].weight.data.mul_(3)
    theirs.save_pretrained(tmp_path / "theirs")
    assert_equal_logits(adapter.load_adapter(make_ours(), tmp_path / "theirs"), theirs, make_llama())


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_travel_both_ways(tied, tmp_path):
    """An adapter with new rows opens in PEFT on a model with as many tokens, and PEFT's own opens in ours."""
    ours = resize_vocabulary(make_tuned(tied), 13)
    for name in ["body.embed"] + ["head"] * (not tied):
        torch.nn.init.normal_(ours.get_submodule(name).weight)               # trained beyond recognition
    adapter.save_adapter(ours, tmp_path / "ours")
    grown = make_llama(tied)
    grown.resize_token_embeddings(13, mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(grown, tmp_path / "ours").eval()
    ids = torch.tensor([[1, 12, 3, 10, 8, 11]])
    torch.testing.assert_close(ours(ids), theirs(input_ids=ids).logits, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = adapter.load_adapter(make_ours(tied=tied), tmp_path / "theirs")
    torch.testing.assert_close(again(ids), ours(ids), rtol=0, atol=1e-5)
    if tied:
        file = tmp_path / "theirs/adapter_model.safetensors"
        tensors = safetensors.torch.load_file(file)
        tensors["base_model.model.lm_head.weight"] += 1                      # PEFT trained the two apart
        safetensors.torch.save_file(tensors, file)
        with pytest.raises(MiniftError, match="one matrix for both"):
            adapter.load_adapter(make_ours(tied=True), tmp_path / "theirs")
