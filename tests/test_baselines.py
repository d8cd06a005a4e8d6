"""What must be beaten: majority, bag of words, random encoder, shuffled labels; and guesses at hidden tokens."""

import copy
import functools
import statistics
from collections import Counter

import pytest
import torch

from minift.core.heads import MaskedLanguageModel, SequenceClassifier
from minift.core.transformer import Transformer, TransformerConfig
from minift.evaluation import baselines, masked
from minift.evaluation.metrics import accuracy
from minift.methods import classify, mlm

CONFIG = TransformerConfig(30, 16, n_layer=1, n_head=2, d_model=16, d_ff=32, causal=False, norm_first=False,
                           norm="layernorm", positions="learned", mlp="gelu", bias=True, dropout=0.3)


STEPS = 60


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    """These little sets are learned in fewer steps."""
    monkeypatch.setattr(baselines, "fit_linear", functools.partial(classify.fit_linear, steps=STEPS))


def make_model(seed=0, n_label=2):
    torch.manual_seed(seed)
    return SequenceClassifier(Transformer(CONFIG), n_label)


def make_examples(n, seed):
    """Texts of 8 ids; of label 1 are those whose first four ids are from 15 on, of label 0 those with ids below."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    ids = torch.randint(30, (n, 8), generator=generator)
    ids[:, :4] = ids[:, :4] % 15 + 15 * labels[:, None]
    return [{"input_ids": row, "label": label} for row, label in zip(ids.tolist(), labels.tolist())]


def make_batches(n=200, seed=0):
    return baselines.labelled_batches(make_examples(n, seed), 0)


# ---- predictions ----


def test_batches_keep_the_order_unless_shuffled(labelled_batches=baselines.labelled_batches):
    """All examples in their order, with their labels; shuffled, in one that the seed and the epoch decide."""
    examples = make_examples(10, 0)
    def ids(batches):
        return [row for batch in batches for row in batch["input_ids"].tolist()]
    batches = labelled_batches(examples, 0, batch_size=4)
    assert ids(batches) == ids(batches) == [example["input_ids"] for example in examples]
    assert [len(batch["label"]) for batch in batches] == [4, 4, 2]
    first, again, other = (ids(labelled_batches(examples, 0, 4, seed, shuffle=True)) for seed in (1, 1, 2))
    assert first == again != other and sorted(first) == sorted(other) == sorted(ids(batches))


def test_predictions_are_the_probabilities_of_each_text(predict=baselines.predict):
    """(N, L): softmax of the logits of each text alone, in evaluation mode, in the order of the rows."""
    model = make_model(n_label=3).train()
    examples = [{**example, "input_ids": example["input_ids"][:3 + i % 5]}
                for i, example in enumerate(make_examples(20, 0))]
    got = predict(model, baselines.labelled_batches(examples, 0, batch_size=8))
    assert model.training and model.body.training and not got.requires_grad
    model.eval()
    expected = torch.cat([model(torch.tensor([example["input_ids"]])).exp() for example in examples])
    torch.testing.assert_close(got, expected / expected.sum(1, keepdim=True), rtol=0, atol=1e-6)


# ---- what a classifier must beat ----


def test_the_majority_is_that_of_the_training_labels(majority=baselines.majority):
    """The share of the most frequent training label among the labels, even where it is rare there."""
    assert majority([2, 0, 2, 1], [2, 0, 0, 0, 2]) == 0.4
    assert majority(["a", "b", "b"], ["a", "a", "a", "b"]) == 0.25
    assert majority([1, 1, 0], [0, 0]) == 0


def test_words_of_the_second_text_are_counted_apart(count_words=baselines.count_words):
    """Counts of the words that have a place, in any case; a word of text_pair is another word; others count nothing."""
    rows = [{"text": "A dog, a DOG.", "text_pair": "the dog"}, {"text": "the cat"}, {"text": "?", "text_pair": None}]
    place = {"dog": 0, "the": 1, "2 dog": 2, "a": 3}
    assert count_words(rows, place).tolist() == [[2, 0, 1, 2], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_a_bag_of_words_reads_keywords_on_either_side(bag_of_words=baselines.bag_of_words):
    """A label that one word tells is found, also when only the text in which it stands matters; order is not seen."""
    keyword = [{"text": f"{'well' if i % 2 else 'ill'} word{i % 7}", "text_pair": None} for i in range(40)]
    side = [{"text": "x y"[i % 2 * 2], "text_pair": "y x"[i % 2 * 2]} for i in range(40)]
    order = [{"text": "x then y" if i % 2 else "y then x"} for i in range(40)]
    labels = [i % 2 for i in range(40)]
    assert bag_of_words(keyword[:20], labels[:20], keyword[20:], labels[20:], 2) == 1
    assert bag_of_words(side[:20], labels[:20], side[20:], labels[20:], 2) == 1
    assert bag_of_words(order[:20], labels[:20], order[20:], labels[20:], 2) == 0.5


def test_a_bag_of_words_knows_frequent_training_words_only(bag_of_words=baselines.bag_of_words):
    """The vocabulary is the max_words most frequent words of the training rows: a rare keyword needs a larger one."""
    rows = [{"text": f"so so it is {'well' if i % 2 else 'ill'}"} for i in range(20)]
    labels = [i % 2 for i in range(20)]
    assert bag_of_words(rows, labels, rows, labels, 2, max_words=3) == 0.5
    assert bag_of_words(rows, labels, rows, labels, 2, max_words=4) == 1
    wordy = [{"text": f"a a b b c c d d e e {'well' if i % 2 else 'ill'}"} for i in range(20)]
    assert bag_of_words(rows, labels, wordy, labels, 2, max_words=5) == 1    # their own words are no matter


def test_a_probe_is_the_head_on_the_features_as_they_are(probe_accuracy=baselines.probe_accuracy):
    """Accuracy of fit_linear on the training features, on the other rows; the model itself stays bit-equal."""
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    (x, y), (x_test, y_test) = (classify.cached_features(model, make_batches(seed=seed)) for seed in (0, 1))
    linear = classify.fit_linear(x, y, 2, seed=5, steps=STEPS)
    expected = accuracy((x_test @ linear.weight.T + linear.bias).argmax(-1), y_test)
    assert probe_accuracy(model, make_batches(), make_batches(seed=1), 5) == expected > 0.8
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_random_encoder_does_not_know_the_model(random_encoder=baselines.random_encoder):
    """Whatever the model's weights are, the result is the same; it depends on the seed, and beats what knows nothing:
    a model of noughts is at chance."""
    model = make_model()
    blank = copy.deepcopy(model)
    with torch.no_grad():
        for p in blank.parameters():
            p.zero_()
    data = make_batches(), make_batches(seed=1)
    expected = random_encoder(model, *data)
    assert random_encoder(blank, *data) == expected > 0.8 and all((p == 0).all() for p in blank.parameters())
    assert baselines.probe_accuracy(blank, *data, seed=0) < 0.6
    torch.manual_seed(3)
    fresh = SequenceClassifier(Transformer(CONFIG), 2)
    assert random_encoder(model, *data, seed=3) == baselines.probe_accuracy(classify.freeze(fresh), *data, seed=3)


def test_shuffled_labels_give_chance(shuffled_labels=baselines.shuffled_labels):
    """Over eight shuffles the mean accuracy is 1/2 within 3 standard errors, where right labels give above 0.8."""
    model, data = make_model(), (make_batches(), make_batches(seed=1))
    got = [shuffled_labels(model, *data, seed=seed) for seed in range(8)]
    assert abs(statistics.mean(got) - 0.5) < 3 * statistics.stdev(got) / 8**0.5
    assert len(set(got)) > 3 and max(got) < 0.8 < baselines.probe_accuracy(model, *data, seed=0)
    assert shuffled_labels(model, *data, seed=4) == got[4]


# ---- guesses at hidden tokens ----


def hidden_batches(seed=0):
    """Two batches of ids with some tokens hidden, the second padded."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for length in (16, 11):
        ids = torch.randint(4, 30, (5, length), generator=generator)
        ids[:, 0] = 1
        real = torch.ones_like(ids).bool()
        real[1:4, 7:] = False
        out, labels = mlm.mask_tokens(ids, (ids < 4) | ~real, mask_id=3, vocab_size=30, generator=generator,
                                      probability=0.4)
        batches.append({"input_ids": out, "attention_mask": real, "labels": labels})
    return batches


