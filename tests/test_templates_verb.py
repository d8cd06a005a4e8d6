"""The verb templates: the user's labelled rows become chats, and those of several annotators one row an item."""

import json
from pathlib import Path

import pytest
from test_jobs import write

from minift.__main__ import main
from minift.cli import templates
from minift.text.chat import check_messages

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
LABELS, TEMPLATES = str(SAMPLES / "labels.jsonl"), str(SAMPLES / "templates.json")


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_labelled_rows_become_chats(tmp_path, main=main):
    """A chat a row, each with its row's text and label; held-out templates and inverted ones only where asked for."""
    given, out = rows_of(SAMPLES / "labels.jsonl"), tmp_path / "chats.jsonl"
    command = ["templates", "--data", LABELS, "--templates", TEMPLATES, "--out", str(out)]
    assert main(command) == 0
    for row, chat in zip(given, rows_of(out), strict=True):
        check_messages(chat["messages"], need_assistant=True)
        said = "\n".join(message["content"] for message in chat["messages"])
        assert row["text"] in said and row["label"] in said
        assert {"task", "cluster", "source", "id"} <= chat.keys()
    assert {chat["template"] for chat in rows_of(out)} == {1, 2, 3, 4}
    assert main(command) == 2 and main([*command, "--overwrite", "--no-inverted"]) == 0
    assert {chat["template"] for chat in rows_of(out)} == {1, 2, 3}
    assert main([*command, "--overwrite", "--split", "held-out"]) == 0
    assert {chat["template"] for chat in rows_of(out)} == {5}


def test_chats_of_several_files_stand_together(tmp_path, main=main):
    """Every file of --data becomes chats, in the order of the files."""
    first, second = LABELS, write(tmp_path / "more.jsonl", *rows_of(SAMPLES / "labels.jsonl")[:2])
    out = tmp_path / "chats.jsonl"
    assert main(["templates", "--data", first, str(second), "--templates", TEMPLATES, "--out", str(out)]) == 0
    assert len(rows_of(out)) == len(rows_of(SAMPLES / "labels.jsonl")) + 2


def annotated(labels):
    """Rows as `label annotate` writes them. labels: annotator -> {item: label}."""
    return [{"id": item, "text": f"text {item}", "label": label, "annotator": name, "seconds": 1.0, "time": "now"}
            for name, said in labels.items() for item, label in said.items()]


def test_several_annotators_give_one_row_an_item(tmp_path, capsys, main=main):
    """Two careful people overrule a careless one; an item that one of them skipped stays; nobody's name is left."""
    truth = {f"i{i}": ("happy", "sad")[i % 2] for i in range(20)}
    careless = {item: "happy" for item in truth}
    careful = {item: label for item, label in truth.items() if item != "i4"}
    path = write(tmp_path / "annotated.jsonl", *annotated({"Ada": truth, "Ben": careful, "Cleo": careless}))
    out = tmp_path / "chats.jsonl"
    assert main(["templates", "--data", str(path), "--templates", TEMPLATES, "--no-inverted", "--out", str(out)]) == 0
    chats = {chat["id"]: chat for chat in rows_of(out)}
    assert chats.keys() == truth.keys() and len(rows_of(out)) == 20
    assert all(truth[item] in chat["messages"][1]["content"] for item, chat in chats.items())
    assert "Ada" not in out.read_text(encoding="utf-8") and "10 labels were overruled" in capsys.readouterr().out


def test_one_annotator_is_not_overruled(adjudicated=templates.adjudicated):
    """Labels of one person, and of two who share no item, are kept as they are."""
    rows = annotated({"Ada": {"a": "happy"}, "Ben": {"b": "sad"}})
    assert [(row["id"], row["label"]) for row in adjudicated(rows)] == [("a", "happy"), ("b", "sad")]
    assert all(row.keys() == {"id", "text", "label"} for row in adjudicated(rows))


@pytest.mark.parametrize(("row", "message"), [({"label": "happy"}, "row 2"), ({"text": "x"}, "label")])
def test_a_row_that_lacks_a_field_is_named(row, message, tmp_path, capsys):
    """One sentence with the file, the row and the field; nothing is written."""
    path = write(tmp_path / "rows.jsonl", {"text": "y", "label": "sad"}, row)
    given = ["--data", str(path), "--templates", TEMPLATES, "--no-inverted", "--out", str(tmp_path / "out.jsonl")]
    assert main(["templates", *given]) == 2
    said = capsys.readouterr().err
    assert message in said and "rows.jsonl" in said and said.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()
