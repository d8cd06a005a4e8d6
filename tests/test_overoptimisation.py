"""The world of repeats and the over-optimisation on it: scores, maximum likelihood, paths, Gao's forms and tables."""

import copy
import itertools
import json
import math
from types import SimpleNamespace

import pytest
import torch

from minift.evaluation import exact
from minift.studies import exact_runs, lab, overoptimisation, repeats
from minift.studies import overoptimisation_trained as trained


@pytest.fixture(scope="module")
def world():
    return repeats.World(0, pairs=400)


def test_the_gold_score_by_hand(world):
    """A value for each token, 2 less for each immediate repeat; mean 0 and standard deviation 1 under the reference."""
    generator = torch.Generator().manual_seed(0)
    torch.randn(6, 6, generator=generator, dtype=torch.float64)
    values = torch.randn(6, generator=generator, dtype=torch.float64).tolist()
    raw = []
    for answer in itertools.product(range(6), repeat=6):
        raw.append(sum(values[token] for token in answer) - 2.0 * sum(a == b for a, b in zip(answer, answer[1:])))
    raw, ref = torch.tensor(raw, dtype=torch.float64), world.ref
    mean = (ref * raw).sum()
    expected = (raw - mean) / (ref * (raw - mean) ** 2).sum().sqrt()
    assert (world.gold - expected).abs().max() < 1e-9 and ref.sum().item() == pytest.approx(1, abs=1e-9)


def test_the_reference_is_the_bigram(world):
    """log p of an answer is the sum of its rows' log-softmax, the first after the prompt; -3 on the diagonal."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    table = (logits - 3.0 * torch.eye(6)).exp()
    table = (table / table.sum(1, keepdim=True)).log().tolist()
    for i in range(0, 6 ** 6, 997):
        answer = [*repeats.PROMPT, *world.answers[i].tolist()]
        by_hand = sum(table[before][after] for before, after in itertools.pairwise(answer))
        assert world.ref_logprobs[i].item() == pytest.approx(by_hand, abs=1e-9)


def test_the_world_does_not_depend_on_threads(world):
    """With two threads the same pairs are drawn, and the reward model is the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    try:
        other = repeats.World(0, pairs=400)
        assert (other.chosen == world.chosen).all() and (other.rejected == world.rejected).all()
        assert (other.learn() - world.learn()).abs().max() < 1e-9
    finally:
        torch.set_num_threads(before)


def test_the_reference_seldom_repeats(world):
    """Its expected number of repeats is far below that of tokens drawn alike, 5 / 6; best policies repeat more."""
    seldom = (world.ref * world.repeats).sum()
    assert seldom < 0.25
    greedy = exact.optimum(world.ref_logprobs, world.learn(), 0.1)
    assert (greedy * world.repeats).sum() > 5 * seldom


def test_a_quarter_of_the_choices_is_wrong():
    """The better answer by gold wins in three of four pairs; without noise in all."""
    for noise, low, high in ((0.25, 0.72, 0.78), (0.0, 1.0, 1.0)):
        one = repeats.World(1, noise=noise, pairs=5000)
        ties = one.gold[one.chosen] == one.gold[one.rejected]
        right = (one.gold[one.chosen] > one.gold[one.rejected])[~ties].double().mean().item()
        assert low <= right <= high


