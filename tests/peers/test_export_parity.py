"""Folders and .gguf files that minift writes, read by the other libraries: equal logits, equal ids, equal numbers.

Needs the packages of tests/peers/requirements.txt, and gguf (requirements-real.txt) for its files; without them the
tests here are skipped, and say so.
"""

import random
from dataclasses import replace

import pytest
import torch

from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel, SequenceClassifier
from minift.core.resize import resize_vocabulary
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats import adapter, export, export_gguf
from minift.formats.pretrained import load_pretrained
from minift.methods import lora
from minift.methods.sft import sft_loss
from minift.text.chat import encode_chat
from minift.text.tokenizer import Tokenizer

transformers = pytest.importorskip(
    "transformers", reason="transformers is missing: pip install -r tests/peers/requirements.txt compares with it")

TEXTS = ["The red kite flew over the old harbour.  It's 1987!\n\n", "Who is there? I'll see, said Ada.", "x  y\tz é🙂"]
TOKENIZER = Tokenizer.train(TEXTS * 3, 256 + 60 + 8)
V = TOKENIZER.vocab_size
LLAMA = TransformerConfig(V, 64, 2, 4, 32, 48, n_kv_head=2, rope_theta=500.0)
GPT2 = TransformerConfig(V, 64, 2, 4, 32, 48, norm="layernorm", positions="learned", mlp="gelu_tanh", bias=True)
BERT = TransformerConfig(V, 64, 2, 4, 32, 48, causal=False, norm_first=False, norm="layernorm", norm_eps=1e-12,
                         positions="learned", mlp="gelu", bias=True)
MODELS = {"toy": lambda: LanguageModel(LLAMA), "untied": lambda: LanguageModel(LLAMA, False),
          "stretched": lambda: LanguageModel(replace(LLAMA, rope_scaling=(8.0, 1.0, 4.0, 16.0))),
          "gpt2": lambda: LanguageModel(GPT2), "masked": lambda: MaskedLanguageModel(BERT),
          "encoder": lambda: Encoder(BERT)}
IDS = torch.tensor([TOKENIZER.encode(TEXTS[0])])


def make(name, seed=0):
    """A model with large weights, norms and biases away from 1 and 0."""
    torch.manual_seed(seed)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5) if p.ndim == 2 else p.add_(0.2 * torch.randn(p.shape))
    return model


def theirs_of(path, name):
    kind = {"masked": transformers.AutoModelForMaskedLM, "encoder": transformers.AutoModel}
    return kind.get(name, transformers.AutoModelForCausalLM).from_pretrained(path).eval()


def outputs(theirs, ids=IDS):
    found = theirs(ids)
    return found.last_hidden_state if "last_hidden_state" in found else found.logits


def assert_equal(ours, path, name):
    """transformers, and load_pretrained, compute what our model does."""
    expected = ours(IDS)
    torch.testing.assert_close(outputs(theirs_of(path, name)), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.3
    again, _ = load_pretrained(path)
    assert type(again) is type(ours) and again.config == ours.config and torch.equal(again(IDS), expected)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_opens_it(name, tmp_path, export_pretrained=export.export_pretrained):
    """AutoModel and its kin give the same logits, and nothing of the file is left over or missing there."""
    ours = make(name)
    export_pretrained(ours, TOKENIZER, tmp_path)
    assert_equal(ours, tmp_path, name)
    kind = {"masked": transformers.AutoModelForMaskedLM, "encoder": transformers.AutoModel}
    _, info = kind.get(name, transformers.AutoModelForCausalLM).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert {key.split(".")[0] for key in info["missing_keys"]} <= ({"pooler"} if name == "encoder" else set())


@pytest.mark.parametrize("name", ["toy", "gpt2"])
def test_after_training_and_after_merging(name, tmp_path, export_pretrained=export.export_pretrained):
    """A step of full fine-tuning, then LoRA merged: each time the exported model is the trained one."""
    ours = make(name)
    before = ours(IDS).detach()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    sft_loss(ours(IDS), IDS).backward()
    optimizer.step()
    assert (ours(IDS) - before).abs().max() > 0.1
    export_pretrained(ours, TOKENIZER, tmp_path / "full")
    assert_equal(ours, tmp_path / "full", name)
    lora.add_lora(ours, 4, 8)
    for layer in lora.lora_layers(ours).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    with pytest.raises(MiniftError, match="merge"):
        export_pretrained(ours, TOKENIZER, tmp_path / "merged")
    lora.merge_lora(ours)
    export_pretrained(ours, TOKENIZER, tmp_path / "merged")
    assert_equal(ours, tmp_path / "merged", name)


def test_the_tokenizer_and_its_template(tmp_path, export_pretrained=export.export_pretrained):
    """AutoTokenizer has our ids for random texts and for conversations; opened by us it is the same tokenizer."""
    export_pretrained(make("toy"), TOKENIZER, tmp_path)
    theirs, (_, ours) = transformers.AutoTokenizer.from_pretrained(tmp_path), load_pretrained(tmp_path)
    assert ours.hash() == TOKENIZER.hash()
    rng = random.Random(0)
    pieces = ["The", " red", " kite", "\n", "  ", "'s", "12", "3", "é", "🙂", "?!", "\t", " harbour", "x", " "]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 12)))
        assert theirs(text)["input_ids"] == TOKENIZER.encode(text), repr(text)
        assert theirs.decode(TOKENIZER.encode(text)) == text
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi "},
                {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}]
    for part in (messages[:2], messages[1:2], messages[:3], messages):
        prompt = part[-1]["role"] == "user"
        expected, _ = encode_chat(TOKENIZER, part, add_generation_prompt=prompt)
        found = theirs.apply_chat_template(part, tokenize=True, add_generation_prompt=prompt, return_dict=True)
        assert found["input_ids"] == expected
    assert (theirs.eos_token_id, theirs.pad_token_id) == (TOKENIZER.eos_id, TOKENIZER.pad_id)


