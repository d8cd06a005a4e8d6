"""The options of every verb, with their defaults; values that cannot be are refused here, before any work.

The defaults suit the toy model in data/base; a real model wants learning rates a hundred times lower, as the help says.
"""

import argparse
import math

# verb -> learning rate for the toy, the same with LoRA, and for a real model (with LoRA: 2e-4)
RATES = {"pretrain": ("2e-3", "1e-2", "2e-5"), "sft": ("1.5e-3", "1e-2", "2e-5"), "reward": ("5e-4", "5e-3", "1e-5"),
         "dpo": ("3e-4", "3e-3", "1e-6"), "ppo": ("2e-4", "2e-3", "1e-6")}
EPOCHS = {"pretrain": 1, "sft": 3, "reward": 1, "dpo": 1}


def number(kind, least, above=False, most=math.inf):
    """A type for argparse: a finite int or float of at least `least` (above: more than it) and at most `most`."""
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least < value if above else least <= value) or not value <= most or value == math.inf:
            limit = f"{'above' if above else 'of at least'} {least}{f' and at most {most}' if most < math.inf else ''}"
            raise argparse.ArgumentTypeError(f"expected a {'whole ' * (kind is int)}number {limit}, got {text!r}")
        return value
    return read


COUNT, WHOLE, POSITIVE, NOT_NEGATIVE = number(int, 1), number(int, 0), number(float, 0, above=True), number(float, 0)


def option(sub, name, metavar, kind, default, text):
    """An option with a value; the default, where there is one, is told in its help."""
    told = "" if default is None else f" (default {default:g})"
    sub.add_argument(name, metavar=metavar, type=kind, default=default, help=text + told)


def flag(sub, name, text):
    sub.add_argument(name, action="store_true", help=text)


# ---- options that several verbs share ----


def add_model(sub, text="a model folder or an adapter folder", required=True):
    sub.add_argument("--model", metavar="DIR", required=required, help=text)


def add_data(sub, text='JSONL files; patterns such as "mine/*.jsonl" are expanded', required=True):
    sub.add_argument("--data", metavar="FILE", nargs="+", required=required, help=text)


def add_files(sub):
    sub.add_argument("--valid", metavar="FILE", nargs="+", help="what to keep the best on (default: a tenth of --data)")
    sub.add_argument("--out", metavar="DIR", required=True, help="a new folder for the result")


def add_machine(sub, seed=True):
    if seed:
        option(sub, "--seed", "N", WHOLE, 0, "of all random numbers")
    sub.add_argument("--device", metavar="NAME", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                     help="cpu, cuda or mps (default auto: the best there is)")


def add_overwrite(sub):
    flag(sub, "--overwrite", "write over what is in --out")


def add_rate(sub, verb):
    toy, lora, real = RATES[verb]
    option(sub, "--lora", "RANK", COUNT, None, "train a LoRA adapter of this rank; --out then holds it alone")
    told = f"learning rate (default {toy}, LoRA {lora}; a real model {real}, LoRA 2e-4)"
    option(sub, "--lr", "X", POSITIVE, None, told)


def add_running(sub):
    option(sub, "--context", "N", COUNT, None, "tokens of a row at most (default: the model's context)")
    option(sub, "--eval-every", "N", COUNT, None, "steps between validations, and saved states (default: a tenth)")
    flag(sub, "--skip-bad", "leave out rows with errors instead of stopping at the first")
    flag(sub, "--drop-duplicates", "leave out rows that repeat or contradict an earlier one")
    add_machine(sub)
    flag(sub, "--resume", "go on with a run that was stopped (Ctrl-C, a crash)")
    add_overwrite(sub)


def add_training(sub, verb):
    add_rate(sub, verb)
    option(sub, "--epochs", "N", POSITIVE, EPOCHS[verb], "passes over the data")
    option(sub, "--steps", "N", COUNT, None, "optimizer steps, instead of --epochs")
    option(sub, "--batch-size", "N", COUNT, 16, "rows in a batch")
    option(sub, "--accumulate", "N", COUNT, 1, "batches in an optimizer step")
    sub.add_argument("--dtype", metavar="NAME", choices=("float32", "bfloat16"), default="float32",
                     help="float32, or bfloat16 on a CUDA device (default float32)")
    add_running(sub)


def add_length(sub):
    option(sub, "--max-new-tokens", "N", COUNT, None, "tokens of an answer at most (default 128, or what fits)")


def add_sampling(sub):
    add_length(sub)
    option(sub, "--temperature", "X", NOT_NEGATIVE, 0.7, "0 is greedy, 1 the model's own probabilities")
    option(sub, "--top-k", "N", COUNT, None, "only the N likeliest tokens")
    probability = number(float, 0, above=True, most=1)
    option(sub, "--top-p", "X", probability, None, "only the likeliest that hold X of the probability")


# ---- the options of each verb ----


def tour(sub, verb):
    sub.add_argument("--out", metavar="DIR", default="runs/tour", help="where everything goes (default runs/tour)")
    option(sub, "--seed", "N", WHOLE, 0, "of all random numbers")
    sub.add_argument("--seeds", metavar="N", type=WHOLE, nargs="+", help="several tours, with mean and spread")
    sub.add_argument("--stages", metavar="NAME", nargs="+", help="only these stages, upon what --out holds already")
    flag(sub, "--quick", "a rehearsal: every stage runs, none learns much")
    flag(sub, "--resume", "keep the stages that are finished in --out")


