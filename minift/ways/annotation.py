"""Several people label the same items: how far they agree, on which items they disagree, and which label to keep.

Kappa: Cohen 1960, eq. 1. Alpha: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", by the coincidence
matrix. Adjudication: Dawid & Skene 1979, "Maximum Likelihood Estimation of Observer Error-Rates Using the EM
Algorithm". Left out: weighted kappa, items that are harder than others.

`ratings` are annotators x items: ratings[a][i] is annotator a's rating of item i, None where there is none.
"""

import numbers
import random
from collections import Counter
from itertools import chain, combinations

import numpy as np

from minift.errors import MiniftError

LEVELS = ("nominal", "ordinal", "interval", "ratio")


def check_ratings(ratings):
    """The ratings as lists; MiniftError for rows of unequal length or when no item has two ratings."""
    rows = [list(row) for row in ratings]
    if len({len(row) for row in rows}) > 1:
        raise MiniftError(
            f"every annotator needs an entry for each item (None where there is none); the rows have "
            f"{sorted({len(row) for row in rows})} entries")
    if not any(len(said) > 1 for said in by_item(rows)):
        raise MiniftError("agreement needs items that at least two annotators have rated; there is none")
    return rows


def by_item(ratings):
    """For each item the ratings that were given to it."""
    return [[value for value in column if value is not None] for column in zip(*ratings)]


def percent_agreement(ratings):
    """The share of agreeing pairs of annotators: mean over items with two or more ratings. Chance is not removed."""
    items = [said for said in by_item(check_ratings(ratings)) if len(said) > 1]
    shares = [sum(x == y for x, y in combinations(said, 2)) / (len(said) * (len(said) - 1) / 2) for said in items]
    return sum(shares) / len(shares)


def cohen_kappa(a, b):
    """(p_o - p_e) / (1 - p_e): agreement of two annotators beyond chance, 1 when perfect, 0 at chance.

    a, b: their labels of the same items; an item that one of them left out (None) does not count. p_o: the observed
    agreement. p_e: the agreement by chance of two annotators with these frequencies. Raises MiniftError when both
    always use the same single label.
    """
    pairs = [(x, y) for x, y in zip(*check_ratings([a, b])) if x is not None and y is not None]
    n, first, second = len(pairs), Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    observed = sum(x == y for x, y in pairs) / n
    chance = sum(first[label] * second[label] for label in first) / n**2
    if chance == 1:
        raise MiniftError(f"both annotators always say {pairs[0][0]!r}: agreement beyond chance is not defined")
    return (observed - chance) / (1 - chance)


def krippendorff_alpha(ratings, level="nominal"):
    """1 - D_o / D_e: observed over expected disagreement, for any number of annotators and with gaps.

    level: how the difference of two values is measured: "nominal" (0 or 1), "ordinal" (by rank), "interval"
    (difference), "ratio" (difference over sum). Except for "nominal", values must be numbers. Raises MiniftError when
    only one value occurs.
    """
    if level not in LEVELS:
        raise MiniftError(f"level is {level!r}; expected one of {', '.join(LEVELS)}")
    items = [said for said in by_item(check_ratings(ratings)) if len(said) > 1]
    values = set(chain.from_iterable(items))
    if level != "nominal" and not all(isinstance(value, numbers.Real) for value in values):
        raise MiniftError(f"{level} ratings must be numbers, got {sorted(map(str, values))}")
    values = sorted(values, key=lambda value: (str(type(value)) if level == "nominal" else "", value))
    if len(values) < 2:
        raise MiniftError(f"all annotators always say {values[0]!r}: agreement beyond chance is not defined")
    place = {value: k for k, value in enumerate(values)}
    coincidences = np.zeros((len(values), len(values)))  # (L, L)
    for said in items:
        for i, x in enumerate(said):
            for j, y in enumerate(said):
                if i != j:
                    coincidences[place[x], place[y]] += 1 / (len(said) - 1)
    counts = coincidences.sum(1)  # (L,)
    distance = distances(values, counts, level)
    expected = (np.outer(counts, counts) * distance).sum() / (counts.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected)


