"""Agreement between annotators, what disagrees, and adjudication: published numbers, laws, degenerate cases."""

import math
import random
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from minift.errors import MiniftError
from minift.ways import annotation

# Krippendorff 2011, the example with gaps: four annotators, twelve items
GAPS = [[1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None]]
# Fleiss' kappa: how many of fourteen annotators gave each of ten items each of five labels
FLEISS = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
          [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]


def random_ratings(seed, n_annotator=3, n_item=20, n_label=4, missing=0.2, agree=0.6):
    """Annotators x items of labels 1 to n_label, alike more often than by chance."""
    rng = random.Random(seed)
    truth = [rng.randint(1, n_label) for _ in range(n_item)]
    return [[None if rng.random() < missing else x if rng.random() < agree else rng.randint(1, n_label) for x in truth]
            for _ in range(n_annotator)]


# ---- kappa ----


@pytest.mark.parametrize("a, b, expected", [
    ("11001", "10001", 8 / 13), ("y" * 25 + "n" * 25, "y" * 20 + "n" * 5 + "y" * 10 + "n" * 15, 0.4),
    ("0000000000", "1111111111", 0), ("ab", "ba", -1), ("0101", "1010", -1), ("0123", "0123", 1), ("aab", "aab", 1),
])
def test_kappa_of_known_tables(a, b, expected, cohen_kappa=annotation.cohen_kappa):
    """(p_o - p_e) / (1 - p_e) of published tables; 1 when perfect, -1 when balanced and opposite."""
    assert cohen_kappa(a, b) == pytest.approx(expected, abs=1e-9)
    assert cohen_kappa(b, a) == pytest.approx(expected, abs=1e-9)


def test_kappa_leaves_out_what_one_did_not_rate(cohen_kappa=annotation.cohen_kappa):
    """Items with a None on either side count neither for agreement nor for the frequencies."""
    a, b = [1, None, 1, 0, 0, 1, 0, None], [1, 1, 0, 0, 0, 1, None, None]
    assert cohen_kappa(a, b) == pytest.approx(8 / 13, abs=1e-9)


def test_kappa_does_not_know_names_or_order(cohen_kappa=annotation.cohen_kappa):
    """Renaming the labels, exchanging the annotators and shuffling the items change nothing; chance alone is near 0."""
    rng = random.Random(0)
    for seed in range(10):
        a, b, _ = random_ratings(seed)
        value, names, order = cohen_kappa(a, b), [None, "x", 2.5, "no", (1, 2)], rng.sample(range(20), 20)
        assert cohen_kappa(b, a) == pytest.approx(value, abs=1e-9)
        assert cohen_kappa(*([x and names[x] for x in row] for row in (a, b))) == pytest.approx(value, abs=1e-9)
        assert cohen_kappa(*([row[i] for i in order] for row in (a, b))) == pytest.approx(value, abs=1e-9)
    a, b = (rng.choices("xyz", [5, 3, 1], k=20_000) for _ in range(2))
    assert abs(cohen_kappa(a, b)) < 0.03


# ---- alpha ----


def test_alpha_of_two_annotators(krippendorff_alpha=annotation.krippendorff_alpha):
    """Krippendorff's example of binary data without gaps: 2 / 21, whatever the level, since there are two values."""
    ratings = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    for level in ("nominal", "ordinal", "interval"):
        assert krippendorff_alpha(ratings, level) == pytest.approx(2 / 21, abs=1e-9)


@pytest.mark.parametrize("level, expected", [
    ("nominal", 0.743421), ("ordinal", 0.815388), ("interval", 0.849107), ("ratio", 0.797403)])
def test_alpha_with_gaps(level, expected, krippendorff_alpha=annotation.krippendorff_alpha):
    """Four annotators, twelve items, gaps: the published values at each level, in any order of annotators and items."""
    assert krippendorff_alpha(GAPS, level) == pytest.approx(expected, abs=5e-7)
    for order in permutations(GAPS):
        assert krippendorff_alpha(order, level) == pytest.approx(expected, abs=5e-7)
    items = random.Random(0).sample(range(12), 12)
    assert krippendorff_alpha([[row[i] for i in items] for row in GAPS], level) == pytest.approx(expected, abs=5e-7)


