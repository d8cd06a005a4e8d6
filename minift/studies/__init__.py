"""The long experiments whose results are committed under data/, and what they share."""

import argparse

import torch

from minift.core.files import DATA


def mean_and_std(values):
    """{"mean", "std"} of some numbers; std: the sample standard deviation, 0.0 for a single number."""
    values = torch.tensor(values, dtype=torch.float64)
    std = values.std().item() if len(values) > 1 else 0.0
    return {"mean": values.mean().item(), "std": std}


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
