"""The loss over the steps of a run, from the metrics.jsonl in its folder: on the training batches, and on --valid.

    python -m data.real.draw_loss runs/smol data/real/loss.png
"""

import json
import sys
from pathlib import Path

from minift.show import pictures


def main(folder, picture):
    lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    before = json.loads((Path(folder) / "run.json").read_text(encoding="utf-8"))["before"]
    rows = [{"step": 0, **before}, *map(json.loads, lines)]
    fig, ax = pictures.figure(width=6, height=3)
    series = {label: zip(*[(row["step"], row[key]) for row in rows if key in row])
              for label, key in (("training batches", "loss"), ("held out", "valid_loss"))}
    pictures.curves(ax, {label: tuple(points) for label, points in series.items()}, xlabel="step", ylabel="loss, nats")
    pictures.save(fig, Path(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
