"""Files that the `gguf` package writes, opened here: each kind of block, permuted rows, and what is refused.

Needs the gguf package (requirements-real.txt); without it every test here is skipped, and says so.
"""

import numpy as np
import pytest
import torch

from minift.core.attention import stretch
from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats import gguf_file, pretrained
from minift.formats.pretrained import locate
from tests.children import peak_while

gguf = pytest.importorskip("gguf", reason="gguf is missing: pip install -r requirements-real.txt")
KIND = gguf.GGMLQuantizationType
CONFIG = TransformerConfig(262, 64, 2, 8, 256, 256, n_kv_head=4, rope_theta=5e5)
NAMES = {"attn.q_proj": "attn_q", "attn.k_proj": "attn_k", "attn.v_proj": "attn_v", "attn.o_proj": "attn_output",
         "attn_norm": "attn_norm", "mlp_norm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down"}
IDS = torch.tensor([[1, 5, 3, 200, 8, 4]])


def byte_tokens():
    """The printable names that GPT-2 gives the 256 bytes."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in prints else chr(next(others)) for b in range(256)]


def permute(weight, n_head):
    """As llama.cpp's converter stores q and k: first and second halves of a head's rows in turn."""
    return weight.reshape(n_head, 2, weight.shape[0] // n_head // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def model(tied=False):
    torch.manual_seed(0)
    made = LanguageModel(CONFIG, tied).eval()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(5) if p.ndim == 2 else p.add_(0.2 * torch.randn(p.shape))
    return made


def tensors_of(made):
    """llama.cpp's name -> numpy array, written out."""
    found = {"token_embd.weight": made.body.embed.weight, "output_norm.weight": made.body.norm.weight}
    if made.head.weight is not made.body.embed.weight:
        found["output.weight"] = made.head.weight
    for i, layer in enumerate(made.body.layers):
        for here, there in NAMES.items():
            found[f"blk.{i}.{there}.weight"] = layer.get_submodule(here).weight
    found = {name: p.detach().numpy().copy() for name, p in found.items()}
    for name, array in found.items():
        if "attn_q" in name or "attn_k" in name:
            found[name] = permute(array, 8 if "attn_q" in name else 4)
    return found


def write(path, tensors, kind=KIND.F32, *, arch="llama", pre="gpt-2", blocks=None, merges=("t h", "th e")):
    """A .gguf file with these tensors, matrices in blocks of a kind. blocks: name -> (bytes of blocks, their kind)."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(256)
    writer.add_head_count(8)
    writer.add_head_count_kv(4)
    writer.add_rope_freq_base(5e5)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = [*byte_tokens(), "th", "the", *(f"<|{i}|>" for i in range(4))]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 258 + [3] * 4)
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(259)
    stored = {name: (array, KIND.F32) if array.ndim == 1 or kind == KIND.F32 else (gguf.quantize(array, kind), kind)
              for name, array in tensors.items()}
    for name, (array, its_kind) in (stored | (blocks or {})).items():
        writer.add_tensor(name, array, raw_dtype=its_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_model(tmp_path, tied, load_pretrained=pretrained.load_pretrained):
    """A model written with permuted rows is found again bit for bit, with its config and its tokenizer."""
    expected = model(tied)
    found, tokenizer = load_pretrained(write(tmp_path / "x.gguf", tensors_of(expected)))
    assert found.config == CONFIG and (found.head.weight is found.body.embed.weight) == tied
    for (name, p), (_, q) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    assert tokenizer.encode("the th\u0e01") == [257, 32, 256, 0xE0, 0xB8, 0x81]
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (259, 258, 262)


@pytest.mark.parametrize("kind, loss", [("F16", 1e-3), ("BF16", 1e-2), ("Q8_0", 1e-2), ("Q4_0", 0.15), ("Q4_1", 0.1)])
def test_blocks(tmp_path, kind, loss, load_pretrained=pretrained.load_pretrained):
    """Each kind of block gives the package's own numbers, and those are near the original ones."""
    expected = tensors_of(model())
    found = tensors_of(load_pretrained(write(tmp_path / "x.gguf", expected, KIND[kind]))[0])
    for name, array in expected.items():
        wanted = array if array.ndim == 1 else gguf.dequantize(gguf.quantize(array, KIND[kind]), KIND[kind])
        assert np.array_equal(found[name], wanted), name
        assert np.abs(found[name] - array).max() <= loss * np.abs(array).max()
    assert array.ndim == 1 or not np.array_equal(found[name], array)