def test_masked_accuracy_counts_first_guesses(masked_accuracy=masked.masked_accuracy):
    """Hits of the largest logit over all hidden tokens of all batches, without dropout; the model's mode stays."""
    torch.manual_seed(0)
    model = MaskedLanguageModel(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.ndim == 2 else 1)
    model.eval()
    batches = hidden_batches()
    for batch in batches:                       # let some guesses be right
        guess = model(batch["input_ids"], batch["attention_mask"]).argmax(-1)
        hit = (batch["labels"] != -100) & (torch.arange(batch["labels"].shape[1]) % 3 == 0)
        batch["labels"] = torch.where(hit, guess, batch["labels"])
    hits, n = 0, 0
    for batch in batches:
        logits = model(batch["input_ids"], batch["attention_mask"])
        for b, t in (batch["labels"] != -100).nonzero().tolist():
            hits, n = hits + (int(logits[b, t].argmax()) == int(batch["labels"][b, t])), n + 1
    assert masked_accuracy(model.train(), batches) == pytest.approx(hits / n, abs=1e-9) and 0.1 < hits / n < 0.9
    assert all(module.training for module in model.modules())
    nothing = [{"input_ids": torch.ones(1, 3, dtype=torch.long), "labels": torch.full((1, 3), -100)}]
    assert masked_accuracy(model, nothing) == 0


