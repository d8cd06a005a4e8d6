"""Stages 5 and 6: preferences between sampled stories, and the reward model that learns them."""

from functools import partial

import torch

from minift.core.heads import TokenScorer
from minift.core.train import train
from minift.evaluation.metrics import reliability_curve, win_rate
from minift.formats.checkpoint import save_model
from minift.methods.reward import make_reward_loss, normalise_scores, score_pairs
from minift.text.batches import Batches
from minift.text.jsonl import read_jsonl, write_jsonl
from minift.text.pairs import collate_pairs, encode_pair, encode_pairs
from minift.tour import draw
from minift.tour.common import TEMPERATURE, Result, change
from minift.ways.preferences import annotate, sample_pairs
from minift.world.instructions import story_requests
from minift.world.rubric import judge

# Noise of the simulated annotators, in points of the rubric.
NOISE = 0.5


def preferences(tour):
    """5. Two sampled stories for each request; a simulated annotator with Bradley-Terry noise chooses one."""
    s = tour.settings
    model, tokenizer = tour.load("sft")
    # Sample two stories for each request, and let the annotators choose.
    rows, kept = {}, {}
    for split, n in (("train", s.n_pairs), ("valid", s.n_pairs_valid)):
        requests = story_requests(n, tour.seed, split)
        scenes = dict(requests)
        pairs = sample_pairs(
            model, tokenizer, [prompt for prompt, _ in requests], max_new_tokens=s.story_tokens,
            temperature=TEMPERATURE, batch_size=128, seed=tour.seed)
        rows[split] = annotate(pairs, partial(gold_score, scenes), noise=NOISE, seed=tour.seed)
        kept[split] = len(pairs)
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
        f"From {kept['train']} pairs of sampled stories the annotators chose the one that the rubric prefers in "
        f"{agreed:.0%}.",
        {"pairs": kept["train"], "annotator_agreement": agreed},
        change("agreement with gold order", 0.5, agreed),
        texts=texts,
        pictures=[tour.picture("preferences")])


def gold_score(scenes, prompt, text):
    """The rubric's points (0 to 10) for a story. scenes: prompt -> the scene that it asks for."""
    return judge(text, scenes[prompt]).score


def pair_examples(tour, tokenizer, split, context_length):
    """The preference rows of a split as token ids."""
    return encode_pairs(tokenizer, read_jsonl(tour.out / f"preferences-{split}.jsonl"), context_length)


def reward(tour):
    """6. The reward model: a score head on the SFT body, trained on the pairs."""
    s = tour.settings
    torch.manual_seed(tour.seed)
    sft, tokenizer = tour.load("sft")
    # Train a score head on the SFT model's body.
    model = TokenScorer(sft.body)
    examples = pair_examples(tour, tokenizer, "train", sft.config.context_length)
    batches = Batches(examples, 16, lambda rows: collate_pairs(rows, tokenizer.pad_id), seed=tour.seed)
    steps = s.reward_epochs * len(batches)
    history = train(model, batches, make_reward_loss(model), steps=steps, lr=s.reward_lr, name="reward")
    # Score held-out pairs, and shift the scores to mean 0 and standard deviation 1.
    chosen, rejected, gold = score_held_out(tour, model.eval(), tokenizer)
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


def score_held_out(tour, model, tokenizer):
    """(chosen scores (N,), rejected scores (N,), N pairs of gold scores) of the held-out pairs.

    A pair whose two stories are the same is left out.
    """
    rows = read_jsonl(tour.out / "preferences-valid.jsonl")
    pairs = [
        encode_pair(tokenizer, row["prompt"], row["chosen"], row["rejected"], model.config.context_length)
        for row in rows]
    gold = [row["gold"] for row, pair in zip(rows, pairs) if pair]
    batches = Batches(
        [pair for pair in pairs if pair], 32, lambda part: collate_pairs(part, tokenizer.pad_id),
        shuffle=False)
    chosen, rejected = zip(*score_pairs(model, batches))
    return torch.cat(chosen), torch.cat(rejected), gold
