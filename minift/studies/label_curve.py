"""How many labels does it take? Accuracy against their number, with and without a pretrained encoder.

`python -m minift.studies.label_curve --out runs/labels` measures it on the world's labelled sets, over seeds, on
held-out stories and on letters, a domain without labels for training (Kumar et al. 2022, section 2). It takes about an
hour on two cores; a stopped run continues where it was. Left out: a search for the best learning rate of each cell.
Each way has one learning rate, which suits most cells.
"""

from pathlib import Path

import torch

from minift import show
from minift.core.files import DATA, check_data_folder, read_json, write_json
from minift.core.heads import SequenceClassifier
from minift.core.transformer import Transformer
from minift.evaluation.baselines import bag_of_words, labelled_batches, predict
from minift.evaluation.metrics import accuracy
from minift.formats.checkpoint import load_model
from minift.methods.classify import train_classifier
from minift.studies import make_parser, mean_and_std
from minift.text.segments import encode_labelled
from minift.world.labelled import DOMAINS, LABELS, labelled
from minift.world.recipes import ENCODER, init_encoder

SIZES = (16, 64, 256, 1024, 4096)
WAYS = {
    "probe": SIZES, "full": SIZES, "scratch": SIZES, "bag of words": SIZES, "probe-then-full": (256, 1024),
    "random encoder": SIZES, "shuffled labels": SIZES}
# The ways in the picture. "shuffled labels" is left out: its accuracy is that of chance.
DRAWN = [way for way in WAYS if way != "shuffled labels"]
# Number of labels -> steps of training, for all parameters.
STEPS = {16: 40, 64: 60, 256: 120, 1024: 200, 4096: 300}
LR = {"full": 5e-4, "probe-then-full": 5e-4, "scratch": 1e-3}
REGIME = {"scratch": "full", "random encoder": "probe", "shuffled labels": "probe"}
N_TEST = 500


class Task:
    """One labelled set for one seed: training rows, and test rows of each domain.

    A size n takes the first n training rows, so a smaller set is a part of each larger one.
    """

    def __init__(self, name, seed, encoder, tokenizer, n_train=SIZES[-1], n_test=N_TEST, domains=DOMAINS):
        self.name, self.seed, self.labels, self.tokenizer = name, seed, LABELS[name], tokenizer
        self.config, self.encoder = encoder.config, encoder
        self.train_rows = labelled(name, n_train, seed)
        self.test_rows = {domain: labelled(name, n_test, seed, "test", domain) for domain in domains}
        self.train = self.encode(self.train_rows)
        self.test = {domain: self.encode(rows) for domain, rows in self.test_rows.items()}

    def encode(self, rows):
        return encode_labelled(self.tokenizer, rows, self.labels, self.config.context_length)

    def measure(self, way, n, steps=None):
        """Train in one way on the first n rows; returns {domain: accuracy} on the test rows."""
        if way == "bag of words":
            return self.bag_of_words(n)
        return self.score(self.fit(way, n, steps))

    def bag_of_words(self, n):
        return {
            domain: bag_of_words(
                self.train_rows[:n], labels_of(self.train[:n]), rows,
                labels_of(self.test[domain]), len(self.labels))
            for domain, rows in self.test_rows.items()}

    def score(self, model):
        return {
            domain: accuracy(self.probabilities(model, domain).argmax(-1), labels_of(examples))
            for domain, examples in self.test.items()}

    def fit(self, way, n, steps=None):
        """A classifier trained on the first n rows. The task's own encoder does not change.

        way: "random encoder" is the probe on an untrained encoder; "shuffled labels" is the probe on labels of other
        rows.
        """
        # Make a model with the task's encoder, or an untrained one.
        torch.manual_seed(self.seed)
        train = self.train[:n]
        model = SequenceClassifier(Transformer(self.config), len(self.labels), labels=self.labels)
        if way in ("scratch", "random encoder"):
            init_encoder(model, ENCODER["init_std"])
        else:
            model.body.load_state_dict(self.encoder.state_dict())
        # Train it.
        if way == "shuffled labels":
            generator = torch.Generator().manual_seed(self.seed)
            order = torch.randperm(n, generator=generator).tolist()
            train = [{**row, "label": train[i]["label"]} for row, i in zip(train, order)]
        batch_size = 32 if n > 256 else 16
        batches = labelled_batches(train, self.tokenizer.pad_id, batch_size, self.seed, shuffle=True)
        train_classifier(
            model, batches, REGIME.get(way, way), steps=steps or STEPS.get(n, 200),
            lr=LR.get(way, 1), weight_decay=0.01, progress=False)
        return model.eval()

    def probabilities(self, model, domain):
        """Probabilities (N, L) of the labels for the test rows of a domain."""
        return predict(model, labelled_batches(self.test[domain], self.tokenizer.pad_id))


