import itertools
import math
import random
import statistics

import pytest
import torch

from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.evaluation import metrics
from minift.text.batches import collate, pack


def small_model():
    torch.manual_seed(0)
    return LanguageModel(TransformerConfig(20, 16, n_layer=1, n_head=2, d_model=8, d_ff=12, dropout=0.3))


def example(ids, learned):
    return {"input_ids": ids, "labels": [i if m else -100 for i, m in zip(ids, learned, strict=True)]}


EXAMPLES = [example([1, 5, 3, 7, 2], [0, 0, 1, 1, 1]), example([4, 4, 9], [1, 1, 1]),
            example([8, 6, 6, 2, 1, 0, 3], [0, 1, 0, 1, 0, 0, 1])]


def test_perplexity_is_over_tokens_and_not_over_texts(perplexity=metrics.perplexity):
    """4 nats over 2 tokens and 8 over 8 give exp(12 / 10), not the mean of perplexities, nor exp of a mean of means."""
    expected = 3.3201169227365472
    assert perplexity([4.0, 8.0], [2, 8]) == pytest.approx(expected, abs=1e-9)
    assert perplexity(12.0, 10) == pytest.approx(expected, abs=1e-9)
    assert perplexity(torch.tensor([4.0, 8.0]), torch.tensor([2, 8])) == pytest.approx(expected, abs=1e-9)


def test_perplexity_of_guessing_is_the_number_of_choices(perplexity=metrics.perplexity):
    """A model that finds all V tokens equally likely has perplexity V; a perfect one 1; a hopeless one infinity."""
    assert perplexity([math.log(50) * 7], [7]) == pytest.approx(50, abs=1e-9)
    assert perplexity(0.0, 5) == 1
    assert perplexity(1e5, 10) == math.inf
    with pytest.raises(MiniftError, match="token"):
        perplexity(0.0, 0)


def test_nll_sums_what_the_labels_ask_for(language_model_nll=metrics.language_model_nll):
    """The sum of -log softmax(logits[t-1])[id[t]] over learned t > 0, one text at a time, in evaluation mode."""
    model = small_model()
    model.eval()
    expected, count = 0.0, 0
    for e in EXAMPLES:
        logprobs = model(torch.tensor([e["input_ids"]]))[0].double().log_softmax(-1)
        for t in range(1, len(e["labels"])):
            if e["labels"][t] != -100:
                expected -= logprobs[t - 1, e["labels"][t]].item()
                count += 1
    model.train()
    batches = [collate(EXAMPLES[:2], pad_id=0), collate(EXAMPLES[2:], pad_id=0)]
    nll, n = language_model_nll(model, batches)
    assert n == count == 8
    assert nll == pytest.approx(expected, abs=1e-4)
    packed_nll, packed_n = language_model_nll(model, [pack(EXAMPLES, 8, pad_id=0)])
    assert packed_n == count and packed_nll == pytest.approx(expected, abs=1e-4)


def test_measuring_leaves_the_model_as_it_was(language_model_nll=metrics.language_model_nll):
    """The training mode comes back, also after an error, and nothing is recorded for a backward pass."""
    model, recording = small_model().train(), []
    model.body.register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    language_model_nll(model, [collate(EXAMPLES, pad_id=0)])
    assert model.training and recording == [False]
    with pytest.raises(KeyError):
        language_model_nll(model, [{"input_ids": torch.ones(1, 3, dtype=torch.long)}])
    assert model.training
    language_model_nll(model.eval(), [collate(EXAMPLES, pad_id=0)])
    assert not model.training


def test_accuracy_and_exact_match_count_equals(accuracy=metrics.accuracy, exact_match=metrics.exact_match):
    """The share that is equal; for texts, white space at the ends is nothing, but case and inner space count."""
    assert accuracy([1, 2, 3, 4], [1, 2, 0, 4]) == 0.75
    assert accuracy(torch.tensor([1, 0]), [1, 1]) == 0.5
    assert exact_match(["the lake", " red\n", "Red", "a  b"], ["the lake", "red", "red", "a b"]) == 0.5


@pytest.mark.parametrize(
    "name", ["accuracy", "exact_match", "macro_f1", "confusion_matrix", "reliability_curve", "win_rate"]
)
def test_lists_must_match(name):
    """Lists of unequal length, empty lists, or a text in a list's place are a MiniftError."""
    for pair in (([1], [1, 2]), ([], []), ("ab", "ab")):
        with pytest.raises(MiniftError, match="expected"):
            getattr(metrics, name)(*pair)


