"""Stages 11 and 12: tasks that the model was not tuned on: how well it does them, and how GRPO teaches them."""

import copy
import shutil

import torch

from minift import show
from minift.core.files import DATA
from minift.core.logprobs import make_reference
from minift.evaluation.clusters import check_leaks
from minift.formats.checkpoint import save_model
from minift.methods.grpo import GRPOConfig, train_grpo
from minift.methods.sft import tune_on_chats
from minift.studies.cluster_study import METRICS, assess
from minift.studies.rlvr import Groups, rows_to_learn, withhold
from minift.tour import draw
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
    fold = withhold(WITHHELD, s.n_cluster_rows, tour.seed)
    check_leaks(fold.train, fold.test)
    # Assess the withheld tasks, tune on all others, assess again.
    before = assess(model, tokenizer, fold.test)
    tune_on_chats(model, tokenizer, fold.train, steps=s.cluster_steps, lr=s.cluster_lr, seed=tour.seed)
    after = assess(model.eval(), tokenizer, fold.test)
    save_model(model, tokenizer, tour.out / "clusters")
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


def verifiable(tour):
    """12. GRPO on rows of the withheld cluster; the reward is 1 for the right answer and 0 for any other."""
    s = tour.settings
    torch.manual_seed(tour.seed)
    model, tokenizer = tour.load("clusters")
    test, train = rows_to_learn(WITHHELD, s.n_cluster_rows, s.n_verifiable_rows, tour.seed)
    before = assess(model, tokenizer, test)["exact_match"]
    # Train; the reference only measures the KL.
    groups = Groups(tokenizer, train, group_size=8)
    config = GRPOConfig(group_size=8, lr=3e-4, minibatch_size=128, max_new_tokens=12)
    history = train_grpo(
        model, make_reference(copy.deepcopy(model)), groups.reward, groups.prompts, config,
        iterations=s.grpo_iterations, batch_size=s.grpo_batch, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
        seed=tour.seed)
    save_model(model, tokenizer, tour.out / "grpo")
    # Report exact match, and how much each task had to learn from.
    after = assess(model, tokenizer, test)["exact_match"]
    rows = []
    for task, shares in groups.shares().items():
        found = {f"groups {kind}": share for kind, share in shares.items()}
        rows.append({"task": task, "before": before[task], "after": after[task], **found})
    draw.draw_verifiable(tour, history, rows)
    first, last = mean(before.values()), mean(after.values())
    return Result(
        f'GRPO takes exact match on the withheld cluster "{WITHHELD}" from {first:.0%} to {last:.0%} in '
        f"{len(history)} iterations, without a single written answer to copy.",
        {"rlvr_before": first, "rlvr_after": last, "rlvr_equal_groups": mean([row["equal_groups"] for row in history])},
        change(f"exact match, withheld: {WITHHELD}", first, last), rows=rows, pictures=[tour.picture("verifiable")])


def draw_fold(tour, scores):
    """Draw the scores on the withheld cluster, before and after tuning."""
    fig, axes = show.figure(1, len(scores), width=4 * len(scores))
    for axis, (metric, values) in zip(axes, scores.items()):
        show.bars(axis, ["base", "tuned on the others"], values, ylabel=f"score on {WITHHELD}", title=METRICS[metric])
        axis.set_ylim(0, 1)
    show.save(fig, tour.picture("clusters"))
