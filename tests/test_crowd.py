"""The simulated crowd: its errors are those that were assumed, and follow from slips and misreadings."""

from math import comb
from pathlib import Path

import pytest

from minift.errors import MiniftError
from minift.ways import annotation, crowd
from minift.world.tasks import world_rows

N = 8_000
TRUTH = [i % 2 for i in range(N)]


def errors(ratings):
    return sum(a != b for a, b in zip(TRUTH, ratings)) / len(ratings)


@pytest.mark.parametrize("guidelines", ["clear", "vague"])
def test_an_annotators_errors_are_those_assumed(guidelines, rate=crowd.rate):
    """An annotator with slips s who misreads a share m of the pitfalls p errs on p (m (1 - s) + (1 - m) s) + (1 - p) s
    of the items."""
    p, m = crowd.PITFALLS, crowd.MISREAD[guidelines]
    for a, matrix in enumerate(crowd.PEOPLE[:4]):
        slips = matrix[0][1]
        expected = p * (m * (1 - slips) + (1 - m) * slips) + (1 - p) * slips
        assert errors(rate(TRUTH, guidelines, 5)[a]) == pytest.approx(expected, abs=0.015)


def test_pitfalls_are_shared_and_slips_are_not(monkeypatch, rate=crowd.rate):
    """Without pitfalls two annotators err independently; with pitfalls that all misread, on the same items."""
    def both_wrong():
        first, second = rate(TRUTH, "vague", 2)
        return sum(a == b != t for a, b, t in zip(first, second, TRUTH)) / N
    monkeypatch.setattr(crowd, "PITFALLS", 0.0)
    assert both_wrong() == pytest.approx(crowd.PEOPLE[0][0][1] * crowd.PEOPLE[1][0][1], abs=0.008)
    monkeypatch.setattr(crowd, "PITFALLS", 0.3)
    monkeypatch.setattr(crowd, "MISREAD", {"vague": 1.0})
    monkeypatch.setattr(crowd, "PEOPLE", ([[1, 0], [0, 1]],) * 2)
    assert both_wrong() == pytest.approx(0.3, abs=0.015)


def test_the_majority_errs_as_the_binomial_says(monkeypatch, measure=crowd.measure):
    """Five equal annotators who slip in a fifth of the items, without pitfalls: at least three of five are wrong."""
    monkeypatch.setattr(crowd, "PITFALLS", 0.0)
    monkeypatch.setattr(crowd, "PEOPLE", (annotation.noisy(0.8, 2),) * 5)
    expected = sum(comb(5, k) * 0.2**k * 0.8**(5 - k) for k in (3, 4, 5))
    found = measure(N, 0, "clear", 5)
    assert found["majority"] == pytest.approx(expected, abs=0.012)
    assert found["alpha"] == pytest.approx((1 - 2 * 0.2) ** 2, abs=0.03)        # two coins that agree by 0.8, 0.8


def test_what_guidelines_and_annotators_buy(what_it_buys=crowd.what_it_buys):
    """One person with clear guidelines errs less than five with vague ones; two careless people more make a majority
    worse, and cost nothing where their errors are modelled; the table of data/README.md says the same."""
    found = {(row["guidelines"], row["annotators"]): row for row in what_it_buys()}
    assert found["clear", 1]["majority"] < found["vague", 5]["dawid_skene"] < found["vague", 1]["majority"]
    assert found["clear", 3]["majority"] < found["clear", 5]["majority"] < found["clear", 1]["majority"]
    assert found["clear", 5]["dawid_skene"] < found["clear", 5]["majority"]
    readme = (Path(__file__).parents[1] / "data" / "README.md").read_text(encoding="utf-8")
    for (guidelines, n), row in found.items():
        assert (f"| {guidelines} | {n} | {row['minutes']} | {'–' if n == 1 else format(row['alpha'], '.2f')} | "
                f"{row['majority']:.1%} | {row['dawid_skene']:.1%} |").replace("%", " %") in readme
    assert found["vague", 3]["minutes"] == pytest.approx(0.75) and found["vague", 1]["alpha"] is None


def test_the_crowds_rows_have_the_crowds_answers(labelled_rows=crowd.labelled_rows):
    """Every answer is one of the row's two options, and as many as are counted differ from the world's."""
    right = world_rows(200, "crowd/0", tasks=crowd.TASKS)
    rows, error = labelled_rows(right, 0, "vague", 1)
    assert all(row["fields"]["answer"] in crowd.options(row) for row in rows)
    assert sum(row["fields"] != other["fields"] for row, other in zip(rows, right)) == round(error * 200) > 10
    assert labelled_rows(right, 0, "vague", 1)[0] == rows != labelled_rows(right, 1, "vague", 1)[0]


@pytest.mark.parametrize(("guidelines", "n"), [("none", 3), ("clear", 0), ("clear", 6)])
def test_other_crowds_are_refused(guidelines, n, rate=crowd.rate):
    """The error says which guidelines there are, and how many people."""
    with pytest.raises(MiniftError, match="vague or clear and 1 to 5 annotators"):
        rate(TRUTH, guidelines, n)
