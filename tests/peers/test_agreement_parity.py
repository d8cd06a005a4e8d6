"""Agreement, ROUGE-L and leave-one-group-out beside published libraries: scikit-learn, krippendorff, rouge-score.

Needs the packages of tests/peers/requirements.txt; without them every test here is skipped, and says so.
"""

import math
import random

import pytest

from minift.errors import MiniftError
from minift.evaluation import metrics
from minift.evaluation.clusters import leave_one_cluster_out
from minift.ways import annotation

try:
    import krippendorff
    import numpy as np
    from rouge_score.rouge_scorer import RougeScorer
    from sklearn.metrics import cohen_kappa_score
    from sklearn.model_selection import LeaveOneGroupOut
except ImportError as error:
    pytest.skip(f"{error.name} is not installed: pip install -r tests/peers/requirements.txt", allow_module_level=True)

LEVELS = ("nominal", "ordinal", "interval", "ratio")


def ratings(seed, n_annotator, n_item, missing, agree=0.6, labels=(1, 2, 3, 4, 5)):
    """Annotators x items, alike more often than by chance, with gaps."""
    rng = random.Random(seed)
    truth = rng.choices(labels, k=n_item)
    return [[None if rng.random() < missing else x if rng.random() < agree else rng.choice(labels) for x in truth]
            for _ in range(n_annotator)]


@pytest.mark.parametrize("labels", [(1, 2, 3, 4, 5), ("no", "yes"), ("a", "b", "да", "")])
def test_kappa_is_scikit_learn_s(labels, cohen_kappa=annotation.cohen_kappa):
    """cohen_kappa_score on random ratings from none to full agreement; None is left out before theirs is asked."""
    for seed in range(20):
        a, b = ratings(seed, 2, 30, missing=0.0, agree=seed / 20, labels=labels)
        assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b), abs=1e-9)
        a, b = ratings(seed, 2, 60, missing=0.2, agree=0.5, labels=labels)
        both = [(x, y) for x, y in zip(a, b) if x is not None and y is not None]
        assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(*zip(*both)), abs=1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_is_krippendorff_s(level, krippendorff_alpha=annotation.krippendorff_alpha):
    """krippendorff.alpha at each level, for two to six annotators, with gaps (NaN there), values far apart as well."""
    for seed in range(20):
        labels = (1, 2, 3, 4, 5) if seed % 2 else (0.5, 2, 7, 7.25, 100)
        given = ratings(seed, 2 + seed % 5, 25, missing=0.3 * (seed % 3 > 0), labels=labels)
        given = [[None if x is None else float(x) for x in row] for row in given]
        data = np.array([[np.nan if x is None else x for x in row] for row in given])
        expected = krippendorff.alpha(reliability_data=data, level_of_measurement=level)
        assert krippendorff_alpha(given, level) == pytest.approx(expected, abs=1e-9)


def test_alpha_of_names_is_krippendorff_s(krippendorff_alpha=annotation.krippendorff_alpha):
    """Labels that are words, where theirs is given the counts of each label for each item."""
    names = ("cat", "dog", "owl")
    for seed in range(10):
        given = ratings(seed, 4, 30, missing=0.2, labels=names)
        counts = np.array([[column.count(name) for name in names] for column in zip(*given)])
        expected = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
        assert krippendorff_alpha(given) == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_degenerate_ratings_give_them_no_number_either(cohen_kappa=annotation.cohen_kappa,
                                                       krippendorff_alpha=annotation.krippendorff_alpha):
    """One label throughout: scikit-learn says NaN, krippendorff raises ValueError; ours is a MiniftError."""
    assert math.isnan(cohen_kappa_score([1, 1, 1], [1, 1, 1]))
    with pytest.raises(MiniftError, match="always"):
        cohen_kappa([1, 1, 1], [1, 1, 1])
    with pytest.raises(ValueError):
        krippendorff.alpha(reliability_data=[[1, 1, 1], [1, 1, 1]], level_of_measurement="nominal")
    with pytest.raises(MiniftError, match="always"):
        krippendorff_alpha([[1, 1, 1], [1, 1, 1]])


def theirs(candidate, reference):
    """rouge-score's ROUGE-L F1, without stemming, as the released self-instruct code asks for it."""
    return RougeScorer(["rougeL"], use_stemmer=False).score(reference, candidate)["rougeL"].fmeasure


def test_rouge_l_is_rouge_score_s(rouge_l=metrics.rouge_l):
    """The same F1 on random English texts with capitals, signs and numbers, of unequal length, empty ones too."""
    rng, marks = random.Random(0), ["", "", "", ",", ".", "!", " -", "?"]
    vocabulary = ["the", "The", "cat", "CAT", "sat", "on", "mat", "red", "2", "kites", "a", "it's", "well-known"]
    for _ in range(300):
        a, b = (" ".join(rng.choice(vocabulary) + rng.choice(marks) for _ in range(rng.randint(0, 14)))
                for _ in range(2))
        assert rouge_l(a, b) == pytest.approx(theirs(a, b), abs=1e-9)
    for a, b, expected in (("the cat sat on the mat", "the cat lay on the mat", 5 / 6),
                           ("police killed the gunman", "police kill the gunman", 0.75),
                           ("police killed the gunman", "the gunman kill police", 0.5), ("a b c d", "a b", 2 / 3)):
        assert rouge_l(a, b) == pytest.approx(expected, abs=1e-9) == pytest.approx(theirs(a, b), abs=1e-9)


@pytest.mark.parametrize("text", ["今天天气怎么样", "Какого цвета был змей",
                                  "يوم جميل في الغابة", "एक छोटी कहानी लिखो", "오늘 날씨가 좋다"])
def test_ours_keeps_the_text_that_rouge_score_drops(text, rouge_l=metrics.rouge_l):
    """rouge-score keeps [a-z0-9] alone: for it a text in another alphabet has no word and its exact copy scores 0, so
    that every duplicate would pass a novelty filter. Ours scores 1."""
    assert theirs(text, text) == 0
    assert rouge_l(text, text) == 1
    assert theirs("café fermé", "cafe ferme") == 0 < theirs("café", "caf")    # and an accent cuts a word in two


def test_folds_are_leave_one_group_out_s(leave_one_cluster_out=leave_one_cluster_out):
    """With one cluster a task, the folds are scikit-learn's LeaveOneGroupOut over the rows' clusters, in its order."""
    rng = random.Random(0)
    for _ in range(10):
        clusters = [f"cluster {i}" for i in range(rng.randint(2, 8))]
        tasks = {f"task {i}": clusters[i % len(clusters)] for i in range(15)}
        rows = [{"task": task, "cluster": tasks[task], "id": i}
                for i, task in enumerate(list(tasks) + rng.choices(list(tasks), k=60))]
        rng.shuffle(rows)
        expected = list(LeaveOneGroupOut().split(rows, groups=[row["cluster"] for row in rows]))
        folds = leave_one_cluster_out(rows)
        assert len(folds) == len(expected) == len(clusters)
        for fold, (train, test) in zip(folds, expected):
            assert fold.train == [rows[i] for i in train] and fold.test == [rows[i] for i in test]
