"""Why does DPO make its own chosen answers less likely? And what helps?

The loss falls when log p(chosen) - log p(rejected) grows; both may fall. One small step on a batch changes the mean
log p(chosen) in proportion to G_c . (G_c - G_r), where G_c and G_r are the gradients of the batch's mean
log-probabilities. So it falls as soon as G_c . G_r > |G_c|^2: when both share most of their direction and that of the
rejected answers is longer, as it is where answers are unlikely. Both are measured here at several moments.

Razin et al. 2024, "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization"; Pal et al.
2024, "Smaug". The remedies: an NLL term (Pang et al. 2024, "Iterative Reasoning Preference Optimization", eq. 1), a
lower learning rate, conservative labels (cDPO), APO-zero (D'Oosterlinck et al. 2024, "Anchored Preference
Optimization"). Left out: filters of the data.
"""

from functools import partial

import torch
from torch.nn import functional as F

from minift import show
from minift.core.logprobs import make_reference, response_logprobs
from minift.core.train import train
from minift.methods import dpo
from minift.studies import mean_and_std, show_spread
from minift.studies.stories import open_arena
from minift.text.batches import Batches
from minift.text.pairs import collate_pairs, encode_pairs
from minift.world.instructions import story_requests

SETTINGS = {
    "seeds": (0, 1, 2), "sft_steps": 60, "pairs": 400, "steps": 100, "moments": 5, "beta": 0.1, "lr": 3e-4,
    "requests": 64, "gradient_pairs": 32, "max_new_tokens": 144}
QUICK = {
    "seeds": (0,), "sft_steps": 2, "pairs": 8, "steps": 2, "moments": 2, "requests": 4, "gradient_pairs": 2,
    "max_new_tokens": 24}


def with_nll(chosen, rejected, ref_chosen, ref_rejected, beta, weight=0.1):
    """DPO plus `weight` times -log p(chosen): the mean over pairs, of the whole answer."""
    loss, metrics = dpo.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    return loss - weight * chosen.mean(), metrics


def apo_zero(chosen, rejected, ref_chosen, ref_rejected, beta):
    """1 - sigmoid(beta * chosen log-ratio) + sigmoid(beta * rejected log-ratio): chosen up, rejected down."""
    _, metrics = dpo.dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    loss = F.sigmoid(-beta * (chosen - ref_chosen)) + F.sigmoid(beta * (rejected - ref_rejected))
    return loss.mean(), metrics


# Name of a way -> what it changes: the loss, its label smoothing, or the learning rate.
WAYS = {
    "DPO": {}, "NLL added": {"loss": with_nll}, "a tenth of the rate": {"rate": 0.1},
    "cDPO, label smoothing 0.2": {"label_smoothing": 0.2}, "APO-zero": {"loss": apo_zero}}


def measure(cells, settings):
    """Name of a way -> for each seed a list of points, from before the training to its end."""
    runs = {}
    for seed in settings["seeds"]:
        arena = open_arena(cells, seed, settings)
        for name, changes in WAYS.items():
            runs.setdefault(name, []).append(cells(f"{name}-{seed}", run_seed, arena, changes, settings))
    return runs


def run_seed(arena, changes, settings):
    """Train in one way; at each moment: log-probabilities, gold score, and the two gradients."""
    changes = dict(changes)
    policy, rate = arena.copy_policy(), changes.pop("rate", 1.0)
    torch.manual_seed(arena.seed)
    collate = partial(collate_pairs, pad_id=arena.tokenizer.pad_id)
    reference = make_reference(arena.policy)
    examples = dpo.add_reference_logprobs(arena.examples(), reference, arena.tokenizer.pad_id)
    held_out = encode_pairs(arena.tokenizer, arena.valid_rows, policy.config.context_length)
    dpo.add_reference_logprobs(held_out, reference, arena.tokenizer.pad_id)
    requests = story_requests(settings["requests"], arena.seed, "test")

    def look():
        found = arena.judge(policy, requests, arena.seed)
        del found["scores"]
        return found | gradients(policy, collate(examples[:settings["gradient_pairs"]])) | {
            "held_out_chosen": mean_logprob(policy, held_out, collate)}

    points = [{"step": 0} | look()]

    def evaluate():
        points.append({"step": len(points) * every} | look())
        return {}

    every = settings["steps"] // settings["moments"]
    train(
        policy, Batches(examples, 16, collate, seed=arena.seed),
        dpo.make_dpo_loss(policy, settings["beta"], **changes), steps=settings["steps"], lr=rate * settings["lr"],
        eval_every=every, evaluate=evaluate, progress=False)
    return points


