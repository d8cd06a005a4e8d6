"""A .gguf file, llama.cpp's: one file with sizes, tokenizer and weights of a Llama, mostly in 4 to 8 bits each.

Header, metadata (name, type, value), one line a tensor (name, sizes, type, offset), then the tensors' blocks, as ggml's
docs/gguf.md says. The `gguf` package (requirements-real.txt) turns blocks of small integers back into numbers, a few
thousand rows at a time. Left out: other architectures, big-endian files, models split into several files.
"""

import math
import mmap
import struct
from functools import partial

import numpy as np
import torch

from minift.core.attention import stretch
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError

ROWS = 4096             # dequantised at once: its temporaries stay small beside the model
FREQUENCIES = "rope_freqs.weight"       # how Llama 3.1 and later tell by how much each rotary wave is stretched
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAGIC = int.from_bytes(b"GGUF", "little")


class Reader:
    """The numbers and strings of a file, one after the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, letter):
        """A number of the type that struct calls by this letter."""
        value, = struct.unpack_from("<" + letter, self.data, self.at)
        self.at += struct.calcsize(letter)
        return value

    def string(self):
        size = self.number("Q")
        self.at += size
        if self.at > len(self.data):
            raise ValueError("a string goes beyond the end")
        return self.data[self.at - size:self.at].decode("utf-8")

    def value(self, kind):
        """A metadata value; a list for an array."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, size = self.number("I"), self.number("Q")
            return [self.value(kind) for _ in range(size)]
        return self.number(SCALARS[kind])

    def header(self):
        """(metadata name -> value, tensor name -> (shape, type, offset of its first byte))."""
        if self.number("I") != MAGIC or self.number("I") not in (2, 3):
            raise ValueError("it does not begin as versions 2 and 3 do")
        n_tensor, n_field = self.number("Q"), self.number("Q")
        fields = {self.string(): self.value(self.number("I")) for _ in range(n_field)}
        tensors = {}
        for _ in range(n_tensor):
            name = self.string()
            sizes = [self.number("Q") for _ in range(self.number("I"))]      # the fastest-running first
            tensors[name] = sizes[::-1], self.number("I"), self.number("Q")
        align = fields.get("general.alignment", 32)
        start = -(-self.at // align) * align
        return fields, {name: (shape, kind, start + offset) for name, (shape, kind, offset) in tensors.items()}


def open_gguf(path):
    """(metadata name -> value, tensor name -> a function that reads it) of a .gguf file."""
    try:
        import gguf
    except ImportError as error:
        raise MiniftError(f"{path} needs the package gguf: pip install -r requirements-real.txt") from error
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        fields, tensors = Reader(data).header()
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise MiniftError(f"{path} is truncated, corrupted or not a .gguf file ({error})") from error
    return fields, {name: partial(read_tensor, name, *place, data, gguf, path) for name, place in tensors.items()}


def read_tensor(name, shape, kind, offset, data, gguf, path):
    """One tensor as float32. shape: its rows last; kind: of its blocks; offset: where the first begins in data."""
    try:
        kind = gguf.GGMLQuantizationType(kind)
        n_value, n_byte = gguf.GGML_QUANT_SIZES[kind]                        # of one block
        rows, width = math.prod(shape[:-1]), shape[-1] // n_value * n_byte
        blocks = np.frombuffer(data, np.uint8, rows * width, offset).reshape(rows, width)
        out = torch.empty(rows, shape[-1])
        for i in range(0, rows, ROWS):
            out[i:i + ROWS] = torch.from_numpy(gguf.dequantize(blocks[i:i + ROWS], kind).copy())
    except NotImplementedError as error:
        raise MiniftError(f"{path}: {name} is stored as {kind.name}, which the package gguf cannot read back; take a "
                          "file of another kind (F16, Q8_0, Q4_K)") from error
    except ValueError as error:
        raise MiniftError(f"{path} is truncated or corrupted at {name} ({error})") from error
    return out.view(shape)


def read_gguf_sizes(fields, tensors, path):
    """(TransformerConfig, whether the output layer is tied) from a .gguf file's metadata."""
    if fields.get("general.architecture") != "llama" or fields.get("llama.expert_count"):
        raise MiniftError(f"{path}: a .gguf file of the architecture {fields.get('general.architecture')!r}"
                          f"{' with experts' * bool(fields.get('llama.expert_count'))}; minift reads llama")
    sizes = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    try:
        d_head = sizes["embedding_length"] // sizes["attention.head_count"]
        if sizes.get("rope.dimension_count", d_head) != d_head or sizes.get("rope.scaling.type", "none") != "none":
            raise MiniftError("its rotary positions are of a kind that minift does not have")
        theta = shortest(sizes.get("rope.freq_base", 10000.0))
        config = TransformerConfig(
            sizes.get("vocab_size") or len(fields["tokenizer.ggml.tokens"]), sizes["context_length"],
            sizes["block_count"], sizes["attention.head_count"], sizes["embedding_length"],
            sizes["feed_forward_length"], n_kv_head=sizes.get("attention.head_count_kv"),
            norm_eps=shortest(sizes["attention.layer_norm_rms_epsilon"]), rope_theta=theta,
            rope_scaling=scaling_of(tensors, d_head, theta))
    except KeyError as error:
        raise MiniftError(f"{path} lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise MiniftError(f"{path}: {error}") from error
    return config, "output.weight" not in tensors


def shortest(value):
    """A float32 number as it was meant: 1e-05, not 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def scaling_of(tensors, d_head, theta):
    """rope_scaling: the file holds its effect only, so the numbers of Llama 3.1 and 3.2 are tried."""
    if FREQUENCIES not in tensors:
        return None
    stretched = tensors[FREQUENCIES]()
    scaling = (float(stretched.max()), 1.0, 4.0, 8192.0)
    if not torch.allclose(stretch_of(scaling, d_head, theta), stretched, rtol=1e-4, atol=0):
        raise MiniftError(f"its {FREQUENCIES} are not those of Llama 3.1 or 3.2; take the model's safetensors")
    return scaling


def stretch_of(scaling, d_head, theta):
    """What FREQUENCIES holds for a rope_scaling."""
    return stretch(1.0 / theta ** (torch.arange(0, d_head, 2) / d_head), *scaling)
