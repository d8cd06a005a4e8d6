"""A .gguf file of llama.cpp: one file with sizes, tokenizer and weights of a Llama, mostly in 4 to 8 bits a number.

A header, metadata (name, type, value), one entry a tensor (name, sizes, type, offset), then the tensors' blocks, as
ggml's docs/gguf.md says. The `gguf` package (requirements-real.txt) turns blocks back into numbers, a few thousand rows
at a time. Its own GGUFReader is not used: on SmolLM2 it takes 2 seconds and 160 MB where `Header` takes 0.07 seconds
and 10 MB, and a wrong length of an array can make it loop for ever. Left out: other architectures, big-endian files,
models split into several files.
"""

import math
import mmap
import struct
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from minift.core.attention import stretch
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats.settings import explain_errors, require

# How many rows are dequantized at once; so few need little memory besides the model.
ROWS = 4096
# By how much each rotary wave is stretched, in Llama 3.1 and later.
FREQUENCIES = "rope_freqs.weight"
# ggml's types of metadata values, of the scalar ones with struct's letter, and its kinds of tokens.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
NORMAL, CONTROL, ADDED, UNUSED = 1, 3, 4, 5
# Our field -> its name in the metadata, all whole numbers.
SIZES = {
    "vocab_size": "llama.vocab_size",
    "context_length": "llama.context_length",
    "n_layer": "llama.block_count",
    "d_model": "llama.embedding_length",
    "d_ff": "llama.feed_forward_length",
    "n_head": "llama.attention.head_count",
    "n_kv_head": "llama.attention.head_count_kv"}
ROTARY_WIDTH, THETA = "llama.rope.dimension_count", "llama.rope.freq_base"
NORM_EPS = "llama.attention.layer_norm_rms_epsilon"


class Header:
    """Reads the values at the beginning of a file, one after the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def unpack(self, letter):
        """One value; letter: its type, as in Python's module struct."""
        value, = struct.unpack_from("<" + letter, self.data, self.at)
        self.at += struct.calcsize(letter)
        return value

    def string(self):
        """A string: its length in bytes, then UTF-8."""
        size = self.unpack("Q")
        return self.unpack(f"{size}s").decode("utf-8")

    def value(self, kind):
        """A metadata value; a list for an array."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, size = self.unpack("I"), self.unpack("Q")
            return [self.value(kind) for _ in range(size)]
        return self.unpack(SCALARS[kind])

    def read(self):
        """(metadata name -> value, tensor name -> (shape, type, offset of its first byte))."""
        if self.unpack("4s") != b"GGUF" or self.unpack("I") not in (2, 3):
            raise ValueError("it does not begin as versions 2 and 3 do")
        n_tensor, n_field = self.unpack("Q"), self.unpack("Q")
        fields, tensors = {}, {}
        for _ in range(n_field):
            name = self.string()
            fields[name] = self.value(self.unpack("I"))
        for _ in range(n_tensor):
            name = self.string()
            # Columns come first.
            sizes = [self.unpack("Q") for _ in range(self.unpack("I"))]
            tensors[name] = sizes[::-1], self.unpack("I"), self.unpack("Q")
        # Offsets count from the first multiple of the alignment after the header.
        align = fields.get("general.alignment", 32)
        start = math.ceil(self.at / align) * align
        return fields, {name: (shape, kind, start + offset) for name, (shape, kind, offset) in tensors.items()}


def import_gguf(path):
    """The package gguf; MiniftError when it is not installed. path: the file that needs it."""
    try:
        import gguf
    except ImportError as error:
        raise MiniftError(f"{path} needs the package gguf: pip install -r requirements-real.txt") from error
    return gguf


def open_gguf(path):
    """(metadata name -> value, tensor name -> a function that reads it) of a .gguf file."""
    gguf = import_gguf(path)
    with explain_errors(path):
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        fields, places = Header(data).read()
    tensors = {}
    for name, place in places.items():
        tensors[name] = partial(read_tensor, gguf, data, place, f"{path}: {name}")
    return fields, tensors


def read_tensor(gguf, data, place, where):
    """One tensor as float32. place: (shape, rows last in it; type of its blocks; offset of the first one in data)."""
    shape, kind, offset = place
    with explain_errors(where):
        kind = gguf.GGMLQuantizationType(kind)
        block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = math.prod(shape[:-1]), shape[-1]
        # Bytes of a row.
        width = columns // block_values * block_bytes
        blocks = np.frombuffer(data, np.uint8, rows * width, offset).reshape(rows, width)
        tensor = torch.empty(rows, columns)
        for i in range(0, rows, ROWS):
            numbers = gguf.dequantize(blocks[i:i + ROWS], kind)
            tensor[i:i + ROWS] = torch.from_numpy(numbers.copy())
    return tensor.view(shape)


def read_sizes(fields, tensors, path):
    """(TransformerConfig, whether the output layer is tied) from a .gguf file's metadata."""
    require(path, fields, {"general.architecture": "llama", "llama.expert_count": (None, 0)})
    fields = {SIZES["n_kv_head"]: None, THETA: 10000.0, **fields}
    with explain_errors(path):
        if not fields.get(SIZES["vocab_size"]):
            fields[SIZES["vocab_size"]] = len(fields["tokenizer.ggml.tokens"])
        sizes = {field: fields[name] for field, name in SIZES.items()}
        sizes |= {"rope_theta": round_float32(fields[THETA]), "norm_eps": round_float32(fields[NORM_EPS])}
        config = TransformerConfig(**sizes)
        require(path, fields, {ROTARY_WIDTH: (None, config.d_head), "llama.rope.scaling.type": (None, "none")})
        config = replace(config, rope_scaling=find_scaling(tensors, config))
    return config, "output.weight" not in tensors


def round_float32(value):
    """A float32 number as it was written in decimal: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def find_scaling(tensors, config):
    """rope_scaling. The file has only its effect on each wave, so the numbers of Llama 3.1 and 3.2 are tried."""
    if FREQUENCIES not in tensors:
        return None
    stretched = tensors[FREQUENCIES]()
    scaling = (float(stretched.max()), 1.0, 4.0, 8192.0)
    expected = stretch_waves(replace(config, rope_scaling=scaling))
    if not torch.allclose(expected, stretched, rtol=1e-4, atol=0):
        raise MiniftError(f"its {FREQUENCIES} are not those of Llama 3.1 or 3.2; take the model's safetensors")
    return scaling


def stretch_waves(config):
    """What FREQUENCIES holds for a config with rope_scaling: (E/2,)."""
    exponent = torch.arange(0, config.d_head, 2) / config.d_head
    return stretch(1.0 / config.rope_theta ** exponent, *config.rope_scaling)
