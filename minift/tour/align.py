"""Stages 7 to 9: PPO, DPO, and all models side by side."""

import torch

from minift.core.logprobs import make_reference
from minift.core.train import train
from minift.evaluation.metrics import bootstrap_interval, win_rate
from minift.formats.checkpoint import save_model
from minift.methods.dpo import add_reference_logprobs, make_dpo_loss
from minift.methods.ppo_loop import PPOConfig, train_ppo
from minift.methods.reward import reward_from_model
from minift.studies.stories import TEMPERATURE, gold_reward, write_stories
from minift.text.batches import Batches
from minift.text.chat import encode_prompt
from minift.text.jsonl import read_jsonl
from minift.text.pairs import collate_pairs, encode_pairs
from minift.tour import draw
from minift.tour.common import Result, change, mean
from minift.world.instructions import story_requests

SHOWN = ("iteration", "score", "gold", "kl", "entropy", "response_length", "clip_fraction", "explained_variance")


def ppo_config(s):
    """The settings of PPO. beta: the penalty for one nat of KL, in units of the normalised learned score."""
    return PPOConfig(
        beta=0.05, value_coef=0.5, epochs=2, minibatch_size=16, lr=2.5e-4, temperature=TEMPERATURE,
        max_new_tokens=s.story_tokens, missing_eos_penalty=2.0)


