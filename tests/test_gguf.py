"""A .gguf file's header, written here byte by byte; its sizes and rotary frequencies. No package gguf is needed."""

import math
import struct
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats import export_gguf, gguf_file, pretrained

FIELDS = {"general.architecture": "llama", "llama.vocab_size": 60, "llama.context_length": 64, "llama.block_count": 3,
          "llama.embedding_length": 32, "llama.feed_forward_length": 48, "llama.attention.head_count": 4,
          "llama.attention.head_count_kv": 2, "llama.rope.dimension_count": 8,
          "llama.rope.freq_base": float(np.float32(12345.6)),
          "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5))}
CONFIG = TransformerConfig(60, 64, 3, 4, 32, 48, n_kv_head=2, rope_theta=12345.6, norm_eps=1e-5)
TENSORS = {"output.weight": None}


def text(string):
    data = string.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def header(fields, tensors, magic=b"GGUF", version=3):
    """fields: (name, type, packed value). tensors: (name, sizes with columns first, type, offset)."""
    data = magic + struct.pack("<IQQ", version, len(tensors), len(fields))
    for name, kind, value in fields:
        data += text(name) + struct.pack("<I", kind) + value
    for name, sizes, kind, offset in tensors:
        data += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return data


SCALARS = {0: ("B", 200), 1: ("b", -7), 2: ("H", 60_000), 3: ("h", -300), 4: ("I", 4_000_000_000), 5: ("i", -5),
           6: ("f", 0.5), 7: ("?", True), 10: ("Q", 2**60), 11: ("q", -(2**60)), 12: ("d", 0.1)}


def test_each_type_of_value(header_class=gguf_file.Header):
    """Every scalar type, a string with letters of several bytes, an array of strings and an array of arrays."""
    fields = [(f"x{kind}", kind, struct.pack("<" + letter, value)) for kind, (letter, value) in SCALARS.items()]
    fields.append(("word", 8, text("né 🙂")))
    fields.append(("words", 9, struct.pack("<IQ", 8, 3) + text("a") + text("") + text("bc")))
    fields.append(("rows", 9, struct.pack("<IQ", 9, 2) + 2 * (struct.pack("<IQ", 5, 2) + struct.pack("<ii", 3, -4))))
    found, tensors = header_class(header(fields, [])).read()
    assert found == {f"x{kind}": value for kind, (_, value) in SCALARS.items()} | {
        "word": "né 🙂", "words": ["a", "", "bc"], "rows": [[3, -4], [3, -4]]}
    assert not tensors


@pytest.mark.parametrize("align", [None, 32, 64])
def test_where_tensors_begin(align, header_class=gguf_file.Header):
    """Offsets count from the first multiple of the alignment, 32 if none is given; shapes have their rows first."""
    fields = [] if align is None else [("general.alignment", 4, struct.pack("<I", align))]
    for padding in range(70):                               # headers of all lengths
        data = header([*fields, ("p" * padding, 0, b"\1")], [("a", (5, 3), 0, 0), ("b", (7,), 8, 640)])
        _, tensors = header_class(data).read()
        start = len(data)
        while start % (align or 32):
            start += 1
        assert tensors == {"a": ([3, 5], 0, start), "b": ([7], 8, start + 640)}


def fake_gguf(monkeypatch):
    """A package gguf that knows numbers of 32 bits, and blocks with two whole numbers of 16 bits."""
    module = types.ModuleType("gguf")
    module.GGMLQuantizationType = {0: np.float32, 9: np.int16}.__getitem__
    module.GGML_QUANT_SIZES = {np.float32: (1, 4), np.int16: (2, 4)}
    module.dequantize = lambda blocks, kind: blocks.view(kind).astype(np.float32)
    monkeypatch.setitem(sys.modules, "gguf", module)


def test_damaged_headers(tmp_path, monkeypatch, open_gguf=gguf_file.open_gguf):
    """Cut anywhere, of another version, or with sizes that cannot be: MiniftError that names the file."""
    fake_gguf(monkeypatch)
    good = header([("x", 4, struct.pack("<I", 1)), ("words", 9, struct.pack("<IQ", 8, 1) + text("abc"))],
                  [("a", (5, 3), 0, 0)])
    file = tmp_path / "x.gguf"
    bad = [good[:i] for i in range(len(good))]
    bad += [header([], [], b"GGML"), header([], [], version=1), header([], [], version=4), b"\0" * 50]
    bad.append(header([("general.alignment", 4, struct.pack("<I", 0))], [("a", (5,), 0, 0)]))
    bad.append(header([("x", 9, struct.pack("<IQ", 0, 2**40) + b"abc")], []))           # an array without an end
    bad.append(header([("x", 77, b"abcd")], []))
    for data in bad:
        file.write_bytes(data)
        with pytest.raises(MiniftError, match=r"x\.gguf is damaged, or of a kind"):
            open_gguf(file)
    for version in (2, 3):
        file.write_bytes(header([], [], version=version))
        assert open_gguf(file) == ({}, {})


def test_numbers_of_a_tensor(tmp_path, monkeypatch, open_gguf=gguf_file.open_gguf):
    """A tensor is read from its own place, in parts of any size; one that the file does not hold is named."""
    fake_gguf(monkeypatch)
    data = header([], [("a", (3, 2, 5), 0, 0), ("c", (4, 3), 9, 160), ("b", (4,), 0, 128)])
    data += bytes(-len(data) % 32)
    data += np.arange(36, dtype=np.float32).tobytes() + bytes(16) + np.arange(12, dtype=np.int16).tobytes()
    file = tmp_path / "x.gguf"
    file.write_bytes(data)
    for rows in (1, 3, 100):
        monkeypatch.setattr(gguf_file, "ROWS", rows)
        tensors = open_gguf(file)[1]
        assert torch.equal(tensors["a"](), torch.arange(30.0).view(5, 2, 3))
        assert torch.equal(tensors["b"](), torch.arange(32.0, 36.0))
        assert torch.equal(tensors["c"](), torch.arange(12.0).view(3, 4))
    file.write_bytes(data[:-1])
    with pytest.raises(MiniftError, match=r"x\.gguf: c is damaged"):
        open_gguf(file)[1]["c"]()


def permute(weight, n_head):
    """As llama.cpp's converter stores q and k: first and second halves of a head's rows in turn."""
    return weight.reshape(n_head, 2, weight.shape[0] // n_head // 2, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.mark.parametrize("tied, stretched", [(True, False), (False, True)])
def test_a_whole_file(tied, stretched, tmp_path, monkeypatch, load_pretrained=pretrained.load_pretrained):
    """Sizes and weights of a small Llama, written here byte by byte, are the same model; there is no tokenizer."""
    fake_gguf(monkeypatch)
    config = replace(CONFIG, n_layer=1, rope_theta=5e5, rope_scaling=(8.0, 1.0, 4.0, 8192.0) if stretched else None)
    model = LanguageModel(config, tied).eval()
    parts = {"token_embd": model.body.embed, "output_norm": model.body.norm, "output": model.head}
    if tied:
        del parts["output"]
    layer = model.body.layers[0]
    parts |= {"blk.0.attn_q": layer.attn.q_proj, "blk.0.attn_k": layer.attn.k_proj, "blk.0.attn_v": layer.attn.v_proj,
              "blk.0.attn_output": layer.attn.o_proj, "blk.0.attn_norm": layer.attn_norm,
              "blk.0.ffn_norm": layer.mlp_norm, "blk.0.ffn_gate": layer.mlp.gate_proj,
              "blk.0.ffn_up": layer.mlp.up_proj, "blk.0.ffn_down": layer.mlp.down_proj}
    tensors = {f"{name}.weight": part.weight.detach() for name, part in parts.items()}
    for name, n_head in (("blk.0.attn_q.weight", 4), ("blk.0.attn_k.weight", 2)):
        tensors[name] = permute(tensors[name], n_head)
    if stretched:
        tensors["rope_freqs.weight"] = published(8.0, 8, 5e5)
    fields, entries, data = [], [], b""
    for name, value in (FIELDS | {"llama.block_count": 1, "llama.rope.freq_base": 5e5}).items():
        kind = {str: 8, int: 4, float: 6}[type(value)]
        fields.append((name, kind, text(value) if kind == 8 else struct.pack("<I" if kind == 4 else "<f", value)))
    for name, tensor in tensors.items():
        entries.append((name, tensor.shape[::-1], 0, len(data)))
        data += tensor.numpy().tobytes()
        data += bytes(-len(data) % 32)
    start = header(fields, entries)
    (tmp_path / "x.gguf").write_bytes(start + bytes(-len(start) % 32) + data)
    found, tokenizer = load_pretrained(tmp_path / "x.gguf")
    assert tokenizer is None and found.config == config and (found.head.weight is found.body.embed.weight) == tied
    for (name, ours), theirs in zip(model.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("act", [
    lambda path: gguf_file.open_gguf(path), lambda path: export_gguf.export_gguf(LanguageModel(CONFIG), None, path)])
def test_without_the_package(act, tmp_path, monkeypatch):
    """Reading and writing say what to install."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MiniftError, match=r"x\.gguf needs the package gguf: pip install -r requirements-real\.txt"):
        act(tmp_path / "x.gguf")


# ---- sizes ----


def test_sizes(read_sizes=gguf_file.read_sizes):
    """Every size has its field, and 32-bit numbers are read as they were meant."""
    assert read_sizes(FIELDS, TENSORS, "x.gguf") == (CONFIG, False)
    assert read_sizes(FIELDS, {}, "x.gguf") == (CONFIG, True)


def test_sizes_that_may_be_missing(read_sizes=gguf_file.read_sizes):
    """The vocabulary's size is then that of its tokens, each query head has its own key head, theta is 10,000."""
    fields = {name: value for name, value in FIELDS.items() if name not in (
        "llama.vocab_size", "llama.attention.head_count_kv", "llama.rope.freq_base", "llama.rope.dimension_count")}
    fields |= {"tokenizer.ggml.tokens": ["x"] * 41, "llama.expert_count": 0, "llama.rope.scaling.type": "none"}
    config, _ = read_sizes(fields, TENSORS, "x.gguf")
    assert config == replace(CONFIG, vocab_size=41, n_kv_head=4, rope_theta=10000.0)


@pytest.mark.parametrize("change, says", [
    ({"general.architecture": "qwen2"}, "qwen2"), ({"llama.expert_count": 8}, "expert_count"),
    ({"llama.rope.dimension_count": 4}, "dimension_count"), ({"llama.rope.scaling.type": "linear"}, "linear"),
    ({"llama.block_count": None}, "n_layer"), ({"llama.attention.head_count": 0}, "n_head"),
    ({"llama.attention.layer_norm_rms_epsilon": "x"}, "str"),
])
def test_sizes_that_are_refused(change, says, read_sizes=gguf_file.read_sizes):
    """What minift does not have, or what cannot be, is named."""
    with pytest.raises(MiniftError, match=f"^x.gguf.*{says}"):
        read_sizes(FIELDS | change, TENSORS, "x.gguf")


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in (
    "general.architecture", "llama.vocab_size", "llama.attention.head_count_kv", "llama.rope.freq_base",
    "llama.rope.dimension_count")])
def test_sizes_that_must_be_there(name, read_sizes=gguf_file.read_sizes):
    """A missing one is named."""
    with pytest.raises(MiniftError, match=f"^x.gguf.*lacks '{name}'"):
        read_sizes({key: value for key, value in FIELDS.items() if key != name}, TENSORS, "x.gguf")


# ---- rotary frequencies ----


def published(factor, d_head, theta):
    """Llama 3.1's published rule, wave by wave: by how much each is lengthened."""
    stretched = []
    for i in range(0, d_head, 2):
        wavelength = 2 * math.pi * theta ** (i / d_head)
        if wavelength < 8192 / 4:
            stretched.append(1.0)
        elif wavelength > 8192 / 1:
            stretched.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            stretched.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(stretched)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequencies_become_a_scaling(factor, find_scaling=gguf_file.find_scaling,
                                      stretch_waves=gguf_file.stretch_waves, read_sizes=gguf_file.read_sizes):
    """rope_freqs.weight of Llama 3.1 and 3.2 gives their four numbers; without it there is no scaling."""
    config = replace(CONFIG, d_model=256, rope_theta=5e5)
    waves = published(factor, 64, 5e5)
    assert 1 < waves[len(waves) // 2] < factor          # the smooth part is there, too
    assert find_scaling({}, config) is None
    scaling = find_scaling({"rope_freqs.weight": lambda: waves}, config)
    assert scaling == (factor, 1.0, 4.0, 8192.0)
    torch.testing.assert_close(stretch_waves(replace(config, rope_scaling=scaling)), waves, rtol=1e-5, atol=0)
    fields = FIELDS | {"llama.embedding_length": 256, "llama.rope.freq_base": 5e5, "llama.rope.dimension_count": 64}
    assert read_sizes(fields, {"rope_freqs.weight": lambda: waves}, "x")[0] == replace(config, rope_scaling=scaling)


def test_other_frequencies_are_refused(find_scaling=gguf_file.find_scaling):
    """One wave that is off by a thousandth is another rule; a 20,000th is the rounding of another program."""
    config = replace(CONFIG, d_model=256, rope_theta=5e5)
    waves = published(8.0, 64, 5e5)
    find_scaling({"rope_freqs.weight": lambda: waves * (1 + 5e-5 * (waves < 8))}, config)
    for i in (0, len(waves) // 2):
        other = waves.clone()
        other[i] *= 1.001
        with pytest.raises(MiniftError, match="rope_freqs.weight"):
            find_scaling({"rope_freqs.weight": lambda other=other: other}, config)