def pretrain(sub, verb):
    add_model(sub, required=False)
    add_data(sub, 'text files; patterns such as "plays/*.md" are expanded', required=False)
    add_files(sub)
    sub.add_argument("--recipe", metavar="NAME", choices=("base",), help='"base" makes data/base anew, from nothing')
    sub.add_argument("--replay", metavar="FILE", nargs="+", help="old text to mix in against forgetting")
    option(sub, "--replay-share", "X", number(float, 0, most=0.99), 0.3, "its share of the rows")
    add_training(sub, verb)


def sft(sub, verb):
    add_model(sub)
    add_data(sub)
    add_files(sub)
    add_training(sub, verb)


def dpo(sub, verb):
    add_model(sub, "a model folder or an adapter folder; it is also the reference")
    add_data(sub)
    add_files(sub)
    option(sub, "--beta", "X", POSITIVE, 0.1, "price of leaving the reference")
    option(sub, "--label-smoothing", "X", number(float, 0, most=0.49), 0.0, "chance that a label is wrong")
    add_training(sub, verb)


def ppo(sub, verb):
    """The judge, the size of a rollout, and what of PPO one may want to set."""
    add_model(sub, "a model folder or an adapter folder; it is also the reference")
    add_data(sub, 'JSONL; {"prompt"} goes through the chat template, {"text"} does not')
    add_files(sub)
    sub.add_argument("--reward-model", metavar="DIR", help="a folder that the verb reward wrote")
    sub.add_argument("--reward-fn", metavar="FILE.py:NAME", help="a function of (prompts, responses), returns floats")
    add_rate(sub, verb)
    option(sub, "--iterations", "N", COUNT, 20, "rollouts, each with its updates")
    option(sub, "--batch-size", "N", COUNT, 32, "answers in a rollout")
    option(sub, "--minibatch-size", "N", COUNT, 16, "answers in an optimizer step")
    option(sub, "--epochs", "N", COUNT, 2, "passes over each rollout")
    option(sub, "--beta", "X", NOT_NEGATIVE, 0.05, "price of a nat of KL to the reference")
    option(sub, "--target-kl", "X", POSITIVE, None, "steer beta to this KL, in nats an answer")
    option(sub, "--missing-eos-penalty", "X", NOT_NEGATIVE, 1.0, "for an answer that was cut")
    option(sub, "--max-new-tokens", "N", COUNT, 96, "tokens of an answer at most")
    option(sub, "--temperature", "X", POSITIVE, 1.0, "of sampling and update")
    add_running(sub)


def check_data(sub, verb):
    add_model(sub, "the model that will be trained: its tokenizer, context, speed")
    add_data(sub, "JSONL, .txt or .md files, or patterns")
    option(sub, "--context", "N", COUNT, None, "tokens of a row at most (default: the model's context)")
    option(sub, "--batch-size", "N", COUNT, 16, "for the estimates")
    option(sub, "--show", "N", WHOLE, 2, "rows of each form to show, coloured by what is learned")
    add_machine(sub, seed=False)


def generate(sub, verb):
    add_model(sub)
    sub.add_argument("--prompt", metavar="TEXT", help="one prompt; the answer is printed")
    add_data(sub, 'JSONL rows {"prompt"}; each gets a "completion"', required=False)
    sub.add_argument("--out", metavar="FILE", help="the JSONL file for the rows (default: they are printed)")
    flag(sub, "--raw", "no chat template: go on from the prompt as it is")
    option(sub, "--batch-size", "N", COUNT, 32, "prompts at a time")
    add_sampling(sub)
    add_machine(sub)
    add_overwrite(sub)


def evaluate(sub, verb):
    add_model(sub, "a language model or a reward model; or an adapter folder")
    add_data(sub, "texts, answers, pairs; JSONL, .txt or .md")
    sub.add_argument("--reference", metavar="DIR", help="for pairs: what --model was trained from (implicit reward)")
    option(sub, "--show", "N", WHOLE, 0, "answers to show beside the expected ones")
    option(sub, "--batch-size", "N", COUNT, 32, "rows at a time")
    sub.add_argument("--out", metavar="FILE", help="a JSON file for the numbers")
    add_length(sub)
    add_machine(sub, seed=False)
    add_overwrite(sub)


def chat(sub, verb):
    add_model(sub)
    sub.add_argument("--system", metavar="TEXT", help="a system turn to begin with")
    add_sampling(sub)
    add_machine(sub)


def merge(sub, verb):
    add_model(sub, "the adapter folder")
    sub.add_argument("--out", metavar="DIR", required=True, help="a new folder for the plain model")
    add_overwrite(sub)


ADD = {"tour": tour, "pretrain": pretrain, "sft": sft, "reward": sft, "ppo": ppo, "dpo": dpo, "check-data": check_data,
       "generate": generate, "evaluate": evaluate, "chat": chat, "merge": merge}
