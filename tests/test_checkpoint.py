import ast
import copy
import dataclasses
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from children import kill_while, posix

import minift
from minift.core.files import read_tensors, write_json, write_tensors
from minift.core.heads import LanguageModel, MaskedLanguageModel, SequenceClassifier, TokenScorer
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError
from minift.formats import checkpoint, weights
from minift.methods.lora import LoRALinear
from minift.text.tokenizer import Tokenizer

CONFIG = TransformerConfig(vocab_size=270, context_length=12, n_layer=2, n_head=2, d_model=8, d_ff=12, n_kv_head=1)
BERT = TransformerConfig(
    vocab_size=270,
    context_length=12,
    n_layer=1,
    n_head=2,
    d_model=8,
    d_ff=12,
    causal=False,
    norm_first=False,
    norm="layernorm",
    norm_eps=1e-12,
    positions="learned",
    mlp="gelu",
    bias=True,
    dropout=0.1,
)
TOKENIZER = Tokenizer.train(["abab"], 256 + 2 + 8)
IDS = torch.tensor([[5, 260, 3, 17, 17, 2]])


def models():
    torch.manual_seed(0)
    return {
        "tied": LanguageModel(CONFIG),
        "untied": LanguageModel(CONFIG, tie_embeddings=False),
        "scorer": TokenScorer(Transformer(CONFIG)),
        "other family": LanguageModel(BERT),
        "masked": MaskedLanguageModel(BERT),
        "classifier": SequenceClassifier(Transformer(BERT), 3, "cls", ["no", "yes", "unknown"]),
    }


def wrapped(model, merged):
    """The model with LoRA of random A and B in its query layers."""
    for layer in model.body.layers:
        layer.attn.q_proj = LoRALinear(layer.attn.q_proj, 1, 1)
        torch.nn.init.normal_(layer.attn.q_proj.lora_B)
        if merged:
            layer.attn.q_proj.merge()
    return model


