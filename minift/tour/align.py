"""Stages 5 to 9: preferences, the reward model, PPO, DPO, and all of them side by side."""

import torch

from minift import show
from minift.core.checkpoint import save_model
from minift.core.heads import TokenScorer
from minift.core.logprobs import make_reference
from minift.core.train import train
from minift.datasets.batches import Batches, chunks
from minift.datasets.chat import encode_prompt
from minift.datasets.jsonl import read_jsonl, write_jsonl
from minift.datasets.pairs import collate_pairs, encode_pairs
from minift.datasets.preferences import annotate, sample_answers, sample_pairs
from minift.datasets.rubric import judge
from minift.datasets.tasks import story_requests
from minift.evaluation.metrics import bootstrap_interval, reliability_curve, win_rate
from minift.methods.dpo import add_reference_logprobs, make_dpo_loss
from minift.methods.ppo import PPOConfig, train_ppo
from minift.methods.reward import make_reward_loss, normalise_scores, reward_from_model
from minift.tour.common import Result, response_kl, smooth, story_scores

NOISE = 0.5  # of the simulated annotators, in points of the rubric
TEMPERATURE = 0.7  # of every story that is sampled, PPO's among them; the KL is between these sharpened distributions


def preferences(tour):
    """5. Two sampled stories for each request; a simulated annotator with Bradley-Terry noise chooses one."""
    s = tour.settings
    model, tokenizer = tour.load("sft")
    rows, kept = {}, {}
    for split, n in (("train", s.n_pairs), ("valid", s.n_pairs_valid)):
        requests = story_requests(n, tour.seed, split)
        scenes = dict(requests)
        pairs = sample_pairs(
            model,
            tokenizer,
            [prompt for prompt, _ in requests],
            max_new_tokens=s.story_tokens,
            temperature=TEMPERATURE,
            batch_size=128,
            seed=tour.seed,
        )
        rows[split] = annotate(
            pairs, lambda prompt, text: judge(text, scenes[prompt]).score, noise=NOISE, seed=tour.seed
        )
        kept[split] = len(pairs)
        write_jsonl(
            tour.out / f"preferences-{split}.jsonl", [{**row, "gold": list(row["gold"])} for row in rows[split]]
        )
    gaps = [row["gold"][0] - row["gold"][1] for row in rows["train"]]
    agreed = sum((gap > 0) + (gap == 0) / 2 for gap in gaps) / len(gaps)
    fig, axes = show.figure()
    whole = [round(gap) for gap in gaps]
    points = range(min(whole), max(whole) + 1)
    show.bars(
        axes,
        [f"{point:+d}" for point in points],
        [whole.count(point) for point in points],
        ylabel="pairs",
        title="Gold score of the chosen story minus that of the rejected one (points)",
    )
    show.save(fig, tour.picture("preferences"))
    texts = [
        (label, text)
        for row in rows["train"][:3]
        for label, text in (
            ("request", row["prompt"]),
            (f"chosen (gold {row['gold'][0]:.1f})", row["chosen"]),
            (f"rejected (gold {row['gold'][1]:.1f})", row["rejected"]),
        )
    ]
    return Result(
        f"From {kept['train']} pairs of sampled stories the annotators chose the one that the rubric prefers in "
        f"{agreed:.0%}.",
        {"pairs": kept["train"], "annotator_agreement": agreed},
        {"measure": "agreement with gold order", "before": 0.5, "after": agreed},
        texts=texts,
        pictures=[tour.picture("preferences")],
    )


def pair_examples(tour, tokenizer, split, context_length):
    """The preference rows of a split as token ids."""
    return encode_pairs(tokenizer, read_jsonl(tour.out / f"preferences-{split}.jsonl"), context_length)


