"""What a classifier must beat: the majority class, a bag of words, a random encoder, and shuffled labels.

A probe on a random encoder shows what the pretraining added: Conneau et al. 2018, section 4. Shuffled labels: Hewitt &
Liang 2019, "Designing and Interpreting Probes with Control Tasks", section 2. Left out: tf-idf, n-grams.
"""

from collections import Counter

import torch

from minift.core.heads import SequenceClassifier
from minift.core.transformer import Transformer
from minift.evaluation.metrics import accuracy, words
from minift.methods.classify import cached_features, fit_linear, freeze
from minift.text.batches import Batches
from minift.text.segments import collate_labelled


def labelled_batches(examples, pad_id, batch_size=64, seed=0, shuffle=False):
    """Batches of labelled examples (from encode_labelled)."""
    return Batches(
        examples, batch_size, lambda part: collate_labelled(part, pad_id), seed, shuffle)


@torch.no_grad()
def predict(model, batches):
    """(N, L) probabilities of all rows, in the order of the batches."""
    features, _ = cached_features(model, batches)
    return model.head(features).softmax(-1)


def majority(train_labels, labels):
    """Accuracy of always saying the most frequent training label."""
    guess = Counter(train_labels).most_common(1)[0][0]
    return accuracy([guess] * len(labels), labels)


def bag_of_words(train_rows, train_labels, rows, labels, n_label, max_words=5000, seed=0):
    """Accuracy of logistic regression on counts of words; the words of text_pair are counted separately.

    The vocabulary is the max_words most frequent words of the training rows.
    """
    counts = Counter()
    for row in train_rows:
        counts.update(row_words(row))
    place = {word: i for i, (word, _) in enumerate(counts.most_common(max_words))}
    linear = fit_linear(
        count_words(train_rows, place), torch.tensor(train_labels), n_label, standardise=False,
        seed=seed)
    return accuracy(linear(count_words(rows, place)).argmax(-1), labels)


def row_words(row):
    return words(row["text"]) + [f"2 {word}" for word in words(row.get("text_pair") or "")]


def count_words(rows, place):
    """(N, W) counts of the words that have a place."""
    counts = torch.zeros(len(rows), len(place))
    for i, row in enumerate(rows):
        for word in row_words(row):
            if word in place:
                counts[i, place[word]] += 1
    return counts


def random_encoder(model, train_batches, batches, seed=0):
    """Accuracy of the same head on an encoder of the same shape with fresh random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = SequenceClassifier(
            Transformer(model.config), model.head.out_features, model.pooling)
    fresh.to(next(model.parameters()).device)
    return probe_accuracy(freeze(fresh), train_batches, batches, seed)


def shuffled_labels(model, train_batches, batches, seed=0):
    """Accuracy of the same head on the same features, trained on shuffled labels: near chance if nothing is wrong."""
    return probe_accuracy(model, train_batches, batches, seed, shuffle=True)


def probe_accuracy(model, train_batches, batches, seed, shuffle=False):
    """Accuracy of a linear probe on the model's features as they are."""
    features, labels = cached_features(model, train_batches)
    if shuffle:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        labels = labels[order.to(labels.device)]
    linear = fit_linear(features, labels, model.head.out_features, seed=seed)
    features, labels = cached_features(model, batches)
    return accuracy(linear(features).argmax(-1), labels)
