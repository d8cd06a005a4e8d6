import json
import os
import random

import pytest

from minift.errors import MiniftError
from minift.text import jsonl
from minift.text.tokenizer import Tokenizer

ROWS = [{"text": "Zoë saw 你好 🙂"}, {"text": "one\u2028two\u2029three\u0085four\x0cfive\nsix\r\nseven"},
        {"text": "", "n": 1, "x": 0.1, "flag": True, "nothing": None, "list": [1, {"deep": '\t"\\'}]},
        {"<eos>": "{x} %s"}]


def write(tmp_path, contents):
    file = tmp_path / "train.jsonl"
    file.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return file


def test_rows_come_back_as_written(tmp_path, write_jsonl=jsonl.write_jsonl, read_jsonl=jsonl.read_jsonl):
    """What write_jsonl writes, read_jsonl reads: any text, any nesting, one line a row, readable as UTF-8."""
    file = tmp_path / "a" / "rows.jsonl"
    write_jsonl(file, iter(ROWS))
    assert read_jsonl(file) == read_jsonl(str(file)) == ROWS
    data = file.read_bytes()
    assert data.count(b"\n") == len(ROWS) and data.endswith(b"\n") and "Zoë saw 你好 🙂".encode() in data
    assert [json.loads(line) for line in data.split(b"\n") if line] == ROWS
    assert os.listdir(tmp_path / "a") == ["rows.jsonl"]


@pytest.mark.parametrize(
    "contents",
    ['{"a": 1}\n{"a": 2}\n', '{"a": 1}\n{"a": 2}', '{"a": 1}\r\n{"a": 2}\r\n', '\ufeff{"a": 1}\n{"a": 2}\n',
     '\n  \n{"a": 1}\n\r\n\t{"a": 2} \n\n', '{"a": 7, "a": 1}\n{"a": 2}'],
)
def test_harmless_differences_are_accepted(tmp_path, contents, read_jsonl=jsonl.read_jsonl):
    """A byte order mark, Windows line ends, blank lines, no last line end, double keys (the last wins): all fine."""
    assert read_jsonl(write(tmp_path, contents), required=("a",)) == [{"a": 1}, {"a": 2}]


def test_only_line_feeds_end_a_line(tmp_path, read_jsonl=jsonl.read_jsonl):
    """U+2028 and its kin inside a string, written raw, do not end the line."""
    text = "a\u2028b\u2029c\u0085d"
    assert read_jsonl(write(tmp_path, f'{{"t": "{text}"}}\n{{"t": "x"}}\n')) == [{"t": text}, {"t": "x"}]


@pytest.mark.parametrize(
    "line, says",
    [(b'{"a": 1', "invalid JSON"), (b"hello", "invalid JSON"), (b'{"a": 1}{"a": 2}', "invalid JSON"),
     (b"{'a': 1}", "invalid JSON"), (b'{"a": "\xe9"}', "not UTF-8.*0xe9"), (b"\xff\xfe{\x00", "not UTF-8"),
     (b"\x80\x04\x95", "not UTF-8"), (b"[1, 2]", r"expected an object.*\[1, 2\]"), (b"3", "expected an object"),
     (b'"text"', "expected an object"), (b"null", "expected an object"), (b'{"b": 1}', "'a' is missing"),
     (b'{"a": null}', "'a' is null"), (b'{"a": NaN}', "NaN"), (b'{"a": -Infinity}', "Infinity"),
     (b'{"a": [1, {"b": Infinity}]}', "Infinity"), (b'{"a": 1e999}', "1e999"),
     (b'{"a": "x\\ud800y"}', r"surrogate \(U\+D800"), (b'{"a": {"\\uDC00": 1}}', "surrogate"),
     (b'{"a": "\\ud800\\u0041"}', "surrogate"), (b'{"a": "tab\there"}', "invalid JSON"),
     (b'{"a": ' + b"[" * 100_000, "train.jsonl"), (b'{"a": ' + b"9" * 5000 + b"}", "train.jsonl"),
     ('\ufeff{"a": 1}'.encode(), "invalid JSON")],
)
def test_a_bad_line_is_named(tmp_path, line, says, read_jsonl=jsonl.read_jsonl):
    """Whatever is wrong with a line, the MiniftError begins with PATH:LINE; blank lines count as lines."""
    file = write(tmp_path, b'{"a": 1}\n\n' + line + b"\n{")
    with pytest.raises(MiniftError, match=says) as error:
        read_jsonl(file, required=("a",))
    assert str(error.value).startswith(f"{file}:3: ")


def test_required_keys_are_listed(tmp_path, read_jsonl=jsonl.read_jsonl):
    """The error for a missing key lists the keys needed and those that are there; without `required` all pass."""
    file = write(tmp_path, '{"prompt": "x", "answer": "y"}\n')
    with pytest.raises(MiniftError, match="'completion' is missing.*prompt, completion.*answer"):
        read_jsonl(file, required=("prompt", "completion"))
    assert len(read_jsonl(file)) == 1
    assert read_jsonl(write(tmp_path, '{"a": 0, "b": "", "c": false}'), required=("a", "b", "c"))


def test_pairs_of_surrogates_are_characters(tmp_path, read_jsonl=jsonl.read_jsonl):
    """An escaped pair of surrogates is one character, and what is read can be encoded."""
    rows = read_jsonl(write(tmp_path, '{"a": "\\ud83d\\ude42 \\u00e9"}'))
    assert rows == [{"a": "🙂 é"}]
    assert Tokenizer.train([], 264).decode(Tokenizer.train([], 264).encode(rows[0]["a"])) == "🙂 é"


@pytest.mark.parametrize("contents", ["", "\n\n", "\ufeff", " \r\n"])
def test_an_empty_file_is_an_empty_dataset(tmp_path, contents, read_jsonl=jsonl.read_jsonl):
    """A file without a row is a MiniftError, "dataset is empty: PATH"."""
    file = write(tmp_path, contents)
    with pytest.raises(MiniftError) as error:
        read_jsonl(file)
    assert str(error.value) == f"dataset is empty: {file}"


def test_a_file_that_is_not_there_is_named(tmp_path, read_jsonl=jsonl.read_jsonl):
    """A missing file, or a folder, is a MiniftError that names it."""
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(MiniftError, match=path.name):
            read_jsonl(path)


@pytest.mark.parametrize(
    "row", [{"a": float("nan")}, {"a": [float("inf")]}, {"a": "\ud800"}, {"a": {1, 2}}, {"a": b"x"}, [1], "text", None]
)
def test_a_row_that_could_not_be_read_is_not_written(
    tmp_path, row, write_jsonl=jsonl.write_jsonl, read_jsonl=jsonl.read_jsonl
):
    """A row that read_jsonl would refuse: MiniftError with its number, and the old file stays."""
    file = tmp_path / "rows.jsonl"
    write_jsonl(file, ROWS)
    with pytest.raises(MiniftError, match="row 2.*rows.jsonl"):
        write_jsonl(file, [{"a": 1}, row])
    assert read_jsonl(file) == ROWS


def test_random_damage_never_goes_unnamed(tmp_path, write_jsonl=jsonl.write_jsonl, read_jsonl=jsonl.read_jsonl):
    """After a random byte is changed, reading gives dicts, or a MiniftError that begins with the path."""
    rng, file, refused = random.Random(0), tmp_path / "rows.jsonl", 0
    write_jsonl(file, ROWS)
    data = file.read_bytes()
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            assert all(isinstance(row, dict) for row in read_jsonl(file))
        except MiniftError as error:
            refused += 1
            assert str(error).startswith(f"{file}:")
    assert refused > 50
