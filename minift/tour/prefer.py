"""Stages 5 and 6: preferences between sampled stories, and the reward model that learns them."""

import torch

from minift.evaluation.metrics import reliability_curve, win_rate
from minift.formats.checkpoint import save_model
from minift.methods.reward import normalise_scores
from minift.studies.stories import prefer, score_rows, train_reward_model
from minift.text.jsonl import read_jsonl, write_jsonl
from minift.tour import draw
from minift.tour.common import Result, change
from minift.world.instructions import story_requests


def preferences(tour):
    """5. Two sampled stories for each request; a simulated annotator with Bradley-Terry noise chooses one."""
    s = tour.settings
    model, tokenizer = tour.load("sft")
    # Sample two stories for each request, and let the annotators choose.
    rows = {}
    for split, n in (("train", s.n_pairs), ("valid", s.n_pairs_valid)):
        rows[split] = prefer(
            model, tokenizer, story_requests(n, tour.seed, split), max_new_tokens=s.story_tokens, seed=tour.seed)
        saved = [{**row, "gold": list(row["gold"])} for row in rows[split]]
        write_jsonl(tour.out / f"preferences-{split}.jsonl", saved)
    # Measure how often the rubric gives the chosen story more points (a tie counts half).
    chosen, rejected = zip(*(row["gold"] for row in rows["train"]))
    agreed = win_rate(chosen, rejected)
    draw.draw_preferences(tour, [a - b for a, b in zip(chosen, rejected)])
    # Show three pairs.
    texts = []
    for row in rows["train"][:3]:
        a, b = row["gold"]
        texts += [("request", row["prompt"]), (f"chosen (gold {a:.1f})", row["chosen"]),
                  (f"rejected (gold {b:.1f})", row["rejected"])]
    return Result(
        f"From {len(rows['train'])} pairs of sampled stories the annotators chose the one that the rubric prefers in "
        f"{agreed:.0%}.",
        {"pairs": len(rows["train"]), "annotator_agreement": agreed},
        change("agreement with gold order", 0.5, agreed),
        texts=texts,
        pictures=[tour.picture("preferences")])


def reward(tour):
    """6. The reward model: a score head on the SFT body, trained on the pairs."""
    s = tour.settings
    torch.manual_seed(tour.seed)
    sft, tokenizer = tour.load("sft")
    # Train a score head on the SFT model's body.
    model, history = train_reward_model(
        sft.body, tokenizer, read_jsonl(tour.out / "preferences-train.jsonl"), epochs=s.reward_epochs,
        lr=s.reward_lr, seed=tour.seed)
    # Score held-out pairs, and shift the scores to mean 0 and standard deviation 1.
    chosen, rejected, gold = score_rows(model, tokenizer, read_jsonl(tour.out / "preferences-valid.jsonl"))
    normalise_scores(model, torch.cat([chosen, rejected]))
    save_model(model, tokenizer, tour.out / "reward")
    # Compare the scores with the rubric's and the annotators' choices.
    agreed = (chosen > rejected).float()
    decided = [i for i, (a, b) in enumerate(gold) if a != b]
    right = [bool(agreed[i]) == (gold[i][0] > gold[i][1]) for i in decided]
    probability = torch.sigmoid(chosen - rejected).tolist()
    confidence = [max(p, 1 - p) for p in probability]
    curve = reliability_curve(confidence, [p > 0.5 for p in probability])
    measures = {
        "reward_accuracy_gold": sum(right) / max(1, len(right)),
        "reward_accuracy_annotators": agreed.mean().item()}
    draw.draw_reward(tour, history, curve)
    return Result(
        f"On held-out pairs the reward model puts {measures['reward_accuracy_gold']:.0%} in the gold order "
        f"({len(decided)} pairs without a tie).",
        measures,
        change("pairs in gold order", 0.5, measures["reward_accuracy_gold"]),
        pictures=[tour.picture("reward")])
