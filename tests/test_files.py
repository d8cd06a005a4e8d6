import json
import math
import os
import pickle
import random
import struct
import sys

import pytest
import safetensors.torch
import torch
from children import kill_while, posix, start

from minift.core import files
from minift.errors import MiniftError


def example():
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(3, 4, generator=generator), "b": torch.randn(3, 4, generator=generator),
            "half": torch.randn(5, generator=generator).half(), "brain": torch.randn(5, generator=generator).bfloat16(),
            "double": torch.randn(2, generator=generator, dtype=torch.float64), "ids": torch.arange(3),
            "bool": torch.tensor([True, False]), "bytes": torch.arange(5, dtype=torch.uint8),
            "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "nan": torch.tensor([float("nan"), float("inf")]),
            "x" * 40: torch.ones(1)}


METADATA = {"text": "Zoë 你 \u2028", "nested": {"list": [1, 2.5, None, True]}, "tiny": 5e-324, "third": 1 / 3,
            "inf": math.inf}


def same_bits(a, b):
    return (a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)))


def split(data):
    """A safetensors file as (header, tensor data)."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_tensors_and_metadata_come_back_bit_equal(
    tmp_path, write_tensors=files.write_tensors, read_tensors=files.read_tensors
):
    """What is read is what was written, to the bit, for every type and shape, NaN and infinity included."""
    write_tensors(tmp_path / "t.safetensors", example(), METADATA)
    tensors, metadata = read_tensors(str(tmp_path / "t.safetensors"))
    assert metadata == METADATA
    assert tensors.keys() == example().keys()
    for name, tensor in example().items():
        assert same_bits(tensors[name], tensor), name


def test_views_are_written_as_what_they_show(
    tmp_path, write_tensors=files.write_tensors, read_tensors=files.read_tensors
):
    """Transposed, sliced, shared and grad-requiring tensors are stored as their values, each on its own."""
    base = torch.arange(12.0, requires_grad=True)
    views = {"all": base, "again": base, "part": base[3:5], "turned": base.view(3, 4).T, "step": base[::5]}
    write_tensors(tmp_path / "v", views, {})
    tensors, _ = read_tensors(tmp_path / "v")
    for name, view in views.items():
        assert torch.equal(tensors[name], view.detach()), name
    assert base.requires_grad


def test_the_file_is_a_plain_safetensors_file(tmp_path, write_tensors=files.write_tensors):
    """The safetensors library reads the same tensors, and finds the "format": "pt" that others look for."""
    write_tensors(tmp_path / "t", example(), METADATA)
    tensors = safetensors.torch.load_file(tmp_path / "t")
    assert all(same_bits(tensors[name], tensor) for name, tensor in example().items())
    with safetensors.safe_open(tmp_path / "t", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_every_flipped_byte_is_noticed(tmp_path, write_tensors=files.write_tensors, read_tensors=files.read_tensors):
    """Flip all bits of any one byte, in the header, the metadata or the data: MiniftError that names the file."""
    file = tmp_path / "t.safetensors"
    write_tensors(file, {"a": torch.randn(5), "b": torch.arange(3), "c": torch.ones(2, dtype=torch.bool)}, {"step": 3})
    data = file.read_bytes()
    for i in range(len(data)):
        file.write_bytes(data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :])
        with pytest.raises(MiniftError) as error:
            read_tensors(file)
        assert str(file) in str(error.value), i


def test_every_flipped_bit_is_noticed_or_harmless(
    tmp_path, write_tensors=files.write_tensors, read_tensors=files.read_tensors
):
    """Flip the lowest bit of any one byte: MiniftError that names the file, or exactly the same contents."""
    file = tmp_path / "t.safetensors"
    original = {"a": torch.randn(5), "b": torch.arange(3), "c": torch.ones(2, dtype=torch.bool)}
    write_tensors(file, original, {"step": 3})
    data, harmless = file.read_bytes(), 0
    for i in range(len(data)):
        file.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        try:
            tensors, metadata = read_tensors(file)
            harmless += 1
            assert metadata == {"step": 3} and tensors.keys() == original.keys()
            assert all(same_bits(tensors[name], original[name]) for name in original)
        except MiniftError as error:
            assert str(file) in str(error)
    assert harmless < 10


def test_every_truncation_is_noticed(tmp_path, write_tensors=files.write_tensors, read_tensors=files.read_tensors):
    """However much of the file's end is missing, and when something is appended: MiniftError that names the file."""
    file = tmp_path / "t.safetensors"
    write_tensors(file, {"a": torch.randn(7), "b": torch.arange(3)}, {"step": 3})
    data = file.read_bytes()
    for contents in [data[:n] for n in range(0, len(data), 3)] + [data[:-1], data + b"\0"]:
        file.write_bytes(contents)
        with pytest.raises(MiniftError, match="t.safetensors"):
            read_tensors(file)