def test_bigrams_of_a_worked_example(Bigrams=masked.Bigrams):
    """Of the rows 1 4 5 4, 1 4 5, 1 7 and 1 6: most frequent is 4, not counting the first of each row; after 1 comes
    mostly 4, after 4 a 5, after 5 a 4; what never stood on the left, a mask too, has the most frequent after it."""
    bigrams = Bigrams([[1, 4, 5, 4], [1, 4, 5], [1, 7], [1, 6]], 8)
    assert bigrams.most_frequent == 4 and bigrams.after.tolist() == [4, 4, 4, 4, 5, 4, 4, 4]
    batch = {"input_ids": torch.tensor([[1, 3, 5, 3, 4, 3, 2]]),             # hidden: a 4 after 1, a 6 after 5, a 5
             "labels": torch.tensor([[-100, 4, -100, 6, -100, 5, -100]])}    # after 4
    assert bigrams.accuracies([batch]) == pytest.approx((1 / 3, 2 / 3), abs=1e-9)


def test_bigrams_equal_a_count_by_hand(Bigrams=masked.Bigrams):
    """On random rows both guesses hit as often as those of counters of tokens and of neighbours."""
    rows = torch.randint(4, 12, (60, 9), generator=torch.Generator().manual_seed(0))
    rows = torch.where(torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)) < 0.3, 5, rows).tolist()
    after, every = {}, Counter()
    for row in rows:
        for left, right in zip(row, row[1:]):
            after.setdefault(left, Counter())[right] += 1
            every[right] += 1
    bigrams, hits = Bigrams(rows, 30), Counter()
    assert bigrams.most_frequent == every.most_common(1)[0][0] == 5
    for left, counts in after.items():
        assert counts[int(bigrams.after[left])] == max(counts.values())
    batches = hidden_batches()
    for batch in batches:
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist()):
            for left, label in zip(ids, labels[1:]):
                hits["n"] += label != -100
                hits["frequent"] += label == 5
                hits["bigram"] += label != -100 and label == int(bigrams.after[left])
    got = bigrams.accuracies(batches)
    assert got == pytest.approx((hits["frequent"] / hits["n"], hits["bigram"] / hits["n"]), abs=1e-9)
    assert Bigrams(rows, 30).accuracies([]) == (0, 0)
