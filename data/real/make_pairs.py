"""Preference pairs, from questions, short answers written by hand, and answers that the model gave.

pairs.jsonl and pairs_valid.jsonl were made by

    python -m minift generate --model smollm2 --data data/real/short.jsonl data/real/short_valid.jsonl \
        --max-new-tokens 80 --seed 1 --batch-size 26 --out runs/answers.jsonl
    python data/real/make_pairs.py runs/answers.jsonl

Each question gives two pairs, and in both the answer written by hand is chosen. Rejected is first what the model said,
which is long-winded and often wrong, and then a short answer to another question: a judge who only sees short answers
win against long ones would be content with any short answer.
"""

import json
import random
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
LONGEST = 240       # characters of a model's answer, which is cut behind a whole sentence


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def whole_sentences(text):
    """The sentences that fit into LONGEST characters, at least one; of a text without an end, all of it."""
    text = " ".join(text.split())
    ends = [match.end() for match in re.finditer(r"[.!?](?= |$)", text)]
    return text[:max([end for end in ends if end <= LONGEST], default=ends[0] if ends else len(text))]


def pairs_of(rows, said, rng):
    """Two pairs for each row. said: question -> the model's answer."""
    for i, row in enumerate(rows):
        other = rows[rng.choice([j for j in range(len(rows)) if j != i])]
        for rejected in (whole_sentences(said[row["prompt"]]), other["completion"]):
            yield {"prompt": row["prompt"], "chosen": row["completion"], "rejected": rejected}


def main(answers):
    said, rng = {row["prompt"]: row["completion"] for row in read(answers)}, random.Random(0)
    for name in ("", "_valid"):
        rows = pairs_of(read(HERE / f"short{name}.jsonl"), said, rng)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (HERE / f"pairs{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