@torch.no_grad()
def mean_logprob(policy, examples, collate):
    """The mean log p of the chosen answers, in nats an answer."""
    total = 0.0
    for batch in Batches(examples, 32, collate, shuffle=False):
        hidden = policy.body(batch["chosen_input_ids"], batch["chosen_attention_mask"])
        total += response_logprobs(
            hidden, policy.head, batch["chosen_input_ids"], batch["chosen_response_mask"]).sum().item()
    return total / len(examples)


@torch.enable_grad()
def gradients(policy, batch):
    """Of the mean log p(chosen) and of the mean log p(rejected) over some pairs: both means, lengths, and the cosine.

    "push": G_c . (G_c - G_r) / |G_c|^2, how a small step on these pairs moves log p(chosen): 1 where the rejected
    answers have no say, below 0 where it falls.
    """
    found, vectors = {}, []
    for side in ("chosen", "rejected"):
        input_ids, written = batch[f"{side}_input_ids"], batch[f"{side}_response_mask"]  # (B, T)
        hidden = policy.body(input_ids, batch[f"{side}_attention_mask"])  # (B, T, D)
        logprob = response_logprobs(hidden, policy.head, input_ids, written).sum(1).mean()
        parts = torch.autograd.grad(logprob, list(policy.parameters()))
        vectors.append(torch.cat([part.flatten() for part in parts]))
        found |= {side: logprob.item(), f"{side}_norm": vectors[-1].norm().item()}
    up, down = vectors
    cosine = F.cosine_similarity(up, down, dim=0).item()
    return found | {"cosine": cosine, "push": (up @ (up - down) / (up @ up)).item()}


# ---- results ----


def tables(results):
    """The way of plain DPO, moment by moment; the ends of all ways."""
    path, ends = [], []
    for moment in zip(*results["DPO"], strict=True):
        row = {"step": moment[0]["step"]}
        for title, key in (
                ("log p chosen", "chosen"), ("log p rejected", "rejected"), ("gradient of chosen", "chosen_norm"),
                ("gradient of rejected", "rejected_norm"), ("cosine", "cosine"), ("push on chosen", "push"),
                ("gold", "gold"), ("KL", "kl")):
            row[title] = show_spread([point[key] for point in moment])
        path.append(row)
    for name, seeds in results.items():
        row = {"way": name}
        for title, key in (
                ("log p chosen", "chosen"), ("log p chosen, held out", "held_out_chosen"),
                ("log p rejected", "rejected"), ("gold", "gold"), ("KL", "kl")):
            row[title] = show_spread([points[-1][key] for points in seeds])
        row["best gold on the way"] = show_spread([max(point["gold"] for point in points) for points in seeds])
        ends.append(row)
    start = results["DPO"]
    before = {"way": "before", "log p chosen": show_spread([points[0]["chosen"] for points in start]),
              "log p chosen, held out": show_spread([points[0]["held_out_chosen"] for points in start]),
              "log p rejected": show_spread([points[0]["rejected"] for points in start]),
              "gold": show_spread([points[0]["gold"] for points in start])}
    return {
        "DPO: log-probabilities of training pairs (nats an answer), and their gradients; mean ± std over seeds": path,
        "The ends of all ways": [before, *ends]}


def draw(results):
    """Left: log p of chosen and rejected under DPO. Middle: log p of chosen in all ways. Right: gold against the KL."""
    fig, (left, middle, right) = show.figure(1, 3, width=15, height=4.8)
    steps = [point["step"] for point in results["DPO"][0]]
    series = {key: (steps, path_of(results["DPO"], key)) for key in ("chosen", "rejected")}
    show.curves(left, series, xlabel="step", ylabel="log p of an answer (nats)", title="DPO, training pairs")
    series = {name: (steps, path_of(seeds, "chosen")) for name, seeds in results.items()}
    show.curves(middle, series, xlabel="step", ylabel="log p of chosen (nats)", title="five ways")
    series = {name: (path_of(seeds, "kl"), path_of(seeds, "gold")) for name, seeds in results.items()}
    show.curves(right, series, xlabel="KL to the SFT model (nats)", ylabel="gold score", title="what it brings")
    return fig


def path_of(seeds, key):
    """The mean over seeds of one number at each moment."""
    return [mean_and_std([point[key] for point in moment])["mean"] for moment in zip(*seeds, strict=True)]
