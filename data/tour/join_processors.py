"""Join the results of the tour on several processors into seeds.json, and draw its two pictures.

data/tour/ was made by these commands, the first two of them on different processors:

    python -m minift tour --seeds 0 1 2 --out runs/avx2
    python -m minift tour --seeds 0 1 2 --out runs/avx512
    python -m data.tour.join_processors runs/avx2/seeds.json runs/avx512/seeds.json

Two processors round differently. A tour repeats itself on one of them to the last digit, but a policy that is trained
on its own samples takes another path on the other.
"""

import argparse
from pathlib import Path

from minift.core.files import read_json, write_json
from minift.tour import draw_seeds, summary
from minift.tour.arc import draw_means

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="seeds.json of each processor")
    found = [read_json(path) for path in parser.parse_args().files]
    seeds, runs = [], []
    for one in found:
        seeds += one["seeds"]
        runs += one["runs"]
    spread = summary(runs)
    write_json(HERE / "seeds.json", {"seeds": seeds, "quick": False, "summary": spread, "runs": runs})
    draw_seeds(HERE / "seeds.png", spread)
    draw_means(HERE / "seeds.json", HERE / "arc.png")


if __name__ == "__main__":
    main()