def distances(values, counts, level):
    """(L, L) squared differences between the L values, as `level` measures them."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    # How many ratings lie between the two values, with half of those at both ends.
    if level == "ordinal":
        rank = np.cumsum(counts) - counts / 2
        return (rank[:, None] - rank[None, :]) ** 2
    x = np.array(values, dtype=float)
    difference, total = x[:, None] - x[None, :], x[:, None] + x[None, :]
    return difference**2 if level == "interval" else (difference / np.where(total == 0, 1, total)) ** 2


def bootstrap(statistic, ratings, seed=0, level=0.95, n=1000):
    """(low, high): the bootstrap interval of a statistic of ratings, with confidence `level`; items are drawn again.

    statistic(ratings) -> float, such as krippendorff_alpha, or lambda r: cohen_kappa(*r). Draws for which it is not
    defined (one label only) are left out. Raises MiniftError when it is defined for no draw.
    """
    columns, rng, found = list(zip(*check_ratings(ratings))), random.Random(seed), []
    for _ in range(n):
        drawn = rng.choices(columns, k=len(columns))
        try:
            found.append(statistic(list(zip(*drawn))))
        except MiniftError:
            continue
    if not found:
        raise MiniftError("the statistic is not defined for any draw of the items: too few items, or one label only")
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ---- who and what disagrees ----


def disputed_items(ratings):
    """[(item, share of disagreeing pairs)], the most disputed first; items on which all agree are left out."""
    found = []
    for item, said in enumerate(by_item(check_ratings(ratings))):
        pairs = list(combinations(said, 2))
        if pairs and len(set(said)) > 1:
            found.append((item, sum(x != y for x, y in pairs) / len(pairs)))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))


def agreement_with_others(ratings):
    """For each annotator, the share of the others' ratings of the same items that equal theirs, or None without any."""
    rows, found = check_ratings(ratings), []
    for a, row in enumerate(rows):
        same = []
        for other in rows[:a] + rows[a + 1:]:
            same += [x == y for x, y in zip(row, other) if x is not None and y is not None]
        share = sum(same) / len(same) if same else None
        found.append(share)
    return found


# ---- which label to keep ----


def majority(ratings):
    """The most frequent rating of each item; None for a tie and for an item without ratings: ask another annotator."""
    if len({len(row) for row in ratings}) > 1:
        raise MiniftError("every annotator needs an entry for each item (None where there is none)")
    labels = []
    for said in by_item(ratings):
        counts = Counter(said).most_common(2)
        tied = not counts or (len(counts) > 1 and counts[0][1] == counts[1][1])
        label = None if tied else counts[0][0]
        labels.append(label)
    return labels


def dawid_skene(ratings, iterations=200, tolerance=1e-8):
    """Labels by EM, from the ratings and each annotator's errors, which are estimated together.

    An annotator who is often wrong counts less, and one who is mostly wrong counts in favour of the other labels.
    Returns (posteriors, confusions, labels): posteriors (items, L), the probability of each label; confusions
    (annotators, L, L), how often an annotator gives the column's label when the row's is right; labels, the L labels in
    order. EM begins with the shares of the votes. An item without ratings gets the frequencies of the labels.
    """
    # Count the ratings; their shares are the first posteriors.
    rows = check_ratings(ratings)
    labels = sorted(set(chain.from_iterable(rows)) - {None}, key=str)
    said = np.zeros((len(rows), len(rows[0]), len(labels)))  # (A, N, L)
    for a, row in enumerate(rows):
        for i, value in enumerate(row):
            if value is not None:
                said[a, i, labels.index(value)] = 1
    votes = said.sum(0)  # (N, L)
    rated = votes.sum(1, keepdims=True) > 0
    posteriors = np.where(rated, votes / np.maximum(votes.sum(1, keepdims=True), 1), 1 / len(labels))
    # Repeat both steps until the posteriors stay.
    for _ in range(iterations):
        # M step, eq. 2.4.
        frequencies = posteriors[rated[:, 0]].mean(0)
        confusions = np.einsum("il,aik->alk", posteriors, said) + 1e-9  # eq. 2.3
        confusions /= confusions.sum(2, keepdims=True)
        scores = np.log(frequencies + 1e-300) + np.einsum("aik,alk->il", said, np.log(confusions))
        # E step, eq. 2.5.
        new = np.exp(scores - scores.max(1, keepdims=True))
        new /= new.sum(1, keepdims=True)
        moved, posteriors = np.abs(new - posteriors).max(), new
        if moved < tolerance:
            break
    return posteriors, confusions, labels


# ---- annotators for experiments ----


def simulate(truth, labels, confusions, seed=0, missing=0.0):
    """Ratings of simulated annotators with known errors: annotators x items.

    truth: the right label of each item. labels: the L labels, in the order of the matrices. confusions: for each
    annotator one (L, L) matrix; its row says how often they give each label when the row's label is right. missing: the
    share of ratings that are not given.
    """
    rng, ratings = random.Random(seed), []
    for matrix in confusions:
        if len(matrix) != len(labels) or any(abs(sum(row) - 1) > 1e-6 or min(row) < 0 for row in matrix):
            raise MiniftError("each annotator needs a row of probabilities, with sum 1, for each label")
        ratings.append(
            [None if rng.random() < missing else rng.choices(labels, matrix[labels.index(right)])[0]
             for right in truth])
    return ratings


def noisy(accuracy, n_label):
    """The (L, L) matrix of an annotator who is right with probability `accuracy`; wrong labels are equally likely."""
    other = (1 - accuracy) / (n_label - 1)
    return [[accuracy if i == j else other for j in range(n_label)] for i in range(n_label)]