def q4_k(block):
    """256 numbers of one block, after ggml's definition: eight groups of 32, six bits each of scale and minimum."""
    d, dmin = np.frombuffer(block[:4], np.float16).astype(float)
    s, q, out = block[4:16], block[16:], []
    for group in range(8):
        if group < 4:
            scale, least = s[group] & 63, s[group + 4] & 63
        else:
            scale = (s[group + 4] & 15) | (s[group - 4] >> 6 << 4)
            least = (s[group + 4] >> 4) | (s[group] >> 6 << 4)
        part = q[group // 2 * 32:][:32]
        out += [d * scale * (byte >> 4 if group % 2 else byte & 15) - dmin * least for byte in part]
    return out


def q6_k(block):
    """256 numbers of one block: four bits in `low`, two in `high`, less 32, in sixteen groups with a scale each."""
    low, high, scales = block[:128], block[128:192], np.frombuffer(block[192:208], np.int8).astype(int)
    d, out = float(np.frombuffer(block[208:210], np.float16)[0]), []
    for i in range(256):
        half, rest = divmod(i, 128)
        quarter, at = divmod(rest, 32)
        four = low[64 * half + 32 * (quarter % 2) + at] >> (4 * (quarter // 2)) & 15
        two = high[32 * half + at] >> (2 * quarter) & 3
        out.append(d * scales[8 * half + rest // 16] * ((four | two << 4) - 32))
    return out


@pytest.mark.parametrize("kind, size, places, decode", [("Q4_K", 144, (0, 2), q4_k), ("Q6_K", 210, (208,), q6_k)])
def test_k_blocks(tmp_path, kind, size, places, decode, load_pretrained=pretrained.load_pretrained):
    """Blocks of random bits (with scales that are numbers) are what the format's definition says, number by number."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (256, size), dtype=np.uint8)               # a row of width 256 is one block
    for place in places:
        scales = rng.uniform(0.001, 0.01, 256).astype(np.float16)
        blocks[:, place:place + 2] = scales[:, None].view(np.uint8)
    name = "blk.1.ffn_up.weight"
    path = write(tmp_path / "x.gguf", tensors_of(model()), blocks={name: (blocks, KIND[kind])})
    made, _ = load_pretrained(path)
    expected = torch.tensor([decode(row.tobytes()) for row in blocks], dtype=torch.float64)
    torch.testing.assert_close(made.body.layers[1].mlp.up_proj.weight.double(), expected, rtol=1e-5, atol=1e-7)


def test_rows_are_read_in_parts(tmp_path, monkeypatch, load_pretrained=pretrained.load_pretrained):
    """However few rows are turned into numbers at once, they are the same numbers."""
    path = write(tmp_path / "x.gguf", tensors_of(model()), KIND.Q8_0)
    whole, _ = load_pretrained(path)
    monkeypatch.setattr(gguf_file, "ROWS", 7)
    parts, _ = load_pretrained(path)
    assert torch.equal(whole(IDS), parts(IDS))


def test_rotary_frequencies(tmp_path, load_pretrained=pretrained.load_pretrained):
    """rope_freqs.weight, as Llama 3.2's files have it, becomes rope_scaling; other frequencies are refused by name."""
    frequency = 5e5 ** (-torch.arange(0, 32, 2) / 32)
    factors = stretch(frequency, 32.0, 1.0, 4.0, 8192.0)
    assert factors.min() == 1 and factors.max() == 32 and len(set(factors.tolist())) > 2
    tensors = tensors_of(model()) | {"rope_freqs.weight": factors.numpy()}
    made, _ = load_pretrained(write(tmp_path / "x.gguf", tensors))
    assert made.config.rope_scaling == (32.0, 1.0, 4.0, 8192.0)
    tensors["rope_freqs.weight"] = factors.numpy() + np.float32(0.5)
    with pytest.raises(MiniftError, match="rope_freqs.weight"):
        load_pretrained(write(tmp_path / "y.gguf", tensors))


def test_what_is_refused(tmp_path, load_pretrained=pretrained.load_pretrained):
    """Another architecture, a tensor too many or too few, a truncated file, no .gguf file: each by name."""
    tensors = tensors_of(model())
    good = write(tmp_path / "good.gguf", tensors).read_bytes()
    with pytest.raises(MiniftError, match="qwen2"):
        load_pretrained(write(tmp_path / "a.gguf", tensors, arch="qwen2"))
    with pytest.raises(MiniftError, match="attn_q.bias"):
        load_pretrained(write(tmp_path / "b.gguf", tensors | {"blk.0.attn_q.bias": np.ones(256, np.float32)}))
    with pytest.raises(MiniftError, match="no tensor blk.1.ffn_up.weight"):
        load_pretrained(write(tmp_path / "c.gguf", {k: v for k, v in tensors.items() if k != "blk.1.ffn_up.weight"}))
    for i, data in enumerate((b"", b"GGUF", b"x" * 100, good[:3000], good[:-300_000])):
        (tmp_path / f"{i}.gguf").write_bytes(data)
        with pytest.raises(MiniftError, match="is damaged"):
            load_pretrained(tmp_path / f"{i}.gguf")


def test_an_unknown_way_of_cutting_text(tmp_path, load_pretrained=pretrained.load_pretrained):
    """The weights are opened, the tokenizer is not guessed at, and a warning says so."""
    with pytest.warns(UserWarning, match="qwen2"):
        _, tokenizer = load_pretrained(write(tmp_path / "x.gguf", tensors_of(model()), pre="qwen2"))
    assert tokenizer is None


def test_a_vocabulary_out_of_order(tmp_path, load_pretrained=pretrained.load_pretrained):
    """Merges that make no token are damage; merges in another order than the ids are a tokenizer of another kind."""
    path = write(tmp_path / "x.gguf", tensors_of(model()), merges=["th e", "t h"])
    with pytest.warns(UserWarning, match="order"):
        assert load_pretrained(path)[1] is None
    with pytest.raises(MiniftError, match="is damaged"):
        load_pretrained(write(tmp_path / "y.gguf", tensors_of(model()), merges=["q q"]))


def test_memory_of_smollm2():
    """Opening SmolLM2, whose weights become 538 MB, takes at its peak at most 1.3 times that."""
    try:
        locate("smollm2")
    except MiniftError as error:
        pytest.skip(str(error))
    used = peak_while("import gguf; from minift.formats.pretrained import load_pretrained",
                      "kept = load_pretrained('smollm2')")
    assert 538e6 < used < 1.3 * 538e6
