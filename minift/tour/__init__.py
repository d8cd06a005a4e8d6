"""The main job: one model goes through every kind of fine-tuning, end to end, on the embedded world.

It has twelve stages. Each is a function `stage(tour) -> Result`, which trains a model, evaluates it on held-out data
and saves what later stages need. The closing table, the pictures, every checkpoint and report.html go to one folder.
"""

import shutil
import statistics
import sys
from pathlib import Path

from minift import show
from minift.core.files import check_data_folder, write_json
from minift.errors import MiniftError
from minift.show import report
from minift.tour import adapt, align, encode, instruct, prefer, unseen
from minift.tour.arc import draw_arc
from minift.tour.common import Clock, Result, Settings, Tour, quick

# Name -> (stage, title, its budget in seconds on two CPU cores, stages whose results it needs).
STAGES = {
    "base": (adapt.base, "1. The pretrained base", 3, ()),
    "continued": (adapt.continued, "2. Continued pre-training, with and without replay", 52, ()),
    "lora": (adapt.low_rank, "3. LoRA against full fine-tuning", 30, ("continued",)),
    "sft": (instruct.sft, "4. Instruction tuning (SFT)", 63, ()),
    "preferences": (prefer.preferences, "5. Human preferences, simulated", 43, ("sft",)),
    "reward": (prefer.reward, "6. The reward model", 25, ("preferences",)),
    "ppo": (align.ppo, "7. RLHF with PPO", 78, ("reward",)),
    "dpo": (align.dpo, "8. Direct preference optimization", 52, ("preferences",)),
    "comparison": (align.compare, "9. Side by side", 14, ("ppo", "dpo")),
    "encoder": (encode.encoder, "10. The encoder: masked words, and a head on frozen features", 45, ()),
    "clusters": (unseen.clusters, "11. A cluster of tasks that was never tuned on", 20, ()),
    "verifiable": (unseen.verifiable, "12. GRPO with a verifiable reward", 50, ("clusters",))}
COLUMNS = ("stage", "measure", "before", "after", "seconds", "budget")


def run(out="runs/tour", seed=0, seeds=None, stages=None, quick=False, resume=False):
    """The tour for one seed, or for several (seeds=[0, 1, 2]) with mean and spread; returns the measures of each seed.

    stages: names of STAGES to run, None for all; the stages that they need must be finished in `out`. quick: run each
    stage for a few steps only, as a test. resume: keep the stages that are finished in `out`. Raises MiniftError for an
    unknown stage, and for a stage that needs another one which is not finished.
    """
    check_data_folder("the tour")
    out, stages = Path(out), check_stages(stages)
    if seeds is None:
        return [run_seed(out, seed, stages, quick, resume)]
    found = [run_seed(out / f"seed-{one}", one, stages, quick, resume) for one in seeds]
    spread = summary(found)
    write_json(out / "seeds.json", {"seeds": list(seeds), "quick": quick, "summary": spread, "runs": found})
    draw_seeds(out / "seeds.png", spread)
    print(f"\nMean and standard deviation over seeds {', '.join(map(str, seeds))}:\n")
    rows = [{"measure": name, **row} for name, row in spread.items()]
    print(report.table_text(rows, ("measure", "mean", "std", "min", "max")))
    return found


