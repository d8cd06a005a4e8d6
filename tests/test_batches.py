import random
from functools import partial

import pytest
import torch

from minift.core.heads import LanguageModel
from minift.core.logprobs import token_logprobs
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.text import batches as b

PAD = 0


def example(ids):
    return {"input_ids": list(ids), "labels": list(ids)}


def numbered(n, rng, longest=9):
    """Examples whose first id tells which one they are."""
    return [example([i, *rng.choices(range(5), k=rng.randint(0, longest))]) for i in range(n)]


def rows_of(batch):
    """The real tokens of each row."""
    return [row[mask].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def test_pad_fills_the_right_side(pad=b.pad):
    """Rows come out as one tensor, filled at the right, as long as the longest or as asked."""
    rows = [[1, 2, 3], [4], []]
    assert pad(rows, 9).tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert pad(rows, 9, length=4).tolist() == [[1, 2, 3, 9], [4, 9, 9, 9], [9, 9, 9, 9]]


def test_pad_takes_its_type_from_the_pad_value(pad=b.pad):
    """Whole numbers give int64, truth values bool, fractions float32; tensors may be rows as well."""
    assert pad([[1], [2, 3]], 0).dtype == torch.int64
    assert pad([[True], [True, False]], False).tolist() == [[True, False], [True, False]]
    assert pad([[0.5], [1.5, 2.5]], 0.0).dtype == torch.float32
    assert pad([torch.tensor([1]), torch.tensor([2, 3])], -1).tolist() == [[1, -1], [2, 3]]
    assert pad([], 0).shape == (0, 0)


def test_pad_refuses_what_does_not_fit(pad=b.pad):
    """A row longer than the length is a MiniftError."""
    with pytest.raises(MiniftError, match="3 tokens.*2"):
        pad([[1], [1, 2, 3]], 0, length=2)


def test_collate_masks_by_length_and_not_by_id(collate=b.collate):
    """Padding is what lies beyond a row's length, even where a real token equals the pad id; labels there are -100."""
    batch = collate([{"input_ids": [5, PAD, 7], "labels": [-100, PAD, 7]}, {"input_ids": [PAD], "labels": [PAD]}], PAD)
    assert batch["input_ids"].tolist() == [[5, PAD, 7], [PAD, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert batch["labels"].tolist() == [[-100, PAD, 7], [PAD, -100, -100]]
    with pytest.raises(MiniftError, match="2 input_ids but 1 labels"):
        collate([{"input_ids": [1, 2], "labels": [1]}], PAD)


@pytest.mark.parametrize("bucket", [True, False])
def test_an_epoch_has_every_example_once(bucket, Batches=b.Batches):
    """Each pass yields every example exactly once, in batches of the asked size but one, and len says how many."""
    rng = random.Random(0)
    for n, size in ((1, 4), (7, 3), (8, 4), (100, 3), (5, 5)):
        examples = numbered(n, rng)
        batches = Batches(examples, size, partial(b.collate, pad_id=PAD), bucket=bucket)
        for _ in range(3):
            epoch = list(batches)
            assert len(epoch) == len(batches) == (n + size - 1) // size
            assert sorted(row for batch in epoch for row in rows_of(batch)) == sorted(e["input_ids"] for e in examples)
            assert sorted(len(batch["input_ids"]) for batch in epoch)[1:] == [size] * (len(epoch) - 1)


@pytest.mark.parametrize("bucket", [True, False])
def test_the_order_is_drawn_from_seed_and_epoch(bucket, Batches=b.Batches):
    """The same seed and epoch give the same order; another seed or another epoch give another."""
    examples = numbered(60, random.Random(0))

    def orders(seed, epoch=0):
        batches = Batches(examples, 4, lambda batch: [e["input_ids"][0] for e in batch], seed=seed, bucket=bucket)
        batches.epoch = epoch
        return [list(batches), list(batches)]

    first, second = orders(seed=1)
    assert orders(seed=1) == [first, second]
    assert orders(seed=1, epoch=1)[0] == second
    assert first != second and orders(seed=2)[0] != first
    assert sum(first, []) != list(range(60)) != sum(second, [])


def test_without_shuffling_the_order_stays(Batches=b.Batches):
    """shuffle=False yields the examples in their own order, every time."""
    examples = numbered(10, random.Random(0))
    batches = Batches(examples, 3, lambda batch: [e["input_ids"][0] for e in batch], shuffle=False)
    assert list(batches) == list(batches) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_buckets_save_padding_and_stay_random(Batches=b.Batches):
    """Bucketing leaves less than a third of the padding, but batches do not come by length, and partners change."""
    rng = random.Random(0)
    examples = numbered(640, rng, longest=99)

    def waste(bucket):
        batches = Batches(examples, 8, partial(b.collate, pad_id=PAD), bucket=bucket)
        return sum((~batch["attention_mask"]).sum().item() for batch in batches)

    assert waste(True) < waste(False) / 3
    all_lengths = [example(range(n)) for n in range(1, 321)]        # no two alike, so only windows can mix partners
    batches = Batches(all_lengths, 4, lambda batch: frozenset(len(e["input_ids"]) for e in batch))
    first, second = list(batches), list(batches)
    assert len(set(first) & set(second)) < 8
    lengths = [max(batch) for batch in first]
    rising = sum(a < b for a, b in zip(lengths, lengths[1:], strict=False))
    assert 0.3 < rising / len(lengths) < 0.7


def test_impossible_batches_are_refused(Batches=b.Batches):
    """No example, or no room in a batch: MiniftError, before training begins."""
    with pytest.raises(MiniftError, match="dataset is empty"):
        Batches([], 4, list)
    with pytest.raises(MiniftError, match="batch_size.*0"):
        Batches([example([1])], 0, list)


def test_token_windows_use_each_pair_once(token_windows=b.token_windows):
    """Each pair (token, next token) of the text lies in exactly one window, whose length is at most length + 1."""
    assert token_windows([10, 11, 12, 13, 14, 15], 2) == [[10, 11, 12], [12, 13, 14], [14, 15]]
    for n in range(14):
        for length in range(1, 6):
            windows = token_windows(torch.arange(n), length)
            assert [pair for w in windows for pair in zip(w, w[1:], strict=False)] == [(i, i + 1) for i in range(n - 1)]
            assert all(2 <= len(w) <= length + 1 for w in windows)
    with pytest.raises(MiniftError, match="length"):
        token_windows([1, 2], 0)


def test_windows_reach_every_start_and_never_cross_the_end(Windows=b.Windows):
    """Over the epochs every possible start is used, within one no token comes twice, and windows are always full."""
    for n, length in ((10, 4), (4, 4), (5, 4), (9, 2)):
        windows, starts = Windows(range(100, 100 + n), length, batch_size=2, seed=0), set()
        for _ in range(80):
            rows = [row for batch in windows for row in batch["input_ids"].tolist()]
            assert rows and all(row == list(range(row[0], row[0] + length)) for row in rows)
            tokens = [token for row in rows for token in row]
            assert len(tokens) == len(set(tokens)) and max(tokens) < 100 + n
            starts |= {row[0] - 100 for row in rows}
        assert starts == set(range(n - length + 1))


def test_windows_have_labels_equal_to_the_ids(Windows=b.Windows):
    """labels equal input_ids (the loss shifts), batches have the asked size, and len counts the coming epoch's."""
    windows = Windows(torch.arange(50), 5, batch_size=4, seed=3)
    for _ in range(5):
        n_batches, epoch = len(windows), list(windows)
        assert len(epoch) == n_batches
        for batch in epoch:
            assert batch["input_ids"].dtype == torch.int64
            assert torch.equal(batch["input_ids"], batch["labels"])
            assert batch["input_ids"] is not batch["labels"]
        assert [len(batch["labels"]) for batch in epoch[:-1]] == [4] * (len(epoch) - 1)
        assert sum(len(batch["labels"]) for batch in epoch) >= 9


def test_windows_are_drawn_from_seed_and_epoch(Windows=b.Windows):
    """The same seed and epoch give the same windows in the same order; others give others, and they are shuffled."""

    def epochs(seed, epoch=0):
        windows = Windows(range(200), 5, batch_size=4, seed=seed)
        windows.epoch = epoch
        return [[row[0] for batch in windows for row in batch["input_ids"].tolist()] for _ in range(2)]

    first, second = epochs(1)
    assert epochs(1) == [first, second] and epochs(1, epoch=1)[0] == second
    assert first != second and epochs(2)[0] != first
    assert first != sorted(first)


def test_a_text_shorter_than_a_window_is_refused(Windows=b.Windows):
    """Fewer tokens than a window, or windows without any prediction: MiniftError."""
    with pytest.raises(MiniftError, match="3 tokens.*4"):
        Windows([1, 2, 3], 4, 1)
    with pytest.raises(MiniftError, match="length"):
        Windows([1, 2, 3], 1, 1)


def test_pack_gives_the_reference_plan(pack=b.pack):
    """[1,2,3], [4,5,6,7] and [8] go into two rows of four: [4,5,6,7] and [1,2,3,8]."""
    packed = pack([example([1, 2, 3]), example([4, 5, 6, 7]), example([8])], 4, PAD)
    assert packed["input_ids"].tolist() == [[4, 5, 6, 7], [1, 2, 3, 8]]
    assert packed["segment_ids"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]]
    assert packed["labels"].tolist() == [[-100, 5, 6, 7], [-100, 2, 3, -100]]


def best_fit_decreasing(lengths, length):
    """By trying every row: the number of rows, and the space left in each, sorted."""
    space = []
    for n in sorted(lengths, reverse=True):
        fitting = [i for i, left in enumerate(space) if left >= n]
        if fitting:
            space[min(fitting, key=lambda i: space[i])] -= n
        else:
            space.append(length - n)
    return sorted(space)


def test_pack_keeps_every_token_once(pack=b.pack):
    """Unpacked, the rows hold exactly the examples: positions from 0, labels but the first, the rest padding."""
    rng = random.Random(0)
    for _ in range(60):
        length = rng.randint(3, 12)
        examples = [
            {"input_ids": (ids := rng.choices(range(50), k=rng.randint(1, length))),
             "labels": [i if rng.random() < 0.6 else -100 for i in ids]}
            for _ in range(rng.randint(1, 15))
        ]
        packed = {name: tensor.tolist() for name, tensor in pack(examples, length, PAD).items()}
        found = []
        for ids, labels, positions, segments in zip(
            *(packed[k] for k in ("input_ids", "labels", "position_ids", "segment_ids")), strict=True
        ):
            assert len(ids) == length
            for segment in range(max(segments) + 1):
                at = [t for t in range(length) if segments[t] == segment]
                assert at == list(range(at[0], at[-1] + 1)) and [positions[t] for t in at] == list(range(len(at)))
                assert labels[at[0]] == -100
                found.append(([ids[t] for t in at], [labels[t] for t in at[1:]]))
            padding = [t for t in range(length) if segments[t] == -1]
            assert padding == list(range(length - len(padding), length))
            assert all(ids[t] == PAD and labels[t] == -100 and positions[t] == 0 for t in padding)
        assert sorted(found) == sorted((e["input_ids"], e["labels"][1:]) for e in examples)
        spaces = sorted(row.count(-1) for row in packed["segment_ids"])
        assert spaces == best_fit_decreasing([len(e["input_ids"]) for e in examples], length)


def test_a_packed_sample_is_predicted_as_if_it_were_alone(pack=b.pack):
    """The log-probabilities of each packed sample equal those of the sample alone; other samples do not reach them."""
    torch.manual_seed(0)
    model = LanguageModel(TransformerConfig(50, 16, n_layer=2, n_head=2, d_model=16, d_ff=24)).eval()
    examples = [example(ids) for ids in ([7, 3, 9, 4, 1], [8, 8, 2], [5, 6, 11, 12], [40, 41])]

    @torch.no_grad()
    def logits_of(packed):
        return model(packed["input_ids"], position_ids=packed["position_ids"], segment_ids=packed["segment_ids"])

    packed = pack(examples, 10, PAD)
    logits = logits_of(packed)
    n_samples = 0
    for row, segments in enumerate(packed["segment_ids"]):
        for segment in range(int(segments.max()) + 1):
            at = segments == segment
            ids = packed["input_ids"][row, at][None]
            alone = token_logprobs(model(ids), ids)
            assert torch.allclose(token_logprobs(logits[row, at][None], ids), alone, atol=1e-5)
            n_samples += 1
    assert n_samples == 4
    changed = {name: tensor.clone() for name, tensor in packed.items()}
    first = changed["segment_ids"] == 0
    changed["input_ids"][first] = 33
    other = changed["segment_ids"] > 0
    assert other.any() and torch.equal(logits_of(changed)[other], logits[other])


def test_what_cannot_be_packed_is_refused_with_counts(pack=b.pack):
    """Examples longer than a row, empty ones, none at all, labels of another length: MiniftError that says how many."""
    with pytest.raises(MiniftError, match="2 are longer"):
        pack([example([1, 2, 3]), example([1]), example([1, 2, 3, 4])], 2, PAD)
    with pytest.raises(MiniftError, match="1 are empty"):
        pack([example([1]), example([])], 2, PAD)
    with pytest.raises(MiniftError, match="0 examples"):
        pack([], 2, PAD)
    with pytest.raises(MiniftError, match="labels"):
        pack([{"input_ids": [1, 2], "labels": [1]}], 2, PAD)
