"""Read the user's files row by row: JSON Lines in seven forms, or plain text. Patterns are expanded here.

The forms are those of TRL's datasets. An answer that is a list of messages becomes its text. A row keeps its file and
line ("train.jsonl:7"), so that later errors can name them. Left out: CSV, compressed files, reading while training (the
data of a fine-tuning run fit into memory), answers of several turns in a pair.
"""

import codecs
import glob
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from minift.core.files import read_bytes
from minift.errors import MiniftError
from minift.text.jsonl import parse_line, write_jsonl

# Form -> its keys. A row has the first form that the verb can use and whose keys are all there.
FORMS = {
    "messages": ("messages",),
    "pair": ("prompt", "chosen", "rejected"),
    "judged": ("prompt", "completion", "label"),
    "completion": ("prompt", "completion"),
    "prompt": ("prompt",),
    # A second text may stand in "text_pair".
    "label": ("text", "label"),
    "text": ("text",)}
# Keys whose values need not be strings.
TYPES = {
    "messages": (list, "a list"), "prompt": ((str, list), "a string or a list of messages"),
    "label": ((str, int), "a string or a whole number, since a label is a name")}
PLAIN_TEXT = (".txt", ".md", ".markdown")


@dataclass(frozen=True)
class Row:
    """One row of a data file; a plain text file is one row of the form "text"."""

    # "PATH:LINE", for errors.
    where: str
    # A key of FORMS.
    form: str
    values: dict

    def key(self):
        """What the row says, as one string: equal for duplicates, whatever else they carry (ids, sources)."""
        names = FORMS[self.form] + (("text_pair",) if self.form == "label" else ())
        return json.dumps([self.values.get(name) for name in names], sort_keys=True)

    def source(self):
        """What a split must keep on one side: the prompt, or the (first) text, or the whole row if it has neither."""
        name = next((name for name in ("prompt", "text") if name in FORMS[self.form]), None)
        return self.key() if name is None else json.dumps(self.values[name], sort_keys=True)


def find_files(patterns):
    """The files that the patterns name, each once, sorted within a pattern. MiniftError when a pattern names none."""
    files = []
    for pattern in patterns:
        path = Path(pattern)
        matches = [path] if path.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
        matches = [match for match in matches if match.is_file()]
        if not matches and path.is_dir():
            raise MiniftError(f"{pattern} is a folder; name its files, as {(path / '*.jsonl').as_posix()}")
        if not matches:
            raise MiniftError(f"no file matches {pattern}; is the path right, seen from {Path.cwd()}?")
        files += [match for match in matches if match not in files]
    return files


def read_rows(files, forms, bad=None):
    """All rows of some files. forms: the forms that are of use.

    bad: a list that collects the errors of bad rows, which are then left out; None raises the first one instead.
    Raises MiniftError "dataset is empty: PATH" for a file without a row.
    """
    rows = []
    for path in files:
        pieces = split(path)
        if not pieces:
            raise MiniftError(f"dataset is empty: {path}")
        for where, data in pieces:
            try:
                rows.append(read_row(where, data, is_plain(path), forms))
            except MiniftError as error:
                if bad is None:
                    raise
                bad.append(str(error))
    return rows


def put_rows(path, rows):
    """Write rows (dicts) to a JSONL file; without a path, print them."""
    if path:
        write_jsonl(path, rows)
    else:
        print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def is_plain(path):
    return path.suffix.lower() in PLAIN_TEXT


def split(path):
    """(PATH:LINE, bytes) of each line that is not blank; a plain text file is one piece."""
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    # Split bytes, not text: str.splitlines would also split at U+2028 inside a string.
    pieces = [data] if is_plain(path) else data.split(b"\n")
    return [(f"{path}:{number}", piece) for number, piece in enumerate(pieces, start=1) if piece.strip()]


def read_row(where, data, plain, forms):
    """One piece as a Row. MiniftError: not UTF-8, no JSON object, no form that is of use, a value of the wrong type."""
    if plain:
        return Row(where, "text", {"text": plain_text(where, data)})
    values = with_plain_answers(parse_line(data, where), where)
    useful = {form: keys for form, keys in FORMS.items() if form in forms}
    form = next((form for form, keys in useful.items() if all(values.get(key) is not None for key in keys)), None)
    if form is None:
        raise MiniftError(
            f"{where}: expected an object with the keys {describe(forms)}, none of them null; got "
            f"{', '.join(map(repr, values)) or 'none'}")
    for key in FORMS[form]:
        allowed, name = TYPES.get(key, (str, "a string"))
        if (form, key) == ("judged", "label"):
            allowed, name = bool, "true (a wanted answer) or false"
        wrong_bool = isinstance(values[key], bool) and allowed is not bool
        if wrong_bool or not isinstance(values[key], allowed):
            raise MiniftError(f"{where}: {key!r} must be {name}; got {values[key]!r:.60}")
    return Row(where, form, values)


def with_plain_answers(values, where):
    """Answers given as messages become strings: [{assistant}] after a prompt, or whole conversations without one.

    The prompt of a whole conversation is all that comes before its last message; it must be the same in chosen and
    rejected.
    """
    prompts = []
    for key in ("completion", "chosen", "rejected"):
        if not isinstance(values.get(key), list):
            continue
        *before, last = values[key] or [None]
        if not (isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str)):
            raise MiniftError(f"{where}: {key!r}, as messages, must end with one of the assistant; got {last!r:.60}")
        prompts.append(before)
        values = values | {key: last["content"]}
    if any(prompts):
        if prompts[0] != prompts[-1]:
            raise MiniftError(f"{where}: 'chosen' and 'rejected' must be the same up to their last message")
        values = values | {"prompt": prompts[0]}
    return values


def plain_text(where, data):
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        path, line = where.rpartition(":")[0], data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise MiniftError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from error


def describe(forms):
    """The forms as one writes them: {prompt, completion} or {messages}."""
    return " or ".join("{" + ", ".join(FORMS[form]) + "}" for form in FORMS if form in forms)


def sha256(path):
    """Hex digest of a file."""
    return hashlib.sha256(read_bytes(path)).hexdigest()
