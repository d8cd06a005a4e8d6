"""The study: every way, every seed; cells are kept on disk, so that a stopped run continues where it was."""

import argparse
import warnings
from pathlib import Path

from minift.core.files import DATA, check_data_folder, read_json, write_json
from minift.formats.checkpoint import load_model
from minift.studies.four_ways import report, rows, tuning
from minift.ways import crowd


def measure(maker, way, steps=tuning.STEPS, n_test=tuning.N_TEST):
    """One cell: what is known of the rows of a way, and the scores of the model that they make. "base": not tuned."""
    made, facts = ([], {}) if way == "base" else maker.make(way)
    model, tokenizer = tuning.fit(maker.base, made, maker.seed, steps) if made else load_model(maker.base)
    scores = {name: tuning.score(model, tokenizer, part) for name, part in tuning.tests(maker, n_test).items()}
    # Hundred rows in twenty of them.
    del scores["people"]["clusters"]
    return {**({"rows": len(made), **facts, **tuning.diversity(made)} if made else {}), "scores": scores}


def run(out, base=DATA / "base", seeds=(0, 1, 2), ways=("base", *rows.WAYS), steps=tuning.STEPS, n_test=tuning.N_TEST,
        **settings):
    """Measure all cells that are not yet in `out`; then write ways.json, table.md and ways.png. settings: of Maker."""
    check_data_folder("the study of four ways")
    out, cells = Path(out), {}
    for seed in seeds:
        maker = rows.Maker(seed, base, out, **settings)
        for way in ways:
            path = out / "cells" / f"{way.replace(', ', '-')}-{seed}.json"
            if not path.exists():
                with warnings.catch_warnings():
                    # Of rows that are longer than the context.
                    warnings.simplefilter("ignore")
                    write_json(path, measure(maker, way, steps, n_test))
            cells[way, seed] = read_json(path)
            scores = cells[way, seed]["scores"]["tasks"]
            print(f"seed {seed}, {way}: exact {scores['exact']:.3f}, ROUGE-L {scores['rouge']:.3f}", flush=True)
    used = {
        "tokens": rows.N_TOKENS, "tokens_a_step": tuning.TOKENS_A_STEP, "steps": steps, "lr": tuning.LR,
        "seed_tasks": rows.N_SEED_TASKS, "minutes": rows.MINUTES, "annotators": crowd.PEOPLE,
        "pitfalls": crowd.PITFALLS, "misread": crowd.MISREAD}
    return report.write(
        out, {way: [cells[way, seed] for seed in seeds] for way in ways}, seeds, used,
        crowd.what_it_buys())


def main():
    parser = argparse.ArgumentParser(prog="python -m minift.studies.four_ways", description=run.__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="the folder for the results; goes on with what is in it")
    parser.add_argument("--base", default=DATA / "base")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
