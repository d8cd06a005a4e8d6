"""The study of estimators: expectations against loops over all ordered groups, gradients against hand formulas."""

import itertools
import json
import math

import pytest
import torch

from minift.studies import estimators, lab, table_world

# The world of oracle 1.13, and a prompt that is nearly solved.
P, SOLVED, R, REF = [0.5, 0.3, 0.2], [0.9, 0.06, 0.04], [1.0, 0.0, -1.0], [0.4, 0.4, 0.2]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, expected, within=1e-9):
    return (tensor(found) - tensor(expected)).abs().max() < within


# ---- bias and variance, by hand ----


def by_hand(name, batch, critics):
    """The advantages of a batch, a list of groups of rewards; critics: E r of each prompt. None: not in the update."""
    flat = [r - v for group, v in zip(batch, critics) for r in group]
    mean = sum(flat) / len(flat)
    spread = math.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - 1))
    found = []
    for group, v in zip(batch, critics):
        size, center = len(group), sum(group) / len(group)
        std = math.sqrt(sum((r - center) ** 2 for r in group) / (size - 1))
        for r in group:
            found.append({
                "reinforce": r, "raised": r + 1, "baseline": r - v, "dr_grpo": r - center,
                "rloo": r - (sum(group) - r) / (size - 1),
                "rloo_kept": None if std == 0 else r - (sum(group) - r) / (size - 1),
                "grpo": 0.0 if std == 0 else (r - center) / std,
                "ppo": 0.0 if spread < 1e-12 else (r - v - mean) / spread}[name])
    return found


