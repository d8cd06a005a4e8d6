"""Texts as an encoder reads them: [CLS], one or two segments, what is cut, batches, and the rows of the recipe."""

import pytest
import torch

from minift.errors import MiniftError
from minift.text import segments
from minift.text.tokenizer import Tokenizer
from minift.world import corpus, labelled, recipes

TOKENIZER = Tokenizer.train(["the red kite and the old mill, a red mitten"], 256 + 10 + 8)
CLS, SEP = (TOKENIZER.special_id(name) for name in ("<cls>", "<sep>"))
FIRST, SECOND = "the red kite", "the old mill and a mitten"
A, B = TOKENIZER.encode(FIRST), TOKENIZER.encode(SECOND)


def split(ids):
    """The parts between [CLS] and the [SEP]s."""
    assert ids[0] == CLS and ids[-1] == SEP
    parts, part = [], []
    for i in ids[1:]:
        if i == SEP:
            parts.append(part)
            part = []
        else:
            part.append(i)
    return parts


def test_one_text_or_two(encode_segments=segments.encode_segments):
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]; an empty text leaves its [SEP]; nothing is cut."""
    assert encode_segments(TOKENIZER, FIRST) == ([CLS, *A, SEP], 0)
    assert encode_segments(TOKENIZER, FIRST, SECOND) == ([CLS, *A, SEP, *B, SEP], 0)
    assert encode_segments(TOKENIZER, FIRST, "") == ([CLS, *A, SEP, SEP], 0)
    assert encode_segments(TOKENIZER, "", context_length=9) == ([CLS, SEP], 0)


def test_what_fits_is_not_cut(encode_segments=segments.encode_segments):
    """A text that fills the context to the last place stays whole; one place less cuts one token, and says so."""
    for texts, whole in (((FIRST,), [CLS, *A, SEP]), ((FIRST, SECOND), [CLS, *A, SEP, *B, SEP])):
        assert encode_segments(TOKENIZER, *texts, context_length=len(whole)) == (whole, 0)
        ids, n_cut = encode_segments(TOKENIZER, *texts, context_length=len(whole) - 1)
        assert len(ids) == len(whole) - 1 and n_cut == 1


@pytest.mark.parametrize("first, second", [(FIRST, SECOND), (SECOND, FIRST)])
def test_the_longer_text_loses_its_end_first(first, second, encode_segments=segments.encode_segments):
    """For every length: the row fills the context, both parts are beginnings of the texts, and a part that was cut is
    not shorter by more than one token than the other one."""
    wholes = TOKENIZER.encode(first), TOKENIZER.encode(second)
    total = sum(map(len, wholes)) + 3
    for length in range(4, total):
        ids, n_cut = encode_segments(TOKENIZER, first, second, length)
        parts = split(ids)
        assert len(ids) == length and len(parts) == 2 and n_cut == total - length
        for part, other, whole in zip(parts, parts[::-1], wholes):
            assert part == whole[:len(part)] and (part == whole or len(part) >= len(other) - 1)


def test_a_long_text_loses_its_end(encode_segments=segments.encode_segments):
    """One text is cut to context_length, the special tokens stay, n_cut counts what was lost."""
    assert encode_segments(TOKENIZER, SECOND, context_length=6) == ([CLS, *B[:4], SEP], len(B) - 4)


@pytest.mark.parametrize("second, length", [(None, 2), (None, 0), (SECOND, 3)])
def test_a_context_without_room(second, length, encode_segments=segments.encode_segments):
    """A context that the special tokens fill: MiniftError that names its length."""
    with pytest.raises(MiniftError, match=f"context_length is {length}"):
        encode_segments(TOKENIZER, FIRST, second, length)


def test_batches_are_padded_on_the_right(collate_ids=segments.collate_ids):
    """Rows keep their ids, the rest is pad_id; the mask counts the row's tokens, even where a token equals pad_id."""
    batch = collate_ids([[5, 0, 6], [7], [0, 0]], 0)
    assert batch["input_ids"].tolist() == [[5, 0, 6], [7, 0, 0], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert batch["attention_mask"].dtype == torch.bool and batch["input_ids"].dtype == torch.long


def test_labelled_examples(encode_labelled=segments.encode_labelled, collate_labelled=segments.collate_labelled):
    """Rows become ids, the place of their label, and how much was cut; a batch adds label (B,) to ids and mask."""
    rows = [{"text": FIRST, "label": "yes"}, {"text": FIRST, "text_pair": SECOND, "label": "no"},
            {"text": SECOND, "text_pair": None, "label": "no"}]
    examples = encode_labelled(TOKENIZER, rows, ["no", "yes"], len(B) + 1)
    assert [example["label"] for example in examples] == [1, 0, 0]
    assert examples[0] == {"input_ids": [CLS, *A, SEP], "label": 1, "n_cut": 0}
    assert examples[1]["n_cut"] == len(A) + 2 and len(examples[1]["input_ids"]) == len(B) + 1
    assert examples[2] == {"input_ids": [CLS, *B[:-1], SEP], "label": 0, "n_cut": 1}
    batch = collate_labelled(examples, 3)
    assert batch.keys() == {"input_ids", "attention_mask", "label"} and batch["label"].tolist() == [1, 0, 0]
    assert batch["input_ids"][0, len(A) + 2:].eq(3).all() and batch["attention_mask"].sum().item() == sum(
        len(example["input_ids"]) for example in examples)


def test_numbers_as_labels(encode_labelled=segments.encode_labelled):
    """Labels may be numbers: their place in the list counts, not their value."""
    rows = [{"text": FIRST, "label": label} for label in (5, -1, 5)]
    assert [example["label"] for example in encode_labelled(TOKENIZER, rows, [-1, 5], 64)] == [1, 0, 1]


def test_an_unknown_label_is_named(encode_labelled=segments.encode_labelled):
    """A label that is not among the classes: MiniftError with the row, the label and the classes."""
    rows = [{"text": FIRST, "label": "no"}, {"text": FIRST, "label": "perhaps"}]
    with pytest.raises(MiniftError, match="row 1: the label 'perhaps' is not one of no, yes"):
        encode_labelled(TOKENIZER, rows, ["no", "yes"], 64)


# ---- what the encoder that comes with the repository reads ----


def test_rows_of_the_recipe(encoder_rows=recipes.encoder_rows):
    """Documents, then a share of stories with statements: a story is the first segment, all behind its line the
    second; nothing is lost but that line's end."""
    n = 40
    rows = encoder_rows(TOKENIZER, n, 3, "train", 4096)
    texts = corpus.documents(28, 3) + labelled.statements(12, 3)            # 0.3 of 40 are statements
    assert recipes.ENCODER["statements"] == 0.3 and len(rows) == n
    for row, text in zip(rows, texts, strict=True):
        parts = [TOKENIZER.decode(part) for part in split(row)]
        assert "\n".join(parts) == text and "\n" not in parts[0]
        assert len(parts) == (2 if "\n" in text else 1)
    assert all(text.count("\n") == 2 for text in texts[28:])


def test_rows_fit_and_their_splits_differ(encoder_rows=recipes.encoder_rows):
    """No row is longer than the context; the same seed and split give the same rows, other ones share none."""
    def rows(seed, split):
        return encoder_rows(TOKENIZER, 20, seed, split, 60)
    first = rows(0, "train")
    assert max(map(len, first)) == 60 and rows(0, "train") == first
    for other in (rows(0, "valid"), rows(1, "train")):
        assert not {tuple(row) for row in first} & {tuple(row) for row in other}