def ppo(tour):
    """7. PPO on the learned reward, with a KL penalty to the SFT model; the gold score is noted, never trained on."""
    s = tour.settings
    # Load the four models: policy, reference, reward model and value model.
    policy, tokenizer = tour.load("sft")
    reference = make_reference(tour.load("sft")[0], TEMPERATURE)
    reward_model, value_model = tour.load("reward")[0], tour.load("reward")[0]
    requests = story_requests(s.ppo_iterations * s.ppo_batch, tour.seed, "ppo")
    scenes = {tuple(encode_prompt(tokenizer, prompt)): scene for prompt, scene in requests}
    score, gold_of, gold = reward_from_model(reward_model), gold_reward(tokenizer, scenes), []

    def reward_fn(generation):
        gold.append(gold_of(generation).double().mean().item())
        return score(generation)

    # Train on the learned reward. reward_fn also notes the gold score.
    torch.manual_seed(tour.seed)
    history = train_ppo(
        policy, reference, value_model, reward_fn, [list(ids) for ids in scenes], ppo_config(s),
        iterations=s.ppo_iterations, batch_size=s.ppo_batch, eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id, seed=tour.seed)
    save_model(policy, tokenizer, tour.out / "ppo")
    # Report both scores.
    rows = [{**row, "gold": value} for row, value in zip(history, gold, strict=True)]
    draw.draw_ppo(tour, rows)
    first, last = rows[0], rows[-1]
    return Result(
        f"PPO raises the learned score from {first['score']:.2f} to {last['score']:.2f} and the gold score "
        f"of its stories from {first['gold']:.1f} to {last['gold']:.1f} at a KL of {last['kl']:.1f} nats.",
        {"ppo_gold_first": first["gold"], "ppo_gold_last": last["gold"], "ppo_score_last": last["score"],
         "ppo_kl_last": last["kl"]},
        change("gold score, rollouts", first["gold"], last["gold"]),
        rows=[{key: row[key] for key in SHOWN} for row in rows[:: max(1, len(rows) // 8)]],
        pictures=[tour.picture("ppo")])


def dpo(tour):
    """8. DPO on the same pairs: no reward model, no sampling; the reference's log-probabilities are computed once."""
    s = tour.settings
    torch.manual_seed(tour.seed)
    policy, tokenizer = tour.load("sft")
    reference, sharp = make_reference(tour.load("sft")[0]), make_reference(tour.load("sft")[0], TEMPERATURE)
    # Compute the reference's log-probabilities once.
    rows = read_jsonl(tour.out / "preferences-train.jsonl")
    pairs = encode_pairs(tokenizer, rows, policy.config.context_length)
    examples = add_reference_logprobs(pairs, reference, tokenizer.pad_id)
    batches = Batches(examples, 16, lambda rows: collate_pairs(rows, tokenizer.pad_id), seed=tour.seed)
    requests = story_requests(48, tour.seed, "dpo")

    def evaluate():
        _, gold, kl = write_stories(
            policy, sharp, tokenizer, requests, max_new_tokens=s.story_tokens, seed=tour.seed)
        return {"gold": mean(gold), "kl": mean(kl)}

    # Train, and sample stories at the start, the middle and the end.
    start = {"step": 0, **evaluate()}
    steps = s.dpo_epochs * len(batches)
    history = train(
        policy, batches, make_dpo_loss(policy, s.dpo_beta), steps=steps, lr=s.dpo_lr, name="dpo",
        evaluate=evaluate, eval_every=max(1, steps // 2))
    policy.eval()
    save_model(policy, tokenizer, tour.out / "dpo")
    seen = [start] + [row for row in history if "gold" in row]
    draw.draw_dpo(tour, history, seen)
    return Result(
        f"DPO takes the gold score from {start['gold']:.1f} to {seen[-1]['gold']:.1f} at a KL of "
        f"{seen[-1]['kl']:.1f} nats; the first loss was {history[0]['loss']:.4f} (ln 2 = 0.6931).",
        {"dpo_first_loss": history[0]["loss"], "dpo_gold": seen[-1]["gold"], "dpo_kl": seen[-1]["kl"],
         "dpo_accuracy": mean([row["accuracy"] for row in history[-10:]])},
        change("gold score, samples", start["gold"], seen[-1]["gold"]),
        pictures=[tour.picture("dpo")])


def compare(tour):
    """9. Base, SFT, PPO and DPO write stories for the same held-out requests."""
    s = tour.settings
    requests = story_requests(s.n_prompts, tour.seed, "test")
    # Let each of the four models write.
    sft, tokenizer = tour.load("sft")
    reference, found = make_reference(sft, TEMPERATURE), {}
    for name in ("base", "sft", "ppo", "dpo"):
        answers, gold, kl = write_stories(
            tour.load(name)[0], reference, tokenizer, requests, max_new_tokens=s.story_tokens, seed=tour.seed)
        found[name] = {"gold": gold, "kl": mean(kl), "answers": answers}
    # Score their stories against those of SFT.
    rows, measures = [], {}
    for name, one in found.items():
        low, high = bootstrap_interval(one["gold"], tour.seed)
        gold, rate = mean(one["gold"]), win_rate(one["gold"], found["sft"]["gold"])
        rows.append(
            {"model": name, "gold score": gold, "95 % from": low, "to": high, "KL to SFT (nats)": one["kl"],
             "wins against SFT": rate, "tokens": mean([len(answer.response_ids) for answer in one["answers"]]),
             "ends": mean([answer.ended for answer in one["answers"]])})
        measures |= {f"gold_{name}": gold, f"kl_{name}": one["kl"], f"win_rate_{name}": rate}
    # Report the scores, and the stories for the first request.
    draw.draw_comparison(tour, rows)
    texts = [("request", requests[0][0])]
    for name, one in found.items():
        texts.append((f"{name} (gold {one['gold'][0]:.1f})", one["answers"][0].text))
    return Result(
        f"Against SFT, PPO wins {measures['win_rate_ppo']:.0%} at {measures['kl_ppo']:.1f} nats of KL and DPO "
        f"{measures['win_rate_dpo']:.0%} at {measures['kl_dpo']:.1f} nats (a tie counts half).",
        measures,
        change("gold: SFT, best of PPO, DPO", measures["gold_sft"], max(measures["gold_ppo"], measures["gold_dpo"])),
        texts=texts,
        rows=rows,
        pictures=[tour.picture("comparison")])
