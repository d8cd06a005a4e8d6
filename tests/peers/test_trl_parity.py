"""Datasets in TRL's forms: written by the datasets package and read by us, prepared by TRL and by us, the same ids.

Needs the packages of tests/peers/requirements.txt; without them every test here is skipped, and says so.
"""

import json
from pathlib import Path

import pytest

from minift.cli.encoders import encode_dialogue, encode_preference, encode_request
from minift.cli.examples import Tally
from minift.cli.rows import read_rows
from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.formats.export import export_pretrained
from minift.text.tokenizer import Tokenizer

REASON = "is missing: pip install -r tests/peers/requirements.txt compares with it"
datasets = pytest.importorskip("datasets", reason=f"datasets {REASON}")
trl = pytest.importorskip("trl.data_utils", reason=f"trl {REASON}")
transformers = pytest.importorskip("transformers", reason=f"transformers {REASON}")

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
TOKENIZER = Tokenizer.train(["Where is the red kite? It is at the mill, said Ada. Who's there? Nobody."] * 2, 330)


def says(*texts, first="user"):
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


TALK = [*says("Where is it?", "At the mill.", "Who's there?")]
SYSTEM = [{"role": "system", "content": "Be brief."}]
FORMS = {
    "messages": [{"messages": says("Where is it?", "At the mill.")},
                 {"messages": [*SYSTEM, *TALK, *says("b", first="assistant")]}],
    "completion": [{"prompt": TALK, "completion": says("Nobody.", first="assistant")},
                   {"prompt": [*SYSTEM, *TALK], "completion": says("Ada, é🙂.", first="assistant")}],
    "pair": [{"prompt": TALK, "chosen": says("Nobody.", first="assistant"), "rejected": says("12", first="assistant")}],
    "whole": [{"chosen": [*TALK, *says("Nobody.", first="assistant")],
               "rejected": [*TALK, *says("I", first="assistant")]}],
    "prompt": [{"prompt": TALK}, {"prompt": [*SYSTEM, *says("Hi")]}],
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Our tokenizer and chat template as transformers opens them."""
    path = tmp_path_factory.mktemp("exported")
    export_pretrained(LanguageModel(TransformerConfig(TOKENIZER.vocab_size, 64, 1, 2, 8, 8)), TOKENIZER, path)
    return transformers.AutoTokenizer.from_pretrained(path)


def written(path, rows):
    """The rows as the datasets package writes them to a file, read by us."""
    datasets.Dataset.from_list(rows).to_json(path)
    return read_rows([path], ("messages", "completion", "pair", "prompt"))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_ids(form, theirs, tmp_path):
    """What TRL makes of a conversational row of each of its forms, tokenized, is what we learn from; so is the part
    that is learned."""
    for row, example in zip(written(tmp_path / "rows.jsonl", FORMS[form]), FORMS[form], strict=True):
        assert trl.is_conversational(example)
        texts = trl.maybe_apply_chat_template(trl.maybe_extract_prompt(example), theirs)
        ids = {name: theirs(text, add_special_tokens=False)["input_ids"] for name, text in texts.items()}
        if form == "messages":
            found = encode_dialogue(row, Tally(), TOKENIZER, 99)
            assert found["input_ids"] == ids["text"]
        elif form == "completion":
            found = encode_dialogue(row, Tally(), TOKENIZER, 99)
            assert found["input_ids"] == ids["prompt"] + ids["completion"]
            assert found["labels"][-len(ids["completion"]):] == ids["completion"]
        elif form == "prompt":
            assert encode_request(row, Tally(), TOKENIZER, 99)["input_ids"] == ids["prompt"]
        else:
            found = encode_preference(row, Tally(), TOKENIZER, 99)
            for side in ("chosen", "rejected"):
                assert found[f"{side}_input_ids"] == ids["prompt"] + ids[side]
                assert sum(found[f"{side}_response_mask"]) == len(ids[side])


def test_plain_strings_are_rows_too(tmp_path):
    """The forms with strings, and the labels of unpaired answers, survive the way through a file of theirs."""
    rows = [{"prompt": "Who?", "completion": "Ada."}, {"prompt": "Where?", "completion": "Here."}]
    assert [row.values for row in written(tmp_path / "a.jsonl", rows)] == rows
    pairs = [{"prompt": "Who?", "chosen": "Ada.", "rejected": "Bob."}]
    assert [row.values for row in written(tmp_path / "b.jsonl", pairs)] == pairs
    unpaired = trl.unpair_preference_dataset(datasets.Dataset.from_list(pairs)).to_list()
    labels = [row.values["label"] for row in written(tmp_path / "c.jsonl", unpaired)]
    assert sorted(labels) == [False, True]


@pytest.mark.parametrize("name, keys", [
    ("messages", {"messages"}), ("completions", {"prompt", "completion"}), ("pairs", {"prompt", "chosen", "rejected"}),
    ("prompts", {"prompt"}), ("text", {"text"}), ("labels", {"text", "label"})])
def test_our_files_are_theirs(name, keys):
    """The datasets package reads our sample files with the columns that TRL's trainers look for."""
    rows = [json.loads(line) for line in (SAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    found = datasets.Dataset.from_json(str(SAMPLES / f"{name}.jsonl"), keep_in_memory=True, cache_dir=None)
    assert keys <= set(found.column_names) and len(found) == len(rows)
    assert [found[0][key] for key in sorted(keys)] == [rows[0][key] for key in sorted(keys)]
