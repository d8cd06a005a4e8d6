"""The way out and back: exported models as commands use them, and what an adapter of GPT-2 looks like on disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minift.__main__ import main
from minift.core.files import read_tensors, write_tensors
from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel, TokenScorer
from minift.core.resize import resize_vocabulary
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats import adapter, adapter_file, export, family_config
from minift.formats.checkpoint import load_model, save_model
from minift.methods import lora
from minift.text.chat import encode_chat
from minift.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
GPT2 = TransformerConfig(12, 16, 2, 2, 8, 12, norm="layernorm", positions="learned", mlp="gelu_tanh", bias=True)
MESSAGES = [{"role": "user", "content": "Where is Ada? "}, {"role": "assistant", "content": "At home."}]


def call(*words):
    return main([str(word) for word in words])


def first(n, name, folder):
    """The first rows of a file of data/samples, in a file of their own."""
    rows = (ROOT / "data" / "samples" / name).read_text(encoding="utf-8").splitlines(keepends=True)[:n]
    (folder / name).write_text("".join(rows), encoding="utf-8")
    return folder / name


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """data/base, as the verb export writes it."""
    out = tmp_path_factory.mktemp("exported") / "base"
    assert call("export", "--model", ROOT / "data" / "base", "--out", out) == 0
    return out


def test_the_verb_writes_the_same_model(exported, load_model=load_model):
    """The toy decoder as a Llama: opened again it has the same logits, ids, tokens and conversations."""
    (theirs, again), (ours, tokenizer) = load_model(exported), load_model(ROOT / "data" / "base")
    ids = torch.tensor([tokenizer.encode("Ada had a red kite. One day it flew away.")])
    assert torch.equal(theirs(ids), ours(ids)) and theirs.config == ours.config
    assert again.hash() == tokenizer.hash() and encode_chat(again, MESSAGES) == encode_chat(tokenizer, MESSAGES)
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"] and config["tie_word_embeddings"] is True
    assert config["hidden_size"] == ours.config.d_model and config["num_key_value_heads"] == ours.config.n_kv_head
    names = set(read_tensors(exported / "model.safetensors")[0])
    assert {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"} < names


def test_config_json_names_the_end_and_the_pad(exported, tmp_path, export_pretrained=export.export_pretrained):
    """With a tokenizer config.json has both ids; without one it has neither, and no tokenizer file is written."""
    model, tokenizer = load_model(ROOT / "data" / "base")
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert (config["eos_token_id"], config["pad_token_id"]) == (tokenizer.eos_id, tokenizer.pad_id)
    assert config["dtype"] == "float32"
    export_pretrained(model, None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "eos_token_id" not in config and "pad_token_id" not in config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


LLAMA_LIKE = TransformerConfig(12, 16, 2, 2, 8, 12, rope_theta=500.0, rope_scaling=(8.0, 1.0, 4.0, 16.0), dropout=0.25,
                               norm_eps=1e-3, n_kv_head=1)
BERT = replace(GPT2, causal=False, norm_first=False, mlp="gelu", dropout=0.25, norm_eps=1e-7)


@pytest.mark.parametrize("model, name", [
    (LanguageModel(LLAMA_LIKE), "LlamaForCausalLM"), (LanguageModel(LLAMA_LIKE, False), "LlamaForCausalLM"),
    (LanguageModel(replace(GPT2, dropout=0.25)), "GPT2LMHeadModel"), (LanguageModel(GPT2, False), "GPT2LMHeadModel"),
    (MaskedLanguageModel(BERT), "BertForMaskedLM"), (Encoder(BERT), "BertModel")])
def test_each_family_is_opened_again(model, name, tmp_path, export_pretrained=export.export_pretrained):
    """The same config (but for dropout, which is not read), the same weights, the same kind of model, tied or not."""
    export_pretrained(model, None, tmp_path)
    again, _ = load_model(tmp_path)
    assert type(again) is type(model) and again.config == replace(model.config, dropout=0.0)
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [name]
    rates = [value for key, value in config.items() if "drop" in key]
    assert rates and set(rates) == {model.config.dropout}


def test_config_json_of_each_family(tmp_path, write_config=family_config.write_config):
    """The keys that transformers reads, written out."""
    assert write_config(LanguageModel(LLAMA_LIKE), "llama") == {
        "model_type": "llama", "vocab_size": 12, "tie_word_embeddings": True, "max_position_embeddings": 16,
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
        "num_key_value_heads": 1, "hidden_act": "silu", "rms_norm_eps": 1e-3, "attention_dropout": 0.25,
        "rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0, "original_max_position_embeddings": 16.0}}
    assert write_config(LanguageModel(replace(LLAMA_LIKE, rope_scaling=None)), "llama")["rope_scaling"] is None
    assert write_config(LanguageModel(GPT2, False), "gpt2") == {
        "model_type": "gpt2", "vocab_size": 12, "tie_word_embeddings": False, "n_positions": 16, "n_embd": 8,
        "n_layer": 2, "n_head": 2, "n_inner": 12, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    assert write_config(MaskedLanguageModel(BERT), "bert") == {
        "model_type": "bert", "vocab_size": 12, "tie_word_embeddings": True, "max_position_embeddings": 16,
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
        "hidden_act": "gelu", "layer_norm_eps": 1e-7, "type_vocab_size": 2, "hidden_dropout_prob": 0.25,
        "attention_probs_dropout_prob": 0.25}


def test_what_is_not_exported(tmp_path, export_pretrained=export.export_pretrained):
    """A head that Hugging Face lacks, a NaN, a tokenizer of another model, a folder of ours: nothing is written."""
    diverged = LanguageModel(GPT2)
    diverged.body.norm.weight.data[0] = float("nan")
    tokenizer = Tokenizer.train(["abab"], 256 + 2 + 8)
    for model, its_tokenizer, says in (
        (TokenScorer(LanguageModel(GPT2).body), None, "TokenScorer"),
        (LanguageModel(BERT), None, "bert .*LanguageModel"), (diverged, None, "NaN"),
        (LanguageModel(GPT2), tokenizer, "266 tokens.* 12")):
        with pytest.raises(MiniftError, match=says):
            export_pretrained(model, its_tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())
    save_model(LanguageModel(GPT2), None, tmp_path)
    with pytest.raises(MiniftError, match="minift's own"):
        export_pretrained(LanguageModel(GPT2), None, tmp_path)


def test_commands_take_a_folder_of_hugging_face(exported, tmp_path, capsys):
    """sft with LoRA on it, generate from the adapter, merge, and export of the adapter: all through --model."""
    data, short = first(8, "messages.jsonl", tmp_path), ("--steps", 2, "--batch-size", 4)
    assert call("sft", "--model", exported, "--data", data, "--lora", 2, *short, "--out", tmp_path / "tuned") == 0
    assert call("merge", "--model", tmp_path / "tuned", "--out", tmp_path / "merged") == 0
    assert call("export", "--model", tmp_path / "tuned", "--out", tmp_path / "again") == 0
    (merged, _), (again, tokenizer) = load_model(tmp_path / "merged"), load_model(tmp_path / "again")
    ids = torch.tensor([tokenizer.encode("Ada had a red kite.")])
    assert torch.equal(merged(ids), again(ids)) and not torch.equal(load_model(exported)[0](ids), again(ids))
    assert call("export", "--model", exported, "--out", exported) == 2
    assert call("generate", "--model", tmp_path / "gone", "--prompt", "Hi") == 2
    assert "gone" in capsys.readouterr().err


def test_an_adapter_of_a_lost_base_says_so(tmp_path, capsys):
    """The base's folder is named in the one sentence, and so is where to correct it."""
    model, _ = load_model(ROOT / "data" / "base")
    adapter.save_adapter(lora.add_lora(model, 2, 4), tmp_path, base=str(tmp_path / "lost"))
    assert call("generate", "--model", tmp_path, "--prompt", "Hi") == 2
    said = capsys.readouterr().err
    assert "lost" in said and "base_model_name_or_path" in said


