"""The laboratory: its parts go on where they were stopped, and its studies compute what they say."""

import copy
import itertools
import json
import math

import pytest
import torch
from test_cli import call
from test_dpo import small_model

from minift.cli import lab as verb
from minift.errors import MiniftError
from minift.evaluation import exact
from minift.studies import exact_frontier, falling_chosen, frontier, lab, ppo_details, reward_models, rlvr

# ---- the framework ----


def test_cells_are_computed_once(tmp_path):
    """A finished part is read from its file; another setting is refused by its name."""
    calls = []

    def work(x):
        calls.append(x)
        return {"double": 2 * x}
    cells = lab.Cells(tmp_path / "cells", {"n": 1})
    assert cells("a", work, 3) == cells("a", work, 3) == {"double": 6} and calls == [3]
    assert lab.Cells(tmp_path / "cells", {"n": 1})("a", work, 3) == {"double": 6} and calls == [3]
    with pytest.raises(MiniftError, match="other settings \\(n\\)"):
        lab.Cells(tmp_path / "cells", {"n": 2})


def test_a_study_that_was_stopped_goes_on(tmp_path, monkeypatch, capsys):
    """Ctrl-C in the second part keeps the first one; the next run computes the rest and writes all three files."""
    ran = []

    class Study:
        SETTINGS, QUICK = {"seeds": (0, 1)}, {"seeds": (0,)}

        @staticmethod
        def part(seed):
            ran.append(seed)
            if ran == [0, 1]:
                raise KeyboardInterrupt
            return seed + 0.5

        @classmethod
        def measure(cls, cells, settings):
            return [cells(f"part-{seed}", cls.part, seed) for seed in settings["seeds"]]

        @staticmethod
        def tables(results):
            return {"A table": [{"seed": i, "value": value} for i, value in enumerate(results)]}

        @staticmethod
        def draw(results):
            from minift import show
            fig, axis = show.figure()
            show.curves(axis, {"x": ([0, 1], [0, 1])}, xlabel="x", ylabel="y")
            return fig
    monkeypatch.setattr(lab, "find_study", lambda name: Study)
    out = tmp_path / "out"
    assert call("lab", "rlvr", "--out", out) == 130
    assert call("lab", "rlvr", "--out", out) == 0 and ran == [0, 1, 1]
    record = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert record["results"] == [0.5, 1.5] and record["command"] == "python -m minift lab rlvr"
    assert record["settings"] == {"seeds": [0, 1]} and {"threads", "cpu_capability", "seconds"} <= record.keys()
    assert "| 1 | 1.500 |" in (out / "table.md").read_text(encoding="utf-8") and "A table" in capsys.readouterr().out
    assert (out / "picture.png").stat().st_size > 1000
    assert call("lab", "rlvr", "--out", out, "--quick") == 2 and "other settings (seeds)" in capsys.readouterr().err


def test_names_of_studies(capsys):
    """The command line knows each study of the laboratory; each has what the laboratory calls."""
    assert tuple(lab.STUDIES) == verb.NAMES
    for name in lab.STUDIES:
        study = lab.find_study(name)
        assert study.QUICK.keys() <= study.SETTINGS.keys(), "a rehearsal changes settings; it adds none"
        assert all(callable(getattr(study, function)) for function in ("measure", "tables", "draw"))
    with pytest.raises(MiniftError, match="no study 'rlfv'"):
        lab.find_study("rlfv")


# ---- what the studies compute ----


def test_pass_curve_is_a_mean_of_means():
    """pass@k over prompts, then over tasks: a task with few prompts counts as much as one with many."""
    examined = {"right": {"a": [4, 0], "b": [1, 1, 1, 1]}}
    curve = rlvr.pass_curve(examined, 4)
    assert list(curve) == [1, 2, 4]
    assert curve[1] == pytest.approx((0.5 + 0.25) / 2) and curve[4] == pytest.approx((0.5 + 1.0) / 2)
    assert curve[2] == pytest.approx((0.5 + (1 - math.comb(3, 2) / math.comb(4, 2))) / 2)


def test_prompts_that_were_never_solved():
    """Counted before, and how many of them have a right sample after."""
    run = {"before": {"right": {"a": [0, 0, 3], "b": [0]}}, "after": {"right": {"a": [2, 0, 0], "b": [1]}}}
    assert rlvr.never_solved(run, ["a", "b"]) == (3, 4, 2) and rlvr.never_solved(run, ["b"]) == (1, 1, 1)


def test_the_commonest_answer():
    """The share of held-out rows whose answer is the commonest one of the training rows of their task."""
    def row(task, answer):
        return {"task": task, "messages": [{"content": "?"}, {"content": answer}]}
    train = [row("count", "2"), row("count", "2"), row("count", "3"), row("who", "Ada")]
    test = [row("count", "2"), row("count", "3"), row("count", "2"), row("count", "4"), row("who", "Bob")]
    assert rlvr.guess_the_commonest(train, test) == {"count": 0.5, "who": 0.0}


def test_scores_at_equal_kl():
    """On a straight line between the points of a run, from its start; nothing beyond the last point."""
    points = [{"kl": 2.0, "gold": 8.0}, {"kl": 4.0, "gold": 7.0}]
    assert frontier.at_kl(points, 1.0, "gold", 6.0) == pytest.approx(7.0)
    assert frontier.at_kl(points, 3.0, "gold", 6.0) == pytest.approx(7.5)
    assert frontier.at_kl(points, 4.1, "gold", 6.0) is None