def reward(tour):
    """6. The reward model: a score head on the SFT body, trained on the pairs."""
    s = tour.settings
    torch.manual_seed(tour.seed)
    sft, tokenizer = tour.load("sft")
    model = TokenScorer(sft.body)
    examples = pair_examples(tour, tokenizer, "train", sft.config.context_length)
    batches = Batches(examples, 16, lambda rows: collate_pairs(rows, tokenizer.pad_id), seed=tour.seed)
    steps = s.reward_epochs * len(batches)
    history = train(model, batches, make_reward_loss(model), steps=steps, lr=s.reward_lr, name="reward")
    chosen, rejected, gold = score_pairs(tour, model.eval(), tokenizer, "valid")
    normalise_scores(model, torch.cat([chosen, rejected]))
    save_model(model, tokenizer, tour.out / "reward")
    decided = [i for i, (a, b) in enumerate(gold) if a != b]
    right = [bool(chosen[i] > rejected[i]) == (gold[i][0] > gold[i][1]) for i in decided]
    probability = torch.sigmoid(chosen - rejected)
    curve = reliability_curve(
        [max(p, 1 - p) for p in probability.tolist()], [p > 0.5 for p in probability.tolist()], n_bins=10
    )
    measures = {
        "reward_accuracy_gold": sum(right) / max(1, len(right)),
        "reward_accuracy_annotators": (chosen > rejected).float().mean().item(),
    }
    fig, axes = show.figure(1, 2)
    show.curves(
        axes[0],
        {"training loss": smooth(history, "loss")},
        xlabel="step",
        ylabel="Bradley-Terry loss (nats a pair, mean of 8 steps)",
        title="Reward model",
    )
    show.reliability(
        axes[1],
        [point["confidence"] for point in curve],
        [point["accuracy"] for point in curve],
        [point["count"] for point in curve],
    )
    show.save(fig, tour.picture("reward"))
    return Result(
        f"On held-out pairs the reward model puts {measures['reward_accuracy_gold']:.0%} in the gold order "
        f"({len(decided)} pairs without a tie).",
        measures,
        {"measure": "pairs in gold order", "before": 0.5, "after": measures["reward_accuracy_gold"]},
        pictures=[tour.picture("reward")],
    )


@torch.no_grad()
def score_pairs(tour, model, tokenizer, split):
    """(chosen scores, rejected scores, gold pairs) of the pairs of a split."""
    rows = read_jsonl(tour.out / f"preferences-{split}.jsonl")
    chosen, rejected = [], []
    for part in chunks(encode_pairs(tokenizer, rows, model.config.context_length), 32):
        batch = collate_pairs(part, tokenizer.pad_id)
        chosen.append(model.last_scores(batch["chosen_input_ids"], batch["chosen_attention_mask"]))
        rejected.append(model.last_scores(batch["rejected_input_ids"], batch["rejected_attention_mask"]))
    return torch.cat(chosen), torch.cat(rejected), [row["gold"] for row in rows]


def ppo_config(s):
    return PPOConfig(
        beta=0.05,
        value_coef=0.5,
        epochs=2,
        minibatch_size=16,
        lr=2.5e-4,
        temperature=TEMPERATURE,
        max_new_tokens=s.story_tokens,
        missing_eos_penalty=2.0,
    )


