"""Files that are complete or absent: atomic writing, and tensors with a checksum.

A file is written under a temporary name in the same folder, flushed to the disk and then renamed. So a crash leaves the
old file or the new one, never half of one. Tensors go into safetensors files, which hold data only: nothing in them can
run. A checksum covers names, types, shapes, values and metadata, because one flipped bit would otherwise load as a
wrong number. Left out: sharded files.
"""

import errno
import hashlib
import json
import os
from pathlib import Path

import safetensors.torch
import torch

from minift.errors import MiniftError

VERSION = 1
# The data/ folder of the repository: the small models, the instruction data, the results of the studies.
DATA = Path(__file__).resolve().parents[2] / "data"
NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def check_data_folder(purpose):
    """MiniftError where minift was installed without the repository's data/. purpose: what needs it ("the tour")."""
    if not (DATA / "base").is_dir():
        raise MiniftError(
            f"{purpose} needs the folder data/ of minift's repository, which an installed package does "
            "not have; clone the repository and run the command there")


def write_bytes(path, data):
    """Write a file atomically: the old contents stay until the new ones are complete and on the disk.

    The temporary file has one fixed name, so that one left over by a killed process is overwritten by the next save.
    Raises MiniftError when there is no space or no permission; no temporary file is left then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        remove(temporary)
        if error.errno in NO_SPACE:
            raise MiniftError(f"no space to write {path} ({len(data)} bytes); make room, or move") from error
        raise MiniftError(f"cannot write {path}: {error.strerror}; choose another place") from error
    # Any other interruption, such as Ctrl-C.
    except BaseException:
        remove(temporary)
        raise


def remove(path):
    try:
        path.unlink()
    except OSError:
        pass


def write_text(path, text):
    """Write a text file atomically, as UTF-8, with its newlines unchanged."""
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MiniftError(f"cannot write {path}: character {error.start} is a lone surrogate; remove it") from error
    write_bytes(path, data)


def write_json(path, obj):
    """Write a JSON file atomically."""
    write_text(path, json.dumps(obj, indent=1, ensure_ascii=False) + "\n")


def read_bytes(path):
    """The bytes of a file; MiniftError when there is none or it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MiniftError(f"cannot read {path}: {error.strerror}; is the path right?") from error


def read_json(path):
    """The contents of a JSON file; MiniftError when it is missing, or is not JSON."""
    data = read_bytes(path)
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MiniftError(f"{path} is corrupted or not JSON: {error}") from error


def digest(tensors, metadata):
    """sha256 over the metadata and each tensor's name, type, shape and bytes, as hex; their order does not matter."""
    sha = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        raw = tensor.reshape(-1).view(torch.uint8)
        sha.update(raw.numpy())
    return sha.hexdigest()


def write_tensors(path, tensors, metadata):
    """Write named tensors and JSON-able metadata into one safetensors file, atomically, with a checksum.

    tensors: name -> tensor, on any device; tensors that share memory are stored as separate copies.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses tensors that share memory: all but the first are copied.
    storages = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in storages:
            tensors[name] = tensor.clone()
        storages.add(storage)
    metadata = json.loads(json.dumps(metadata))
    header = {"format": "minift-tensors", "version": VERSION, "sha256": digest(tensors, metadata), "metadata": metadata}
    # The library transformers looks for "format": "pt".
    write_bytes(
        path, safetensors.torch.save(tensors, metadata={"format": "pt", "minift": json.dumps(header)}))


def read_tensors(path, foreign=False):
    """Read what write_tensors wrote: (tensors, metadata); MiniftError when one bit of it has changed.

    foreign: also take a safetensors file of another program, which has no checksum; its metadata come as they are.
    """
    # Read the tensors and the header.
    data = read_bytes(path)
    if not data:
        raise MiniftError(f"{path} is empty; the disk may have been full when it was written")
    try:
        size = int.from_bytes(data[:8], "little")
        strings = json.loads(data[8:8 + size]).get("__metadata__", {})
        tensors = safetensors.torch.load(data)
        header = json.loads(strings["minift"]) if "minift" in strings else None
    # A damaged file can make the parsers raise any exception.
    except Exception as error:
        raise MiniftError(f"{path} is truncated, corrupted or not a safetensors file ({error})") from error
    # Check who wrote it, in which version, and that no bit has changed.
    if header is None and foreign:
        return tensors, strings
    if not isinstance(header, dict) or header.get("format") != "minift-tensors":
        raise MiniftError(f"{path} is a safetensors file, but minift did not write it")
    if header.get("version") != VERSION:
        raise MiniftError(
            f"{path} has format version {header.get('version')}, this minift reads version {VERSION}; "
            "update minift")
    if digest(tensors, header.get("metadata")) != header.get("sha256"):
        raise MiniftError(
            f"{path} is corrupted: its contents do not match their checksum; restore it from a copy")
    return tensors, header["metadata"]
