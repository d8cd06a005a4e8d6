"""The README, the pages beside it, the lessons' prose: short, with the committed numbers; paths and links exist."""

import json
import re
import shlex
from pathlib import Path

import pytest

from minift.cli.parser import parse
from minift.show.report import table_markdown
from minift.studies.lab import find_study
from minift.tour import arc, summary

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


LESSONS = sorted((ROOT / "lessons").glob("*.ipynb"))
FOLDERS = ("minift/", "tests/", "data/", "lessons/")


def prose_of(path):
    """The text of a page, or of a notebook's Markdown cells."""
    if path.suffix == ".md":
        return read(path)
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(read(path))["cells"]
                       if cell["cell_type"] == "markdown")


def named_paths(text):
    """The paths below FOLDERS that stand between backticks, alone or as a word of a command; `file.py:name` -> file."""
    spans = "\n".join(re.sub(r"(?s)```.*?```", "", text).split("`")[1::2])
    return [word for word in re.findall(r"[^\s:,;()\"']+", spans) if word.startswith(FOLDERS)]


def test_paths_are_found_in_prose():
    """Between backticks only, whole commands too; what is written elsewhere, or lies in runs/, is not asked for."""
    text = ("data/a `data/b` and `python data/c.py runs/d`; `x/data/e`, `lessons/f.py:g`\n"
            "```\n`data/h`\n```\n`tests/*.py`")
    assert named_paths(text) == ["data/b", "data/c.py", "lessons/f.py", "tests/*.py"]