def ppo(tour):
    """7. PPO against the learned reward, with a KL penalty to the SFT model; the gold rubric only watches."""
    s = tour.settings
    policy, tokenizer = tour.load("sft")
    reference, reward_model = make_reference(tour.load("sft")[0], TEMPERATURE), tour.load("reward")[0]
    value_model = tour.load("reward")[0]
    requests = story_requests(s.ppo_iterations * s.ppo_batch, tour.seed, "ppo")
    scenes = {tuple(encode_prompt(tokenizer, prompt)): scene for prompt, scene in requests}
    score, gold = reward_from_model(reward_model), []

    def reward_fn(generation):
        gold.append(gold_of(generation, tokenizer, scenes))
        return score(generation)

    torch.manual_seed(tour.seed)
    history = train_ppo(
        policy,
        reference,
        value_model,
        reward_fn,
        [list(ids) for ids in scenes],
        ppo_config(s),
        iterations=s.ppo_iterations,
        batch_size=s.ppo_batch,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        seed=tour.seed,
    )
    save_model(policy, tokenizer, tour.out / "ppo")
    rows = [{**row, "gold": value} for row, value in zip(history, gold, strict=True)]
    draw_ppo(tour, rows)
    first, last = rows[0], rows[-1]
    return Result(
        f"PPO raises the learned score from {first['score']:.2f} to {last['score']:.2f} and the gold score "
        f"of its stories from {first['gold']:.1f} to {last['gold']:.1f} at a KL of {last['kl']:.1f} nats.",
        {
            "ppo_gold_first": first["gold"],
            "ppo_gold_last": last["gold"],
            "ppo_score_last": last["score"],
            "ppo_kl_last": last["kl"],
        },
        {"measure": "gold score, rollouts", "before": first["gold"], "after": last["gold"]},
        rows=[
            {
                key: row[key]
                for key in (
                    "iteration",
                    "score",
                    "gold",
                    "kl",
                    "entropy",
                    "response_length",
                    "clip_fraction",
                    "explained_variance",
                )
            }
            for row in rows[:: max(1, len(rows) // 8)]
        ],
        pictures=[tour.picture("ppo")],
    )


def gold_of(generation, tokenizer, scenes):
    """The mean gold score of a rollout's stories."""
    scores = []
    for ids, real, written in zip(generation.input_ids, generation.attention_mask, generation.response_mask):
        scene = scenes[tuple(ids[real & ~written].tolist())]
        scores.append(judge(tokenizer.decode(ids[written].tolist(), skip_special=True), scene).score)
    return sum(scores) / len(scores)


def draw_ppo(tour, rows):
    """PPO's eight curves: what is wanted, what it costs, and how the optimization fares."""
    fig, axes = show.figure(2, 4)
    labels = {
        "gold": "gold score (0 to 10)",
        "score": "learned score",
        "kl": "KL to SFT (nats a response)",
        "entropy": "entropy (nats a token)",
        "response_length": "response length (tokens)",
        "clip_fraction": "clip fraction",
        "explained_variance": "explained variance",
        "eos_share": "ended by <eos>",
    }
    for axis, (key, label) in zip(axes.flat, labels.items()):
        show.curves(
            axis,
            {label: ([row["iteration"] for row in rows], [row[key] for row in rows])},
            xlabel="iteration",
            ylabel=label,
        )
    show.save(fig, tour.picture("ppo"))


def dpo(tour):
    """8. DPO on the same pairs: no reward model, no sampling; the reference's log-probabilities are computed once."""
    s = tour.settings
    torch.manual_seed(tour.seed)
    policy, tokenizer = tour.load("sft")
    reference, sharp = make_reference(tour.load("sft")[0]), make_reference(tour.load("sft")[0], TEMPERATURE)
    examples = add_reference_logprobs(
        pair_examples(tour, tokenizer, "train", policy.config.context_length), reference, tokenizer.pad_id
    )
    batches = Batches(examples, 16, lambda rows: collate_pairs(rows, tokenizer.pad_id), seed=tour.seed)
    requests = story_requests(48, tour.seed, "dpo")

    def evaluate():
        return on_requests(policy, sharp, tokenizer, requests, s.story_tokens, tour.seed)

    start = {"step": 0, **evaluate()}
    steps = s.dpo_epochs * len(batches)
    history = train(
        policy,
        batches,
        make_dpo_loss(policy, s.dpo_beta),
        steps=steps,
        lr=s.dpo_lr,
        name="dpo",
        evaluate=evaluate,
        eval_every=max(1, steps // 3),
    )
    policy.eval()
    save_model(policy, tokenizer, tour.out / "dpo")
    seen = [start] + [row for row in history if "gold" in row]
    draw_dpo(tour, history, seen)
    return Result(
        f"DPO takes the gold score from {start['gold']:.1f} to {seen[-1]['gold']:.1f} at a KL of "
        f"{seen[-1]['kl']:.1f} nats; the first loss was {history[0]['loss']:.4f} (ln 2 = 0.6931).",
        {
            "dpo_first_loss": history[0]["loss"],
            "dpo_gold": seen[-1]["gold"],
            "dpo_kl": seen[-1]["kl"],
            "dpo_accuracy": sum(row["accuracy"] for row in history[-10:]) / len(history[-10:]),
        },
        {"measure": "gold score, samples", "before": start["gold"], "after": seen[-1]["gold"]},
        pictures=[tour.picture("dpo")],
    )


def on_requests(model, reference, tokenizer, requests, max_new_tokens, seed):
    """Mean gold score and KL of the model's sampled stories."""
    answers = sample_answers(
        model,
        tokenizer,
        [prompt for prompt, _ in requests],
        max_new_tokens=max_new_tokens,
        temperature=TEMPERATURE,
        batch_size=128,
        seed=seed,
    )
    gold = story_scores([answer.text for answer in answers], [scene for _, scene in requests])
    kl = response_kl(make_reference(model, TEMPERATURE), reference, answers, tokenizer.pad_id)
    return {"gold": sum(gold) / len(gold), "kl": sum(kl) / len(kl)}


def draw_dpo(tour, history, seen):
    """DPO's loss, margin and log-probabilities while it trains, and what its samples are worth."""
    fig, axes = show.figure(1, 4)
    show.curves(axes[0], {"loss": smooth(history, "loss")}, xlabel="step", ylabel="DPO loss (nats, mean of 8 steps)")
    show.curves(
        axes[1], {"margin": smooth(history, "margin")}, xlabel="step", ylabel="margin of implicit rewards (nats)"
    )
    show.curves(
        axes[2],
        {"chosen": smooth(history, "chosen_logprobs"), "rejected": smooth(history, "rejected_logprobs")},
        xlabel="step",
        ylabel="log p of the response (nats)",
    )
    show.curves(
        axes[3],
        {
            "gold score": ([row["step"] for row in seen], [row["gold"] for row in seen]),
            "KL (nats)": ([row["step"] for row in seen], [row["kl"] for row in seen]),
        },
        xlabel="step",
        ylabel="sampled stories",
    )
    show.save(fig, tour.picture("dpo"))


def compare(tour):
    """9. Base, SFT, PPO and DPO write for the same held-out requests."""
    s = tour.settings
    requests = story_requests(s.n_prompts, tour.seed, "test")
    prompts, scenes = zip(*requests)
    sft, tokenizer = tour.load("sft")
    reference, found = make_reference(sft, TEMPERATURE), {}
    for name in ("base", "sft", "ppo", "dpo"):
        model = tour.load(name)[0]
        answers = sample_answers(
            model,
            tokenizer,
            list(prompts),
            max_new_tokens=s.story_tokens,
            temperature=TEMPERATURE,
            batch_size=128,
            seed=tour.seed,
        )
        gold = story_scores([answer.text for answer in answers], scenes)
        kl = response_kl(make_reference(model, TEMPERATURE), reference, answers, tokenizer.pad_id)
        found[name] = {"gold": gold, "kl": sum(kl) / len(kl), "answers": answers}
    rows, measures = [], {}
    for name, one in found.items():
        low, high = bootstrap_interval(one["gold"], tour.seed)
        rate, mean = win_rate(one["gold"], found["sft"]["gold"]), sum(one["gold"]) / len(prompts)
        length = sum(len(answer.response_ids) for answer in one["answers"]) / len(prompts)
        rows.append(
            {
                "model": name,
                "gold score": mean,
                "95 % from": low,
                "to": high,
                "KL to SFT (nats)": one["kl"],
                "wins against SFT": rate,
                "tokens": length,
                "ends": sum(answer.ended for answer in one["answers"]) / len(prompts),
            }
        )
        measures |= {f"gold_{name}": mean, f"kl_{name}": one["kl"], f"win_rate_{name}": rate}
    draw_comparison(tour, rows)
    texts = [("request", prompts[0])] + [
        (f"{name} (gold {one['gold'][0]:.1f})", one["answers"][0].text) for name, one in found.items()
    ]
    return Result(
        f"Against SFT, PPO wins {measures['win_rate_ppo']:.0%} at {measures['kl_ppo']:.1f} nats of KL and DPO "
        f"{measures['win_rate_dpo']:.0%} at {measures['kl_dpo']:.1f} nats (a tie counts half).",
        measures,
        {
            "measure": "gold: SFT, best of PPO, DPO",
            "before": measures["gold_sft"],
            "after": max(measures["gold_ppo"], measures["gold_dpo"]),
        },
        texts=texts,
        rows=rows,
        pictures=[tour.picture("comparison")],
    )


def draw_comparison(tour, rows):
    """Gold score of all models with intervals, and how far the tuned ones are from SFT."""
    fig, axes = show.figure(1, 2)
    ends = [(row["95 % from"], row["to"]) for row in rows]
    show.bars(
        axes[0],
        [row["model"] for row in rows],
        [row["gold score"] for row in rows],
        ends,
        ylabel="gold score, 95 % interval",
    )
    tuned = [row for row in rows if row["model"] != "base"]
    show.bars(
        axes[1],
        [row["model"] for row in tuned],
        [row["KL to SFT (nats)"] for row in tuned],
        ylabel="KL to SFT (nats a response)",
    )
    show.save(fig, tour.picture("comparison"))
