"""The laboratory: each study compares algorithms with a truth that is known, over several seeds.

`python -m minift lab NAME` runs one study and writes runs/lab/NAME/: results.json, table.md and picture.png. A study is
a module of this folder with SETTINGS (a dict), QUICK (what a rehearsal changes in it), measure(cells, settings) ->
results, tables(results) -> {title: rows} and draw(results) -> a figure. Left out: several studies at once.
"""

import importlib
import time
from pathlib import Path

from minift import show
from minift.core.files import check_data_folder, read_json, write_json, write_text
from minift.core.resume import machine_record
from minift.errors import MiniftError
from minift.show.report import table_markdown

# Name of a study -> its module in this folder.
STUDIES = {
    "estimators": "estimators", "over-optimisation": "overoptimisation", "collapse": "collapse", "rlvr": "rlvr",
    "frontier": "frontier",
    "exact-frontier": "exact_frontier", "chosen": "falling_chosen", "ppo-details": "ppo_details",
    "reward-models": "reward_models"}


class Cells:
    """The results of a study's parts, one file each: a study that was stopped goes on with the next part."""

    def __init__(self, folder, settings):
        self.folder = Path(folder)
        path = self.folder / "settings.json"
        if path.exists() and (old := read_json(path)) != settings:
            names = [name for name in settings if old.get(name) != settings[name]]
            raise MiniftError(
                f"{self.folder.parent} holds parts of a study with other settings ({', '.join(names)}); choose "
                "another --out, or delete it")
        write_json(path, settings)

    def __call__(self, name, function, *args, **kwargs):
        """function(*args, **kwargs), which must be writable as JSON; read from the file if it is there already."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            started = time.perf_counter()
            result = function(*args, **kwargs)
            write_json(path, {"seconds": round(time.perf_counter() - started, 1), "result": result})
            print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)
        return read_json(path)["result"]

    def seconds(self):
        """How long the parts took, in seconds, whenever they were run."""
        return sum(read_json(path).get("seconds", 0) for path in self.folder.glob("*.json"))


def find_study(name):
    """The module of a study; MiniftError for an unknown name."""
    if name not in STUDIES:
        raise MiniftError(f"there is no study {name!r}; expected one of {', '.join(STUDIES)}")
    return importlib.import_module(f"minift.studies.{STUDIES[name]}")


def run_study(name, out, quick=False):
    """Run one study, or go on with it, and write its results, tables and picture to `out`. Returns the results."""
    study, out = find_study(name), Path(out)
    check_data_folder("the laboratory")
    settings = plain(study.SETTINGS | (study.QUICK if quick else {}))
    cells = Cells(out / "cells", settings)
    results = rounded(study.measure(cells, settings))
    write_json(
        out / "results.json", {
            "command": f"python -m minift lab {name}{' --quick' if quick else ''}", **machine_record(),
            "seconds": round(cells.seconds()), "settings": settings, "results": results})
    tables = [f"{title}\n\n{table_markdown(rows)}" for title, rows in study.tables(results).items()]
    write_text(out / "table.md", "\n\n".join(tables) + "\n")
    show.save(study.draw(results), out / "picture.png")
    return results


def rounded(value):
    """The same with six digits of each float: the others depend on the processor, and nobody reads them."""
    if isinstance(value, dict):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def plain(settings):
    """The settings as JSON gives them back: tuples are lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
