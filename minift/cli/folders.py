"""Check the place of --out before any work is done, clear it, and write the command as a user would type it."""

from pathlib import Path

from minift.core.files import read_json, remove, write_text
from minift.errors import MiniftError

OURS = (
    "config.json", "model.safetensors", "tokenizer.json", "adapter_config.json", "adapter_model.safetensors",
    "run.json", "metrics.jsonl", "state.safetensors", "tokenizer_config.json", "model-f16.gguf")


def check_out(out, resume=False, overwrite=False, sources=()):
    """MiniftError unless the folder `out` can be used: it is new or empty, or one of the two arguments allows it.

    overwrite: it may have files. resume: it must hold a stopped run. sources: folders that are read from and must not
    be overwritten.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise MiniftError(f"--out {out} is a file; name a folder")
    if any(out.resolve() == Path(source).resolve() for source in sources):
        raise MiniftError(f"--out {out} is where the model is read from; name another folder")
    if resume:
        check_resumable(out)
    elif out.exists() and any(out.iterdir()) and not overwrite:
        raise MiniftError(
            f"--out {out} is not empty; name another folder, write over it with --overwrite, or, if a "
            "run was stopped there, go on with --resume")
    check_writable(out / "run.json.try")


def check_resumable(out):
    """MiniftError unless the folder holds a run that was stopped."""
    record = out / "run.json"
    if record.is_file() and (out / "state.safetensors").is_file():
        return
    if record.is_file() and read_json(record).get("status") == "finished":
        raise MiniftError(f"--resume: the run in {out} is finished; there is nothing to go on with")
    raise MiniftError(f"--resume: {out} holds no run that was stopped; leave --resume out to begin one")


def check_out_file(path, overwrite=False):
    """The same for a single file to write."""
    path = Path(path)
    if path.is_dir():
        raise MiniftError(f"--out {path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise MiniftError(f"--out {path} exists; name another file, or write over it with --overwrite")
    check_writable(path.with_name(f"{path.name}.try"))


def check_writable(path):
    """MiniftError unless a file can be written at `path`; it is removed again."""
    write_text(path, "")
    remove(path)


def clear(out):
    """Remove from a folder what an earlier run wrote there, and nothing else."""
    for name in OURS:
        remove(Path(out) / name)


def command(argv):
    """The command as one types it, in bash as in PowerShell."""
    words = [f'"{word}"' if not word or set(word) & set(" *?[]{}()'&;|<>$`") else word for word in argv]
    return " ".join(["python -m minift", *words])