def test_alpha_is_nominal_unless_told(krippendorff_alpha=annotation.krippendorff_alpha):
    """Names have no distance; text of any alphabet is a label as good as a number."""
    names = [None, "да", "нет", "b", "a", "?"]
    assert krippendorff_alpha(GAPS) == krippendorff_alpha(GAPS, "nominal")
    assert krippendorff_alpha([[x and names[x] for x in row] for row in GAPS]) == pytest.approx(0.743421, abs=5e-7)


def test_alpha_agrees_with_fleiss(krippendorff_alpha=annotation.krippendorff_alpha,
                                  percent_agreement=annotation.percent_agreement):
    """On the published table of 14 annotators Fleiss' kappa is 0.209931 and agreement 0.378022; without gaps
    1 - alpha = (1 - kappa) (N - 1) / N for N ratings."""
    ratings = list(zip(*([label for label, n in enumerate(row) for _ in range(n)] for row in FLEISS)))
    shares = [sum(row[k] for row in FLEISS) / 140 for k in range(5)]
    observed = sum(sum(n * (n - 1) for n in row) / (14 * 13) for row in FLEISS) / 10
    kappa = (observed - sum(p**2 for p in shares)) / (1 - sum(p**2 for p in shares))
    assert kappa == pytest.approx(0.209931, abs=5e-7) and observed == pytest.approx(0.378022, abs=5e-7)
    assert percent_agreement(ratings) == pytest.approx(observed, abs=1e-9)
    assert krippendorff_alpha(ratings) == pytest.approx(1 - (1 - kappa) * 139 / 140, abs=1e-9)


def pairwise_alpha(ratings, distance):
    """1 - D_o / D_e by going over all pairs of ratings, without any matrix; distance(x, y) is squared."""
    items = [[x for x in column if x is not None] for column in zip(*ratings)]
    items = [said for said in items if len(said) > 1]
    every = [x for said in items for x in said]
    observed = sum(distance(x, y) / (len(said) - 1) for said in items for x in said for y in said) / len(every)
    expected = sum(distance(x, y) for x in every for y in every) / len(every) / (len(every) - 1)
    return 1 - observed / expected


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval", "ratio"])
def test_alpha_is_one_minus_observed_over_expected(level, krippendorff_alpha=annotation.krippendorff_alpha):
    """On random ratings with gaps it equals the definition, pair by pair, with the paper's distances."""
    for seed in range(15):
        ratings = random_ratings(seed, n_annotator=2 + seed % 4, n_item=12, missing=0.3)
        columns = [[x for x in column if x is not None] for column in zip(*ratings)]
        counts = Counter(x for said in columns if len(said) > 1 for x in said)

        def ordinal(x, y, counts=counts):
            between = sum(counts[g] for g in range(min(x, y), max(x, y) + 1))
            return (between - (counts[x] + counts[y]) / 2) ** 2

        distance = {"nominal": lambda x, y: x != y, "ordinal": ordinal, "interval": lambda x, y: (x - y) ** 2,
                    "ratio": lambda x, y: ((x - y) / (x + y)) ** 2}[level]
        assert krippendorff_alpha(ratings, level) == pytest.approx(pairwise_alpha(ratings, distance), abs=1e-9)


def test_alpha_s_levels_keep_what_they_should(krippendorff_alpha=annotation.krippendorff_alpha):
    """Ordinal knows the order only, interval keeps under shift and scale, ratio under scale; negative values too."""
    def told(change):
        return [[None if x is None else change(x) for x in row] for row in GAPS]

    for level, change in (("ordinal", math.exp), ("ordinal", lambda x: x**3 - 70), ("interval", lambda x: 3 * x - 17),
                          ("ratio", lambda x: 7 * x)):
        assert krippendorff_alpha(told(change), level) == pytest.approx(krippendorff_alpha(GAPS, level), abs=1e-9)
    for level, change in (("interval", math.exp), ("ratio", lambda x: x + 9)):
        assert abs(krippendorff_alpha(told(change), level) - krippendorff_alpha(GAPS, level)) > 0.01
    for level in ("nominal", "ordinal", "interval", "ratio"):
        assert krippendorff_alpha([[0, 1, 2, 3], [0, 1, 2, 3]], level) == pytest.approx(1, abs=1e-9)
    with pytest.raises(MiniftError, match="'nominl'"):
        krippendorff_alpha(GAPS, "nominl")


