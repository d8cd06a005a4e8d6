"""The tour's own machinery: stages in order, resuming, what is refused, mean and spread. (CI runs the tour itself.)"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

from minift import tour
from minift.__main__ import main
from minift.core.heads import LanguageModel
from minift.core.logprobs import make_reference
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.studies import cluster_study, label_curve, stories
from minift.studies.four_ways import rows
from minift.text.answers import Answer
from minift.tour import common

ROOT = Path(__file__).parents[1]


def fake_stages(monkeypatch, calls):
    """Two stages that only note that they ran; the second needs the first."""

    def stage(name):
        def run(one):
            calls.append((name, one.seed))
            row = {"measure": name, "before": 0.0, "after": 1.0}
            return common.Result(f"{name} ran.", {f"{name}_measure": float(one.seed + 1)}, row,
                                 texts=[("sample", "<b>")])

        return run

    monkeypatch.setattr(tour, "STAGES", {"first": (stage("first"), "1. The first", 5, ()),
                                         "second": (stage("second"), "2. The second", 7, ("first",))})


def test_stages_run_in_order_and_leave_their_results(monkeypatch, tmp_path, capsys):
    """Every stage runs once; the folder holds results.json, the overview and a report with every stage."""
    calls = []
    fake_stages(monkeypatch, calls)
    tour.run(out=tmp_path / "t", seed=4)
    assert calls == [("first", 4), ("second", 4)]
    results = json.loads((tmp_path / "t" / "results.json").read_text(encoding="utf-8"))
    assert results["seed"] == 4 and list(results["stages"]) == ["first", "second"]
    page = (tmp_path / "t" / "report.html").read_text(encoding="utf-8")
    assert "second ran." in page and "&lt;b&gt;" in page and "<b>" not in page.split("sample")[1][:80]
    pixels = matplotlib.image.imread(tmp_path / "t" / "pictures" / "overview.png")
    assert pixels[..., :3].min(axis=(0, 2)).min() < 0.5 and (pixels[..., :3] < 0.9).mean() > 0.05
    printed = capsys.readouterr().out
    assert "first ran." in printed and "s of 7 s" in printed


def test_resume_keeps_what_is_finished(monkeypatch, tmp_path):
    """After an interruption in the second stage, --resume runs the second only; without it both run anew."""
    calls = []
    fake_stages(monkeypatch, calls)
    tour.run(out=tmp_path / "t", stages=["first"])
    tour.run(out=tmp_path / "t", resume=True)
    assert [name for name, _ in calls] == ["first", "second"]
    tour.run(out=tmp_path / "t")
    assert [name for name, _ in calls] == ["first", "second", "first", "second"]


def test_single_stages_build_on_earlier_ones(monkeypatch, tmp_path):
    """--stages second runs upon a first that lies there, and is refused by name where there is none."""
    calls = []
    fake_stages(monkeypatch, calls)
    with pytest.raises(MiniftError, match="needs 'first'"):
        tour.run(out=tmp_path / "t", stages=["second"])
    tour.run(out=tmp_path / "t", stages=["first"])
    tour.run(out=tmp_path / "t", stages=["second"])
    assert [name for name, _ in calls] == ["first", "second"]


def test_an_unknown_stage_is_named():
    """A stage that does not exist is refused before anything runs, with the names that there are."""
    with pytest.raises(MiniftError, match="'dqo'.*dpo"):
        tour.run(stages=["dqo"])


def test_several_seeds_give_mean_and_spread(monkeypatch, tmp_path):
    """seeds.json holds mean, sample standard deviation and extremes over the seeds."""
    fake_stages(monkeypatch, [])
    tour.run(out=tmp_path / "s", seeds=[0, 1, 3])
    found = json.loads((tmp_path / "s" / "seeds.json").read_text(encoding="utf-8"))["summary"]["first_measure"]
    assert found["mean"] == pytest.approx(7 / 3) and found["std"] == pytest.approx((7 / 3) ** 0.5)
    assert (found["min"], found["max"]) == (1.0, 4.0)


def test_the_stages_need_only_earlier_ones(stages=tour.STAGES):
    """Each stage comes after those whose results it needs, and the budgets keep the promises: eight minutes in all."""
    names = list(stages)
    assert all(names.index(need) < names.index(name) for name, entry in stages.items() for need in entry[3])
    budgets = {name: entry[2] for name, entry in stages.items()}
    assert budgets["encoder"] <= 45 and budgets["clusters"] <= 60 and budgets["verifiable"] <= 60
    others = sum(budgets.values()) - budgets["encoder"] - budgets["clusters"] - budgets["verifiable"]
    assert others <= 360 and sum(budgets.values()) < 480


def test_kl_of_answers_is_the_sum_of_log_ratios(response_kl=stories.response_kl):
    """On each answer: sum over its tokens of log p - log p_ref, the prompt left out, whatever the batch's padding."""
    torch.manual_seed(0)
    config = TransformerConfig(50, 32, n_layer=1, n_head=2, d_model=16, d_ff=32)
    model, other = LanguageModel(config).eval(), LanguageModel(config).eval()
    answers = [Answer("p", [1, 2, 3], [4, 5], "t", True), Answer("q", [7], [8, 9, 10, 11], "u", False)]
    found = response_kl(make_reference(model), make_reference(other), answers, pad_id=0)
    for answer, kl in zip(answers, found):
        ids = torch.tensor([answer.prompt_ids + answer.response_ids])
        logp, ref = (m(ids).log_softmax(-1)[0] for m in (model, other))
        start = len(answer.prompt_ids)
        terms = [logp[t - 1, ids[0, t]] - ref[t - 1, ids[0, t]] for t in range(start, ids.shape[1])]
        assert kl == pytest.approx(sum(terms).item(), abs=1e-5)


def test_running_means(smooth=common.smooth):
    """The mean of the last n values, fewer at the start."""
    rows = [{"step": i + 1, "loss": value} for i, value in enumerate([4.0, 2.0, 0.0, 6.0])]
    assert smooth(rows, "loss", n=2) == ([1, 2, 3, 4], [4.0, 3.0, 1.0, 3.0])


# ---- from anywhere, and without the repository ----


def test_the_tour_runs_from_any_folder(tmp_path, monkeypatch):
    """Nothing depends on the current folder: the first stage, and chats about the world, from an empty one."""
    monkeypatch.chdir(tmp_path)
    assert main(["tour", "--quick", "--stages", "base", "--out", "here"]) == 0
    assert (tmp_path / "here" / "report.html").exists()
    assert len(cluster_study.world_chats(36, 0)) == 36
    assert label_curve.DATA.is_absolute() and rows.INSTRUCTIONS.is_dir()


def test_an_installed_package_says_what_it_cannot_do(tmp_path):
    """The package alone, without data/, as pip installs it: the tour is one sentence and exit code 2; help works."""
    shutil.copytree(ROOT / "minift", tmp_path / "minift", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "minift"]
    tour = subprocess.run([*command, "tour"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tour.returncode == 2 and "clone the repository" in tour.stderr and tour.stderr.count("\n") == 1
    shown = subprocess.run([*command, "sft", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    # What is no Python file comes along, because pyproject.toml names it.
    listed = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("package-data]")[1].split("\n\n")[0]
    patterns = re.findall(r'"minift\.(\w+)" = \[(.*)\]', listed)
    named = {path for folder, names in patterns for name in names.split(", ")
             for path in (ROOT / "minift" / folder).glob(name.strip('"'))}
    others = {path for path in (ROOT / "minift").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert named == others
