"""From lists of ids to tensors: padding, batches in a seeded order, windows over a long text, packing.

Packing is best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3). Left out:
worker processes, streaming from disk (the data of a fine-tuning run fit into memory).
"""

import math
import random

import torch

from minift.core.logprobs import IGNORE_INDEX
from minift.errors import MiniftError


def pad(rows, pad_value, length=None):
    """One tensor (B, T) from rows of unequal length, padded on the right with pad_value, which also sets its type.

    length: T; by default that of the longest row. MiniftError when a row is longer. (Prompts: generate.left_pad.)
    """
    longest = max((len(row) for row in rows), default=0)
    length = longest if length is None else length
    if longest > length:
        raise MiniftError(
            f"a row has {longest} tokens, more than the length of {length}; truncate it first")
    padded = torch.full((len(rows), length), pad_value)  # (B, T)
    for i, row in enumerate(rows):
        padded[i, :len(row)] = torch.as_tensor(row, dtype=padded.dtype)
    return padded


def collate(examples, pad_id):
    """A right-padded batch: input_ids, attention_mask (bool), labels; each (B, T).

    examples: dicts of two lists, input_ids and labels (labels[t] is input_ids[t] where it is learned, else -100).
    The mask comes from the lengths, never from the ids: a real token may well equal pad_id.
    """
    for example in examples:
        check_lengths(example)
    rows = [example["input_ids"] for example in examples]
    return {
        "input_ids": pad(rows, pad_id),
        "attention_mask": pad([[True] * len(row) for row in rows], False),
        "labels": pad([example["labels"] for example in examples], IGNORE_INDEX)}


def check_lengths(example):
    if len(example["labels"]) != len(example["input_ids"]):
        raise MiniftError(
            f"an example has {len(example['input_ids'])} input_ids but {len(example['labels'])} labels")


class Batches:
    """Re-iterable batches of examples: each pass is a new epoch in a new order, which depends on (seed, epoch) alone.

    examples: a list of dicts. collate: list of examples -> dict of tensors. The last, smaller batch is kept.
    bucket: when shuffling, put rows of similar length together, which saves padding. shuffle=False keeps the order.
    `epoch` counts the passes that were started; set it to get the order of that epoch again.
    """

    def __init__(self, examples, batch_size, collate, seed=0, shuffle=True, bucket=True):
        if batch_size < 1:
            raise MiniftError(f"batch_size must be at least 1; got {batch_size}")
        if not examples:
            raise MiniftError("dataset is empty: there is no example to make batches of")
        self.examples, self.batch_size, self.collate = examples, batch_size, collate
        self.seed, self.shuffle, self.bucket, self.epoch = seed, shuffle, bucket, 0

    def __len__(self):
        return math.ceil(len(self.examples) / self.batch_size)

    def __iter__(self):
        plan = self.plan(self.epoch)
        self.epoch += 1
        return (self.collate([self.examples[i] for i in batch]) for batch in plan)

    def plan(self, epoch):
        """Which examples come together in an epoch: a list of lists of indices."""
        order = list(range(len(self.examples)))
        if not self.shuffle:
            return chunks(order, self.batch_size)
        rng = random.Random(f"{self.seed}, {epoch}")
        rng.shuffle(order)
        if not self.bucket:
            return chunks(order, self.batch_size)
        batches = []
        for window in chunks(order, 16 * self.batch_size):
            window.sort(key=lambda i: example_length(self.examples[i]))
            batches += chunks(window, self.batch_size)
        rng.shuffle(batches)
        return batches


def epoch_generator(seed, epoch):
    """A random number generator that depends on the seed and on the epoch's number alone."""
    return torch.Generator().manual_seed(1_000_003 * seed + epoch)


class Epochs:
    """Batches that are made anew in each epoch from other batches: a subclass says how, in make_batches(generator).

    sources: re-iterables. A source with an `epoch` of its own is set to the same epoch, so that an epoch depends on its
    number alone. fresh=False: the same random numbers in every epoch. `epoch` counts the passes that were started.
    """

    def __init__(self, *sources, seed=0, fresh=True):
        self.sources, self.seed, self.fresh, self._epoch = sources, seed, fresh, 0

    @property
    def epoch(self):
        return self._epoch

    @epoch.setter
    def epoch(self, epoch):
        self._epoch = epoch
        for source in self.sources:
            if hasattr(source, "epoch"):
                source.epoch = epoch

    def __len__(self):
        return len(self.sources[0])

    def __iter__(self):
        self.epoch = self._epoch
        number = self._epoch if self.fresh else 0
        generator = epoch_generator(self.seed, number)
        self._epoch += 1
        return self.make_batches(generator)


