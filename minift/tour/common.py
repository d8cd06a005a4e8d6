"""What the stages of the tour share: settings, the folder of a run, and results."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from minift.core.files import DATA, read_json, write_json
from minift.errors import MiniftError
from minift.formats.checkpoint import load_model


@dataclass(frozen=True)
class Settings:
    """Sizes, steps and learning rates: by default those of the full tour; `quick()` has those of a test run."""

    # Windows of 256 tokens in a batch of continued pre-training.
    window_batch: int = 16
    # Optimizer steps on the new domain.
    domain_steps: int = 50
    domain_lr: float = 2e-3
    # The share of old rows in a batch.
    replay_share: float = 0.3
    lora_rank: int = 8
    lora_lr: float = 1e-2
    # Documents to train on.
    n_domain: int = 400
    # Documents of each domain to evaluate on.
    n_valid: int = 60
    n_instructions: int = 6000
    sft_steps: int = 170
    sft_batch: int = 32
    sft_lr: float = 1e-3
    # Held-out questions.
    n_answers: int = 240
    # Prompts with two sampled answers each.
    n_pairs: int = 1000
    n_pairs_valid: int = 160
    reward_epochs: int = 1
    reward_lr: float = 1e-3
    ppo_iterations: int = 13
    ppo_batch: int = 64
    dpo_epochs: int = 2
    dpo_lr: float = 1.5e-4
    dpo_beta: float = 0.2
    # Held-out prompts of the comparison.
    n_prompts: int = 120
    # Tokens of the longest story.
    story_tokens: int = 144
    # Labelled stories of the encoder's learning curve.
    label_sizes: tuple = (16, 64, 256, 1024)
    # At the first so many of these sizes, all parameters are trained as well.
    n_full_sizes: int = 2
    # Optimizer steps when all parameters are trained.
    label_steps: int = 60
    n_labelled_test: int = 400
    # Chats of all the world's tasks, for the fold that withholds a cluster.
    n_cluster_rows: int = 36 * 24
    cluster_steps: int = 90
    cluster_lr: float = 5e-4
    # Chats of all the world's tasks, of which GRPO takes those of the withheld cluster.
    n_verifiable_rows: int = 36 * 60
    grpo_iterations: int = 25
    grpo_batch: int = 128


def quick():
    """Settings for a test run: every stage takes seconds, and no model learns much."""
    return replace(
        Settings(), domain_steps=6, n_domain=60, n_valid=8, n_instructions=200, sft_steps=6, n_answers=16,
        n_pairs=24, n_pairs_valid=8, reward_epochs=1, ppo_iterations=2, ppo_batch=8, dpo_epochs=1,
        n_prompts=8, story_tokens=96, label_sizes=(8, 16), n_full_sizes=1, label_steps=4, n_labelled_test=30,
        n_cluster_rows=36 * 2, cluster_steps=2, n_verifiable_rows=36 * 2, grpo_iterations=2, grpo_batch=16)


@dataclass
class Tour:
    """One run of the tour: its folder, seed and settings, and the results of the stages so far."""

    out: Path
    seed: int = 0
    settings: Settings = field(default_factory=Settings)
    base: Path = DATA / "base"
    encoder: Path = DATA / "encoder"
    # Stage name -> Result.
    results: dict = field(default_factory=dict)

    def load(self, name):
        """(model, tokenizer) that a stage has saved as `name`; "base" and "pretrained encoder" come with minift.

        Raises MiniftError if nothing was saved.
        """
        path = {"base": self.base, "pretrained encoder": self.encoder}.get(name, self.out / name)
        if not path.exists():
            raise MiniftError(
                f"the tour needs {path}, which an earlier stage makes; run that stage too, or the whole tour")
        return load_model(path)

    def picture(self, name):
        return self.out / "pictures" / f"{name}.png"


@dataclass
class Result:
    """What a stage found."""

    # One plain sentence: what happened.
    sentence: str
    # Name -> number. They go to results.json; with several seeds, their mean and spread go to seeds.json.
    measures: dict
    # The stage's row in the closing table: what is measured, before and after.
    row: dict
    # Samples: (label, text).
    texts: list = field(default_factory=list)
    # A table for the stage's section of the report, as dicts.
    rows: list = field(default_factory=list)
    # The paths of the stage's pictures.
    pictures: list = field(default_factory=list)
    seconds: float = 0.0

    def save(self, path):
        write_json(path, {**vars(self), "pictures": [str(picture) for picture in self.pictures]})

    @classmethod
    def load(cls, path):
        return cls(**read_json(path))


def change(measure, before, after):
    """The stage's row in the closing table."""
    return {"measure": measure, "before": before, "after": after}


def mean(values):
    """The mean of some numbers."""
    return sum(values) / len(values)


class Clock:
    """A clock: calling it returns the seconds since it was made."""

    def __init__(self):
        self.start = time.perf_counter()

    def __call__(self):
        return time.perf_counter() - self.start


def smooth(rows, key, n=8):
    """(steps, means of a key over the last n rows) of a history: the values of single batches are noisy."""
    values = [row[key] for row in rows]
    windows = [values[max(0, i + 1 - n) : i + 1] for i in range(len(values))]
    return [row["step"] for row in rows], [mean(window) for window in windows]
