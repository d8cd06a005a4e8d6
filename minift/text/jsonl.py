"""JSON Lines: one object on each line, read strictly, written atomically.

Accepted: UTF-8 with or without a byte order mark, Windows line ends, blank lines, a last line without an end. When an
object has a key twice, the last one counts (as everywhere in Python). All else is refused with file and line, also NaN,
Infinity and lone surrogates, which Python's own reader accepts. Left out: compressed files, reading row by row.
"""

import codecs
import json
import math

from minift.core.files import write_text
from minift.errors import MiniftError


def read_jsonl(path, required=()):
    """All rows of a file, as dicts.

    required: keys that every row must have, with a value that is not null.
    Raises MiniftError "PATH:LINE: ..." for the first bad line, and "dataset is empty: PATH" when there is no row.
    """
    rows = []
    try:
        # In bytes, a line ends at "\n" only, and at no other character inside a text.
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    rows.append(parse_line(line, f"{path}:{number}", required))
    except OSError as error:
        raise MiniftError(f"cannot read {path}: {error.strerror}; is the path right?") from error
    if not rows:
        raise MiniftError(f"dataset is empty: {path}")
    return rows


def parse_line(line, where, required=()):
    """The object in one line (bytes). where: "PATH:LINE", for the errors."""
    # Decode and parse.
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MiniftError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at {error.start}); save the file as "
            "UTF-8") from error
    try:
        row = json.loads(text, parse_constant=refuse_constant, parse_float=finite_float)
    except json.JSONDecodeError as error:
        raise MiniftError(f"{where}: invalid JSON ({error.msg}, column {error.colno}); expected an object") from error
    except (ValueError, RecursionError) as error:
        raise MiniftError(f"{where}: {error}") from error
    # Check that it is an object with the required keys.
    if not isinstance(row, dict):
        raise MiniftError(f"{where}: expected an object{such_as(required)}; got {row!r:.80}")
    for key in required:
        if row.get(key) is None:
            state = "null" if key in row else "missing"
            raise MiniftError(
                f"{where}: the key {key!r} is {state}; expected an object{such_as(required)}, "
                f"got the keys {list(row)}")
    check_surrogates(text, row, where)
    return row


def such_as(required):
    return f" with the keys {', '.join(required)}" if required else ""


def refuse_constant(name):
    raise ValueError(f"{name} is not a finite number, and not JSON")


def finite_float(digits):
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is not a finite number: too large for a float")
    return number


def check_surrogates(text, row, where):
    """MiniftError for half of a surrogate pair (\\ud800), which no tokenizer can encode."""
    if "\\u" not in text:
        return
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise MiniftError(f"{where}: a lone surrogate (U+{code:04X}) is no character; remove it") from error


def write_jsonl(path, rows):
    """Write dicts, one on each line, atomically: the old file stays until the new one is complete.

    Raises MiniftError for a row that read_jsonl would refuse; nothing is written then.
    """
    lines = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise MiniftError(f"row {number} for {path}: expected a dict; got {row!r:.80}")
        try:
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False))
            lines[-1].encode("utf-8")
        except (TypeError, ValueError) as error:
            raise MiniftError(f"row {number} for {path} cannot be written as JSON: {error}") from error
    write_text(path, "".join(line + "\n" for line in lines))