@pytest.mark.parametrize("path", [*PAGES, *LESSONS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_in_code_marks_exist(path):
    """A file or folder of the repository that a page or a lesson names is there; a pattern finds at least one."""
    for name in named_paths(prose_of(path)):
        assert any(ROOT.glob(name.rstrip("/."))), name


@EACH
def test_commands_of_the_pages_are_commands(path):
    """Each indented `python -m minift` line is read without an error (test_cli runs those of the README)."""
    for line in re.findall(r"^ {4}python -m (minift .*)$", read(path), re.M):
        assert parse(shlex.split(line)[1:]), line


# ---- the numbers of the pages are the committed ones ----


def test_the_picture_has_the_numbers_of_the_three_seeds():
    """Each box is filled from data/tour/seeds.json, says what the page's table says, and is on an arrow."""
    means = {name: row["mean"] for name, row in read_json("tour/seeds.json")["summary"].items()}
    said = {name: arc.describe(name, means) for name in arc.BOXES}
    assert None not in said.values() and arc.describe("ppo", {}) is None
    trained, gained = means["lora_share_trained"], means["lora_share_of_gain"]
    assert said["lora"] == f"{trained:.0%} of the parameters,\n{gained:.0%} of the gain"
    assert f"{means['win_rate_ppo']:.0%}" in said["ppo"] and f"{means['win_rate_dpo']:.0%}" in said["dpo"]
    table = {row[1]: row[2] for row in rows_of(read(DATA), "stage")}
    before, after = re.sub(r" ± [\d.]+", "", table["perplexity of the new domain, before → after"]).split(" → ")
    assert said["continued"].endswith(f"{before} → {after}")
    few = table["topics right with 16 labels: frozen encoder, from scratch"].split(" ± ")[0]
    assert f"16 labels:\n{few}% of" in said["classifier"]
    arrows = {name for pair in arc.ARROWS for name in pair}
    assert set(arc.COLOURS) == set(arc.BOXES) == arrows
    assert {end for _, end in arc.ARROWS} == arrows - {"text"}, "a box with no arrow to it"


def test_the_pictures_text_can_be_read():
    """White on each box's colour has the contrast that WCAG asks for, 4.5, and no box lies on another."""
    for colour in arc.COLOURS.values():
        parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 4.5, colour
    assert len({place for place, _, _ in arc.BOXES.values()}) == len(arc.BOXES)
    assert arc.WIDTH < arc.STEP_X and arc.HEIGHT < arc.STEP_Y


def spread(found, digits=0, percent=False):
    """'mean ± standard deviation' of {"mean", "std"}, in percent or not, with so many digits."""
    scale = 100 if percent else 1
    mean, std = (f"{found[part] * scale:,.{digits}f}" for part in ("mean", "std"))
    return f"{mean} ± {std}" + " %" * percent


def test_the_table_of_the_tour():
    """Each row of the table has the mean and the standard deviation that data/tour/seeds.json has."""
    summary = read_json("tour/seeds.json")["summary"]

    def of(name, digits=0):
        return spread(summary[name], digits)

    def share(name, digits=1):
        return spread(summary[name], digits, percent=True)

    def mean(name, digits=0, scale=1):
        return f"{summary[name]['mean'] * scale:.{digits}f}"
    assert {row[1]: row[2] for row in rows_of(read(DATA), "stage")} == {
        "perplexity of unread stories": of("base_perplexity", 2),
        "perplexity of the new domain, before → after": f"{of('new_perplexity_before')} → {of('new_perplexity', 2)}",
        "perplexity of stories, before → after; with replay":
            f"{mean('old_perplexity_before', 2)} → {of('old_perplexity', 1)}; {of('old_perplexity_with_replay', 2)}",
        "rise of the old loss with replay, of the rise without": share("forgetting_with_replay"),
        "parameters trained": mean("lora_share_trained", 1, 100) + " %",
        "share of full fine-tuning's gain": share("lora_share_of_gain"),
        "adapter on disk; gradients and AdamW's state, full → LoRA":
            f"{mean('lora_adapter_kilobytes')} kB; {mean('full_training_megabytes', 1)} → "
            f"{mean('lora_training_megabytes', 2)} MB",
        "merged: largest difference of a logit, relative": f"{summary['lora_merge_difference']['mean']:.0e}",
        "exact match on held-out questions, base → tuned":
            f"{mean('exact_match_before')} % → {share('exact_match')}",
        "answers that end by themselves": mean("ends_with_eos", 1, 100) + " %",
        "annotators agree with the gold order": share("annotator_agreement"),
        "held-out pairs in gold order": share("reward_accuracy_gold"),
        "gold score (0 to 10): SFT, PPO, DPO": ", ".join(of(f"gold_{m}", 2) for m in ("sft", "ppo", "dpo")),
        "wins against SFT (a tie counts half): PPO, DPO": ", ".join(share(f"win_rate_{m}") for m in ("ppo", "dpo")),
        "KL to SFT, nats a response: PPO, DPO": ", ".join(of(f"kl_{m}", 1) for m in ("ppo", "dpo")),
        "hidden tokens filled in; a bigram guess": f"{share('masked_accuracy')}; {share('bigram_accuracy')}",
        "topics right with 16 labels: frozen encoder, from scratch":
            f"{share('probe_accuracy_16', 0)}, {share('scratch_accuracy_16', 0)}",
        "questions about a story, tuned on all other clusters: exact match, base → tuned":
            f"{mean('withheld_exact_match_before')} % → {share('withheld_exact_match_after')}",
        "rank classification, base → tuned":
            f"{share('withheld_rank_before', 0)} → {share('withheld_rank_after', 0)}"}


def test_the_wins_of_ppo_on_each_processor():
    """data/tour/seeds.json has the tours of one processor, then those of the other; the page gives both spreads."""
    tours = read_json("tour/seeds.json")
    n = len(tours["runs"]) // 2
    assert tours["seeds"] == [0, 1, 2] * 2 and n == 3
    halves = tours["runs"][:n], tours["runs"][n:]
    said = [spread(summary(half)["win_rate_ppo"], 1, percent=True) for half in halves]
    assert f"{said[0]} with AVX2, {said[1]} with AVX-512" in " ".join(read(DATA).split())


def test_the_choices_on_the_page():
    """The numbers of the 200 choices are those of data/preferences/clicks.json."""
    clicks, text = read_json("preferences/clicks.json"), " ".join(read(DATA).split())
    accuracy, before, after, gain = (
        clicks["mean"][name] for name in ("reward_accuracy", "gold_before", "gold_after", "gain"))
    ties = 1 - sum(seed["decided"] for seed in clicks["seeds"].values()) / len(clicks["seeds"]) / clicks["clicks"]
    assert f"## {clicks['clicks']} choices on the page" in text and ties == 1 / 8 and "one pair in eight a tie" in text
    assert (f"puts {accuracy['mean'] * 100:.0f} % of held-out pairs in gold order (mean of five seeds; 95 % interval: "
            f"{accuracy['low'] * 100:.0f} to {accuracy['high'] * 100:.0f})") in text
    assert f"from {before['mean']:.1f} to {after['mean']:.1f}." in text
    each = ", ".join(f"{seed['gain']:.1f}" for seed in clicks["seeds"].values())
    assert (f"The gain is {gain['mean']:.2f} (95 % interval: {gain['low']:.2f} to {gain['high']:.2f}; "
            f"by seed {each})") in text


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


# The page's name of a way -> its name in data/ways/ways.json; other names are the same.
WAYS = {
    "base, not tuned": "base", "templates, so many rows that none is seen twice": "templates, many",
    "crowd, clear guidelines, 3 annotators": "crowd", "crowd, vague guidelines, 1 annotator": "crowd, vague",
    "model, checked against the story": "model", "mixture, a quarter each": "mixture"}


def test_the_table_of_the_four_ways():
    """Each way's row has that way's numbers of data/ways/ways.json, column by column; a dash where there is none."""
    ways = read_json("ways/ways.json")["ways"]
    formats = {"rows": "{:,.0f}", "minutes": "{:,.0f}", "model_tokens": "{:,.0f}", "label_error": "{:.1%}",
               "distinct_2": "{:.2f}", "nearest": "{:.2f}"}
    table = {WAYS.get(row[0], row[0]): row[1:] for row in rows_of(read(DATA), "way")}
    assert table.keys() == ways.keys()
    for name, cells in table.items():
        found = ways[name]
        wanted = [form.format(found[key]["mean"]) if found.get(key) else "–" for key, form in formats.items()]
        wanted[3] = wanted[3].replace(".0%", "%").replace("%", " %")
        scores = found["scores"]
        assert cells == [*wanted, spread(scores["tasks"]["exact"], 2), spread(scores["people"]["rouge"], 2)], name


def test_the_table_of_withheld_clusters():
    """Each row's numbers, column by column, as data/clusters/results.json has them; so have the means of the text."""
    numbers, text = read_json("clusters/results.json")["numbers"], " ".join(read(DATA).split())
    columns = (
        [(n, "exact_match") for n in ("0", "1", "2", "4", "all")], [(n, "rouge_l") for n in ("0", "all")],
        [("0", "rank"), ("all", "rank"), ("all", "rank_chance")])
    names = {"yes/no": "yes_no", "mean of clusters": "macro"}
    table = {names.get(row[0], row[0]): row[1:] for row in rows_of(read(DATA), "withheld")}
    assert table.keys() | {"micro"} == numbers["0"]["exact_match"].keys()
    for cluster, cells in table.items():
        for cell, wanted in zip(cells, columns, strict=True):
            for value, (number, measure) in zip(re.split("[,;] ", cell), wanted, strict=True):
                mean = numbers[number][measure][cluster]["mean"]
                assert float(value) == pytest.approx(mean, abs=0.0051), (cluster, number, measure)
    means = [numbers[n]["exact_match"]["macro"] for n in ("1", "2", "4", "all")]
    said = ", ".join(f"{m['mean']:.2f} ± {m['high'] - m['mean']:.2f}" for m in means).replace("0.", ".")
    assert said in text
    before, after = (numbers[n]["ends_with_eos"]["macro"]["mean"] * 100 for n in ("0", "1"))
    assert f"{after:.0f} % of the answers end; before tuning {before:.0f} % did." in text


def laboratory():
    """name of a study -> its part of data/README.md."""
    text = read(DATA).split("## The alignment laboratory\n")[1].split("\n## ")[0]
    parts = text.split("\n### ")[1:]
    return {part.split(":")[0]: part for part in parts}


@pytest.mark.parametrize("name", laboratory())
def test_the_numbers_of_the_laboratory(name):
    """Each number with a decimal point stands in the study's table; the table is that of the committed results."""
    table = read(ROOT / "data" / "lab" / name / "table.md")
    text = laboratory()[name].replace("±", " ")
    numbers = re.findall(r"-?\d+\.\d+", text)
    absent = [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", table)]
    assert numbers and not absent
    results, study = read_json(f"lab/{name}/results.json"), find_study(name)
    made = [f"{title}\n\n{table_markdown(rows)}" for title, rows in study.tables(results["results"]).items()]
    assert "\n\n".join(made) + "\n" == table and results["command"] == f"python -m minift lab {name}"
    assert f"lab/{name}/picture.png" in laboratory()[name] and f"(lab/{name}/table.md)" in laboratory()[name]
