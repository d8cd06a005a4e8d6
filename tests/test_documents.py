"""The README and the pages beside it: short, true to the committed numbers, with paths and links that exist."""

import json
import re
import shlex
from pathlib import Path

import pytest

from minift.cli.parser import parse
from minift.tour import arc

ROOT = Path(__file__).parents[1]
README, DATA = ROOT / "README.md", ROOT / "data" / "README.md"
PAGES = [README, DATA, ROOT / "data" / "guidelines.md", *sorted((ROOT / "lessons").glob("*.md"))]
EACH = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def read(path):
    return path.read_text(encoding="utf-8")


def read_json(name):
    return json.loads(read(ROOT / "data" / name))


def rows_of(text, heading):
    """The cells of the table whose first column is called `heading`: a list of lists."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[first + 2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


# ---- the README's form ----


def test_the_first_screen_has_a_picture_and_two_commands():
    """One picture, then the tour and the tests, all within 20 lines; a map of at most 15 rows; 2,000 words."""
    lines = read(README).splitlines()[:20]
    picture = next(i for i, line in enumerate(lines) if line.startswith("!["))
    install = "    pip install -r requirements.txt && python -m "
    commands = [i for i, line in enumerate(lines) if line.startswith(install)]
    assert picture < commands[0] and len(commands) == 2
    assert lines[commands[0]].endswith("minift tour") and lines[commands[1]].endswith("pytest")
    assert len(rows_of(read(README), "idea")) <= 15
    assert len(read(README).split()) <= 2000


@EACH
def test_links_and_paths_exist(path):
    """Links lead to files; a module or folder that is named in code marks or links is there."""
    text = read(path)
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link
    folders = "core|text|methods|formats|evaluation|ways|label|world|show|studies|learn|tour|cli"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.py)`|\[((?:{folders})/[\w/.]*)\]", text):
        assert (ROOT / "minift" / (name[0] or name[1])).exists(), name
    for name in re.findall(r"\bminift(?:\.[a-z_]+)+", text):
        parts = name.split(".")
        place = ROOT.joinpath(*parts)
        assert place.is_dir() or place.with_suffix(".py").exists() or place.parent.with_suffix(".py").exists(), name


@EACH
def test_commands_of_the_pages_are_commands(path):
    """Each indented `python -m minift` line is read without an error (test_cli runs those of the README)."""
    for line in re.findall(r"^ {4}python -m (minift .*)$", read(path), re.M):
        assert parse(shlex.split(line)[1:]), line


# ---- the numbers of the pages are the committed ones ----


def test_the_picture_has_the_numbers_of_the_three_seeds():
    """Each box is filled from data/tour/seeds.json, and says what the page's table says."""
    means = {name: row["mean"] for name, row in read_json("tour/seeds.json")["summary"].items()}
    said = {name: arc.describe(name, means) for name in arc.BOXES}
    assert None not in said.values() and arc.describe("ppo", {}) is None
    trained, gained = means["lora_share_trained"], means["lora_share_of_gain"]
    assert said["lora"] == f"{trained:.0%} of the parameters,\n{gained:.0%} of the gain"
    assert f"{means['win_rate_ppo']:.0%}" in said["ppo"] and f"{means['win_rate_dpo']:.0%}" in said["dpo"]
    linked = {name for pair in arc.ARROWS for name in pair}
    assert set(arc.COLOURS) == set(arc.BOXES) == linked | {"encoder", "clusters"}


def test_the_table_of_the_tour():
    """Mean and standard deviation of each measure, as data/tour/seeds.json has them."""
    summary = read_json("tour/seeds.json")["summary"]

    def of(name, digits=0, scale=1.0, unit=""):
        mean, std = (summary[name][part] * scale for part in ("mean", "std"))
        return f"{mean:.{digits}f} ± {std:.{digits}f}{unit}"
    share = {"scale": 100.0, "unit": " %"}
    found = {row[1]: row[2] for row in rows_of(read(DATA), "stage")}
    assert found["perplexity of unread stories"] == of("base_perplexity", 2)
    assert found["perplexity of the new domain, before → after"].endswith(of("new_perplexity", 2))
    assert of("old_perplexity", 1) in found["perplexity of stories, before → after; with replay"]
    assert of("old_perplexity_with_replay", 2) in found["perplexity of stories, before → after; with replay"]
    assert found["rise of the old loss with replay, of the rise without"] == of("forgetting_with_replay", 1, **share)
    assert found["share of full fine-tuning's gain"] == of("lora_share_of_gain", 1, **share)
    assert found["exact match on held-out questions, base → tuned"].endswith(of("exact_match", 1, **share))
    assert found["annotators agree with the gold order"] == of("annotator_agreement", 1, **share)
    assert found["held-out pairs in gold order"] == of("reward_accuracy_gold", 1, **share)
    assert found["gold score (0 to 10): SFT, PPO, DPO"] == ", ".join(of(f"gold_{m}", 2) for m in ("sft", "ppo", "dpo"))
    assert found["wins against SFT (a tie counts half): PPO, DPO"] == ", ".join(
        of(f"win_rate_{m}", 1, **share) for m in ("ppo", "dpo"))
    assert found["KL to SFT, nats a response: PPO, DPO"] == ", ".join(of(f"kl_{m}", 1) for m in ("ppo", "dpo"))
    assert found["hidden tokens filled in; a bigram guess"] == "; ".join(
        of(f"{m}_accuracy", 1, **share) for m in ("masked", "bigram"))
    assert found["rank classification, base → tuned"] == " → ".join(
        of(f"withheld_rank_{when}", 0, **share) for when in ("before", "after"))


def test_the_table_of_labels():
    """Accuracy against the number of labels, as data/labels/curve.json has it."""
    tasks = read_json("labels/curve.json")["tasks"]
    ways = ("probe", "full", "scratch", "bag of words")
    for row in rows_of(read(DATA), "labels"):
        n = int(row[0].replace(",", ""))
        for task, cell in zip(("topic", "sentiment", "follows"), row[1:]):
            for way, value in zip(ways, cell.split(", ")):
                entry = tasks[task][way]["stories"]
                assert float(value) == pytest.approx(entry["mean"][entry["n"].index(n)], abs=0.0051), (task, way, n)


def test_the_table_of_the_four_ways():
    """The rows of data/ways/table.md stand in the page, under longer names."""
    known = {tuple(row[1:7]) for row in rows_of(read(ROOT / "data" / "ways" / "table.md"), "way")}
    for row in rows_of(read(DATA), "way"):
        rows, minutes, tokens, wrong, distinct, nearest = row[1:7]
        wrong = "–" if wrong == "–" else f"{float(wrong.split()[0]):.1f}%"
        assert (rows, minutes, tokens, wrong, distinct, nearest) in known, row[0]


def test_the_table_of_withheld_clusters():
    """Exact match by number of training clusters, as data/clusters/results.json has it."""
    numbers = read_json("clusters/results.json")["numbers"]
    for row in rows_of(read(DATA), "withheld"):
        cluster = {"yes/no": "yes_no", "mean of clusters": "macro"}.get(row[0], row[0])
        for number, value in zip(("0", "1", "2", "4", "all"), row[1].split(", ")):
            assert float(value) == pytest.approx(numbers[number]["exact_match"][cluster]["mean"], abs=0.0051), row[0]
