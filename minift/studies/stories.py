"""Stories on request, as the tour and the laboratory train on them: chats, preferences, a reward model, gold scores.

The gold score of a story is the rubric's, which no method sees. So a learned reward, and whatever is trained on it, can
be compared with the truth. Left out: people (label/ has the page on which they choose).
"""

import copy
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from minift.core.files import DATA
from minift.core.heads import TokenScorer
from minift.core.logprobs import IGNORE_INDEX, make_reference, masked_sum
from minift.core.train import train
from minift.formats.checkpoint import load_model, save_model
from minift.methods.reward import make_reward_loss, normalise_scores, score_pairs
from minift.methods.sft import tune_on_chats
from minift.text.answers import sample_answers
from minift.text.batches import Batches, chunks, collate, pad
from minift.text.jsonl import read_jsonl, write_jsonl
from minift.text.pairs import collate_pairs, encode_pair, encode_pairs
from minift.ways import crowd
from minift.ways.preferences import annotate, sample_pairs
from minift.ways.templates import instantiate, read_templates
from minift.world.instructions import TASKS, WRITING, instructions, story_requests
from minift.world.rubric import judge
from minift.world.tasks import world_rows

INSTRUCTIONS = DATA / "instructions"
READING = tuple(task for task in TASKS if task not in WRITING)
# Two of five examples ask for a story, because a story has many more tokens to learn.
MIXTURE = READING + WRITING * 6
# For every sampled story, also in PPO. KL is measured between distributions at this temperature.
TEMPERATURE = 0.7
# Noise of the simulated annotators, in points of the rubric.
NOISE = 0.5


