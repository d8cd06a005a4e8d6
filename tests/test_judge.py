"""Pairwise win rates: both orders, position bias, intervals, and judges from scores and from people."""

import random
from dataclasses import asdict

import pytest
import torch

from minift.core.heads import TokenScorer
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError
from minift.evaluation import judge as module
from minift.evaluation.metrics import bootstrap_interval, win_rate
from minift.world import instructions as tasks
from minift.world import rubric
from minift.world.scenes import tell


def longer(prompt, first, second):
    """A judge without position bias: the longer answer is better."""
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))


def answers(n, seed=0):
    """(prompts, a's answers, b's answers) of random lengths, a's a little longer."""
    rng = random.Random(seed)
    return [str(i) for i in range(n)], ["a" * rng.randint(2, 9) for _ in range(n)], [
        "b" * rng.randint(1, 8) for _ in range(n)]


def test_a_fair_judge_s_verdicts_by_hand(compare=module.compare):
    """Two wins, a tie and a loss of a are 2.5 of 4; no order matters, the first one wins half the time."""
    found = compare(longer, "wxyz", ["aaa", "aa", "a", "a"], ["b", "b", "b", "bb"])
    assert found.win_rate == 0.625 and found.disagreement == 0 and found.first_rate == 0.5
    assert found.n == 4 and found.skipped == 0 and 0 <= found.low < 0.625 < found.high <= 1


def test_it_is_the_win_rate_of_scores(compare=module.compare):
    """With a judge of scores it equals metrics.win_rate, and exchanging a and b gives its complement."""
    prompts, a, b = answers(60)
    found, turned = compare(longer, prompts, a, b), compare(longer, prompts, b, a)
    assert found.win_rate == pytest.approx(win_rate(list(map(len, a)), list(map(len, b))), abs=1e-12)
    assert turned.win_rate == pytest.approx(1 - found.win_rate, abs=1e-12)
    assert 0.5 < found.win_rate < 1


def test_every_pair_is_judged_in_both_orders(compare=module.compare):
    """Each prompt twice, with its own two answers, once each way; all prompts once before any comes again."""
    seen, (prompts, a, b) = [], answers(20)
    compare(lambda *shown: seen.append(shown) or 0.5, prompts, a, b)
    assert sorted(seen) == sorted([*zip(prompts, a, b), *zip(prompts, b, a)])
    assert [{shown[0] for shown in part} for part in (seen[:20], seen[20:])] == [set(prompts)] * 2
    assert 3 < sum(first[0] == "a" for _, first, _ in seen[:20]) < 17         # which order comes first is drawn
    assert [shown[0] for shown in seen[:20]] != prompts                       # and so are the prompts


def test_a_judge_who_always_takes_the_first_decides_nothing(compare=module.compare):
    """Pure position bias: a win rate of exactly 0.5, disagreement 1, the first always wins; or the second never."""
    prompts, a, b = answers(15)
    for verdict in (1, 0):
        found = compare(lambda *_, verdict=verdict: verdict, prompts, a, b)
        assert asdict(found) == {"win_rate": 0.5, "low": 0.5, "high": 0.5, "disagreement": 1.0,
                                 "first_rate": float(verdict), "n": 15, "skipped": 0}


def test_bias_is_averaged_out_and_told(compare=module.compare):
    """A judge who takes the first one unless the second is far longer: where the orders differ, both get half a win."""
    def biased(prompt, first, second):
        return 1 if len(first) >= len(second) - 2 else 0

    prompts, a, b = answers(200, seed=1)
    found, gaps = compare(biased, prompts, a, b), [len(x) - len(y) for x, y in zip(a, b)]
    close = sum(abs(gap) <= 2 for gap in gaps)
    assert found.disagreement == pytest.approx(close / 200, abs=1e-12) and 0.1 < found.disagreement < 0.9
    assert found.win_rate == pytest.approx((sum(gap > 2 for gap in gaps) + close / 2) / 200, abs=1e-12)
    assert found.first_rate == pytest.approx(0.5 + close / 400, abs=1e-12)


def test_a_tie_in_one_order_only_is_a_disagreement(compare=module.compare):
    """A win shown first and a tie shown second is three quarters of a win, and the orders differ."""
    found = compare(lambda prompt, first, second: 1 if first == "a" else 0.5, ["p"], ["a"], ["b"])
    assert (found.win_rate, found.disagreement, found.first_rate) == (0.75, 1.0, 0.75)


def test_the_interval_is_the_bootstrap_over_prompts(compare=module.compare):
    """As metrics.bootstrap_interval gives it for the wins of each prompt, up to the noise of resampling."""
    prompts, a, b = answers(120, seed=2)
    found = compare(longer, prompts, a, b)
    wins = [longer("", x, y) for x, y in zip(a, b)]
    assert (found.low, found.high) == pytest.approx(bootstrap_interval(wins, seed=9), abs=0.009)
    few = compare(longer, prompts[:12], a[:12], b[:12])
    assert few.high - few.low > 2 * (found.high - found.low)                  # 120 verdicts, not 240


