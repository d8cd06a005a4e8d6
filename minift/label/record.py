"""People's decisions on disk: rows in two JSONL files.

A decision goes into the file of --out. A tie or a skip, which training must not see, goes into NAME.undecided.jsonl
beside it. A change rewrites one of the two files atomically and flushes it to the disk. So if the program is killed, no
confirmed decision is lost and no line is cut. There is no other state: to resume is to read the files. Left out: more
than about ten thousand rows (each decision writes the whole file), two servers on one file (the second to write is
refused).
"""

import os
from pathlib import Path

from minift.errors import MiniftError
from minift.text.jsonl import read_jsonl, write_jsonl


def sibling(path, kind):
    """prefs.jsonl -> prefs.KIND.jsonl, in the same folder."""
    path = Path(path)
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.{kind}.jsonl")


class Record:
    """The rows of a file and of its sibling for undecided ones, in order of time.

    required: keys that every row of an existing file must have. Rows from other programs stay as they are. Only one
    thread may use a Record at a time.
    """

    def __init__(self, path, required):
        self.paths = {True: Path(path), False: sibling(path, "undecided")}
        keys = {True: required, False: ("annotator", "id", "verdict")}
        # (row, decided) pairs, in order of time.
        found = []
        for decided, path in self.paths.items():
            found += [(row, decided) for row in read(path, keys[decided])]
        self.entries = sorted(found, key=lambda entry: str(entry[0].get("time", "")))
        self.stamps = {decided: stamp(path) for decided, path in self.paths.items()}

    def of(self, annotator):
        """[(row, decided)] of one person, the oldest first."""
        return [entry for entry in self.entries if entry[0].get("annotator") == annotator]

    def add(self, row, decided):
        """Append a row; it is on the disk when this returns. If that fails: MiniftError, and nothing has changed."""
        self.save([*self.entries, (row, decided)], decided)

    def remove(self, entry):
        """Take one (row, decided) of `entries` out again."""
        self.save([other for other in self.entries if other is not entry], entry[1])

    def save(self, entries, decided):
        """Write the file of the decided, or of the undecided, among `entries`; these are the entries from now on."""
        path = self.paths[decided]
        if stamp(path) != self.stamps[decided]:
            raise MiniftError(
                f"{path} was changed by another program, so nothing was saved; stop this server and "
                "start it again with the same command")
        write_jsonl(path, [row for row, kind in entries if kind == decided])
        self.entries, self.stamps[decided] = entries, stamp(path)
        sync(path.parent)


def read(path, required):
    """The rows of a file; none when it is missing or empty (as undoing the only decision leaves it)."""
    return read_jsonl(path, required) if path.exists() and path.stat().st_size else []


def stamp(path):
    """(time, size, number) of a file, which differ after another program has written it; None when there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def sync(folder):
    """Flush a folder, so that a new file name in it also survives a power cut. Windows has no such call."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MiniftError(f"{folder} cannot be flushed to the disk: {error.strerror}; choose another place") from error
