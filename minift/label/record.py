"""What people have decided, on the disk: rows in two JSONL files that are whole at any moment.

A decision goes into the file that was asked for. A tie or a skip, which training must not see, goes into
NAME.undecided.jsonl beside it. A change rewrites one of the two, atomically and flushed to the disk, so a kill at any
moment loses nothing that was confirmed and leaves no half line; the files are all the state there is, and reading them
is resuming. Left out: more than some ten thousand rows (each decision writes the whole file), two servers on one file
(the second to write is refused).
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
    """The rows of a file and of its sibling for what was left undecided, in the order in which they were made.

    required: keys that every row of the file must have, if there is a file already. Rows that somebody else put there
    stay as they are. Only one thread may use it at a time.
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
        """Append a row; it is on the disk when this returns. Raises MiniftError, nothing changed, when it cannot be."""
        self.save([*self.entries, (row, decided)], decided)

    def remove(self, entry):
        """Take one (row, decided) of `entries` out again."""
        self.save([other for other in self.entries if other is not entry], entry[1])

    def save(self, entries, decided):
        """Write the file of all (un)decided entries; then they are the entries."""
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
    """What changes when somebody writes the file: (time, size, number), or None when there is no file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def sync(folder):
    """Flush a folder, so that the new name of a file in it outlives a power cut too; Windows has no such call."""
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
