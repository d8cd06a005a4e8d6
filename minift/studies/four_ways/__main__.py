"""The study: every way, every seed. Cells are kept on disk, so that a stopped run continues where it was."""

import warnings
from pathlib import Path

from minift.core.files import DATA, check_data_folder, read_json, write_json
from minift.formats.checkpoint import load_model
from minift.studies import make_parser
from minift.studies.four_ways import report, rows, tuning
from minift.ways import crowd


def measure(maker, way, steps=tuning.STEPS, n_test=tuning.N_TEST):
    """One cell: facts about the rows of a way, and the scores of the model that is tuned on them.

    The way "base" has no rows: the base is scored as it is.
    """
    made, facts = ([], {}) if way == "base" else maker.make(way)
    if made:
        found = {"rows": len(made), **facts, **tuning.diversity(made)}
        model, tokenizer = tuning.fit(maker.base, made, maker.seed, steps)
    else:
        found, (model, tokenizer) = {}, load_model(maker.base)
    scores = {name: tuning.score(model, tokenizer, part) for name, part in tuning.tests(maker, n_test).items()}
    # The hundred rows by people are in twenty clusters: a score on so few rows says little.
    del scores["people"]["clusters"]
    return {**found, "scores": scores}


def run(out, base=DATA / "base", seeds=(0, 1, 2), ways=("base", *rows.WAYS), steps=tuning.STEPS, n_test=tuning.N_TEST,
        **settings):
    """Measure all cells that are not yet in `out`; then write ways.json, table.md and ways.png. settings: of Maker."""
    check_data_folder("the study of four ways")
    # Measure each cell that is not on disk.
    out, cells = Path(out), {}
    for seed in seeds:
        maker = rows.Maker(seed, base, out, **settings)
        for way in ways:
            path = out / "cells" / f"{way.replace(', ', '-')}-{seed}.json"
            if not path.exists():
                with warnings.catch_warnings():
                    # Rows that are longer than the context cause warnings.
                    warnings.simplefilter("ignore")
                    write_json(path, measure(maker, way, steps, n_test))
            cells[way, seed] = read_json(path)
            scores = cells[way, seed]["scores"]["tasks"]
            print(f"seed {seed}, {way}: exact {scores['exact']:.3f}, ROUGE-L {scores['rouge']:.3f}", flush=True)
    # Write the results, with the settings that were used.
    used = {
        "tokens": rows.N_TOKENS, "tokens_a_step": tuning.TOKENS_A_STEP, "steps": steps, "lr": tuning.LR,
        "seed_tasks": rows.N_SEED_TASKS, "minutes": rows.MINUTES, "annotators": crowd.PEOPLE,
        "pitfalls": crowd.PITFALLS, "misread": crowd.MISREAD}
    found = {way: [cells[way, seed] for seed in seeds] for way in ways}
    return report.write(out, found, seeds, used, crowd.what_it_buys())


def main():
    parser = make_parser(run.__doc__, "base", "python -m minift.studies.four_ways")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