def check_stages(stages):
    """The names of the stages to run, in order; MiniftError for one that does not exist."""
    unknown = [name for name in stages or () if name not in STAGES]
    if unknown:
        raise MiniftError(f"no stage is called {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    return [name for name in STAGES if not stages or name in stages]


def run_seed(out, seed, stages, is_quick, resume):
    """All stages for one seed; returns the measures by stage."""
    settings = quick() if is_quick else Settings()
    tour = Tour(out, seed, settings)
    prepare(tour, stages, resume)
    clock = Clock()
    for name in stages:
        if name not in tour.results:
            run_stage(tour, name)
    rows = table(tour)
    write_json(
        out / "results.json",
        {"seed": seed, "quick": is_quick, "settings": vars(tour.settings),
         "stages": {name: vars(result) for name, result in ordered(tour)}})
    draw_arc(tour.picture("overview"), measures_of(tour))
    write(tour, rows)
    print("\n" + report.table_text(rows, COLUMNS))
    print(f"\n{clock():.0f} s in all. Everything is in {out}; open {out / 'report.html'}.")
    return {name: result.measures for name, result in tour.results.items()}


def prepare(tour, stages, resume):
    """Make the folder and load the results of finished stages; MiniftError if one that a stage needs is missing."""
    done = {name: tour.out / "stages" / f"{name}.json" for name in STAGES}
    present = [name for name, path in done.items() if path.exists()]
    if present and not resume and len(stages) == len(STAGES):
        # A whole new tour replaces the old one.
        shutil.rmtree(tour.out / "stages")
        present = []
    tour.results = {name: Result.load(done[name]) for name in present if resume or name not in stages}
    for name in stages:
        missing = [need for need in STAGES[name][3] if need not in tour.results and need not in stages]
        if missing:
            raise MiniftError(f"stage {name!r} needs {missing[0]!r}, which is not in {tour.out}; add it to --stages")
    (tour.out / "pictures").mkdir(parents=True, exist_ok=True)


def run_stage(tour, name):
    """Run one stage, print what it found, and save its result."""
    stage, title, budget, _ = STAGES[name]
    print(f"\n{title}", file=sys.stderr, flush=True)
    clock = Clock()
    result = stage(tour)
    result.seconds = clock()
    print(f"{title}: {result.sentence} ({result.seconds:.0f} s of {budget} s)", flush=True)
    path = tour.out / "stages" / f"{name}.json"
    result.save(path)
    tour.results[name] = Result.load(path)


def table(tour):
    """The closing table: one row for each stage."""
    return [
        {"stage": STAGES[name][1], **result.row, "seconds": round(result.seconds), "budget": STAGES[name][2]}
        for name, result in ordered(tour)]


def ordered(tour):
    return [(name, tour.results[name]) for name in STAGES if name in tour.results]


def write(tour, rows):
    """Write report.html: the overview, the table, and a section for each stage."""
    sections = [
        report.Section(STAGES[name][1], result.sentence, result.rows or None, result.texts, result.pictures)
        for name, result in ordered(tour)]
    overview = report.Section("Overview", "The journey in one picture.", None, [], [tour.picture("overview")])
    report.write_report(
        tour.out / "report.html", "minift: the tour",
        f"One model through every kind of fine-tuning, seed {tour.seed}.", [overview, *sections], rows)


def measures_of(tour):
    """All measures of the stages that have run: name -> number."""
    measures = {}
    for _, result in ordered(tour):
        measures |= result.measures
    return measures


def summary(found):
    """measure -> mean, std, min, max over the seeds."""
    values = {}
    for one in found:
        for measures in one.values():
            for name, value in measures.items():
                values.setdefault(name, []).append(value)
    return {name: spread(numbers) for name, numbers in values.items()}


def spread(numbers):
    """{"mean", "std", "min", "max"}; std: the sample standard deviation, 0 for a single number."""
    std = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return {"mean": statistics.fmean(numbers), "std": std, "min": min(numbers), "max": max(numbers)}


def draw_seeds(path, spread_of):
    """Draw the main measures of the tour: mean and standard deviation over seeds."""
    panels = {
        "share": ("lora_share_of_gain", "exact_match", "reward_accuracy_gold", "win_rate_ppo", "win_rate_dpo"),
        "gold score (0 to 10)": ("gold_sft", "gold_ppo", "gold_dpo"),
        "KL to SFT (nats a response)": ("kl_ppo", "kl_dpo")}
    fig, axes = show.figure(1, 3, width=12)
    for axis, (label, names) in zip(axes, panels.items()):
        found = {name.replace("_", " "): spread_of[name] for name in names if name in spread_of}
        means, stds = ([one[key] for one in found.values()] for key in ("mean", "std"))
        show.bars(axis, list(found), means, stds, ylabel=label)
    show.save(fig, path)
