"""Which of two models answers better? The share of prompts on which one wins, each pair judged in both orders.

Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", sections 3.3 and 3.4: judges,
people too, often favour the answer that they see first. So each pair is shown in both orders, and the result says how
often the order changed the verdict.

A judge is a function (prompt, first, second) -> 1 if the first is better, 0 if the second is, 0.5 for a tie,
None to skip. Left out: more than two models (ratings), a language model as the judge (any function will do). People
judge on the page of `label compare`.
"""

import math
import random
from dataclasses import dataclass

from minift.errors import MiniftError
from minift.evaluation.metrics import bootstrap_interval


@dataclass(frozen=True)
class Comparison:
    """What a judge found. All but the counts are shares in [0, 1]."""

    # The share of prompts on which a beats b, the mean of both orders; a tie is half a win.
    win_rate: float
    # The 95 % interval of the win rate, by a bootstrap over prompts.
    low: float
    high: float
    # Prompts on which the two orders gave a different verdict: position bias, or noise.
    disagreement: float
    # Wins of the answer that was shown first; 0.5: no bias.
    first_rate: float
    # Prompts that were judged in both orders.
    n: int
    # Prompts that were skipped in at least one order.
    skipped: int


def compare(judge, prompts, answers_a, answers_b, seed=0):
    """Judge a's answer against b's to each prompt, in both orders -> Comparison.

    The seed decides which order comes first. The other order follows when all prompts have been judged once, so that a
    person does not see the same two answers twice in a row. A prompt that is skipped in one order is left out.
    MiniftError for lists of unequal length, an unknown verdict, or when every prompt was skipped.
    """
    prompts, a, b = list(prompts), list(answers_a), list(answers_b)
    if not len(prompts) == len(a) == len(b) or not prompts:
        raise MiniftError(
            f"expected an answer of each model to each prompt, at least one; got {len(prompts)} prompts, "
            f"{len(a)} and {len(b)} answers")
    # Draw the order of the prompts, and of the two answers to each.
    rng, orders = random.Random(f"compare/{seed}"), [(False, True), (True, False)]
    turns = [(i, rng.choice(orders)) for i in rng.sample(range(len(prompts)), len(prompts))]
    # Ask for every verdict twice, once in each order.
    verdicts = {}
    for turn in (0, 1):
        for i, swapped in turns:
            first, second = (b[i], a[i]) if swapped[turn] else (a[i], b[i])
            verdicts[i, swapped[turn]] = checked(judge(prompts[i], first, second))
    # Keep the prompts with two verdicts; a win in only one order counts half.
    pairs = [(verdicts[i, False], verdicts[i, True]) for i in range(len(prompts))]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs:
        raise MiniftError("the judge skipped every prompt; there is nothing to compare")
    wins = [(straight + 1 - swapped) / 2 for straight, swapped in pairs]
    return Comparison(
        math.fsum(wins) / len(wins), *bootstrap_interval(wins, seed),
        disagreement=sum(straight != 1 - swapped for straight, swapped in pairs) / len(pairs),
        first_rate=sum(straight + swapped for straight, swapped in pairs) / len(pairs) / 2,
        n=len(pairs), skipped=len(prompts) - len(pairs))


def checked(verdict):
    if verdict is not None and verdict not in (0, 0.5, 1):
        raise MiniftError(f"a judge's verdict was {verdict!r}; expected 1, 0, 0.5 or None")
    return verdict


# ---- judges ----


def score_judge(score, margin=0.0):
    """A judge from score(prompt, answer) -> float (a rubric, a reward model): the higher one wins, in both orders.

    margin: a difference up to it is a tie. MiniftError for scores that are not finite.
    """
    def judge(prompt, first, second):
        difference = score(prompt, first) - score(prompt, second)
        if not math.isfinite(difference):
            raise MiniftError(
                f"the scores of {first!r:.40} and {second!r:.40} are not finite; mend the judge")
        return 0.5 if abs(difference) <= margin else float(difference > 0)
    return judge