def mix_chats(n, seed):
    """n shuffled chats, made in four ways: by people, a crowd, a language model, and templates.

    Five of six come from templates, because the templates have the tasks of the evaluation.
    """
    people = read_jsonl(INSTRUCTIONS / "written.jsonl")[:n // 12]
    model = read_jsonl(INSTRUCTIONS / "model.jsonl")[:n // 24]
    items = world_rows(n // 24, f"crowd/{seed}", tasks=crowd.TASKS)
    labelled, _ = crowd.labelled_rows(items, seed)
    templates = read_templates(INSTRUCTIONS / "templates.json")
    labelled = instantiate(labelled, templates, seed=seed, source="crowd", inverted=False)
    rows = people + model + labelled
    rows += instructions(n - len(rows), seed, tasks=MIXTURE)
    return random.Random(seed).sample(rows, len(rows))


# ---- preferences and the reward model ----


def gold_score(scenes, prompt, text):
    """The rubric's points (0 to 10) for a story. scenes: prompt -> the scene that it asks for."""
    return judge(text, scenes[prompt]).score


def prefer(model, tokenizer, requests, *, max_new_tokens, seed, noise=NOISE):
    """Two sampled stories for each request (prompt, scene), and a simulated choice: rows of `annotate`."""
    pairs = sample_pairs(
        model, tokenizer, [prompt for prompt, _ in requests], max_new_tokens=max_new_tokens,
        temperature=TEMPERATURE, batch_size=128, seed=seed)
    return annotate(pairs, partial(gold_score, dict(requests)), noise=noise, seed=seed)


def train_reward_model(body, tokenizer, rows, *, epochs, lr, seed, progress=True):
    """A TokenScorer on `body`, trained on preference rows -> (model, history)."""
    model = TokenScorer(body)
    examples = encode_pairs(tokenizer, rows, body.config.context_length)
    batches = Batches(examples, 16, lambda part: collate_pairs(part, tokenizer.pad_id), seed=seed)
    history = train(
        model, batches, make_reward_loss(model), steps=epochs * len(batches), lr=lr, name="reward", progress=progress)
    return model.eval(), history


def score_rows(model, tokenizer, rows):
    """(chosen scores (N,), rejected scores (N,), N pairs of gold scores) of preference rows.

    A row whose two stories are the same is left out.
    """
    pairs = [
        encode_pair(tokenizer, row["prompt"], row["chosen"], row["rejected"], model.config.context_length)
        for row in rows]
    gold = [row["gold"] for row, pair in zip(rows, pairs) if pair]
    batches = Batches(
        [pair for pair in pairs if pair], 32, lambda part: collate_pairs(part, tokenizer.pad_id),
        shuffle=False)
    chosen, rejected = zip(*score_pairs(model, batches))
    return torch.cat(chosen), torch.cat(rejected), gold


# ---- judging ----


def gold_reward(tokenizer, scenes):
    """A reward_fn(generation) -> (B,) of gold scores. scenes: prompt ids (a tuple) -> Scene."""
    def reward_fn(generation):
        scores = []
        for prompt, ids in zip(generation.prompts(), generation.responses(), strict=True):
            story = tokenizer.decode(ids, skip_special=True)
            scores.append(judge(story, scenes[tuple(prompt)]).score)
        return torch.tensor(scores, device=generation.input_ids.device)
    return reward_fn


def write_stories(model, reference, tokenizer, requests, *, max_new_tokens, seed):
    """(answers, gold scores, KL to the reference) of the model's sampled stories, one for each request."""
    answers = sample_answers(
        model, tokenizer, [prompt for prompt, _ in requests], max_new_tokens=max_new_tokens,
        temperature=TEMPERATURE, batch_size=128, seed=seed)
    gold = [judge(answer.text, scene).score for answer, (_, scene) in zip(answers, requests, strict=True)]
    kl = response_kl(make_reference(model, TEMPERATURE), reference, answers, tokenizer.pad_id)
    return answers, gold, kl


@torch.no_grad()
def response_kl(model, reference, answers, pad_id):
    """KL(model || reference) of each answer in nats: the sum of log p - log p_ref (k1) over its tokens.

    model, reference: callables (input_ids, attention_mask) -> logprobs (B, T-1), from make_reference.
    """
    sums = []
    for part in chunks(answers, 32):
        rows = []
        for answer in part:
            ids = answer.prompt_ids + answer.response_ids
            labels = [IGNORE_INDEX] * len(answer.prompt_ids) + answer.response_ids
            rows.append({"input_ids": ids, "labels": labels})
        batch = collate(rows, pad_id)
        inputs = batch["input_ids"], batch["attention_mask"]
        gap = model(*inputs) - reference(*inputs)  # (B, T-1)
        sums += masked_sum(gap, batch["labels"][:, 1:] != IGNORE_INDEX, dim=1).tolist()
    return sums


# ---- a small copy of the whole setting, for studies that need it for each seed ----


@dataclass
class Arena:
    """An SFT model that writes stories, preferences between its stories, and a reward model trained on them."""

    seed: int
    tokenizer: object
    # LanguageModel; use copy_policy() for training.
    policy: object
    # TokenScorer, its scores normalised on the held-out rows.
    reward_model: object
    # Preference rows to train on and held out.
    rows: list
    valid_rows: list
    # The longest story, in tokens.
    max_new_tokens: int

    def copy_policy(self):
        return copy.deepcopy(self.policy)

    def examples(self):
        """The preference rows to train on, as token ids."""
        return encode_pairs(self.tokenizer, self.rows, self.policy.config.context_length)

    def judge(self, model, requests, seed=0):
        """{"gold", "learned", "kl", "length", "ended", "scores"}: means over one sampled story to each request.

        gold: points of the rubric. learned: the reward model's. kl: to the SFT model, nats a story. scores: the gold
        score of each story, for win rates.
        """
        reference = make_reference(self.policy, TEMPERATURE)
        answers, gold, kl = write_stories(
            model, reference, self.tokenizer, requests, max_new_tokens=self.max_new_tokens, seed=seed)
        learned = self.learned(answers)
        lengths = [len(answer.response_ids) for answer in answers]
        ended = [float(answer.ended) for answer in answers]
        means = {"gold": gold, "learned": learned, "kl": kl, "length": lengths, "ended": ended}
        return {name: sum(values) / len(values) for name, values in means.items()} | {"scores": gold}

    def score_table(self, pairs):
        """A function (prompt, text) -> the reward model's score, of the stories of some pairs (of sample_pairs)."""
        rows = [{"prompt": pair["prompt"], "chosen": pair["answers"][0], "rejected": pair["answers"][1], "gold": None}
                for pair in pairs]
        first, second, _ = score_rows(self.reward_model, self.tokenizer, rows)
        table = {}
        for row, one, other in zip(rows, first.tolist(), second.tolist(), strict=True):
            table[row["prompt"], row["chosen"]] = one
            table[row["prompt"], row["rejected"]] = other
        return lambda prompt, text: table[prompt, text]

    @torch.no_grad()
    def learned(self, answers):
        """The reward model's score of each answer."""
        scores = []
        for part in chunks(answers, 64):
            input_ids = pad([answer.prompt_ids + answer.response_ids for answer in part], self.tokenizer.pad_id)
            real = pad([[True] * len(answer.prompt_ids + answer.response_ids) for answer in part], False)
            scores += self.reward_model.last_scores(input_ids, real).tolist()
        return scores


def make_arena(folder, seed, *, sft_steps=60, sft_batch=16, pairs=400, valid_pairs=100, max_new_tokens=144):
    """The Arena of a seed: read from the folder if it is there, else made and written to it."""
    folder = Path(folder)
    if not (folder / "reward").exists():
        torch.manual_seed(seed)
        policy, tokenizer = load_model(DATA / "base")
        chats = instructions(sft_steps * sft_batch, seed, tasks=WRITING)
        tune_on_chats(
            policy, tokenizer, chats, steps=sft_steps, lr=1e-3, batch_size=sft_batch, seed=seed, progress=False)
        save_model(policy.eval(), tokenizer, folder / "sft")
        for split, n in (("train", pairs), ("valid", valid_pairs)):
            rows = prefer(
                policy, tokenizer, story_requests(n, seed, split), max_new_tokens=max_new_tokens, seed=seed)
            write_jsonl(folder / f"{split}.jsonl", [{**row, "gold": list(row["gold"])} for row in rows])
        body = copy.deepcopy(policy.body)
        rows = read_jsonl(folder / "train.jsonl")
        reward_model, _ = train_reward_model(body, tokenizer, rows, epochs=1, lr=1e-3, seed=seed, progress=False)
        chosen, rejected, _ = score_rows(reward_model, tokenizer, read_jsonl(folder / "valid.jsonl"))
        normalise_scores(reward_model, torch.cat([chosen, rejected]))
        save_model(reward_model, tokenizer, folder / "reward")
    policy, tokenizer = load_model(folder / "sft")
    reward_model, _ = load_model(folder / "reward")
    rows, valid_rows = (read_jsonl(folder / f"{split}.jsonl") for split in ("train", "valid"))
    return Arena(seed, tokenizer, policy.eval(), reward_model.eval(), rows, valid_rows, max_new_tokens)


def open_arena(cells, seed, settings):
    """The Arena of a study's seed, kept beside the study's cells. settings: "sft_steps", "pairs", "max_new_tokens".

    "valid_pairs": held-out pairs; without it a quarter as many as there are pairs, at least 4.
    """
    valid_pairs = settings.get("valid_pairs", max(4, settings["pairs"] // 4))
    return make_arena(
        cells.folder.parent / "models" / str(seed), seed, sft_steps=settings["sft_steps"], pairs=settings["pairs"],
        valid_pairs=valid_pairs, max_new_tokens=settings["max_new_tokens"])
