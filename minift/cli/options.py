"""The options that verbs share, with their defaults. Impossible values are refused here, before any work begins.

The defaults of learning rate and batch size depend on the model. It is not open yet when the command is read, so
settle() works them out later. A small model that was trained from scratch needs learning rates a hundred times as high
as a large pretrained one.
"""

import argparse
import math
from dataclasses import dataclass, fields

from minift.errors import MiniftError

# Verb -> four learning rates. The first two are for the toy: all weights, or few of them (LoRA, a classifier's head).
# The last two are the same for a real model; those of LoRA suited SmolLM2-135M, in runs of 12 to 27 steps.
RATES = {
    "pretrain": ("2e-3", "1e-2", "2e-5", "1e-3"), "sft": ("1.5e-3", "1e-2", "2e-5", "1e-3"),
    "reward": ("5e-4", "5e-3", "1e-5", "1e-3"), "dpo": ("3e-4", "3e-3", "1e-6", "5e-4"),
    "ppo": ("2e-4", "2e-3", "1e-6", "5e-4"), "grpo": ("3e-4", "3e-3", "1e-6", "5e-4"),
    "mlm": ("1e-3", None, "5e-5", None),
    "classify": ("5e-4", "2e-2", "2e-5", "2e-2")}
# A model with at least so many parameters counts as a real one.
REAL = 20_000_000
# Option -> its default for the toy and for a real model, whose training should fit into 4 GB.
SIZES = {
    "batch_size": (16, 4), "accumulate": (1, 4), "minibatch_size": (16, 4)}
# Tokens of a row when a real model is trained on plain text.
WINDOW = 256
EPOCHS = {"pretrain": 1, "sft": 3, "reward": 1, "dpo": 1, "mlm": 3, "classify": 5}


class Parser(argparse.ArgumentParser):
    """argparse, with errors like all others: one sentence."""

    def error(self, message):
        raise MiniftError(f"{message}; see {self.prog} --help")


def layout(prog):
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100)


def number(kind, least, above=False, most=math.inf):
    """A type for argparse: a finite int or float of at least `least` (above: more than it) and at most `most`."""
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least < value if above else least <= value) or not value <= most or value == math.inf:
            asked = "a whole number" if kind is int else "a number"
            limit = f"above {least}" if above else f"of at least {least}"
            limit += f" and at most {most}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"expected {asked} {limit}, got {text!r}")
        return value
    return read


COUNT, WHOLE, POSITIVE, NOT_NEGATIVE = number(int, 1), number(int, 0), number(float, 0, above=True), number(float, 0)


def option(sub, name, metavar, kind, default, text):
    """An option with a value; the default, where there is one, is told in its help."""
    told = "" if default is None else f" (default {default:g})"
    sub.add_argument(name, metavar=metavar, type=kind, default=default, help=text + told)


def sized(sub, name, text, default=None):
    """A count whose default, when it is None, is set by settle()."""
    toy, real = SIZES[name[2:].replace("-", "_")]
    told = "" if default else f" (default {toy}; a real model {real})"
    option(sub, name, "N", COUNT, default, text + told)


def flag(sub, name, text):
    sub.add_argument(name, action="store_true", help=text)


# ---- options that several verbs share ----


def model(sub, text="a model folder or an adapter folder", required=True):
    sub.add_argument("--model", metavar="DIR", required=required, help=text)


def data(sub, text='JSONL files; patterns such as "mine/*.jsonl" are expanded', required=True):
    sub.add_argument("--data", metavar="FILE", nargs="+", required=required, help=text)


def files(sub, text="a new folder for the result", required=True):
    sub.add_argument("--valid", metavar="FILE", nargs="+", help="what to keep the best on (default: a tenth of --data)")
    metavar = "DIR" if required else "PATH"
    sub.add_argument("--out", metavar=metavar, required=required, help=text)


def machine(sub, seed=True):
    if seed:
        option(sub, "--seed", "N", WHOLE, 0, "of all random numbers")
    sub.add_argument(
        "--device", metavar="NAME", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="cpu, cuda or mps (default auto: the best there is)")


def overwrite(sub):
    flag(sub, "--overwrite", "write over what is in --out")


def rate(sub, verb):
    toy, few, real, few_real = RATES[verb]
    if verb in ("mlm", "classify"):
        sub.add_argument("--lora", nargs="?", const="", type=refuse_lora, help=argparse.SUPPRESS)
        told = f"{toy}{f', of the head alone {few}' if few else ''}; a real model {real}"
    else:
        option(sub, "--lora", "RANK", COUNT, None, "train a LoRA adapter of this rank; --out then holds it alone")
        told = f"{toy}, LoRA {few}; a real model {real}, LoRA {few_real}"
    option(sub, "--lr", "X", POSITIVE, None, f"learning rate (default {told})")


@dataclass(frozen=True)
class Settings:
    """The settings that depend on the model's size, worked out once, when the model is open."""

    # The learning rate.
    lr: float | None = None
    # Rows in a batch.
    batch_size: int | None = None
    # Batches in an optimizer step.
    accumulate: int | None = None
    # Answers in one of PPO's optimizer steps.
    minibatch_size: int | None = None
    # Tokens of a row at most; None: the model's context.
    context: int | None = None


