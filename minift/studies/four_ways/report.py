"""The comparison of the four ways as JSON, as a table and as a picture: means over seeds, with their spread."""

from pathlib import Path

from minift import show
from minift.core.files import write_json, write_text
from minift.show.report import markdown
from minift.studies import mean_and_std

# (heading, keys that lead to the number in a cell, format of the number).
COLUMNS = (
    ("rows", "rows", "{:,.0f}"),
    ("minutes of people", "minutes", "{:,.0f}"),
    ("tokens written by a model", "model_tokens", "{:,.0f}"),
    ("wrong", "label_error", "{:.1%}"),
    ("distinct-2", "distinct_2", "{:.2f}"),
    ("nearest", "nearest", "{:.2f}"),
    ("exact", "scores tasks exact", "{:.2f}"),
    ("ROUGE-L", "scores tasks rouge", "{:.2f}"),
    ("ended", "scores tasks ended", "{:.2f}"),
    ("people's: ROUGE-L", "scores people rouge", "{:.2f}"))
# Columns that show their standard deviation.
SPREAD = ("exact", "ROUGE-L", "people's: ROUGE-L")


def write(out, cells, seeds, settings, crowd):
    """Write ways.json, table.md and ways.png. cells: way -> the cells of its seeds. Returns what ways.json holds."""
    found = {way: summary(runs) for way, runs in cells.items()}
    result = {
        "command": "python -m minift.studies.four_ways --out runs/ways", "seeds": list(seeds),
        **settings, "ways": found,
        "self_instruct": {way: runs[0]["statistics"] for way, runs in cells.items() if "statistics" in runs[0]},
        "crowd": crowd}
    write_json(out / "ways.json", result)
    write_text(out / "table.md", table(found) + "\n\n" + crowd_table(crowd) + "\n")
    draw(out / "ways.png", found)
    return result


def summary(runs):
    """The cells of several seeds as one: each number becomes {"mean", "std"} over the seeds.

    It becomes None if it is None for one of the seeds. "statistics" is left out.
    """
    found = {}
    for key, value in runs[0].items():
        if key == "statistics":
            continue
        values = [run[key] for run in runs]
        if isinstance(value, dict):
            found[key] = summary(values)
        elif None in values:
            found[key] = None
        else:
            found[key] = mean_and_std(values)
    return found


def table(found):
    """A row for each way, in Markdown."""
    rows = [["way", *(heading for heading, _, _ in COLUMNS)]]
    for way, entry in found.items():
        rows.append([way, *(cell(entry, *column) for column in COLUMNS)])
    return markdown(rows)


def cell(entry, heading, keys, form):
    """The number as text, in some columns with its standard deviation; a dash if there is none."""
    for key in keys.split():
        entry = entry.get(key) if entry else None
    if not entry:
        return "–"
    mean, std = form.format(entry["mean"]), form.format(entry["std"])
    return f"{mean} ± {std}" if heading in SPREAD else mean


def crowd_table(crowd):
    """The quality and the cost of a crowd's labels by guidelines and number of annotators, in Markdown."""
    rows = [["guidelines", "annotators", "minutes an item", "alpha", "wrong: majority", "wrong: Dawid-Skene"]]
    for row in crowd:
        alpha = "–" if row["alpha"] is None else f"{row['alpha']:.2f}"
        wrong = [f"{row[how]:.1%}" for how in ("majority", "dawid_skene")]
        rows.append([row["guidelines"], str(row["annotators"]), f"{row['minutes']:.2f}", alpha, *wrong])
    return markdown(rows)


def draw(path, found):
    """Two pictures: the scores of each way on both tests, and exact match of each way on each cluster of tasks."""
    ways = list(found)
    fig, (left, right) = show.figure(1, 2, width=12, height=4.8)
    # Left: the scores of each way, one bar for each test.
    series = {}
    for test, measure, label in (
            ("tasks", "exact", "unread tasks, exact match"), ("people", "rouge", "unread rows by people, ROUGE-L")):
        scores = [found[way]["scores"][test][measure] for way in ways]
        series[label] = ([score["mean"] for score in scores], [score["std"] for score in scores])
    show.grouped_bars(left, ways, series, xlabel="score (mean and standard deviation of the seeds)")
    # Right: exact match of each way on each cluster.
    clusters = list(found[ways[0]]["scores"]["tasks"]["clusters"])
    grid = [[found[way]["scores"]["tasks"]["clusters"][name]["mean"] for name in clusters] for way in ways]
    right.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            ink = "white" if value > 0.6 else "black"
            right.text(j, i, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=8)
    right.set_xticks(range(len(clusters)), clusters, rotation=40, ha="right")
    right.set_yticks(range(len(ways)), ways)
    right.set_title("exact match by cluster of tasks")
    show.save(fig, Path(path))
