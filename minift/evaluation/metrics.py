"""Metrics: perplexity, agreement of texts, classification, calibration, and confidence intervals of means.

ROUGE-L: Lin 2004, eqs. 2-4 with beta = 1. Calibration: Guo et al. 2017, eq. 3. Bootstrap: Efron & Tibshirani 1993,
section 13.3 (percentile interval). distinct-n: Li et al. 2016. Left out: ROUGE's stemming and several references, BLEU.

Predictions are the first argument, references the second. Both are lists or tensors; MiniftError when they are empty or
of unequal length.
"""

import math
import numbers
from collections import Counter

import regex
import torch

from minift.core.logprobs import batch_nll, eval_mode
from minift.core.resume import move_batch
from minift.errors import MiniftError


def perplexity(nll_sum, n_tokens):
    """exp(sum of negative log-likelihoods / number of tokens); in a mean of means, short texts would count too much.

    nll_sum: nats; n_tokens: the number of tokens. Both are numbers, or both are sequences with one entry per text.
    """
    nll_sum, n_tokens = total(nll_sum), total(n_tokens)
    if n_tokens <= 0:
        raise MiniftError("perplexity needs at least one token; nothing was predicted")
    mean = nll_sum / n_tokens
    # exp(710) is beyond a float.
    return math.exp(mean) if mean < 709 else math.inf


def total(x):
    """The sum of a number, a sequence of numbers or a tensor."""
    if isinstance(x, numbers.Real):
        return float(x)
    if isinstance(x, torch.Tensor):
        x = x.flatten().tolist()
    return math.fsum(x)


@torch.no_grad()
def language_model_nll(model, batches):
    """(sum of -log p in nats, number of tokens) over all labels that are not -100: the two arguments of perplexity.

    batches: dicts with input_ids and labels (B, T), and the body's masks and positions where there are any.
    """
    device = next(model.parameters()).device
    nll_sum, n_tokens = 0.0, 0
    with eval_mode(model):
        for batch in batches:
            batch = move_batch(batch, device)
            nll, n = batch_nll(model, batch, batch["labels"])
            nll_sum += nll.item()
            n_tokens += n
    return nll_sum, n_tokens


def paired(predictions, references):
    """Two lists of one length, at least one entry long."""
    if isinstance(predictions, str) or isinstance(references, str):
        raise MiniftError("expected two lists, one entry a prediction; got a string")
    lists = [x.tolist() if isinstance(x, torch.Tensor) else list(x) for x in (predictions, references)]
    if len(lists[0]) != len(lists[1]) or not lists[0]:
        raise MiniftError(
            f"expected as many predictions as references, at least one; got {len(lists[0])} and "
            f"{len(lists[1])}")
    return lists


def accuracy(predictions, references):
    """The share of predictions that equal their reference."""
    pairs = list(zip(*paired(predictions, references), strict=True))
    return sum(a == b for a, b in pairs) / len(pairs)


def exact_match(predictions, references):
    """The share of texts that equal their reference; white space at both ends is ignored, case counts."""
    predictions, references = paired(predictions, references)
    return accuracy(
        [text.strip() for text in predictions], [text.strip() for text in references])


def confusion_matrix(predictions, references, labels=None):
    """(L, L) counts: row = the right label, column = the predicted one; labels default to all that occur, sorted."""
    predictions, references = paired(predictions, references)
    labels = sorted(set(predictions) | set(references)) if labels is None else list(labels)
    place = {label: i for i, label in enumerate(labels)}
    counts = torch.zeros(len(labels), len(labels), dtype=torch.long)
    for predicted, right in zip(predictions, references, strict=True):
        if predicted not in place or right not in place:
            raise MiniftError(
                f"label {right if predicted in place else predicted!r} is not one of {labels}")
        counts[place[right], place[predicted]] += 1
    return counts


def macro_f1(predictions, references):
    """The mean over labels of F1 = 2 hits / (predicted + right): a rare label counts as much as a frequent one."""
    counts = confusion_matrix(predictions, references)
    # Every label occurs somewhere: no 0 / 0.
    f1 = 2 * counts.double().diagonal() / (counts.sum(0) + counts.sum(1))
    return f1.mean().item()


UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(rf"[{UNSPACED}]\p{{M}}*|(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}])+")


def words(text):
    """Lower-case words of any alphabet; in scripts without spaces between words, each character is a word."""
    return WORD.findall(text.lower())


def rouge_l(candidate, reference):
    """F1 of the longest common subsequence of words, in [0, 1]; 0 when one of the two texts has no word.

    precision = LCS / words of the candidate, recall = LCS / words of the reference. Symmetric, therefore.
    """
    a, b = words(candidate), words(reference)
    return 2 * common_subsequence(a, b) / (len(a) + len(b)) if a and b else 0.0


def common_subsequence(a, b):
    """The length of the longest common subsequence: Hyyrö 2004, "Bit-parallel LCS-length computation revisited".

    The row of the dynamic programme over a is one integer: bit i is 0 where the length grows at a[i]. So a word of b
    takes a few operations on whole rows. For two stories this is about forty times as fast as cell by cell.
    """
    places, full = {}, (1 << len(a)) - 1
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    row = full
    for word in b:
        kept = row & places.get(word, 0)
        row = (row + kept | row - kept) & full
    return len(a) - row.bit_count()


def distinct_n(texts, n):
    """Different n-grams of words / all n-grams: 1 when no n-gram occurs twice, near 0 when a model repeats itself."""
    grams = Counter()
    for ws in map(words, texts):
        grams.update(tuple(ws[i:i + n]) for i in range(len(ws) - n + 1))
    return len(grams) / grams.total() if grams else 0.0


def reliability_curve(confidences, correct, n_bins=10):
    """For a reliability diagram: the mean confidence, the accuracy and the count of each bin that is not empty (dicts).

    confidences: probabilities that the model gave its own predictions. correct: whether each was right.
    """
    confidences, correct = paired(confidences, correct)
    bins = [[] for _ in range(n_bins)]
    for confidence, hit in zip(confidences, correct, strict=True):
        if not 0 <= confidence <= 1:
            raise MiniftError(f"confidence {confidence} is not a probability")
        bins[min(int(confidence * n_bins), n_bins - 1)].append((confidence, float(hit)))
    curve = []
    for entries in filter(None, bins):
        confidences, hits = zip(*entries, strict=True)
        n = len(entries)
        curve.append(
            {"confidence": math.fsum(confidences) / n, "accuracy": math.fsum(hits) / n, "count": n})
    return curve


def expected_calibration_error(confidences, correct, n_bins=10):
    """sum over bins of (share of the predictions in it) * |accuracy - mean confidence|."""
    curve = reliability_curve(confidences, correct, n_bins)
    n = sum(point["count"] for point in curve)
    return sum(
        point["count"] / n * abs(point["accuracy"] - point["confidence"]) for point in curve)


def bootstrap_interval(values, seed=0, level=0.95, n=2000):
    """(low, high) between which the mean lies with confidence `level`: quantiles of the means of n resamples."""
    values = torch.as_tensor(values, dtype=torch.float64, device="cpu").reshape(-1)
    if len(values) == 0 or not values.isfinite().all() or not 0 < level < 1:
        raise MiniftError(
            f"a bootstrap needs finite values, at least one, and 0 < level < 1; got {len(values)} values "
            f"and level {level}")
    generator = torch.Generator().manual_seed(seed)
    resamples = (
        torch.randint(len(values), (len(values),), generator=generator) for _ in range(n))
    means = torch.stack([values[resample].mean() for resample in resamples])
    limits = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    return tuple(torch.quantile(means, limits).tolist())


def win_rate(a, b):
    """How often a's score is above b's; a tie is half a win. a, b: scores of two systems on the same prompts."""
    a, b = paired(a, b)
    if not all(math.isfinite(x) for x in a + b):
        raise MiniftError("win_rate needs finite scores; got NaN or infinity")
    wins = sum(x > y for x, y in zip(a, b, strict=True))
    ties = sum(x == y for x, y in zip(a, b, strict=True))
    return (wins + ties / 2) / len(a)