def test_classify_takes_an_encoder_without_a_head(tmp_path, export_pretrained=export.export_pretrained):
    """A bare BERT body is enough for a classifier; mlm, which needs the masked head, says what it is."""
    model, tokenizer = load_model(ROOT / "data" / "encoder")
    bare = Encoder(model.config)
    bare.load_state_dict({f"body.{name}": tensor for name, tensor in model.body.state_dict().items()})
    export_pretrained(bare, tokenizer, tmp_path / "bare")
    data = first(20, "labels.jsonl", tmp_path)
    assert call("classify", "--model", tmp_path / "bare", "--data", data, "--steps", 2, "--out", tmp_path / "out") == 0
    assert call("mlm", "--model", tmp_path / "bare", "--data", data, "--out", tmp_path / "x") == 2


def test_fused_adapters(tmp_path, fuse_qkv=adapter_file.fuse_qkv, split_qkv=adapter_file.split_qkv,
                        save_adapter=adapter.save_adapter, load_adapter=adapter.load_adapter):
    """Three A stacked and three B in blocks are the three changes of q, k and v, stacked; and apart again the same."""
    torch.manual_seed(0)
    tensors = {f"h.{letter}_proj.lora_{part}.weight": torch.randn((2, 5) if part == "A" else (7, 2))
               for letter in "qkv" for part in "AB"}
    fused, config = fuse_qkv(tensors, {"r": 2, "lora_alpha": 3, "target_modules": ["h.q_proj", "h.k_proj", "h.v_proj"]})
    a, b = fused["h.c_attn.lora_A.weight"], fused["h.c_attn.lora_B.weight"]
    assert a.shape == (6, 5) and b.shape == (21, 6) and len(fused) == 2 and config["target_modules"] == ["h.c_attn"]
    assert config["rank_pattern"] == {"c_attn": 6} and config["alpha_pattern"] == {"c_attn": 9}
    changes = [tensors[f"h.{x}_proj.lora_B.weight"] @ tensors[f"h.{x}_proj.lora_A.weight"] for x in "qkv"]
    torch.testing.assert_close(b @ a, torch.cat(changes))
    for name, tensor in split_qkv(fused, stacked=True).items():
        assert torch.equal(tensor, tensors[name])
    model = lora.add_lora(LanguageModel(GPT2), 2, 4)
    for layer in lora.lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B)
    save_adapter(model, tmp_path)
    assert "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight" in read_tensors(
        tmp_path / "adapter_model.safetensors")[0]
    base = LanguageModel(GPT2)
    plain = {name.replace(".linear", ""): p for name, p in model.state_dict().items() if "lora_" not in name}
    base.load_state_dict(plain)
    ids = torch.tensor([[1, 5, 11, 3]])
    assert torch.equal(load_adapter(base, tmp_path)(ids), model(ids))


