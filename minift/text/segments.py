"""Texts as an encoder reads them: [CLS] first [SEP], or [CLS] first [SEP] second [SEP].

Devlin et al. 2018, "BERT", section 3 (input representation); the special tokens are called <cls> and <sep> here. Left
out: segment embeddings; the [SEP] between them separates the two texts.
"""

import torch

from minift.errors import MiniftError
from minift.text.batches import pad


def encode_segments(tokenizer, first, second=None, context_length=None):
    """(ids, n_cut) of one text, or of two; n_cut: how many tokens were lost to fit into context_length.

    The longer text (of two equally long ones the second) loses its last token, again and again, as in BERT's code.
    """
    parts = [tokenizer.encode(text) for text in (first, second) if text is not None]
    room = None if context_length is None else context_length - 1 - len(parts)
    n_cut = 0 if room is None else max(0, sum(map(len, parts)) - room)
    if room is not None and room < 1:
        raise MiniftError(
            f"context_length is {context_length}; the special tokens alone fill it")
    for _ in range(n_cut):
        max(reversed(parts), key=len).pop()
    ids = [tokenizer.special_id("<cls>")]
    for part in parts:
        ids += [*part, tokenizer.special_id("<sep>")]
    return ids, n_cut


def collate_ids(rows, pad_id):
    """A right-padded batch of lists of ids: input_ids, attention_mask (bool), both (B, T)."""
    return {"input_ids": pad(rows, pad_id), "attention_mask": pad([[True] * len(row) for row in rows], False)}


def encode_labelled(tokenizer, rows, labels, context_length):
    """Examples {"input_ids", "label", "n_cut"} of rows {"text", "label"}, with "text_pair" where there is one.

    labels: the names of the classes, in order. Raises MiniftError for a label that is not among them.
    """
    place, examples = {label: i for i, label in enumerate(labels)}, []
    for number, row in enumerate(rows):
        if row["label"] not in place:
            raise MiniftError(
                f"row {number}: the label {row['label']!r} is not one of {', '.join(map(str, labels))}")
        ids, n_cut = encode_segments(
            tokenizer, row["text"], row.get("text_pair"), context_length)
        examples.append({"input_ids": ids, "label": place[row["label"]], "n_cut": n_cut})
    return examples


def collate_labelled(examples, pad_id):
    """A right-padded batch of examples: input_ids, attention_mask (bool), both (B, T), and label (B,)."""
    batch = collate_ids([example["input_ids"] for example in examples], pad_id)
    return {**batch, "label": torch.tensor([example["label"] for example in examples])}
