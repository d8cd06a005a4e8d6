"""Metrics of classification beside scikit-learn's: accuracy, macro F1, confusion matrix, calibration, to 1e-9.

Needs the packages of tests/peers/requirements.txt; without them every test here is skipped, and says so.
"""

import random
import warnings

import numpy as np
import pytest
import torch

from minift.evaluation import metrics

REASON = "scikit-learn is missing: pip install -r tests/peers/requirements.txt compares with it"
theirs = pytest.importorskip("sklearn.metrics", reason=REASON)
calibration = pytest.importorskip("sklearn.calibration", reason=REASON)

NAMES = ["no", "perhaps", "unknown", "yes"]


def answers(case, seed=0, n=400):
    """(predictions, right labels): about two of three are right."""
    rng = random.Random(f"{case}/{seed}")
    right = rng.choices(NAMES, weights=[8, 1, 4, 2], k=n)
    guesses = [answer if rng.random() < 0.5 else rng.choice(NAMES) for answer in right]
    if case == "absent from the predictions":
        guesses = ["no" if guess == "perhaps" else guess for guess in guesses]
    if case == "absent from the right ones":
        right = ["no" if answer == "perhaps" else answer for answer in right]
    if case == "one answer for all":
        guesses = ["unknown"] * n
    if case == "never right":
        guesses = [NAMES[(NAMES.index(answer) + 1) % 4] for answer in right]
    return guesses, right


CASES = ("all classes", "absent from the predictions", "absent from the right ones", "one answer for all",
         "never right")


@pytest.mark.parametrize("case", CASES)
def test_accuracy_f1_and_confusion(case, accuracy=metrics.accuracy, macro_f1=metrics.macro_f1,
                                   confusion_matrix=metrics.confusion_matrix):
    """Equal to accuracy_score, f1_score(average="macro") and confusion_matrix to 1e-9, as names and as numbers."""
    for seed in range(3):
        guesses, right = answers(case, seed)
        numbers = [torch.tensor([NAMES.index(name) for name in names]) for names in (guesses, right)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")                                   # no F1 of theirs is undefined
            expected = theirs.f1_score(right, guesses, average="macro")
        for pair in ((guesses, right), numbers):
            assert accuracy(*pair) == pytest.approx(theirs.accuracy_score(right, guesses), abs=1e-9)
            assert macro_f1(*pair) == pytest.approx(expected, abs=1e-9)
            assert confusion_matrix(*pair).tolist() == theirs.confusion_matrix(right, guesses).tolist()
    order = ["yes", "no", "unknown", "perhaps", "never heard"]
    assert (confusion_matrix(guesses, right, order).tolist()
            == theirs.confusion_matrix(right, guesses, labels=order).tolist())


@pytest.mark.parametrize("n_bins", [1, 7, 10, 15])
def test_expected_calibration_error(n_bins, expected_calibration_error=metrics.expected_calibration_error,
                                    reliability_curve=metrics.reliability_curve):
    """The curve is scikit-learn's calibration_curve, the error the mean distance in it weighted by numpy's histogram;
    confidences of a model sure of itself leave bins empty."""
    for seed, power in ((0, 1), (1, 0.2), (2, 4)):
        rng = random.Random(seed)
        confidences = [rng.random() ** power for _ in range(500)]
        correct = [rng.random() < 0.3 + confidence / 2 for confidence in confidences]
        accuracies, means = calibration.calibration_curve(correct, confidences, n_bins=n_bins, strategy="uniform")
        counts = np.histogram(confidences, bins=np.linspace(0, 1, n_bins + 1))[0]
        counts = counts[counts > 0]
        curve = reliability_curve(confidences, correct, n_bins)
        assert [point["count"] for point in curve] == counts.tolist()
        assert [point["accuracy"] for point in curve] == pytest.approx(accuracies.tolist(), abs=1e-9)
        assert [point["confidence"] for point in curve] == pytest.approx(means.tolist(), abs=1e-9)
        expected = (counts * abs(accuracies - means)).sum() / 500
        assert expected_calibration_error(confidences, correct, n_bins) == pytest.approx(expected, abs=1e-9)
        assert expected > 0.01


def test_calibration_of_a_model_of_three_classes(expected_calibration_error=metrics.expected_calibration_error):
    """From float32 probabilities (N, L): confidence is the largest, right is where it is the label's; numpy's bins."""
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(300, 3, generator=generator)).softmax(-1)
    labels = torch.randint(3, (300,), generator=generator)
    confidences, guesses = probabilities.max(-1)
    p, hit = confidences.double().numpy(), (guesses == labels).numpy()
    place = np.digitize(p, np.linspace(0, 1, 11)[1:-1])
    expected = sum((place == i).mean() * abs(hit[place == i].mean() - p[place == i].mean()) for i in set(place))
    assert expected_calibration_error(confidences, guesses == labels) == pytest.approx(expected, abs=1e-9)
