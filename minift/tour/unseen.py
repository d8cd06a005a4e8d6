"""Stage 11: instruction tuning, judged on a cluster of tasks that the model was not tuned on; one fold."""

import shutil

import torch

from minift import show
from minift.core.files import DATA
from minift.evaluation.clusters import check_leaks, leave_one_cluster_out
from minift.methods.sft import tune_on_chats
from minift.studies.cluster_study import METRICS, assess, world_chats
from minift.tour.common import Result, change, mean

WITHHELD = "lookup"
# The picture of all folds over five seeds. They take hours, so it comes with the repository.
STUDY = DATA / "clusters" / "clusters.png"


def clusters(tour):
    """11. The base is tuned on all clusters of the world's tasks but one; that one is assessed before and after."""
    s = tour.settings
    torch.manual_seed(tour.seed)
    model, tokenizer = tour.load("base")
    # Withhold one cluster, and check that none of its rows leaks into the training rows.
    rows = world_chats(s.n_cluster_rows, tour.seed)
    fold = next(fold for fold in leave_one_cluster_out(rows) if fold.cluster == WITHHELD)
    check_leaks(fold.train, fold.test)
    # Assess the withheld tasks, tune on all others, assess again.
    before = assess(model, tokenizer, fold.test)
    tune_on_chats(model, tokenizer, fold.train, steps=s.cluster_steps, lr=s.cluster_lr, seed=tour.seed)
    after = assess(model.eval(), tokenizer, fold.test)
    scores = {metric: [mean(found[metric].values()) for found in (before, after)] for metric in METRICS}
    # Draw the scores; copy the study's own picture if the repository is there.
    draw_fold(tour, scores)
    pictures = [tour.picture("clusters")]
    if STUDY.exists():
        pictures.append(tour.picture("clusters-study"))
        shutil.copyfile(STUDY, pictures[-1])
    # Report the mean scores, and the scores of each task.
    base, tuned = scores["exact_match"]
    measures, rows = {}, []
    for metric, (first, last) in scores.items():
        measures |= {f"withheld_{metric}_before": first, f"withheld_{metric}_after": last}
    for task in before["exact_match"]:
        row = {"withheld task": task}
        for metric in METRICS:
            row |= {f"{metric}, base": before[metric][task], f"{metric}, tuned": after[metric][task]}
        rows.append(row)
    return Result(
        f'Tuned on every cluster but "{WITHHELD}", the model answers {tuned:.0%} of the withheld tasks exactly (the '
        f"base: {base:.0%}). The second picture is not of this run: it shows all folds, tuned on 1, 2, 4 and all other "
        "clusters, five seeds each, and comes with the repository.",
        measures, change(f"exact match, withheld: {WITHHELD}", base, tuned), rows=rows, pictures=pictures)


def draw_fold(tour, scores):
    """Draw the scores on the withheld cluster, before and after tuning."""
    fig, axes = show.figure(1, len(scores), width=4 * len(scores))
    for axis, (metric, values) in zip(axes, scores.items()):
        show.bars(axis, ["base", "tuned on the others"], values, ylabel=f"score on {WITHHELD}", title=METRICS[metric])
        axis.set_ylim(0, 1)
    show.save(fig, tour.picture("clusters"))