def settle(options, model):
    """The Settings for a verb: each as the options give it, else the default for a model of this size."""
    given = {field.name: getattr(options, field.name, None) for field in fields(Settings)}
    if given["lr"] is None and options.verb in RATES:
        toy, real = RATES[options.verb][:2], RATES[options.verb][2:]
        few_weights = options.lora or getattr(options, "regime", "") == "freeze"
        for_all, for_few = real if is_real(model) else toy
        given["lr"] = float(for_few) if few_weights else float(for_all)
    for name, (toy, real) in SIZES.items():
        if given[name] is None and hasattr(options, name):
            given[name] = real if is_real(model) else toy
    if options.verb == "pretrain":
        given["context"] = window(model, options.context)
    return Settings(**given)


def is_real(model):
    return sum(p.numel() for p in model.parameters()) >= REAL


def window(model, asked):
    """Tokens of a row of plain text: `asked`, else the model's context; for a real model at most WINDOW."""
    longest = model.config.context_length
    return asked or (min(WINDOW, longest) if is_real(model) else longest)


def refuse_lora(text):
    raise argparse.ArgumentTypeError("an encoder is trained whole, or frozen under its new head; leave it out")


def context(sub):
    option(
        sub, "--context", "N", COUNT, None,
        f"tokens of a row at most (default: the model's; text and a real model: {WINDOW})")


def running(sub):
    context(sub)
    option(sub, "--eval-every", "N", COUNT, None, "steps between validations, and saved states (default: a tenth)")
    flag(sub, "--checkpointing", "compute activations again: less memory, up to half slower")
    flag(sub, "--skip-bad", "leave out rows with errors instead of stopping at the first")
    flag(sub, "--drop-duplicates", "leave out rows that repeat or contradict an earlier one")
    machine(sub)
    flag(sub, "--resume", "go on with a run that was stopped (Ctrl-C, a crash)")
    overwrite(sub)


def training(sub, verb):
    rate(sub, verb)
    option(sub, "--epochs", "N", POSITIVE, EPOCHS[verb], "passes over the data")
    option(sub, "--steps", "N", COUNT, None, "optimizer steps, instead of --epochs")
    # An encoder has one default, whatever its size.
    rows, batches = (16, 1) if verb in ("mlm", "classify") else (None, None)
    sized(sub, "--batch-size", "rows in a batch", rows)
    sized(sub, "--accumulate", "batches in an optimizer step", batches)
    sub.add_argument(
        "--dtype", metavar="NAME", choices=("float32", "bfloat16"), default="float32",
        help="float32, or bfloat16 on a CUDA device (default float32)")
    running(sub)


def judge(sub):
    """Where the reward of an answer comes from."""
    sub.add_argument("--reward-model", metavar="DIR", help="a folder that the verb reward wrote")
    sub.add_argument(
        "--reward-fn", metavar="FILE.py:NAME",
        help="a function of (prompts, responses), returns floats")


def rollouts(sub, verb, iterations, batch_size, epochs, beta, missing_eos_penalty):
    """The options of training on the policy's own answers; the numbers are their defaults."""
    rate(sub, verb)
    option(sub, "--iterations", "N", COUNT, iterations, "rollouts, each with its updates")
    option(sub, "--batch-size", "N", COUNT, batch_size, "answers in a rollout")
    sized(sub, "--minibatch-size", "answers in an optimizer step")
    option(sub, "--epochs", "N", COUNT, epochs, "passes over each rollout")
    option(sub, "--beta", "X", NOT_NEGATIVE, beta, "price of a nat of KL to the reference")
    option(sub, "--missing-eos-penalty", "X", NOT_NEGATIVE, missing_eos_penalty, "for an answer that was cut")
    option(sub, "--max-new-tokens", "N", COUNT, 96, "tokens of an answer at most")
    option(sub, "--temperature", "X", POSITIVE, 1.0, "of sampling and update")


def length(sub):
    option(sub, "--max-new-tokens", "N", COUNT, None, "tokens of an answer at most (default 128, or what fits)")


def clusters(text):
    return text if text == "all" else COUNT(text)


def folds(sub):
    """The options of leaving one cluster out."""
    flag(
        sub, "--leave-one-cluster-out", 'tune on all clusters but one, assess on that one: rows {"messages", "task", '
        '"cluster"}; without --data, chats about the world')
    sub.add_argument(
        "--clusters", metavar="N", type=clusters, nargs="+", default=[1, 2, 4, "all"],
        help="numbers of clusters to tune on (default 1 2 4 all)")
    sub.add_argument("--seeds", metavar="N", type=WHOLE, nargs="+", default=[0], help="of everything (default 0)")
    option(sub, "--steps", "N", COUNT, 90, "of tuning, in each fold")
    option(sub, "--lr", "X", POSITIVE, 5e-4, "of tuning")


def sampling(sub):
    length(sub)
    option(sub, "--temperature", "X", NOT_NEGATIVE, 0.7, "0 is greedy, 1 the model's own probabilities")
    option(sub, "--top-k", "N", COUNT, None, "only the N likeliest tokens")
    probability = number(float, 0, above=True, most=1)
    option(sub, "--top-p", "X", probability, None, "only the likeliest that hold X of the probability")