def test_the_best_reward_at_a_kl():
    """By halving, the same as the exact frontier; a policy of the frontier is 0 below it, any other one more."""
    answers = exact.all_answers(3, 2)
    rewards, ref = exact.example_reward(answers) + answers[:, 0], torch.arange(9.0).double().log_softmax(0)
    world = {"ref_logprobs": ref, "rewards": rewards}
    for beta in (2.0, 0.5, 0.1):
        star = exact.optimum(ref, rewards, beta)
        assert abs(exact_frontier.judge(world, star)["below"]) < 1e-9
    assert exact_frontier.judge(world, torch.full((9,), 1 / 9, dtype=torch.float64))["below"] > 0.1


def test_regret_is_exact():
    """J of the optimum minus J, by the definition; beta log Z is J of the optimum."""
    world = ppo_details.World(0.5)
    ref, rewards = world.ref_logprobs.exp(), world.rewards.double()
    assert world.best == pytest.approx(0.5 * (ref * (rewards / 0.5).exp()).sum().log().item(), abs=1e-9)
    assert world.start == pytest.approx((ref * rewards).sum().item(), abs=1e-9)


def test_the_two_gradients():
    """The push predicts how a small step of plain gradient descent on the pairs moves log p(chosen)."""
    model = small_model(1)
    batch = {}
    for side, rows in (("chosen", [[1, 2, 3, 4], [5, 6, 7, 8]]), ("rejected", [[1, 2, 9, 3], [5, 6, 2, 2]])):
        batch[f"{side}_input_ids"] = torch.tensor(rows)
        batch[f"{side}_attention_mask"] = torch.ones(2, 4, dtype=torch.bool)
        batch[f"{side}_response_mask"] = torch.tensor([[False, False, True, True]] * 2)
    found = falling_chosen.gradients(model, batch)
    moved, step = copy.deepcopy(model), 1e-5

    def mean_logprob(one, side):
        logprobs = one(batch[f"{side}_input_ids"]).double().log_softmax(-1)
        ids = batch[f"{side}_input_ids"]
        return sum(logprobs[b, t - 1, ids[b, t]] for b in range(2) for t in (2, 3)) / 2
    gap = mean_logprob(model, "chosen") - mean_logprob(model, "rejected")
    gradients = torch.autograd.grad(gap, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(moved.parameters(), gradients):
            parameter.add_(step * gradient)
        change = (mean_logprob(moved, "chosen") - mean_logprob(model, "chosen")).item() / step
    assert found["chosen"] == pytest.approx(mean_logprob(model, "chosen").item(), abs=1e-5)
    assert found["push"] * found["chosen_norm"] ** 2 == pytest.approx(change, rel=0.02)


def test_anchored_losses():
    """NLL adds -weight * log p; APO-zero pushes each side alone, up and down."""
    four = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (-10.0, -12.0, -11.0, -11.5)]
    plain = falling_chosen.dpo.dpo_loss(*four, 0.1)[0]
    assert (falling_chosen.with_nll(*four, 0.1, weight=0.3)[0] - plain).item() == pytest.approx(3.0, abs=1e-9)
    loss, _ = falling_chosen.apo_zero(*four, 0.1)
    expected = 1 - 1 / (1 + math.exp(-0.1)) + 1 / (1 + math.exp(0.05))
    assert loss.item() == pytest.approx(expected, abs=1e-9)
    loss.backward()
    assert four[0].grad.item() < 0 < four[1].grad.item()


def test_choices_are_drawn_again():
    """The same stories, in the gold order without noise, and in any order with much."""
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_models, "story_requests", lambda *args: [])
        patch.setattr(reward_models, "gold_score", lambda scenes, prompt, text: float(text.startswith("good")))
        for noise, low, high in ((0.0, 1.0, 1.0), (50.0, 0.4, 0.6)):
            found = reward_models.choose_again(None, rows, noise, 0, {"pairs": 200})
            right = sum(row["chosen"].startswith("good") for row in found) / 200
            assert low <= right <= high
            assert all({row["chosen"], row["rejected"]} == {f"good {i}", f"bad {i}"} for i, row in enumerate(found))


def test_groups_are_counted_by_task():
    """All wrong, mixed, all right: of the exact reward, also where the reward itself is random."""
    class Fake:
        def prompts(self):
            return [p for p in ([1], [2], [3]) for _ in range(2)]
    for rewards in ("exact", "random"):
        groups = rlvr.Groups.__new__(rlvr.Groups)
        groups.group_size, groups.tasks = 2, {(1,): "a", (2,): "a", (3,): "b"}
        groups.counts = rlvr.defaultdict(lambda: {"wrong": 0, "mixed": 0, "right": 0})
        groups.check = lambda generation: torch.tensor([0.0, 0, 1, 0, 1, 1])
        groups.generator = torch.Generator().manual_seed(0) if rewards == "random" else None
        drawn = [groups.reward(Fake()).tolist() for _ in range(20)]
        assert groups.shares() == {"a": {"wrong": 0.5, "mixed": 0.5, "right": 0.0},
                                   "b": {"wrong": 0.0, "mixed": 0.0, "right": 1.0}}
        flat = list(itertools.chain(*drawn))
        if rewards == "exact":
            assert drawn == [[0, 0, 1, 0, 1, 1]] * 20
        else:
            assert set(flat) == {0.0, 1.0} and 0.35 < sum(flat) / 120 < 0.65