def test_alpha_compares_numbers_of_any_type(krippendorff_alpha=annotation.krippendorff_alpha):
    """1, 1.5 and 2 lie in that order, though one is a float; words have no size, at any level but the nominal one."""
    ratings = [[1, 1.5, 2, 1, 2, 1.5], [1, 1.5, 2, 1.5, 2, 2]]
    for level in ("nominal", "ordinal", "interval", "ratio"):
        floats = [[float(x) for x in row] for row in ratings]
        assert krippendorff_alpha(ratings, level) == pytest.approx(krippendorff_alpha(floats, level), abs=1e-12)
        if level != "nominal":
            with pytest.raises(MiniftError, match="must be numbers"):
                krippendorff_alpha([["1", "10", "2"], ["1", "10", "10"]], level)


# ---- percent, and what both measures refuse ----


def test_percent_agreement_by_hand(percent_agreement=annotation.percent_agreement):
    """Items with 3 of 3, 1 of 3 and 0 of 1 agreeing pairs have a mean of 4/9; an item with one rating is not one."""
    assert percent_agreement([[1, 1, 1, 5], [1, 1, None, None], [1, 2, 2, None]]) == pytest.approx(4 / 9, abs=1e-9)


def test_an_item_with_one_rating_changes_nothing(percent_agreement=annotation.percent_agreement,
                                                 krippendorff_alpha=annotation.krippendorff_alpha):
    """What only one annotator rated says nothing about agreement, even when its value occurs nowhere else."""
    more = [[*row, extra, None] for row, extra in zip(GAPS, [None, 99, None, None])]
    assert percent_agreement(more) == percent_agreement(GAPS)
    for level in ("nominal", "ordinal", "interval", "ratio"):
        assert krippendorff_alpha(more, level) == pytest.approx(krippendorff_alpha(GAPS, level), abs=1e-12)


@pytest.mark.parametrize("ratings, message", [
    ([[1, 1, 1], [1, 1, 1]], "always say 1"), ([["x", None], ["x", "y"]], "always say 'x'"),
    ([[1, 2, 3]], "at least two annotators"), ([], "at least two annotators"), ([[], []], "at least two annotators"),
    ([[1, None], [None, 2]], "at least two annotators"), ([[None], [None]], "at least two annotators"),
    ([[1, 2], [1]], "an entry for each item"),
])
def test_what_has_no_agreement_is_refused(ratings, message, krippendorff_alpha=annotation.krippendorff_alpha,
                                          cohen_kappa=annotation.cohen_kappa):
    """One label only, one annotator, no overlap, rows of unequal length: a MiniftError that says so, never 1 or NaN."""
    with pytest.raises(MiniftError, match=message):
        krippendorff_alpha(ratings)
    if len(ratings) == 2:
        with pytest.raises(MiniftError, match=message):
            cohen_kappa(*ratings)


def test_percent_agreement_needs_two(percent_agreement=annotation.percent_agreement):
    """One label only is full agreement, by chance or not; without two ratings of an item there is none to measure."""
    assert percent_agreement([[1, 1], [1, 1]]) == 1
    for bad in ([[1, 2]], [[1, None], [None, 2]], [[1, 2], [1]]):
        with pytest.raises(MiniftError):
            percent_agreement(bad)


# ---- bootstrap ----


def population_kappa(truth, first, second):
    """Cohen's kappa of two annotators with these error models on infinitely many items."""
    joint = sum(p * np.outer(a, b) for p, a, b in zip(truth, first, second))
    chance = joint.sum(1) @ joint.sum(0)
    return (np.trace(joint) - chance) / (1 - chance)