def test_a_part_of_a_fused_layer_is_refused(tmp_path, fuse_qkv=adapter_file.fuse_qkv,
                                            save_adapter=adapter.save_adapter):
    """LoRA on some of q, k and v has no place in a file of GPT-2; without any of them nothing is fused."""
    for targets in ("q_proj", ("k_proj", "v_proj")):
        with pytest.raises(MiniftError, match="q, k and v"):
            save_adapter(lora.add_lora(LanguageModel(GPT2), 2, 4, targets), tmp_path)
    tensors, config = {"h.c_proj.lora_A.weight": torch.ones(1)}, {"target_modules": ["h.c_proj"]}
    assert fuse_qkv(tensors, config) == (tensors, config)


def test_an_adapter_of_pefts_fused_layer(split_qkv=adapter_file.split_qkv):
    """PEFT has one A and one B for all three: each of q, k and v gets the whole A and its third of B."""
    a, b = torch.randn(2, 5), torch.randn(21, 2)
    tensors = {"h.c_attn.lora_A.weight": a, "h.c_attn.lora_B.weight": b, "h.c_fc.lora_A.weight": a}
    apart = split_qkv(tensors, stacked=False)
    assert torch.equal(apart.pop("h.c_fc.lora_A.weight"), a) and len(apart) == 6
    for i, letter in enumerate("qkv"):
        assert torch.equal(apart[f"h.{letter}_proj.lora_A.weight"], a)
        assert torch.equal(apart[f"h.{letter}_proj.lora_B.weight"], b[7 * i:7 * i + 7])


@pytest.mark.parametrize("change, says", [
    ({"bias": "all"}, "bias"), ({"use_dora": True}, "use_dora"), ({"lora_bias": True}, "lora_bias"),
    ({"init_lora_weights": "pissa"}, "pissa"), ({"rank_pattern": {"x": 3}}, "rank_pattern"),
    ({"alpha_pattern": {"x": 3}}, "alpha_pattern"), ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"), ({"r": "8"}, "r is '8'"),
    ({"lora_alpha": None}, "lora_alpha is None"), ({"lora_alpha": 5}, "two different adapters")])