def test_changed_headers_are_noticed(tmp_path, write_tensors=files.write_tensors, read_tensors=files.read_tensors):
    """The checksum covers names, types, shapes and metadata: each change of a valid header is noticed as corruption."""
    file = tmp_path / "t.safetensors"
    write_tensors(file, {"a": torch.randn(2, 3), "b": torch.randn(2, 3)}, {"step": 3})
    original = file.read_bytes()

    def swap_names(header):
        header["a"], header["b"] = header["b"], header["a"]

    def reshape(header):
        header["a"]["shape"] = [3, 2]

    def retype(header):
        header["a"]["dtype"] = "I32"

    def edit_metadata(header):
        header["__metadata__"]["minift"] = header["__metadata__"]["minift"].replace('"step": 3', '"step": 4')

    for change in (swap_names, reshape, retype, edit_metadata):
        header, data = split(original)
        change(header)
        assert header != split(original)[0]
        file.write_bytes(join(header, data))
        with pytest.raises(MiniftError, match="corrupted.*checksum"):
            read_tensors(file)
    file.write_bytes(join(*split(original)))
    read_tensors(file)


@pytest.mark.parametrize(
    "contents, says",
    [(b"", "empty"), (b"hello, I am text\n" * 9, "not a safetensors"), (b"\0" * 64, "not a safetensors"),
     (b"\xff" * 64, "not a safetensors"), (b"PK\x03\x04" + b"\0" * 99, "not a safetensors")],
)
def test_other_files_are_refused(tmp_path, contents, says, read_tensors=files.read_tensors):
    """An empty file, a text, zeros, a zip archive: MiniftError that names the file and says what it is not."""
    file = tmp_path / "t.safetensors"
    file.write_bytes(contents)
    with pytest.raises(MiniftError, match=says) as error:
        read_tensors(file)
    assert str(file) in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path, read_tensors=files.read_tensors):
    """No such file, or a folder in its place: MiniftError that names it."""
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(MiniftError, match=str(path.name)):
            read_tensors(path)


