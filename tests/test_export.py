"""The way out and back: exported models as commands use them, and what an adapter of GPT-2 looks like on disk."""

import json
from pathlib import Path

import pytest
import torch

from minift.__main__ import main
from minift.core.files import read_tensors
from minift.core.heads import Encoder, LanguageModel
from minift.core.transformer import TransformerConfig
from minift.formats import adapter, adapter_file, export
from minift.formats.checkpoint import load_model
from minift.methods import lora
from minift.text.chat import encode_chat

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