def labels_of(examples):
    return [example["label"] for example in examples]


def run(out, encoder=DATA / "encoder", tasks=tuple(LABELS), seeds=(0, 1, 2)):
    """Measure all cells that are not yet in `out`; then write curve.json (mean, std of each) and curve.png.

    Returns the tasks of curve.json: task -> what `summary` returns.
    """
    check_data_folder("the study of labels")
    out, (model, tokenizer) = Path(out), load_model(encoder)
    # Measure each cell, and write it at once, so that an interrupted study can continue.
    cells = {}
    for name in tasks:
        for seed in seeds:
            path = out / "cells" / f"{name}-{seed}.json"
            found = read_json(path) if path.exists() else {}
            task = Task(name, seed, model.body, tokenizer)
            for way, sizes in WAYS.items():
                for n in sizes:
                    key = f"{way}/{n}"
                    if key not in found:
                        found[key] = task.measure(way, n)
                        write_json(path, found)
                        print(name, seed, key, found[key], flush=True)
            cells[name, seed] = found
    # Average over the seeds; write and draw.
    curve = {name: summary([cells[name, seed] for seed in seeds]) for name in tasks}
    write_json(
        out / "curve.json", {
            "command": "python -m minift.studies.label_curve --out runs/labels",
            "seeds": list(seeds),
            "test_rows": N_TEST, "steps": STEPS, "lr": LR, "tasks": curve})
    draw(out / "curve.png", curve)
    return curve


def summary(runs):
    """way -> domain -> {"n", "mean", "std"}: lists over the sizes, of the accuracies of several seeds."""
    found = {}
    for key in runs[0]:
        way, n = key.rsplit("/", 1)
        for domain in DOMAINS:
            point = {"n": int(n), **mean_and_std([run[key][domain] for run in runs])}
            lists = found.setdefault(way, {}).setdefault(domain, {"n": [], "mean": [], "std": []})
            for name, value in point.items():
                lists[name].append(value)
    return found


def draw(path, curve):
    """Draw accuracy against the number of labels, with its spread: a row for each domain, a column for each task."""
    fig, axes = show.figure(len(DOMAINS), len(curve), width=4.4 * len(curve), height=7.4)
    for row, domain in zip(axes.reshape(len(DOMAINS), -1), DOMAINS):
        for axis, (name, ways) in zip(row, curve.items()):
            series = {way: band(ways[way][domain]) for way in DRAWN if way in ways}
            show.curves(
                axis, series, xlabel="labelled stories (log axis)", ylabel="accuracy",
                title=f"{name}, tested on {domain}")
            log_labels(axis, SIZES)
            axis.axhline(1 / len(LABELS[name]), color="#777777", linewidth=1, linestyle=":", label="chance")
    show.share_legend(fig, list(axes.flat), columns=7)
    show.save(fig, path)


def band(entry):
    """(x, mean, mean - std, mean + std) for show.curves."""
    mean, std = entry["mean"], entry["std"]
    return entry["n"], mean, [m - s for m, s in zip(mean, std)], [m + s for m, s in zip(mean, std)]


def log_labels(axis, sizes):
    """A logarithmic x axis with a tick at each size."""
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()


def main():
    parser = make_parser(__doc__, "encoder")
    parser.add_argument("--tasks", nargs="+", default=tuple(LABELS), choices=tuple(LABELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