def chunks(items, size):
    return [items[start:start + size] for start in range(0, len(items), size)]


def example_length(example):
    """The number of tokens in the longest list of an example, which is what padding costs."""
    return max(
        (len(value) for value in example.values() if isinstance(value, (list, tuple, torch.Tensor))), default=0)


def token_windows(ids, length):
    """Cut a text into lists of length + 1 ids that overlap by one: every pair (token, next token) is in exactly one.

    For evaluation: each list gives `length` predictions; the last list may give fewer.
    """
    if length < 1:
        raise MiniftError(f"length must be at least 1; got {length}")
    ids = [int(i) for i in ids]
    return [ids[start:start + length + 1] for start in range(0, len(ids) - 1, length)]


class Windows:
    """Batches of windows of a long text: each pass starts at a random offset, cuts full windows, and shuffles them.

    ids: the text's tokens. length: T. Over the epochs every start is reached; no window crosses the end.
    A batch has input_ids and labels, both (B, T) and equal: the shift by one belongs to the loss.
    """

    def __init__(self, ids, length, batch_size, seed=0):
        self.ids = torch.as_tensor(ids, dtype=torch.long)
        if batch_size < 1 or length < 2:
            raise MiniftError(
                f"batch_size must be at least 1 and length at least 2; got {batch_size} and {length}")
        if len(self.ids) < length:
            raise MiniftError(
                f"the text has {len(self.ids)} tokens, fewer than one window of {length}; add text, or "
                "take a shorter window")
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, 0

    def __len__(self):
        """The number of batches in the next epoch (its random offset may cost one window)."""
        return math.ceil(len(self.starts(self.epoch)) / self.batch_size)

    def __iter__(self):
        starts = self.starts(self.epoch)
        self.epoch += 1
        return (self.batch(part) for part in chunks(starts, self.batch_size))

    def starts(self, epoch):
        """Where the windows of an epoch start, in the order of the batches."""
        rng = random.Random(f"{self.seed}, {epoch}")
        last = len(self.ids) - self.length
        starts = list(range(rng.randint(0, min(self.length - 1, last)), last + 1, self.length))
        rng.shuffle(starts)
        return starts

    def batch(self, starts):
        input_ids = torch.stack([self.ids[start:start + self.length] for start in starts])  # (B, T)
        return {"input_ids": input_ids, "labels": input_ids.clone()}


def plan_packs(lengths, length):
    """Best-fit decreasing: the longest example first, each into the fullest row with room for it. Lists of indices."""
    # rows_with_space[n]: the rows in which n tokens are still free.
    rows, rows_with_space = [], [[] for _ in range(length + 1)]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The least space that is enough; without any, an empty row of full length is begun.
        enough = (space for space in range(lengths[i], length + 1) if rows_with_space[space])
        space = next(enough, length)
        if not rows_with_space[space]:
            rows.append([])
            rows_with_space[space].append(rows[-1])
        row = rows_with_space[space].pop(0)
        row.append(i)
        rows_with_space[space - lengths[i]].append(row)
    return rows


def pack(examples, length, pad_id):
    """Several examples into each row of `length` tokens: input_ids, labels, position_ids, segment_ids, all (N, length).

    position_ids restart at 0 in each example. segment_ids count the examples of a row (-1: padding), so that attention
    can stay within one example. labels are -100 on padding and on each first token, which nothing before it predicts.
    MiniftError when examples are longer than a row.
    """
    # Every example must fit into a row.
    lengths = [len(example["input_ids"]) for example in examples]
    too_long = sum(n > length for n in lengths)
    if too_long or not lengths or min(lengths) == 0:
        raise MiniftError(
            f"cannot pack {len(lengths)} examples into rows of {length} tokens: {too_long} are longer "
            f"(truncate or drop them), {lengths.count(0)} are empty")
    # Join the examples of each row, then pad the rows.
    fill = {"input_ids": pad_id, "labels": IGNORE_INDEX, "position_ids": 0, "segment_ids": -1}
    columns = {name: [] for name in fill}
    for row in plan_packs(lengths, length):
        parts = {name: [] for name in columns}
        for segment, i in enumerate(row):
            check_lengths(examples[i])
            parts["input_ids"] += examples[i]["input_ids"]
            parts["labels"] += [IGNORE_INDEX, *examples[i]["labels"][1:]]
            parts["position_ids"] += range(lengths[i])
            parts["segment_ids"] += [segment] * lengths[i]
        for name, part in parts.items():
            columns[name].append(part)
    return {name: pad(rows, fill[name], length=length) for name, rows in columns.items()}