def moments(name, size, policies):
    """(expected gradient, summed variance) over all ordered batches; an answer's own gradient is A * (one-hot - p)."""
    critics = [sum(p * r for p, r in zip(policy, R)) for policy in policies]
    mean, square = torch.zeros(len(policies), 3, dtype=torch.float64), 0.0
    for answers in itertools.product(range(3), repeat=size * len(policies)):
        groups = [answers[i:i + size] for i in range(0, len(answers), size)]
        advantages = by_hand(name, [[R[a] for a in group] for group in groups], critics)
        count = sum(a is not None for a in advantages)
        gradient = torch.zeros_like(mean)
        chance = 1.0
        for i, answer in enumerate(answers):
            policy = policies[i // size]
            chance *= policy[answer]
            if advantages[i] is not None:
                for k in range(3):
                    gradient[i // size, k] += advantages[i] * ((k == answer) - policy[k]) / count
        mean += chance * gradient
        square += chance * gradient.square().sum().item()
    return mean, square - mean.square().sum().item()


@pytest.mark.parametrize("name", estimators.ESTIMATORS)
def test_bias_and_variance_over_all_ordered_groups(name, judge=estimators.judge):
    """One prompt with groups of 2 to 4, two prompts with groups of 2 and 3: 729 batches."""
    for size, policies in ((2, [P]), (3, [P]), (4, [P]), (2, [P, SOLVED]), (3, [P, SOLVED])):
        mean, variance = moments(name, size, policies)
        found = judge(name, size, tensor(policies))
        assert close(found["gradient"], mean.tolist())
        assert found["variance"] == pytest.approx(variance, abs=1e-9)
        true = tensor([[p * (r - sum(map(math.prod, zip(policy, R)))) for p, r in zip(policy, R)]
                       for policy in policies]) / len(policies)
        along = (mean * true).sum() / true.square().sum()
        assert found["scale"] == pytest.approx(along.item(), abs=1e-9)
        assert found["bias"] == pytest.approx(((mean - true).norm() / true.norm()).item(), abs=1e-9)
        cosine = (mean * true).sum() / mean.norm() / true.norm()
        assert found["cosine"] == pytest.approx(cosine.item(), abs=1e-9)


def test_the_worked_numbers(judge=estimators.judge):
    """Expected gradients and summed variances, worked out elsewhere to six digits (oracles G4 and G5)."""
    one = tensor([P])
    for size, expected in ((2, [.175, -.045, -.13]), (4, [.2625, -.0675, -.195])):
        assert close(judge("dr_grpo", size, one)["gradient"], [expected])
    for size, expected in ((2, [.176777, -.06364, -.113137]), (4, [.331508, -.120954, -.210554])):
        assert close(judge("grpo", size, one)["gradient"], [expected], 6e-7)
    for name, variance in (("reinforce", .046950), ("rloo", .109833), ("dr_grpo", .061781)):
        assert judge(name, 4, one)["variance"] == pytest.approx(variance, abs=6e-7)


def test_who_is_unbiased(judge=estimators.judge):
    """For every G, with one prompt and with two: the true gradient, or (G - 1) / G of it; the others are biased."""
    for size, policies in ((2, [P]), (8, [P]), (16, [P]), (4, [P, SOLVED])):
        for name in ("reinforce", "raised", "baseline", "rloo"):
            found = judge(name, size, tensor(policies))
            assert found["bias"] < 1e-9 and found["cosine"] == pytest.approx(1, abs=1e-12)
        found = judge("dr_grpo", size, tensor(policies))
        assert found["bias"] == pytest.approx(1 / size, abs=1e-9) and found["cosine"] == pytest.approx(1, abs=1e-12)
        assert judge("grpo", size, tensor(policies))["cosine"] < 0.9999
    # A left-out group changes the weights of the other prompts, so this matters only where there are others.
    assert judge("rloo_kept", 4, tensor([P]))["bias"] < 1e-9
    assert judge("rloo_kept", 4, tensor([P, SOLVED]))["bias"] > 0.5


def test_variance_of_independent_answers(judge=estimators.judge):
    """REINFORCE is a mean of G independent terms: the variance of one, over G, for any constant baseline."""
    mean = sum(map(math.prod, zip(P, R)))
    true = [p * (r - mean) for p, r in zip(P, R)]
    for name, baseline in (("reinforce", 0.0), ("raised", -1.0), ("baseline", mean)):
        squares = 0.0
        for answer, chance in enumerate(P):
            length = sum(((k == answer) - p) ** 2 for k, p in enumerate(P))
            squares += chance * (R[answer] - baseline) ** 2 * length
        for size in (2, 8, 16):
            expected = (squares - sum(x * x for x in true)) / size
            assert judge(name, size, tensor([P]))["variance"] == pytest.approx(expected, abs=1e-9)


def test_all_groups_by_counting(all_groups=table_world.all_groups):
    """Each multiset once, with the chances of all its orders together."""
    for size in (1, 3, 5):
        expected = {}
        for group in itertools.product(range(3), repeat=size):
            key = tuple(sorted(group))
            expected[key] = expected.get(key, 0) + math.prod(P[a] for a in group)
        found = list(all_groups(tensor(P), size))
        assert {tuple(group): pytest.approx(chance, abs=1e-12) for group, chance in found} == expected
        assert len(found) == len(expected)


# ---- answers of unequal length, by hand ----


def random_logits(world, seed):
    generator = torch.Generator().manual_seed(seed)
    return world.uniform() + torch.randn(len(world.prefixes), 3, generator=generator, dtype=torch.float64)


def tables_of(world, logits):
    """The policy as {prefix: {token: probability}}."""
    found = {}
    for prefix, row in world.prefixes.items():
        weights = {token: math.exp(logits[row, k].item()) for k, token in enumerate("ab.")}
        found[prefix] = {token: weight / sum(weights.values()) for token, weight in weights.items()}
    return found


def scores_of(world, policy, answer):
    """d log p(token) / d logits of each token of an answer: one-hot minus p in the row of its prefix."""
    scores = []
    for t, written in enumerate(answer):
        score = torch.zeros(len(world.prefixes), 3, dtype=torch.float64)
        for k, token in enumerate("ab."):
            score[world.prefixes[answer[:t]], k] = (token == written) - policy[answer[:t]][token]
        scores.append(score)
    return scores


def chance_of(policy, answer):
    return math.prod(policy[answer[:t]][token] for t, token in enumerate(answer))


def log_ratios(policy, other, answer):
    return [math.log(policy[answer[:t]][token] / other[answer[:t]][token]) for t, token in enumerate(answer)]


def test_the_world_lists_every_answer(long_world=table_world.long_world):
    """Answers of up to 3 tokens; probabilities by the chain rule, which sum to 1; lengths with the end."""
    world = long_world(3)
    assert sorted(world.answers) == sorted(
        ["a.", "b.", "aa.", "ab.", "ba.", "bb.", "aaa", "aab", "aba", "abb", "baa", "bab", "bba", "bbb"])
    logits = random_logits(world, 3)
    policy, logprobs = tables_of(world, logits), world.logprobs(logits)
    chances = [chance_of(policy, answer) for answer in world.answers]
    assert close(logprobs.sum(1).exp().tolist(), chances) and sum(chances) == pytest.approx(1, abs=1e-12)
    for reward, first in ((0, "b"), (1, "a")):
        mine = {answer: chance for answer, chance in zip(world.answers, chances) if answer[0] == first}
        expected = sum(len(answer) * chance for answer, chance in mine.items()) / sum(mine.values())
        assert world.mean_length(logprobs, reward).item() == pytest.approx(expected, abs=1e-9)


def update_by_hand(world, logits, ref, method, size, beta):
    """The expected update over all ordered groups: sums of weight * (A - beta * dk3/dlogp) * d log p of each token."""
    policy, other, longest = tables_of(world, logits), tables_of(world, ref), max(map(len, world.answers))
    answers = [(answer, chance_of(policy, answer), scores_of(world, policy, answer), log_ratios(policy, other, answer))
               for answer in world.answers]
    whole = method in ("reinforce", "rloo")
    total = torch.zeros_like(logits)
    for group in itertools.product(answers, repeat=size):
        chance = math.prod(one[1] for one in group)
        rewards = [float(one[0][0] == "a") - (beta * sum(one[3]) if whole else 0) for one in group]
        mean = sum(rewards) / size
        std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (size - 1))
        tokens = sum(len(one[0]) for one in group)
        for (answer, _, scores, ratios), r in zip(group, rewards):
            advantage = {"reinforce": r, "rloo": (r - mean) * size / (size - 1), "dr_grpo": r - mean}.get(
                method, (r - mean) / std if std > 1e-12 else 0.0)
            weight = {"grpo": 1 / size / len(answer), "dr_grpo": 1 / size / longest, "dapo": 1 / tokens}.get(
                method, 1 / size)
            for score, d in zip(scores, ratios):
                pull = 0.0 if whole else beta * (1 - math.exp(-d))
                total += chance * weight * (advantage - pull) * score
    return total


@pytest.mark.parametrize("method", ["reinforce", "rloo", "grpo", "dr_grpo", "dapo"])
def test_expected_updates_over_all_ordered_groups(method, expected_update=table_world.expected_update):
    """Answers of 2 and 3 tokens, a random policy and a random reference, without and with a KL."""
    world = table_world.long_world(3)
    logits, ref = random_logits(world, 1), random_logits(world, 2)
    for beta in (0.0, 0.3):
        config = table_world.rule_config(world, method, 2, beta)
        found = expected_update(world, logits, world.logprobs(ref), config)
        assert close(found.tolist(), update_by_hand(world, logits, ref, method, 2, beta).tolist())


def test_only_whole_answers_with_the_kl_in_the_reward_are_unbiased(expected_update=table_world.expected_update):
    """RLOO and REINFORCE have the gradient of J = E r - beta KL, by hand: E[(r - beta log(p / ref)) d log p]."""
    world, beta = table_world.long_world(3), 0.3
    logits, ref = random_logits(world, 1), random_logits(world, 2)
    policy, other = tables_of(world, logits), tables_of(world, ref)
    true = torch.zeros_like(logits)
    for answer in world.answers:
        worth = float(answer[0] == "a") - beta * sum(log_ratios(policy, other, answer))
        true += chance_of(policy, answer) * worth * sum(scores_of(world, policy, answer))
    objective = world.gradient(lambda logprobs: world.objective(logprobs, world.logprobs(ref), beta), logits)
    assert close(objective.tolist(), true.tolist())
    for method in ("reinforce", "rloo", "grpo", "dr_grpo", "dapo"):
        config = table_world.rule_config(world, method, 2, beta)
        found = expected_update(world, logits, world.logprobs(ref), config)
        cosine = (found * true).sum() / found.norm() / true.norm()
        assert close(found.tolist(), true.tolist()) == (method in ("reinforce", "rloo"))
        assert (cosine > 1 - 1e-9) == (method in ("reinforce", "rloo"))


def test_changes_of_length(judge_rule=table_world.judge_rule):
    """Along a step of length 1, by the covariance of length and score; 0 but for the lengths of grpo and dapo."""
    settings = {"longest": 3, "group_size": 2, "beta": 0.2}
    world = table_world.long_world(3)
    logits = world.uniform()
    policy = tables_of(world, logits)
    slopes = {}
    for key, first in (("wrong", "b"), ("right", "a")):
        mine = {answer: chance_of(policy, answer) for answer in world.answers if answer[0] == first}
        share = sum(mine.values())
        mean = sum(chance * len(answer) for answer, chance in mine.items()) / share
        slopes[key] = sum(
            chance / share * (len(answer) - mean) * sum(scores_of(world, policy, answer))
            for answer, chance in mine.items())
    slopes |= {"short": sum(scores_of(world, policy, "b.")), "long": sum(scores_of(world, policy, "bbb"))}
    for method in ("reinforce", "rloo", "grpo", "dr_grpo", "dapo"):
        found = judge_rule(method, settings)
        update = update_by_hand(world, logits, logits, method, 2, 0.0)
        for key, slope in slopes.items():
            assert found[key] == pytest.approx(((slope * update).sum() / update.norm()).item(), abs=1e-9)
        biased = method in ("grpo", "dapo")
        assert (found["wrong"] > 1e-3, found["right"] < -1e-3, found["long"] > found["short"] + 1e-3) == (biased,) * 3
    true = judge_rule("true", settings)
    assert true["cosine"] == true["cosine_kl"] == 1
    assert [true[key] for key in ("wrong", "right")] == pytest.approx([0, 0], abs=1e-12)


def test_the_limit_of_large_groups(update_of_large_groups=table_world.update_of_large_groups):
    """E[(r - E r) * weight * d log p], by hand."""
    world = table_world.long_world(3)
    logits = random_logits(world, 4)
    policy = tables_of(world, logits)
    right = sum(chance_of(policy, answer) for answer in world.answers if answer[0] == "a")
    for method, weight in (("grpo", lambda n: 1 / n), ("dr_grpo", lambda n: 1 / 3), ("rloo", lambda n: 1)):
        expected = torch.zeros_like(logits)
        for answer in world.answers:
            advantage = (answer[0] == "a") - right
            expected += chance_of(policy, answer) * advantage * weight(len(answer)) * sum(
                scores_of(world, policy, answer))
        config = table_world.rule_config(world, method, 2)
        assert close(update_of_large_groups(world, logits, config).tolist(), expected.tolist())


def test_paths(follow=table_world.follow):
    """In GRPO's path wrong answers get longer and right ones shorter at each step; with one weight none changes."""
    settings = {"longest_path": 4, "steps": 12, "step_length": 0.1}
    paths = {method: follow(method, settings) for method in ("grpo", "dr_grpo", "rloo")}
    start = 2 / 3 + 3 * 2 / 9 + 4 * 4 / 9       # each token after the first is the end with a chance of 1 / 3
    for path in paths.values():
        assert [point["step"] for point in path] == list(range(13))
        assert path[0]["share"] == pytest.approx(0.5) and path[0]["wrong"] == pytest.approx(start, abs=1e-12)
        assert all(b["share"] > a["share"] for a, b in zip(path, path[1:]))
    for method in ("dr_grpo", "rloo"):
        # The whole step is in the first token: its two logits move apart by step_length * sqrt(2).
        for point in paths[method]:
            assert (point["wrong"], point["right"]) == pytest.approx((start, start), abs=1e-9)
            odds = math.exp(point["step"] * 0.1 * math.sqrt(2))
            assert point["share"] == pytest.approx(odds / (1 + odds), abs=1e-9)
    for a, b in zip(paths["grpo"], paths["grpo"][1:]):
        assert b["wrong"] > a["wrong"] and b["right"] < a["right"]


# ---- the KL ----


def kl_row(rows, kind, place):
    row, = [row for row in rows if (row["kind"], row["place"]) == (kind, place)]
    return row


def test_the_kl_of_one_token(compare_kl=estimators.compare_kl):
    """Closed forms: p (d - KL) for KL(p || ref), p - ref for KL(ref || p); the oracle's digits (G8)."""
    world = table_world.World(["a", "b", "."], R)
    rows = compare_kl(world, tensor([P]).log(), tensor([REF]).log())
    d = [math.log(p / q) for p, q in zip(P, REF)]
    kl = sum(map(math.prod, zip(P, d)))
    forward, reverse = [p * (x - kl) for p, x in zip(P, d)], [p - q for p, q in zip(P, REF)]
    estimates = {"k1": d, "k2": [x * x / 2 for x in d], "k3": [math.exp(-x) - 1 + x for x in d]}
    in_loss = {"k1": [0, 0, 0], "k2": forward, "k3": reverse}
    for kind, values in estimates.items():
        mean = sum(map(math.prod, zip(P, values)))
        in_reward = [p * (value - mean) for p, value in zip(P, values)]
        assert close(kl_row(rows, kind, "loss")["gradient"], in_loss[kind])
        assert close(kl_row(rows, kind, "reward")["gradient"], in_reward)
        assert close(kl_row(rows, kind, "both")["gradient"], [x + y for x, y in zip(in_loss[kind], in_reward)])
    assert close(kl_row(rows, "k2", "loss")["gradient"], [.098938, -.093885, -.005053], 6e-7)
    assert close(kl_row(rows, "k3", "loss")["gradient"], [.1, -.1, 0])
    assert [row["is"] for row in rows] == [
        "0", "grad KL(p || ref)", "grad KL(p || ref)", "grad KL(p || ref)", "neither", "neither",
        "grad KL(ref || p)", "neither", "grad KL(p || ref)"]
    beside = kl_row(rows, "k3", "loss")["found"]["KL(p || ref)"]
    length = math.hypot(*forward)
    cosine = sum(map(math.prod, zip(forward, reverse))) / length / math.hypot(*reverse)
    assert beside["cosine"] == pytest.approx(cosine, abs=1e-9)
    assert beside["bias"] == pytest.approx(math.dist(forward, reverse) / length, abs=1e-9)
    assert kl_row(rows, "k1", "loss")["found"]["KL(p || ref)"]["cosine"] is None


def test_the_kl_of_several_tokens(compare_kl=estimators.compare_kl):
    """By loops over answers and tokens; only k1 in the reward, and k1 and k3 in both places, have a true gradient."""
    world = table_world.long_world(3)
    logits, ref = random_logits(world, 5), random_logits(world, 6)
    policy, other = tables_of(world, logits), tables_of(world, ref)
    slopes = {"k1": lambda d: 1.0, "k2": lambda d: d, "k3": lambda d: 1 - math.exp(-d)}
    values = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}
    rows = compare_kl(world, logits, ref)
    for kind in slopes:
        in_loss, in_reward = torch.zeros(2, *logits.shape, dtype=torch.float64)
        for answer in world.answers:
            chance, ratios = chance_of(policy, answer), log_ratios(policy, other, answer)
            scores = scores_of(world, policy, answer)
            in_loss += chance * sum(slopes[kind](d) * score for d, score in zip(ratios, scores))
            in_reward += chance * sum(map(values[kind], ratios)) * sum(scores)
        assert close(kl_row(rows, kind, "loss")["gradient"], in_loss.flatten().tolist())
        assert close(kl_row(rows, kind, "reward")["gradient"], in_reward.flatten().tolist())
        assert close(kl_row(rows, kind, "both")["gradient"], (in_loss + in_reward).flatten().tolist())
    assert [row["is"] for row in rows] == [
        "0", "grad KL(p || ref)", "grad KL(p || ref)", *["neither"] * 5, "grad KL(p || ref)"]


# ---- the study ----


def test_the_study_runs_and_goes_on(tmp_path, monkeypatch):
    """The quick form writes results, tables and picture; a second run reads the parts and finds the same."""
    first = lab.run_study("estimators", tmp_path, quick=True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "picture.png", "results.json", "table.md"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["results"] == first
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "-0.000" not in table and "nan" not in table
    assert "| Dr. GRPO, r - mean | 0.500 | 0.333 | 1.0000 | 1.0000 |" in table
    for name in ("judge_sizes", "judge_rule", "follow", "compare_kl"):
        monkeypatch.setattr(estimators, name, lambda *_: pytest.fail("measured again"))
    assert lab.run_study("estimators", tmp_path, quick=True) == first