def test_the_bootstrap_covers_the_truth_as_often_as_it_says(bootstrap=annotation.bootstrap):
    """Of 80 studies of 100 items by two annotators with known error models, about 95 in a hundred hold their kappa."""
    first, second, hits = annotation.noisy(0.8, 3), annotation.noisy(0.7, 3), 0
    truth = population_kappa([1 / 3] * 3, first, second)
    for seed in range(80):
        right = random.Random(seed).choices("abc", k=100)
        ratings = annotation.simulate(right, "abc", [first, second], seed)
        low, high = bootstrap(lambda r: annotation.cohen_kappa(*r), ratings, seed=seed, n=150)
        hits += low <= truth <= high
    assert 0.87 <= hits / 80 < 1


def test_the_bootstrap_draws_items(bootstrap=annotation.bootstrap):
    """The mean of a 0/1 column has the normal interval; the seed decides; a lower level is narrower."""
    rng = random.Random(0)
    ratings = [[rng.random() < 0.3 for _ in range(400)]] * 2

    def mean(r):
        return sum(r[0]) / len(r[0])

    low, high = bootstrap(mean, ratings, seed=1, n=2000)
    half = 1.96 * math.sqrt(mean(ratings) * (1 - mean(ratings)) / 400)
    assert (low, high) == pytest.approx((mean(ratings) - half, mean(ratings) + half), abs=0.1 * half)
    assert bootstrap(mean, ratings, seed=1, n=2000) == (low, high) != bootstrap(mean, ratings, seed=2, n=2000)
    inner = bootstrap(mean, ratings, seed=1, n=2000, level=0.5)
    assert inner[1] - inner[0] == pytest.approx(2 * half * 0.6745 / 1.96, rel=0.15, abs=0)


def test_the_bootstrap_leaves_out_draws_without_a_value(bootstrap=annotation.bootstrap):
    """Few items often give draws of one label, where alpha is not defined; where it never is, a MiniftError says so."""
    ratings = [[1, 1, 1, 1, 2], [1, 1, 1, 2, 2]]
    low, high = bootstrap(annotation.krippendorff_alpha, ratings, n=300)
    assert -1 <= low < annotation.krippendorff_alpha(ratings) <= high <= 1
    with pytest.raises(MiniftError, match="for any draw"):
        bootstrap(annotation.krippendorff_alpha, [[1, 1], [1, 1]], n=20)


# ---- who and what disagrees ----


def test_disputed_items_by_hand(disputed_items=annotation.disputed_items):
    """Shares of disagreeing pairs, the most disputed first, then in order; agreed and single ones are left out."""
    ratings = [["a", "a", "x", "a", None, "p"], ["a", "b", "y", "a", None, "q"], ["a", "b", "z", None, "c", None]]
    assert disputed_items(ratings) == [(2, 1.0), (5, 1.0), (1, pytest.approx(2 / 3, abs=1e-9))]
    assert disputed_items([[1, 2], [1, 2]]) == []


def test_the_annotator_who_stands_apart_is_seen(agreement_with_others=annotation.agreement_with_others):
    """The share of the others' ratings that equal one's own, by hand; None for one who shares no item with another."""
    ratings = [[1, 1, 2, None], [1, 1, 2, None], [2, 1, 1, None], [None, None, None, 1]]
    shares = agreement_with_others(ratings)
    assert shares[:3] == pytest.approx([4 / 6, 4 / 6, 2 / 6], abs=1e-9) and shares[3] is None
    truth, models = random.Random(0).choices("abc", k=300), [annotation.noisy(p, 3) for p in (0.9, 0.9, 0.4, 0.9)]
    shares = agreement_with_others(annotation.simulate(truth, "abc", models, seed=1, missing=0.3))
    assert min(range(4), key=shares.__getitem__) == 2 and shares[2] < min(shares[0], shares[1], shares[3]) - 0.2


# ---- which label to keep ----


def test_the_majority_and_its_ties(majority=annotation.majority):
    """The most frequent rating; a tie, also among three, or no rating is None: never the first one by accident."""
    ratings = [["a", "a", "a", None, "a", "c"], ["a", "b", "b", None, None, "b"], ["b", None, "c", None, "b", "b"]]
    for order in permutations(ratings):
        assert majority(order) == ["a", None, None, None, None, "b"]
    assert majority([[1, 2, None]]) == [1, 2, None]
    with pytest.raises(MiniftError, match="each item"):
        majority([["a", "b"], ["a"]])