def test_what_cannot_be_exported(tmp_path, export_pretrained=export.export_pretrained):
    """A classifier, a body of no family, a folder of ours: MiniftError, and nothing is written."""
    with pytest.raises(MiniftError, match="SequenceClassifier"):
        export_pretrained(SequenceClassifier(make("masked").body, 2), TOKENIZER, tmp_path)
    mixed = LanguageModel(TransformerConfig(V, 64, 2, 4, 32, 48, positions="learned"))
    with pytest.raises(MiniftError, match="family"):
        export_pretrained(mixed, TOKENIZER, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.json").write_text('{"format": "minift-model"}', encoding="utf-8")
    with pytest.raises(MiniftError, match="own"):
        export_pretrained(make("toy"), TOKENIZER, tmp_path)


@pytest.mark.parametrize("name", ["toy", "untied"])
def test_a_gguf_file(name, tmp_path, export_gguf=export_gguf.export_gguf):
    """gguf's reader, and ours, find the weights rounded to 16 bits, the sizes and the tokenizer."""
    gguf = pytest.importorskip("gguf", reason="gguf is missing: pip install -r requirements-real.txt")
    ours = make(name)
    export_gguf(ours, TOKENIZER, tmp_path / "x.gguf")
    again, tokenizer = load_pretrained(tmp_path / "x.gguf")
    assert again.config == ours.config and tokenizer.hash() == TOKENIZER.hash()
    for (key, p), (_, q) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(q, p.half().float() if p.ndim == 2 else p), key
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    tensors = {tensor.name: torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}
    assert torch.equal(tensors["blk.1.ffn_up.weight"], ours.body.layers[1].mlp.up_proj.weight.half().float())
    q = ours.body.layers[0].attn.q_proj.weight.half().float()
    permuted = tensors["blk.0.attn_q.weight"]
    assert torch.equal(permuted[:8:2], q[:4]) and torch.equal(permuted[1:8:2], q[4:8])
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["general.architecture"].contents() == "llama"
    with pytest.raises(MiniftError, match="Llama"):
        export_gguf(make("gpt2"), TOKENIZER, tmp_path / "y.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["x.gguf"]


def test_transformers_reads_the_gguf_file(tmp_path, export_gguf=export_gguf.export_gguf):
    """transformers' own loader of .gguf files gives our logits, to the rounding of 16 bits; new rows are there, too."""
    gguf = pytest.importorskip("gguf", reason="gguf is missing: pip install -r requirements-real.txt")
    ours = resize_vocabulary(make("toy"), V + 3)
    export_gguf(ours, TOKENIZER, tmp_path / "x.gguf")
    again, _ = load_pretrained(tmp_path / "x.gguf")
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert fields["tokenizer.ggml.token_type"].contents()[-11:] == [3] * 8 + [5] * 3      # control tokens, unused ids
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32).eval()
    torch.testing.assert_close(theirs(IDS).logits, again(IDS), atol=1e-5, rtol=0)


# ---- adapters of the families ----

peft = pytest.importorskip("peft", reason="peft is missing: pip install -r tests/peers/requirements.txt")


def shaken(model):
    torch.manual_seed(5)
    for name, p in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("name, targets", [
    ("toy", lora.ATTENTION), ("gpt2", lora.ATTENTION), ("gpt2", ("up_proj", "down_proj", "o_proj")),
    ("masked", lora.ATTENTION), ("gpt2", ("q_proj", "k_proj", "v_proj"))])
def test_peft_opens_our_adapter(
    name, targets, tmp_path, save_adapter=adapter.save_adapter, load_adapter=adapter.load_adapter
):
    """Around the exported base, PEFT gives our logits, GPT-2's fused layer included; we read it back the same."""
    ours = make(name)
    export.export_pretrained(ours, TOKENIZER, tmp_path / "base")
    before = ours(IDS).detach()
    shaken(lora.add_lora(ours, 4, 6, targets))
    save_adapter(ours, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(theirs_of(tmp_path / "base", name), tmp_path / "adapter").eval()
    torch.testing.assert_close(outputs(theirs), ours(IDS), atol=1e-5, rtol=0)
    assert (ours(IDS) - before).abs().max() > 0.1
    again = load_adapter(make(name), tmp_path / "adapter")
    assert torch.equal(again(IDS), ours(IDS)) and len(lora.lora_layers(again)) == len(lora.lora_layers(ours))


@pytest.mark.parametrize("name, targets", [
    ("toy", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"]), ("gpt2", ["c_attn", "c_proj", "c_fc"]),
    ("masked", ["query", "value"])])
def test_we_open_pefts_adapter(name, targets, tmp_path, load_adapter=adapter.load_adapter):
    """An adapter that PEFT made for the exported base gives its logits in ours."""
    ours = make(name)
    export.export_pretrained(ours, TOKENIZER, tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, fan_in_fan_out=name == "gpt2")
    theirs = shaken(peft.get_peft_model(theirs_of(tmp_path / "base", name), config)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(load_adapter(ours, tmp_path / "adapter")(IDS), outputs(theirs), atol=1e-5, rtol=0)


def test_a_part_of_gpt2s_fused_layer_is_refused(tmp_path, save_adapter=adapter.save_adapter):
    """LoRA on q alone has no place in a file where q, k and v are one layer."""
    with pytest.raises(MiniftError, match="q, k and v"):
        save_adapter(lora.add_lora(make("gpt2"), 4, 6, ("q_proj",)), tmp_path)