def test_the_fit_is_the_maximum_likelihood(world, fit_bradley_terry=repeats.fit_bradley_terry):
    """The gradient of the likelihood is 0 there, and torch's LBFGS finds the same weights."""
    features = world.counts[:, 1:]
    gaps = features[world.chosen] - features[world.rejected]
    weights = fit_bradley_terry(gaps)
    gradient = gaps.T @ torch.sigmoid(-gaps @ weights) - 1e-6 * weights
    assert gradient.abs().max() < 1e-9
    other = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([other], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -torch.nn.functional.logsigmoid(gaps @ other).sum()
        value.backward()
        return value
    optimizer.step(loss)
    assert (weights - other.detach()).abs().max() < 1e-4


def test_what_a_reward_model_sees(world):
    """Counts alone score two orders of the same tokens alike; with the repeats they differ."""
    places = {tuple(answer): i for i, answer in enumerate(world.answers.tolist())}
    apart, together = places[0, 1, 0, 1, 0, 1], places[0, 0, 0, 1, 1, 1]
    blind, seeing = world.learn(), world.learn(see_repeats=True)
    assert blind[apart] == pytest.approx(blind[together].item(), abs=1e-9)
    assert seeing[apart] - seeing[together] > 0.5
    members = world.learn_ensemble(3)
    assert members.shape == (3, 6 ** 6) and not torch.allclose(members[0], members[1])


def test_judging_a_policy(world):
    """sqrt(KL), gold and learned score, summed by hand over all answers."""
    learned = world.learn()
    probs = exact.optimum(world.ref_logprobs, learned, 0.7)
    by_hand = world.ref * (learned / 0.7).exp()
    by_hand = by_hand / by_hand.sum()
    found = world.judge(probs, learned)
    assert found["gold"] == pytest.approx((by_hand * world.gold).sum().item(), abs=1e-9)
    assert found["learned"] == pytest.approx((by_hand * learned).sum().item(), abs=1e-9)
    kl = (by_hand * (by_hand.log() - world.ref.log())).sum().item()
    assert found["root_kl"] == pytest.approx(math.sqrt(kl), abs=1e-9)


class TinyWorld:
    """Four answers, whose reference, gold and learned scores are written down; judged by plain sums."""

    ref = [0.4, 0.3, 0.2, 0.1]
    gold = [0.0, 1.0, 2.0, -5.0]
    learned = [-1.0, 0.0, 1.0, 2.0]

    def __init__(self):
        self.ref_logprobs = torch.tensor(self.ref, dtype=torch.float64).log()

    def judge(self, probs, learned):
        probs = probs.tolist()
        kl = sum(p * math.log(p / q) for p, q in zip(probs, self.ref) if p > 0)
        return {
            "root_kl": math.sqrt(kl), "gold": sum(p * g for p, g in zip(probs, self.gold)),
            "learned": sum(p * r for p, r in zip(probs, learned.tolist()))}


def test_the_path_is_a_softmax_written_by_hand(follow=overoptimisation.follow):
    """ref * exp(learned / beta) / Z for each beta, from a large one to a small one: KL and learned score only rise."""
    world = TinyWorld()
    path = follow(world, torch.tensor(world.learned, dtype=torch.float64))
    assert len(path) == len(overoptimisation.BETAS) and overoptimisation.BETAS[0] > 1 > overoptimisation.BETAS[-1]
    for beta, point in zip(overoptimisation.BETAS, path):
        # Divided by the largest term, so that nothing overflows.
        weights = [p * math.exp((r - max(world.learned)) / beta) for p, r in zip(world.ref, world.learned)]
        gold = sum(w * g for w, g in zip(weights, world.gold)) / sum(weights)
        assert point["gold"] == pytest.approx(gold, abs=1e-9)
    for before, after in itertools.pairwise(path):
        assert after["root_kl"] >= before["root_kl"] - 1e-12 and after["learned"] >= before["learned"] - 1e-12
    assert overoptimisation.turns(path) and path[-1]["gold"] == pytest.approx(-5.0, abs=1e-6)


def test_best_of_n_by_hand(world):
    """n answers are drawn and the best learned score is kept: P(score <= s) is the reference's to the power of n."""
    learned, n = world.learn(), 16
    found = world.judge(exact.best_of_n(world.ref_logprobs, learned, n), learned)
    # Equal scores (to rounding) are one level: the sums of the reference by level, then powers of their running sum.
    levels, level = torch.unique((learned * 1e9).round(), return_inverse=True)
    mass = [0.0] * len(levels)
    for place, p in zip(level.tolist(), world.ref.tolist()):
        mass[place] += p
    total, below, kl, mean = sum(mass), 0.0, 0.0, 0.0
    for value, p in zip(levels.tolist(), mass):
        chance = ((below + p) / total) ** n - (below / total) ** n
        below += p
        mean += chance * value / 1e9
        if chance > 0:
            kl += chance * math.log(chance / p)
    assert found["learned"] == pytest.approx(mean, abs=1e-8)
    assert found["root_kl"] == pytest.approx(math.sqrt(kl), abs=1e-9)
    assert kl < exact.best_of_n_kl_bound(n)


def test_the_rules_of_an_ensemble(combine=overoptimisation.combine):
    """Mean, smallest member, and mean less the variance (which divides by the number of members), by hand."""
    members = torch.tensor([[1.0, 4.0], [2.0, 0.0], [6.0, 2.0]], dtype=torch.float64)
    found = combine(members)
    assert found["mean"].tolist() == pytest.approx([3.0, 2.0], abs=1e-12)
    assert found["minimum"].tolist() == [1.0, 0.0]
    # Variances: (4 + 1 + 9) / 3 and (4 + 4 + 0) / 3.
    assert found["mean - variance"].tolist() == pytest.approx([3 - 14 / 3, 2 - 8 / 3], abs=1e-12)


def test_gaos_forms_are_recovered():
    """From points that follow the forms, their coefficients come back and R squared is 1."""
    d = [0.1 * step for step in range(1, 40)]
    paths = {
        overoptimisation.MAIN: [{"root_kl": x, "gold": x * (1.5 - 0.7 * math.log(x))} for x in d],
        overoptimisation.BEST_OF_N: [{"root_kl": x, "gold": x * (1.2 - 0.3 * x)} for x in d]}
    found = overoptimisation.fit_forms(paths)
    for name, a, b in (
            (overoptimisation.MAIN, 1.5, 0.7), (overoptimisation.MODERATE, 1.5, 0.7),
            (overoptimisation.BEST_OF_N, 1.2, 0.3)):
        assert found[name]["a"] == pytest.approx(a, abs=1e-9) and found[name]["b"] == pytest.approx(b, abs=1e-9)
        assert found[name]["r_squared"] == pytest.approx(1, abs=1e-9)


def test_r_squared_by_hand():
    """1 - (what the best form leaves) / (what the mean leaves); no a and b nearby are better."""
    d, gold = [0.5, 1.0, 2.0, 3.0, 4.0], [0.6, 1.1, 1.4, 1.9, -2.0]
    path = [{"root_kl": x, "gold": y} for x, y in zip(d, gold)]
    names = (overoptimisation.MAIN, overoptimisation.BEST_OF_N)
    found = overoptimisation.fit_forms(dict.fromkeys(names, path))
    mean = sum(gold) / len(gold)
    spread = sum((y - mean) ** 2 for y in gold)
    for name, bend in zip(names, (math.log, float)):
        def left(a, b):
            return sum((y - x * (a - b * bend(x))) ** 2 for x, y in zip(d, gold))
        one = found[name]
        assert one["r_squared"] == pytest.approx(1 - left(one["a"], one["b"]) / spread, abs=1e-9)
        steps = itertools.product(range(-5, 6), repeat=2)
        near = [left(one["a"] + i / 100, one["b"] + j / 100) for i, j in steps]
        assert min(near) == left(one["a"], one["b"])
    # The part with beta from 0.1 leaves out only the end of a long path: beta falls by a fixed factor.
    kept = [beta for beta in overoptimisation.BETAS if beta >= 0.1]
    long = [{"root_kl": 0.1 * i, "gold": float(i < len(kept))} for i in range(1, len(overoptimisation.BETAS))]
    short = overoptimisation.fit_forms({names[0]: long[:len(kept)], names[1]: long})
    whole = overoptimisation.fit_forms(dict.fromkeys(names, long))
    expected = pytest.approx(short[overoptimisation.MAIN], abs=1e-9)
    assert whole[overoptimisation.MODERATE] == expected and whole[overoptimisation.MAIN] != expected


def test_distance_from_the_path():
    """At equal KL, on a straight line between the path's points; None where the path does not go."""
    path = [{"root_kl": 0.0, "gold": 0.0}, {"root_kl": 2.0, "gold": 1.0}, {"root_kl": 3.0, "gold": -1.0}]
    assert overoptimisation.away({"root_kl": 0.5, "gold": 0.45}, path) == pytest.approx(0.2)
    assert overoptimisation.away({"root_kl": 2.5, "gold": 0.0}, path) == pytest.approx(0.0)
    assert overoptimisation.away({"root_kl": 3.5, "gold": 0.0}, path) is None
    assert overoptimisation.turns(path) and not overoptimisation.turns(path[:2])


def test_the_policy_starts_at_the_reference(world):
    """Without training a policy is the reference; a few iterations raise both scores, so answers find their rewards."""
    found = trained.judge(world, world.model, world.learn())
    assert found["root_kl"] < 1e-5 and abs(found["gold"]) < 1e-6
    assert found["repeats"] == pytest.approx((world.ref * world.repeats).sum().item(), abs=1e-6)
    settings = {"iterations": 6, "batch_size": 64}
    points = trained.on_rewards(world, 0.25, settings, method="rloo")
    assert len(points) == 6 and points[-1]["learned"] > 0.3 and points[-1]["gold"] > 0.2


@pytest.mark.parametrize("method, loop", [("ppo", "train_ppo"), ("grpo", "train_grpo")])
def test_the_reward_is_that_of_the_answer(world, method, loop, monkeypatch):
    """What a method optimises is the learned score of the answer alone, found among all answers by its tokens."""
    def score(policy, *args, **kwargs):
        reward_fn, = [one for one in args if callable(one) and getattr(one, "__name__", "") == "reward"]
        rows = torch.tensor([0, 1, 4_321, 30_000, 46_655])
        prompts = torch.tensor([repeats.PROMPT] * len(rows))
        given = SimpleNamespace(input_ids=torch.cat([prompts, world.answers[rows]], 1))
        found.append((reward_fn(given) - world.learn()[rows]).abs().max().item())
    found = []
    monkeypatch.setattr(exact_runs, loop, score)
    trained.on_rewards(world, 0.5, {"iterations": 1, "batch_size": 8}, method)
    assert len(found) == 1 and found[0] < 1e-5


def test_dpo_learns_from_the_pairs():
    """Right choices raise the gold score; with chosen and rejected answers exchanged it falls."""
    right = repeats.World(0, noise=0.0, pairs=400)
    wrong = copy.copy(right)
    wrong.chosen, wrong.rejected = right.rejected, right.chosen
    for one, sign in ((right, 1), (wrong, -1)):
        points = trained.on_pairs(one, 0.5, {"steps": 30})
        assert len(points) >= 6 and sign * points[-1]["gold"] > 0.5 and points[-1]["root_kl"] > 0.3


# ---- tables ----


def path_of(*pairs):
    return [{"root_kl": float(x), "gold": float(y), "learned": float(x)} for x, y in pairs]


def test_one_setting_for_all_seeds():
    """The best mean over seeds at one beta is below the mean of the seeds' own peaks."""
    seeds = [path_of((0, 0), (1, 2), (2, 1), (3, -1)), path_of((0, 0), (1, 1), (2, 3), (3, 2.96))]
    row = overoptimisation.path_row("a reward", seeds)
    assert row["turns"] == "1 of 2" and row["gold, peak"] == "2.50 ± 0.71" and row["sqrt(KL) there"] == "1.50 ± 0.71"
    assert row["one setting for all"] == f"beta = {overoptimisation.BETAS[2]:.2f}"
    assert row["gold there"] == "2.00 ± 1.41" and row["gold, end"] == "0.98 ± 2.80"
    row = overoptimisation.path_row(overoptimisation.BEST_OF_N, seeds)
    assert row["one setting for all"] == "n = 4"


def test_the_gain_over_the_flawed_model():
    """After the other's peak, at its KLs, on straight lines; a KL that is not reached does not count."""
    other = path_of((0, 0), (1, 2), (2, 1), (3, -1))
    path = path_of((0, 0), (1.5, 3), (2.5, 2))
    assert overoptimisation.gain_after_peak(path, other) == pytest.approx(1.5)
    assert overoptimisation.gain_after_peak(path[:2], other) is None
    row = overoptimisation.gain_row("a reward", [path], [other])
    assert row == {"reward": "a reward", "peak": "1.00", "end": "3.00", "after the peak, equal KL": "1.50"}
    assert overoptimisation.gain_row("a reward", [path[:2]], [other])["after the peak, equal KL"] is None


def test_the_row_of_a_trained_method():
    """Distances with their sign; a point beyond the path counts as not near."""
    def run(*away):
        points = [{"root_kl": 1.0 + i, "away": one, "repeats": 0.5} for i, one in enumerate(away)]
        return {"ref_repeats": 0.25, "points": points}
    row = overoptimisation.trained_row("PPO", [run(0.9, 0.1), run(-1.2, -1.5), run(0.0, None)])
    assert row["at the end, mean"] == "-0.70 ± 1.13" and row["within 0.15"] == "1 of 3"
    assert row["largest"] == "1.50" and row["largest on the way"] == "1.20" and row["largest sqrt(KL)"] == "2.00"
    assert row["repeats, at first"] == "0.25 ± 0.00" and row["at the end"] == "0.50 ± 0.00"
    assert overoptimisation.trained_row("PPO", [run(None)])["at the end, mean"] is None


def test_a_rehearsal_writes_its_files(tmp_path):
    """The study in its quick form: results, tables and picture; a run is compared with the path of its own pairs."""
    results = lab.run_study("over-optimisation", tmp_path, quick=True)
    record = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert record["results"] == results and record["command"].endswith("over-optimisation --quick")
    assert set(results["trained"]) == set(trained.METHODS) and len(results["paths"]) == 8
    for name, (_, size) in trained.METHODS.items():
        point = results["trained"][name][0]["points"][-1]
        own = {"pairs": overoptimisation.MAIN, "many_pairs": "counts only, 400 pairs"}[size]
        expected = point["gold"] - overoptimisation.gold_at(results["paths"][own][0], point["root_kl"])
        assert point["away"] == pytest.approx(expected, abs=1e-5)
    # The last point of some paths, from their own reward models.
    one = repeats.World(0, 2.0, pairs=200)
    mild, members = repeats.World(0, 1.0, pairs=200), one.learn_ensemble(2)
    for name, world, scores in (
            ("counts and repeats", one, one.learn(see_repeats=True)), ("counts only, 1 a repeat", mild, mild.learn()),
            ("ensemble, minimum", one, torch.minimum(*members))):
        expected = world.judge(exact.optimum(world.ref_logprobs, scores, overoptimisation.BETAS[-1]), scores)
        assert results["paths"][name][0][-1] == pytest.approx(expected, rel=1e-4)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in table for name in (*results["paths"], *results["trained"]))
    assert (tmp_path / "picture.png").stat().st_size > 10_000