def dawid_skene_by_loops(ratings, labels, iterations):
    """Dawid and Skene's equations 2.3 to 2.5 in plain Python, from the shares of the votes."""
    items = range(len(ratings[0]))
    T = [{k: sum(row[i] == k for row in ratings) / sum(row[i] is not None for row in ratings) for k in labels}
         for i in items]
    for _ in range(iterations):
        p = {j: sum(T[i][j] for i in items) / len(T) for j in labels}
        said = [{j: {k: sum(T[i][j] for i in items if row[i] == k) for k in labels} for j in labels} for row in ratings]
        pi = [{j: {k: n / sum(m[j].values()) for k, n in m[j].items()} for j in labels} for m in said]
        likelihood = [{j: p[j] * math.prod(pi[a][j][row[i]] for a, row in enumerate(ratings) if row[i] is not None)
                       for j in labels} for i in items]
        T = [{j: row[j] / sum(row.values()) for j in labels} for row in likelihood]
    return [[row[j] for j in labels] for row in T], [[[m[j][k] for k in labels] for j in labels] for m in pi]


def test_dawid_skene_is_em_by_the_book(dawid_skene=annotation.dawid_skene):
    """After 1, 2 and 5 rounds posteriors and confusions equal the paper's formulas written out, gaps included."""
    truth = random.Random(0).choices("abc", [5, 3, 2], k=40)
    ratings = annotation.simulate(truth, "abc", [annotation.noisy(p, 3) for p in (0.8, 0.7, 0.6)], seed=1, missing=0.1)
    for iterations in (1, 2, 5):
        posteriors, confusions, labels = dawid_skene(ratings, iterations=iterations)
        expected_posteriors, expected_confusions = dawid_skene_by_loops(ratings, "abc", iterations)
        assert labels == list("abc")
        np.testing.assert_allclose(posteriors, expected_posteriors, atol=1e-6)
        np.testing.assert_allclose(confusions, expected_confusions, atol=1e-6)