@pytest.mark.parametrize("name", models())
def test_a_model_folder_gives_the_same_model(
    tmp_path, name, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """A loaded model has the saved one's class, configuration and outputs, to the bit; it is in evaluation mode."""
    model = models()[name].eval()
    save_model(model, TOKENIZER, tmp_path / "m")
    loaded, tokenizer = load_model(str(tmp_path / "m"))
    assert type(loaded) is type(model) and loaded.config == model.config and not loaded.training
    assert torch.equal(loaded(IDS), model(IDS))
    assert all(p.requires_grad for p in loaded.parameters())
    assert tokenizer.hash() == TOKENIZER.hash()
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_tied_weights_stay_tied(tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model):
    """Tied embeddings are stored once and are one parameter again after loading; untied ones stay two."""
    for name, tied in (("tied", True), ("untied", False)):
        save_model(models()[name], None, tmp_path / name)
        loaded, tokenizer = load_model(tmp_path / name)
        assert (loaded.head.weight is loaded.body.embed.weight) is tied
        assert ("head.weight" in read_tensors(tmp_path / name / "model.safetensors")[0]) is not tied
        assert tokenizer is None


def test_a_masked_models_decoder_stays_tied(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """The decoder's matrix is stored once, as the embedding; loaded, copied and saved again it still is that one."""
    model = models()["masked"]
    for folder, saved in (("a", model), ("b", copy.deepcopy(model))):
        save_model(saved, None, tmp_path / folder)
        tensors = read_tensors(tmp_path / folder / "model.safetensors")[0]
        assert "head.decoder.weight" not in tensors and "head.decoder.bias" in tensors
        loaded, _ = load_model(tmp_path / folder)
        for m in (loaded, copy.deepcopy(loaded)):
            assert m.head.decoder.weight is m.body.embed.weight
            with torch.no_grad():
                m.body.embed.weight[3] += 1
            torch.testing.assert_close(m.head.decoder.weight[3], model.body.embed.weight[3] + 1)


def test_a_classifier_keeps_its_labels_and_pooling(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """Names of the classes, in their order and of their type, and the pooling come back; so do default names."""
    body = Transformer(BERT)
    for pooling, labels in (("cls", ["no", "yes"]), ("mean", ["日", "a b", ""]), ("mean", [7, 3]), ("cls", None)):
        save_model(SequenceClassifier(body, len(labels or "ab"), pooling, labels), TOKENIZER, tmp_path)
        loaded, _ = load_model(tmp_path)
        assert loaded.labels == (labels or ["0", "1"]) and loaded.pooling == pooling


def test_heads_on_one_body_share_its_fingerprint(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model, fingerprint=weights.fingerprint
):
    """A masked model and a classifier on its body have one fingerprint, before and after saving."""
    model = models()["masked"]
    save_model(model, None, tmp_path / "masked")
    save_model(SequenceClassifier(load_model(tmp_path / "masked")[0].body, 2), None, tmp_path / "classifier")
    assert fingerprint(load_model(tmp_path / "classifier")[0]) == fingerprint(model)


@pytest.mark.parametrize(
    "name, change, says",
    [
        ("classifier", {"labels": ["no", "yes", "no"]}, "different labels"),
        ("classifier", {"labels": ["no"]}, "at least 2"),
        ("classifier", {"labels": None}, "NoneType"),
        ("classifier", {"pooling": "max"}, "max"),
        ("masked", {"config": dataclasses.asdict(CONFIG)}, "causal"),
    ],
)
def test_damaged_descriptions_of_encoders(
    tmp_path, name, change, says, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """Labels that are no classes, an unknown pooling, a causal masked model: MiniftError that names config.json."""
    save_model(models()[name], None, tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text(encoding="utf-8")), **change}
    write_json(tmp_path / "config.json", config)
    tensors, metadata = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "model.safetensors", tensors, {**metadata, "config": config})
    with pytest.raises(MiniftError, match=f"config.json is damaged.*{says}"):
        load_model(tmp_path)


def test_a_head_of_another_size_is_refused(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """A label more than the head has outputs: MiniftError that names the tensor."""
    save_model(models()["classifier"], None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["labels"].append("perhaps")
    write_json(tmp_path / "config.json", config)
    tensors, metadata = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "model.safetensors", tensors, {**metadata, "config": config})
    with pytest.raises(MiniftError, match=r"head\.(weight|bias) is \(3"):
        load_model(tmp_path)


def test_config_json_says_what_the_model_is(tmp_path, save_model=checkpoint.save_model):
    """config.json holds the kind, the format's version, every field of the configuration, and the tying."""
    save_model(models()["untied"], None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config == {
        "format": "minift-model",
        "version": 1,
        "kind": "LanguageModel",
        "tie_embeddings": False,
        "config": dataclasses.asdict(CONFIG),
    }


def test_config_json_of_the_other_kinds(tmp_path, save_model=checkpoint.save_model):
    """Only a language model has tied or untied embeddings, only a classifier has labels and a pooling."""
    common = {"format", "version", "kind", "config"}
    for name, more in (("scorer", set()), ("masked", set()), ("classifier", {"labels", "pooling"})):
        save_model(models()[name], None, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert config.keys() == common | more and config["kind"] == type(models()[name]).__name__


def test_every_float_is_stored_as_float32(tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model):
    """A bfloat16 model is stored and opened as float32, with the same values; the model itself is left as it is."""
    model = models()["tied"].bfloat16()
    save_model(model, None, tmp_path)
    loaded, _ = load_model(tmp_path)
    assert model.head.weight.dtype == torch.bfloat16
    for (name, ours), theirs in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs.float()), name


def test_loading_uses_up_no_random_numbers(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """The random numbers after load_model are those that would have come without it."""
    save_model(models()["tied"], None, tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_a_flipped_byte_anywhere_is_noticed(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """One changed byte in any file of the folder: MiniftError that names the place, or exactly the same model."""
    model, rng = models()["tied"].eval(), random.Random(0)
    save_model(model, TOKENIZER, tmp_path)
    for file in sorted(tmp_path.iterdir()):
        data, refused = file.read_bytes(), 0
        places = rng.sample(range(len(data)), 60) + list(range(8))
        for i in places:
            file.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
            try:
                loaded, tokenizer = load_model(tmp_path)
                assert tokenizer.hash() == TOKENIZER.hash() and torch.equal(loaded(IDS), model(IDS))
            except MiniftError as error:
                refused += 1
                assert str(tmp_path) in str(error)
        assert refused > len(places) / 2
        file.write_bytes(data)
    load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_folders_are_refused(
    tmp_path, name, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """A missing, empty or cut file, or a text in its place: MiniftError that names the file."""
    save_model(models()["tied"], TOKENIZER, tmp_path)
    file = tmp_path / name
    data = file.read_bytes()
    for contents in (None, b"", data[: len(data) // 2], data[:-3], b"hello", b"[1]"):
        file.unlink() if contents is None else file.write_bytes(contents)
        with pytest.raises(MiniftError, match=name):
            load_model(tmp_path)


def test_a_pickle_in_the_folder_is_never_run(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """A pickle named model.safetensors is a MiniftError, and its payload does not run."""
    canary = tmp_path / "canary"

    class Malicious:
        def __reduce__(self):
            return open, (str(canary), "w")

    save_model(models()["tied"], None, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(MiniftError, match="model.safetensors"):
        load_model(tmp_path)
    assert not canary.exists()


def test_nothing_in_the_package_unpickles():
    """No file of the package imports pickle, or calls torch.load or torch.save."""
    package = Path(minift.__file__).parent
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & set(names), file
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
                assert node.attr not in ("load", "save"), file


def test_files_of_different_models_are_not_mixed(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """config.json, weights or tokenizer of another model in the folder: MiniftError that names the file."""
    other = LanguageModel(dataclasses.replace(CONFIG, rope_theta=20000.0))
    save_model(models()["tied"], TOKENIZER, tmp_path / "a")
    save_model(other, Tokenizer.train(["cdcd"], 256 + 2 + 8), tmp_path / "b")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        original = (tmp_path / "a" / name).read_bytes()
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
        with pytest.raises(MiniftError, match=name):
            load_model(tmp_path / "a")
        (tmp_path / "a" / name).write_bytes(original)
    load_model(tmp_path / "a")


def test_tokenizer_and_model_must_fit(tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model):
    """A tokenizer with more tokens than the model's vocabulary: MiniftError when saving and when opening."""
    large = Tokenizer.train(["abcdefgh"], 256 + 7 + 8)
    assert large.vocab_size == CONFIG.vocab_size + 1
    with pytest.raises(MiniftError, match="271.*270"):
        save_model(models()["tied"], large, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    save_model(models()["tied"], TOKENIZER, tmp_path)
    large.save(tmp_path / "tokenizer.json")
    tensors, metadata = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "model.safetensors", tensors, {**metadata, "tokenizer": large.hash()})
    with pytest.raises(MiniftError, match="271.*270"):
        load_model(tmp_path)


def test_saving_without_a_tokenizer_leaves_none_behind(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """A folder saved over with tokenizer=None opens without one."""
    save_model(models()["tied"], TOKENIZER, tmp_path)
    save_model(models()["tied"], None, tmp_path)
    assert load_model(tmp_path)[1] is None
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def change_tensors(path, change):
    tensors, metadata = read_tensors(path / "model.safetensors")
    change(tensors)
    write_tensors(path / "model.safetensors", tensors, metadata)


def test_tensors_must_fit_exactly(tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model):
    """A missing, extra, reshaped, retyped or non-finite tensor is a MiniftError that names the file and the tensor."""
    name = "body.layers.1.attn.k_proj.weight"

    def missing(tensors):
        del tensors[name]

    def extra(tensors):
        tensors["more"] = torch.ones(1)

    def renamed(tensors):
        tensors["more"] = tensors.pop(name)

    def turned(tensors):
        tensors[name] = tensors[name].T

    def broadcastable(tensors):
        tensors[name] = tensors[name][:1]

    def double(tensors):
        tensors[name] = tensors[name].double()

    def nan(tensors):
        tensors[name][0, 0] = float("nan")

    def infinite(tensors):
        tensors[name][-1, -1] = float("inf")

    for change in (missing, extra, renamed, turned, broadcastable, double, nan, infinite):
        save_model(models()["tied"], None, tmp_path)
        change_tensors(tmp_path, change)
        with pytest.raises(MiniftError, match="more" if change is extra else name) as error:
            load_model(tmp_path)
        assert "model.safetensors" in str(error.value)


def test_a_diverged_model_is_not_saved(tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model):
    """A model with NaN is refused before anything is written: the older model in the folder stays."""
    model = models()["tied"]
    save_model(model, None, tmp_path)
    expected = model.eval()(IDS)
    broken = models()["tied"]
    with torch.no_grad():
        broken.body.layers[0].attn.v_proj.weight[0, 0] = float("nan")
    with pytest.raises(MiniftError, match="v_proj"):
        save_model(broken, None, tmp_path)
    assert torch.equal(load_model(tmp_path)[0](IDS), expected)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"version": 2}, "version 2.*update"),
        ({"kind": "Oracle"}, "Oracle"),
        ({"format": "other"}, "Hugging Face, and what it saved itself"),
        ({"config": {}}, "config.json"),
        ({"config": 3}, "config.json"),
        ({"config": {**dataclasses.asdict(CONFIG), "n_head": 3}}, "n_head"),
        ({"format": None, "model_type": "gpt2"}, "lacks"),
        ({"format": None, "architectures": ["X"]}, "Hugging Face"),
    ],
)
def test_other_configurations_are_refused(
    tmp_path, change, says, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """A newer version, an unknown kind, impossible sizes, a Hugging Face folder: MiniftError that names the place."""
    save_model(models()["tied"], None, tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text(encoding="utf-8")), **change}
    write_json(tmp_path / "config.json", config)
    tensors, metadata = read_tensors(tmp_path / "model.safetensors")
    write_tensors(tmp_path / "model.safetensors", tensors, {**metadata, "config": config})
    with pytest.raises(MiniftError, match=says) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_list_is_no_configuration(tmp_path, load_model=checkpoint.load_model):
    """JSON of another form, even with the right words in it, is a MiniftError that names the file."""
    for config in ([], ["minift-model"], "minift-model", {"minift-model": 1}):
        write_json(tmp_path / "config.json", config)
        with pytest.raises(MiniftError, match="config.json"):
            load_model(tmp_path)


def test_places_that_are_no_model_folder(tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model):
    """A missing folder, a file, a folder without config.json: MiniftError that says which."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name, says in (("nothing", "missing"), ("file", "a file"), ("empty", "no config.json")):
        with pytest.raises(MiniftError, match=f"{name}.*{says}"):
            load_model(tmp_path / name)
    with pytest.raises(MiniftError, match="file"):
        save_model(models()["tied"], None, tmp_path / "file")


def test_a_model_of_another_program_is_not_overwritten(tmp_path, save_model=checkpoint.save_model):
    """A folder whose config.json another program wrote is left alone; a model of unknown kind is refused."""
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    with pytest.raises(MiniftError, match="another program"):
        save_model(models()["tied"], TOKENIZER, tmp_path)
    assert os.listdir(tmp_path) == ["config.json"]
    with pytest.raises(MiniftError, match="Transformer"):
        save_model(Transformer(CONFIG), None, tmp_path / "x")


def test_an_unmerged_adapter_is_not_lost(
    tmp_path, save_model=checkpoint.save_model, plain_state_dict=weights.plain_state_dict
):
    """A model with LoRA that is not merged is refused, and the error says what to call."""
    model = wrapped(models()["tied"], merged=False)
    for act in (plain_state_dict, lambda model: save_model(model, None, tmp_path / "m")):
        with pytest.raises(MiniftError, match="q_proj.*merge_lora"):
            act(model)
    assert not (tmp_path / "m").exists()


def test_a_merged_model_is_written_under_plain_names(
    tmp_path, save_model=checkpoint.save_model, load_model=checkpoint.load_model
):
    """A model with merged LoRA is saved like one without LoRA, and opens as one, with the same outputs."""
    model = wrapped(models()["tied"], merged=True).eval()
    save_model(model, None, tmp_path)
    assert (
        read_tensors(tmp_path / "model.safetensors")[0].keys() == weights.plain_state_dict(models()["tied"]).keys()
    )
    assert torch.equal(load_model(tmp_path)[0](IDS), model(IDS))


def test_plain_state_dict_has_each_parameter_once(plain_state_dict=weights.plain_state_dict):
    """Every parameter is there once, under its own name, and without a gradient's history."""
    for model in models().values():
        plain = plain_state_dict(model)
        assert plain.keys() == dict(model.named_parameters()).keys()
        assert all(
            torch.equal(plain[name], p) and not plain[name].requires_grad for name, p in model.named_parameters()
        )


def test_the_fingerprint_is_that_of_the_base(fingerprint=weights.fingerprint):
    """Wrapping a layer or training LoRA's parts or a new head changes nothing; any weight of the base changes it."""
    base = fingerprint(models()["tied"])
    model = wrapped(models()["tied"], merged=False)
    assert fingerprint(model) == base
    with torch.no_grad():
        model.body.layers[0].attn.q_proj.lora_A.add_(1)
    assert fingerprint(model) == base
    scorer = TokenScorer(model.body)
    assert fingerprint(scorer) == base
    for parameter in (model.body.layers[1].attn.q_proj.linear.weight, model.body.norm.weight, model.body.embed.weight):
        with torch.no_grad():
            old = parameter.clone()
            parameter[0] += 1e-3
            assert fingerprint(model) != base
            parameter.copy_(old)
        assert fingerprint(model) == base
    with torch.no_grad():
        model.body.embed.weight[0] += 1
    assert fingerprint(model, skip=("body.embed.weight",)) == fingerprint(models()["tied"], skip=("body.embed.weight",))
    with pytest.raises(MiniftError, match="unmerge"):
        fingerprint(wrapped(models()["tied"], merged=True))


def save_for_ever(path, ready):
    model = models()["tied"]
    for i in range(1, 10_000):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(i)
        checkpoint.save_model(model, TOKENIZER, path)
        if i == 1:
            ready.touch()


@posix
def test_a_killed_save_leaves_a_model(tmp_path):
    """Kill a process that saves over and over: the folder always opens, and holds one state, not two halves."""
    folder, ready, rng = tmp_path / "model", tmp_path / "ready", random.Random(0)
    for _ in range(6):
        kill_while(save_for_ever, folder, ready, ready=ready, rng=rng, within=0.02)
        model, tokenizer = checkpoint.load_model(folder)
        assert torch.cat([p.flatten() for p in model.parameters()]).unique().numel() == 1
        assert tokenizer.hash() == TOKENIZER.hash()
