"""The long experiments whose results are committed under data/, and what they share."""

import argparse

import torch

from minift.core.files import DATA
from minift.evaluation.clusters import t_interval


def mean_and_std(values):
    """{"mean", "std"} of some numbers; std: the sample standard deviation, 0.0 for a single number."""
    values = torch.tensor(values, dtype=torch.float64)
    std = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "std": std}


def show_spread(values, digits=2):
    """"0.76 ± 0.05": mean and sample standard deviation of some numbers, as a table shows them."""
    found = mean_and_std(values)
    return f"{found['mean']:.{digits}f} ± {found['std']:.{digits}f}"


def show_interval(values, digits=2):
    """"0.02 (0.01 to 0.03)": the mean of some numbers and its 95 % interval, as a table shows them."""
    found = t_interval(values)
    if "low" not in found:
        return f"{found['mean']:.{digits}f}"
    return f"{found['mean']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def interpolate(path, x, level, y):
    """The value of `y` where a path of points (dicts) crosses `level` of `x`, on a straight line; None beyond it."""
    for before, after in zip(path, path[1:]):
        if before[x] <= level <= after[x]:
            share = (level - before[x]) / max(after[x] - before[x], 1e-12)
            return before[y] + share * (after[y] - before[y])
    return None


def note(points, judge, policy):
    """An evaluate() for train() that only adds judge(policy) to the points."""
    def evaluate():
        points.append(judge(policy))
        return {}
    return evaluate


def keep_templates(templates, tasks, wanted):
    """The templates of some tasks for which wanted(template) is true, in the form of read_templates."""
    kept = {}
    for task in tasks:
        entry = templates[task]
        kept[task] = {**entry, "templates": [one for one in entry["templates"] if wanted(one)]}
    return kept


def make_parser(about, model, prog=None):
    """The parser of a study's command line, with its options --out and --MODEL ("base" or "encoder").

    about: a text whose first line describes the study.
    """
    parser = argparse.ArgumentParser(prog=prog, description=about.splitlines()[0])
    parser.add_argument("--out", required=True, help="the folder for the results; goes on with what is in it")
    parser.add_argument(f"--{model}", default=DATA / model)
    return parser