def test_dawid_skene_finds_planted_confusions(dawid_skene=annotation.dawid_skene):
    """From 3000 items by five annotators with known error models, unlike one another, each entry within 0.05."""
    planted = [annotation.noisy(0.9, 3), annotation.noisy(0.7, 3), [[0.8, 0.2, 0.0], [0.0, 0.9, 0.1], [0.3, 0.0, 0.7]],
               [[0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]], annotation.noisy(0.8, 3)]
    truth = random.Random(0).choices("abc", [5, 3, 2], k=3000)
    ratings = annotation.simulate(truth, "abc", planted, seed=1, missing=0.2)
    posteriors, confusions, labels = dawid_skene(ratings)
    np.testing.assert_allclose(confusions, planted, atol=0.05)
    np.testing.assert_allclose(confusions.sum(2), 1, atol=1e-9)
    np.testing.assert_allclose(posteriors.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(posteriors.mean(0), [0.5, 0.3, 0.2], atol=0.03)


def share_right(labels, truth):
    return sum(x == y for x, y in zip(labels, truth)) / len(truth)


def test_dawid_skene_uses_a_liar(dawid_skene=annotation.dawid_skene, majority=annotation.majority):
    """Two who always say the next label outvote three of 0.75; counted the other way they give nearly every truth."""
    liar = [[0.05, 0.95, 0.0], [0.0, 0.05, 0.95], [0.95, 0.0, 0.05]]
    truth = random.Random(0).choices("abc", k=600)
    ratings = annotation.simulate(truth, "abc", [annotation.noisy(0.75, 3)] * 3 + [liar] * 2, seed=1)
    posteriors, confusions, labels = dawid_skene(ratings)
    by_em = [labels[k] for k in posteriors.argmax(1)]
    assert share_right(by_em, truth) > 0.97 > share_right(majority(ratings), truth) + 0.2
    np.testing.assert_allclose(confusions[3], liar, atol=0.06)


def test_dawid_skene_without_ratings(dawid_skene=annotation.dawid_skene):
    """An item that nobody rated gets the labels' frequencies; perfect annotators leave no doubt; no overlap is refused.
    Such an item changes nothing for the others, not even in the first round."""
    ratings = [["a", "a", "b", "a", None], ["a", "a", "b", "a", None], [None] * 5]
    posteriors, confusions, labels = dawid_skene(ratings)
    np.testing.assert_allclose(posteriors, [[1, 0], [1, 0], [0, 1], [1, 0], [0.75, 0.25]], atol=1e-6)
    np.testing.assert_allclose(confusions[:2], [np.eye(2)] * 2, atol=1e-6)
    assert labels == ["a", "b"]
    ratings = random_ratings(5, n_item=12, missing=0)
    alone, beside = dawid_skene(ratings, iterations=1), dawid_skene([[*row, None] for row in ratings], iterations=1)
    np.testing.assert_allclose(beside[0][:-1], alone[0], atol=1e-9)
    for bad in ([["a", None], [None, "b"]], [["a", "b"], ["a"]], []):
        with pytest.raises(MiniftError):
            dawid_skene(bad)


def test_dawid_skene_does_not_know_the_annotators_order(dawid_skene=annotation.dawid_skene):
    """The same items and annotators in another order give the same answer in that order."""
    ratings = random_ratings(3, n_annotator=4, n_item=30)
    posteriors, confusions, _ = dawid_skene(ratings)
    turned = dawid_skene([row[::-1] for row in ratings[::-1]])
    np.testing.assert_allclose(turned[0], posteriors[::-1], atol=1e-6)
    np.testing.assert_allclose(turned[1], confusions[::-1], atol=1e-6)


# ---- simulated annotators ----


def test_simulated_annotators_err_as_planned(simulate=annotation.simulate):
    """A row of the error model is the distribution of what is said when its label is right; gaps as often as asked."""
    model, truth = [[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]], list("abc") * 4000
    said, = simulate(truth, "abc", [model], seed=1, missing=0.25)
    assert sum(x is None for x in said) / 12_000 == pytest.approx(0.25, abs=0.02)
    for i, right in enumerate("abc"):
        counts = Counter(x for x, y in zip(said, truth) if y == right and x is not None)
        assert [counts[x] / counts.total() for x in "abc"] == pytest.approx(model[i], abs=0.03)
    assert simulate(truth, "abc", [model], seed=1, missing=0.25) == [said]
    assert simulate(truth, "abc", [model], seed=2, missing=0.25) != [said]


def test_annotators_do_not_copy_one_another(simulate=annotation.simulate):
    """Two with the same error model err on different items: agreement is p^2 + (1 - p)^2 / (L - 1)."""
    a, b = simulate(["x"] * 20_000, "xyz", [annotation.noisy(0.8, 3)] * 2, seed=0)
    assert share_right(a, b) == pytest.approx(0.8**2 + 0.2**2 / 2, abs=0.015)


def test_error_models_are_distributions(simulate=annotation.simulate, noisy=annotation.noisy):
    """noisy spreads its errors evenly; a matrix of another size, or whose rows are no probabilities, is refused."""
    assert noisy(0.7, 4) == [pytest.approx([0.7 if i == j else 0.1 for j in range(4)], abs=1e-12) for i in range(4)]
    for bad in (noisy(0.8, 3), [[0.5, 0.4], [0.5, 0.5]], [[1.5, -0.5], [0.5, 0.5]]):
        with pytest.raises(MiniftError, match="probabilities"):
            simulate("ab", "ab", [bad])


def test_more_annotators_and_clearer_guidelines_pay(simulate=annotation.simulate, majority=annotation.majority):
    """The majority of five is right more often than one alone, of nine more; and that of three who err less often."""
    truth = random.Random(0).choices("abcd", k=2000)

    def right(n, p):
        return share_right(majority(simulate(truth, "abcd", [annotation.noisy(p, 4)] * n, seed=1)), truth)

    assert right(1, 0.7) + 0.05 < right(5, 0.7) < right(9, 0.7) and right(3, 0.7) + 0.1 < right(3, 0.9)