def test_confusion_has_rows_for_what_is_right(confusion_matrix=metrics.confusion_matrix):
    """Entry (i, j) counts items of label i that were called j; labels may be given, with their order."""
    predicted, right = ["b", "b", "a", "c"], ["a", "a", "a", "b"]
    assert confusion_matrix(predicted, right).tolist() == [[1, 2, 0], [0, 0, 1], [0, 0, 0]]
    assert confusion_matrix(predicted, right, labels=["c", "b", "a"]).tolist() == [[0, 0, 0], [1, 0, 0], [0, 2, 1]]
    with pytest.raises(MiniftError, match="'c'"):
        confusion_matrix(predicted, right, labels=["a", "b"])


def test_macro_f1_by_hand(macro_f1=metrics.macro_f1):
    """Precision 1/2, recall 1 and precision 1, recall 2/3: F1s of 2/3 and 4/5, mean 11/15; one never found 0."""
    assert macro_f1([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx(11 / 15, abs=1e-6)
    assert macro_f1(["x", "x", "x"], ["x", "x", "y"]) == pytest.approx((4 / 5 + 0) / 2, abs=1e-6)
    assert macro_f1([1, 1], [1, 1]) == 1
    assert macro_f1([0], [1]) == 0


@pytest.mark.parametrize(
    "candidate, reference, expected",
    [("the cat sat on the mat", "the cat lay on the mat", 5 / 6),
     ("police killed the gunman", "police kill the gunman", 0.75),
     ("police killed the gunman", "the gunman kill police", 0.5), ("a b c d", "a b", 2 / 3),
     ("a b c d e f g x y z", "a b c d e f g u v w", 0.7), ("The cat, sat!", "the CAT sat", 1), ("", "a", 0),
     ("a", "", 0), ("", "", 0), ("!?", "!?", 0), ("it's", "it s", 1), ("你好世界", "你好世界", 1),
     ("你好世界", "你好", 2 / 3),
     ("Привет мир", "привет, МИР!", 1), ("été à Paris", "été à Lyon", 2 / 3),
     ("今日はGPUで3回", "今日はGPUで", 2 * 5 / (7 + 5))],
)
def test_rouge_l_by_hand(candidate, reference, expected, rouge_l=metrics.rouge_l):
    """2 LCS / (words + words), on words of any alphabet; case and signs are nothing; without words it is 0."""
    assert rouge_l(candidate, reference) == pytest.approx(expected, abs=1e-9)
    assert rouge_l(reference, candidate) == pytest.approx(expected, abs=1e-9)


def test_the_common_subsequence_is_the_longest(rouge_l=metrics.rouge_l):
    """The score equals that of the longest word sequence found in both by trying all of them."""
    rng = random.Random(0)
    for _ in range(100):
        a, b = (rng.choices("abc", k=rng.randint(1, 7)) for _ in range(2))
        common = {s for n in range(8) for s in itertools.combinations(a, n)} & {
            s for n in range(8) for s in itertools.combinations(b, n)
        }
        assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(
            2 * max(map(len, common)) / (len(a) + len(b)), abs=1e-9
        )


def test_long_texts_are_aligned_cell_by_cell(common_subsequence=metrics.common_subsequence):
    """The bits of a row give what the dynamic programme gives cell by cell, for texts of up to 150 words, too."""
    rng = random.Random(1)
    for n_word in (1, 2, 5, 40):
        a, b = ([rng.randrange(n_word) for _ in range(rng.randint(0, 150))] for _ in range(2))
        row = [0] * (len(b) + 1)
        for word in a:
            above, row = row, [0]
            for j, other in enumerate(b):
                row.append(above[j] + 1 if word == other else max(row[j], above[j + 1]))
        assert common_subsequence(a, b) == row[-1]
    assert common_subsequence([], [1]) == common_subsequence([1], []) == 0


def test_distinct_n_counts_repeated_phrases(distinct_n=metrics.distinct_n):
    """Different n-grams over all n-grams, within each text: "a b a b" has 2 of 4 words and 2 of 3 pairs."""
    assert distinct_n(["a b a b"], 1) == 0.5
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3, abs=1e-9)
    assert distinct_n(["a b", "b a", "a b"], 2) == pytest.approx(2 / 3, abs=1e-9)
    assert distinct_n(["a", ""], 2) == 0


def test_calibration_by_hand(
    expected_calibration_error=metrics.expected_calibration_error, reliability_curve=metrics.reliability_curve
):
    """Four answers at 0.9 of which 3 are right and two at 0.6 of which one is: 4/6 * 0.15 + 2/6 * 0.1."""
    confidences, correct = [0.9, 0.9, 0.6, 0.9, 0.9, 0.6], [1, 1, 1, 1, 0, 0]
    assert expected_calibration_error(confidences, correct) == pytest.approx(4 / 6 * 0.15 + 2 / 6 * 0.1, abs=1e-9)
    low, high = reliability_curve(confidences, correct)
    assert low == pytest.approx({"confidence": 0.6, "accuracy": 0.5, "count": 2})
    assert high == pytest.approx({"confidence": 0.9, "accuracy": 0.75, "count": 4})
    assert expected_calibration_error(confidences, correct, n_bins=1) == pytest.approx(0.8 - 4 / 6, abs=1e-9)


def test_calibration_at_the_ends(expected_calibration_error=metrics.expected_calibration_error):
    """Certainty that is right costs 0, that is wrong 1; 0 and 1 belong to a bin; anything beyond is refused."""
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0
    assert expected_calibration_error([1.0, 0.0], [False, True]) == 1
    for bad in (1.1, -0.1, math.nan):
        with pytest.raises(MiniftError, match="probability"):
            expected_calibration_error([bad], [1])


def test_a_calibrated_model_has_a_small_error(expected_calibration_error=metrics.expected_calibration_error):
    """Answers right as often as their confidence says have an error near 0; overconfident ones have their excess."""
    rng = random.Random(0)
    confidences = [rng.random() * 0.7 for _ in range(20_000)]
    correct = [rng.random() < c for c in confidences]
    assert expected_calibration_error(confidences, correct) < 0.02
    assert expected_calibration_error([c + 0.3 for c in confidences], correct) == pytest.approx(0.3, abs=0.02)


def test_the_bootstrap_equals_normal_theory(bootstrap_interval=metrics.bootstrap_interval):
    """For many values the interval is mean +- 1.96 s / sqrt(n), within the noise of resampling."""
    rng = random.Random(0)
    values = [rng.gauss(5, 2) for _ in range(400)]
    mean, half = statistics.fmean(values), 1.959964 * statistics.pstdev(values) / 20
    low, high = bootstrap_interval(values, seed=1, n=4000)
    assert low == pytest.approx(mean - half, abs=0.1 * half)
    assert high == pytest.approx(mean + half, abs=0.1 * half)
    low80, high80 = bootstrap_interval(values, seed=1, level=0.8, n=4000)
    assert high80 - low80 == pytest.approx(2 * half * 1.281552 / 1.959964, rel=0.1, abs=0)


def test_the_bootstrap_covers_the_truth_as_often_as_it_says(bootstrap_interval=metrics.bootstrap_interval):
    """Over many samples of 40 fair coin tosses, 95 % intervals hold 0.5 about 95 times in a hundred."""
    rng = random.Random(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval([rng.random() < 0.5 for _ in range(40)], seed, n=200)
        hits += low <= 0.5 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_the_bootstrap_depends_on_its_seed_alone(bootstrap_interval=metrics.bootstrap_interval):
    """The same seed gives the same interval; the global random numbers are untouched; equal values have no spread."""
    values = torch.arange(50.0) ** 2
    state = torch.get_rng_state()
    assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3) != bootstrap_interval(values, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert bootstrap_interval([2.5, 2.5, 2.5], 0) == bootstrap_interval([2.5], 0) == (2.5, 2.5)


@pytest.mark.parametrize("values, level", [([], 0.95), ([1.0, math.nan], 0.95), ([1.0], 0), ([1.0], 1)])
def test_impossible_bootstraps_are_refused(values, level, bootstrap_interval=metrics.bootstrap_interval):
    """No values, NaN, or a level outside (0, 1): MiniftError."""
    with pytest.raises(MiniftError, match="bootstrap"):
        bootstrap_interval(values, 0, level=level)


def test_win_rate_counts_ties_half(win_rate=metrics.win_rate):
    """Two wins, one tie and one loss are 2.5 of 4, and the two sides' rates add up to 1."""
    a, b = [1.0, 2.0, 3.0, 3.0], [0.0, 2.0, 4.0, 2.5]
    assert win_rate(a, b) == 0.625
    assert win_rate(b, a) == 0.375
    assert win_rate(torch.tensor(a), torch.tensor(a)) == 0.5
    with pytest.raises(MiniftError, match="NaN"):
        win_rate([math.nan], [1.0])


def test_calibration_has_ten_bins(expected_calibration_error=metrics.expected_calibration_error):
    """.51 and .59 share a bin of a tenth, .61 does not: by hand 2/3 |.5 - .55| + 1/3 |1 - .61| = .16333."""
    found = expected_calibration_error([0.51, 0.59, 0.61], [True, False, True])
    assert found == pytest.approx(2 / 3 * 0.05 + 1 / 3 * 0.39, abs=1e-9)