class Malicious:
    """A pickle of this writes a file as soon as it is loaded."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return open, (self.canary, "w")


def test_a_pickle_is_never_run(tmp_path, read_tensors=files.read_tensors):
    """A pickle, bare or made by torch.save, under a safetensors name: MiniftError, and its payload did not run."""
    canary, file = tmp_path / "canary", tmp_path / "model.safetensors"
    file.write_bytes(pickle.dumps(Malicious(str(canary))))
    with pytest.raises(MiniftError, match="model.safetensors"):
        read_tensors(file)
    torch.save({"x": Malicious(str(canary))}, file)
    with pytest.raises(MiniftError, match="model.safetensors"):
        read_tensors(file)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Malicious(str(canary)))).close()
    assert canary.exists()  # the payload does work


def test_foreign_safetensors_only_when_asked_for(tmp_path, read_tensors=files.read_tensors):
    """A safetensors file of another program is refused, or read with its own metadata when foreign=True says so."""
    file = tmp_path / "t.safetensors"
    safetensors.torch.save_file({"a": torch.arange(3)}, file, metadata={"who": "else"})
    with pytest.raises(MiniftError, match="did not write"):
        read_tensors(file)
    tensors, metadata = read_tensors(file, foreign=True)
    assert torch.equal(tensors["a"], torch.arange(3)) and metadata == {"who": "else"}
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(MiniftError, match="t.safetensors"):
        read_tensors(file, foreign=True)


def test_a_newer_version_is_refused(tmp_path, write_tensors=files.write_tensors, read_tensors=files.read_tensors):
    """A file of a later format version is a MiniftError that says to update."""
    file = tmp_path / "t.safetensors"
    write_tensors(file, {"a": torch.arange(3)}, {})
    header, data = split(file.read_bytes())
    inner = json.loads(header["__metadata__"]["minift"])
    header["__metadata__"]["minift"] = json.dumps({**inner, "version": inner["version"] + 1})
    file.write_bytes(join(header, data))
    with pytest.raises(MiniftError, match="version 2.*update"):
        read_tensors(file)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch, write_text=files.write_text):
    """When the disk fails or Ctrl-C comes before the file is complete, the old one stays and no other file is left."""
    file = tmp_path / "notes.txt"
    write_text(file, "old")
    for failure, expected in ((KeyboardInterrupt, KeyboardInterrupt), (OSError(5, "Input/output error"), MiniftError)):

        def fail(*args, failure=failure):
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(expected):
                write_text(file, "new" * 1000)
        assert file.read_text(encoding="utf-8") == "old"
        assert os.listdir(tmp_path) == ["notes.txt"]
    write_text(file, "new")
    assert file.read_text(encoding="utf-8") == "new"


def save_beyond_the_limit(file):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        files.write_tensors(file, {"a": torch.ones(10_000)}, {})
    except MiniftError as error:
        sys.exit(0 if "no space" in str(error) and str(file) in str(error) else 3)
    sys.exit(4)


@posix
def test_a_full_disk_keeps_the_old_file(tmp_path):
    """A file larger than what may be written: MiniftError "no space", the old file whole, nothing left behind."""
    file = tmp_path / "t.safetensors"
    files.write_tensors(file, {"a": torch.arange(3)}, {"old": True})
    child = start(save_beyond_the_limit, file)
    child.join(60)
    assert child.exitcode == 0
    assert files.read_tensors(file)[1] == {"old": True}
    assert os.listdir(tmp_path) == ["t.safetensors"]


def save_for_ever(file, ready):
    for i in range(1, 10_000):
        files.write_tensors(file, {"a": torch.full((300_000,), float(i))}, {"step": i})
        if i == 1:
            ready.touch()


@posix
def test_a_killed_save_leaves_a_complete_file(tmp_path):
    """A process killed at any moment of repeated saves leaves the last complete file, and the next save works."""
    file, ready, rng = tmp_path / "saved" / "t.safetensors", tmp_path / "ready", random.Random(0)
    for _ in range(8):
        kill_while(save_for_ever, file, ready, ready=ready, rng=rng, within=0.03)
        tensors, metadata = files.read_tensors(file)
        assert (tensors["a"] == metadata["step"]).all()
    files.write_tensors(file, {"a": torch.ones(1)}, {})
    assert os.listdir(file.parent) == ["t.safetensors"]


def test_folders_are_made_and_impossible_places_named(tmp_path, write_text=files.write_text):
    """Missing parent folders are made; a folder, or a path below a file, cannot be written: MiniftError."""
    write_text(tmp_path / "a" / "b" / "c.txt", "line\nline\r\nÜ\u2028")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "line\nline\r\nÜ\u2028".encode()
    for place in (tmp_path / "a", tmp_path / "a" / "b" / "c.txt" / "d.txt"):
        with pytest.raises(MiniftError, match=place.name):
            write_text(place, "x")
    assert sorted(os.listdir(tmp_path)) == ["a"]
    with pytest.raises(MiniftError, match="surrogate"):
        write_text(tmp_path / "x", "\ud800")


def test_json_comes_back(tmp_path, write_json=files.write_json, read_json=files.read_json):
    """An object written as JSON is read back equal; a broken, binary or missing file is a MiniftError that names it."""
    write_json(tmp_path / "x.json", METADATA)
    assert read_json(tmp_path / "x.json") == METADATA == json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    for contents in (b"{", b"", b"\xff", b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(contents)
        with pytest.raises(MiniftError, match="x.json"):
            read_json(tmp_path / "x.json")
    with pytest.raises(MiniftError, match="y.json"):
        read_json(tmp_path / "y.json")