def test_more_than_plain_lora_is_refused(change, says, tmp_path, read_adapter=adapter_file.read_adapter):
    """A setting with which an adapter computes something else is named; what switches it off is accepted."""
    model = lora.add_lora(LanguageModel(LLAMA_LIKE), 2, 4)
    adapter.save_adapter(model, tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    off = {"use_dora": False, "rank_pattern": {}, "alpha_pattern": None, "trainable_token_indices": [],
           "init_lora_weights": "gaussian", "lora_bias": False}
    file.write_text(json.dumps(config | off), encoding="utf-8")
    assert read_adapter(tmp_path)[0] == {"r": 2, "lora_alpha": 4, "lora_dropout": 0.0}
    file.write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(MiniftError, match=says):
        read_adapter(tmp_path)


def test_adapters_of_gpt2_may_be_conv1d(tmp_path, read_adapter=adapter_file.read_adapter):
    """fan_in_fan_out is true for GPT-2's layers, and the patterns are those of the fused layer."""
    model = lora.add_lora(LanguageModel(GPT2), 2, 4, ("q_proj", "k_proj", "v_proj", "up_proj"))
    adapter.save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] is None
    assert config["fan_in_fan_out"] is True and config["rank_pattern"] == {"c_attn": 6}
    assert "transformer.h.0.attn.c_attn" in config["target_modules"]
    found, tensors, metadata = read_adapter(tmp_path)
    assert found["r"] == 2 and metadata["stacked"] and len(tensors) == 16
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}), encoding="utf-8")
    with pytest.raises(MiniftError, match="use_dora"):
        read_adapter(tmp_path)


def test_an_adapter_that_is_no_adapter(tmp_path, save_adapter=adapter.save_adapter, load_adapter=adapter.load_adapter):
    """An adapter with NaN is not written; a list in place of the config is refused."""
    model = lora.add_lora(LanguageModel(LLAMA_LIKE), 2, 4)
    save_adapter(model, tmp_path / "good")
    model.body.layers[1].attn.k_proj.lora_B.data[0, 0] = float("inf")
    with pytest.raises(MiniftError, match="k_proj.lora_B.weight holds NaN or infinity"):
        save_adapter(model, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    (tmp_path / "good" / "adapter_config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(MiniftError, match="does not describe a LoRA adapter"):
        load_adapter(LanguageModel(LLAMA_LIKE), tmp_path / "good")


def test_settings_must_be_the_same_in_all_layers(tmp_path, save_adapter=adapter.save_adapter):
    """A file has one rank, one alpha and one dropout."""
    for name, value in (("rank", 3), ("alpha", 5.0)):
        model = lora.add_lora(LanguageModel(LLAMA_LIKE), 2, 4)
        setattr(model.body.layers[0].attn.q_proj, name, value)
        with pytest.raises(MiniftError, match="one rank, alpha and dropout"):
            save_adapter(model, tmp_path)


def test_files_without_lora_for_the_model(tmp_path, load_adapter=adapter.load_adapter):
    """Only further parameters, or LoRA for a layer that is no linear one: MiniftError, and the model has no LoRA."""
    model = lora.add_lora(LanguageModel(LLAMA_LIKE), 2, 4)
    model.body.norm.weight.requires_grad_(True)
    adapter.save_adapter(model, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors, metadata = read_tensors(file)
    prefix = "base_model.model.model.norm"
    only_norm = {f"{prefix}.weight": tensors[f"{prefix}.weight"]}
    of_norm = tensors | {f"{prefix}.lora_A.weight": torch.ones(2, 8), f"{prefix}.lora_B.weight": torch.ones(8, 2)}
    for changed, says in ((only_norm, "no LoRA for any"), ({}, "no LoRA for any"), (of_norm, "2 unexpected")):
        write_tensors(file, changed, metadata)
        base = LanguageModel(LLAMA_LIKE)
        with pytest.raises(MiniftError, match=says):
            load_adapter(base, tmp_path, force=True)
        assert not lora.find_lora(base)


@pytest.mark.parametrize("tied", [True, False])
def test_peft_is_told_of_tied_rows(tied, tmp_path, save_adapter=adapter.save_adapter):
    """New rows of a tied matrix stand under both names, with ensure_weight_tying; untied ones are two matrices."""
    model = resize_vocabulary(lora.add_lora(LanguageModel(LLAMA_LIKE, tied), 2, 4), 15)
    save_adapter(model, tmp_path, base="here")
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config.get("ensure_weight_tying", False) is tied and config["base_model_name_or_path"] == "here"
    modules = {"model.embed_tokens"} if tied else {"model.embed_tokens", "lm_head"}
    assert set(config["modules_to_save"]) == modules and config["task_type"] == "CAUSAL_LM"
    tensors, _ = read_tensors(tmp_path / "adapter_model.safetensors")
    embed = tensors["base_model.model.model.embed_tokens.weight"]
    assert embed.shape == (15, 8) and torch.equal(embed, tensors["base_model.model.lm_head.weight"]) == tied