def test_the_interval_holds_the_truth_as_often_as_it_says(interval=bootstrap_interval):
    """Over many samples of 50 fair verdicts, 95 % intervals hold 0.5 about 95 times in a hundred."""
    rng, hits = random.Random(0), 0
    for seed in range(150):
        low, high = interval([float(rng.random() < 0.5) for _ in range(50)], seed, n=200)
        hits += low <= 0.5 <= high
    assert 0.88 <= hits / 150 <= 0.99


def test_the_seed_decides(compare=module.compare):
    """The same seed shows the same pairs in the same order and gives the same numbers; another seed another order."""
    runs = []
    for seed in (0, 0, 1):
        seen, data = [], answers(10)
        runs.append((compare(lambda *shown: seen.append(shown) or longer(*shown), *data, seed=seed), seen))
    assert runs[0] == runs[1] and runs[0][1] != runs[2][1] and runs[0][0].win_rate == runs[2][0].win_rate


def test_a_skipped_prompt_is_left_out(compare=module.compare):
    """None in either order takes the prompt out of all numbers, since one order alone would carry its bias."""
    def half(prompt, first, second):
        return None if (prompt, first) in (("x", "bb"), ("y", "aaa")) else longer(prompt, first, second)

    found = compare(half, "wxyz", ["aa", "aaa", "aaa", "a"], ["b", "bb", "bb", "bb"])
    assert (found.n, found.skipped, found.win_rate) == (2, 2, 0.5)
    with pytest.raises(MiniftError, match="skipped every"):
        compare(lambda *_: None, "w", ["a"], ["b"])


@pytest.mark.parametrize("verdict", [2, -1, "first", 0.7, float("nan")])
def test_a_verdict_must_be_one(verdict, compare=module.compare):
    """Anything but 1, 0, 0.5 and None is a MiniftError that shows it."""
    with pytest.raises(MiniftError, match="verdict"):
        compare(lambda *_: verdict, ["p"], ["a"], ["b"])


def test_each_prompt_needs_two_answers(compare=module.compare):
    """Lists of unequal length, or empty ones, are a MiniftError."""
    for lists in ((["p"], ["a"], []), (["p"], [], ["b"]), ([], [], []), (["p", "q"], ["a"], ["b"])):
        with pytest.raises(MiniftError, match="expected an answer"):
            compare(longer, *lists)


# ---- judges ----


def test_the_higher_score_wins(score_judge=module.score_judge):
    """1, 0 or 0.5 by the scores; differences up to the margin are a tie; the prompt reaches the score."""
    judge, careful = (score_judge(lambda prompt, answer: len(answer), margin) for margin in (0, 2))
    assert [judge("p", *pair) for pair in (("aa", "b"), ("a", "bb"), ("a", "b"))] == [1, 0, 0.5]
    assert [careful("p", *pair) for pair in (("aaaa", "b"), ("aaa", "b"), ("a", "bbbb"))] == [1, 0.5, 0]
    judge = score_judge(lambda prompt, answer: answer.count(prompt))
    assert judge("x", "xx", "yyy") == 1 and judge("y", "xx", "yyy") == 0
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(MiniftError, match="finite"):
            score_judge(lambda prompt, answer: wrong)("p", "a", "b")


def test_the_rubric_is_a_judge(compare=module.compare, score_judge=module.score_judge):
    """The world's own stories win against their first sentences on every request."""
    rng, requests = random.Random(0), tasks.story_requests(30, 5)
    scenes, stories = dict(requests), [tell(scene, rng) for _, scene in requests]
    judge = score_judge(lambda prompt, answer: rubric.judge(answer, scenes[prompt]).score)
    found = compare(judge, [prompt for prompt, _ in requests], stories, [story.split(".")[0] for story in stories])
    assert found.win_rate == 1 and found.disagreement == 0 and found.first_rate == 0.5


def test_a_reward_model_is_a_judge(compare=module.compare, score_judge=module.score_judge):
    """Scores of a TokenScorer decide: its favourite answer wins every time, and its complement never."""
    torch.manual_seed(0)
    model = TokenScorer(Transformer(TransformerConfig(30, 16, n_layer=1, n_head=2, d_model=8, d_ff=12))).eval()

    def score(prompt, answer):
        with torch.no_grad():
            return model.last_scores(torch.tensor([prompt + answer])).item()

    rng = random.Random(0)
    prompts = [[rng.randrange(30) for _ in range(3)] for _ in range(10)]
    pairs = [sorted(([rng.randrange(30) for _ in range(4)] for _ in range(2)), key=lambda x: score(prompt, x))
             for prompt in prompts]
    worse, better = zip(*pairs)
    assert compare(score_judge(score), prompts, better, worse).win_rate == 1
    assert compare(score_judge(score), prompts, worse, better).win_rate == 0
