"""The verbs of the command line: which function does the work, what it is for, and an example that works as it stands.

The examples run in the root of the repository.
"""

import argparse

from minift.errors import MiniftError
from minift.jobs.options import ADD, RATES

COMMAND = "python -m minift"
BASE, SAMPLES = "--model data/base", "data/samples"

# verb -> ("module.function" in minift.jobs, one line of help, examples)
VERBS = {
    "tour": ("", "The whole journey: one model goes through every kind of fine-tuning, on the embedded world.",
             ["tour --quick --out runs/quick"]),
    "pretrain": ("training.pretrain", 'Continued pre-training on plain text: .txt, .md, or JSONL rows {"text"}.',
                 [f"pretrain {BASE} --data {SAMPLES}/text.jsonl --out runs/pretrain"]),
    "sft": ("training.sft", 'Supervised fine-tuning on JSONL rows {"messages"} or {"prompt", "completion"}.',
            [f"sft {BASE} --data {SAMPLES}/messages.jsonl --out runs/sft"]),
    "reward": ("training.reward", 'A reward model, from JSONL rows {"prompt", "chosen", "rejected"}.',
               [f"reward {BASE} --data {SAMPLES}/pairs.jsonl --out runs/reward"]),
    "ppo": ("rl.ppo", 'PPO on JSONL rows {"prompt"}, with a reward model or your own function as the judge.',
            [f"ppo {BASE} --data {SAMPLES}/prompts.jsonl --reward-fn {SAMPLES}/reward_fn.py:score --out runs/ppo"]),
    "dpo": ("training.dpo", 'Direct preference optimization on JSONL rows {"prompt", "chosen", "rejected"}.',
            [f"dpo {BASE} --data {SAMPLES}/pairs.jsonl --out runs/dpo"]),
    "check-data": ("check.check_data", "What files will become: rows, tokens, what is learned, time, memory.",
                   [f"check-data {BASE} --data {SAMPLES}/messages.jsonl"]),
    "generate": ("use.generate", 'Answer a prompt, or every JSONL row {"prompt"}; a {"text"} is continued as it is.',
                 [f'generate {BASE} --raw --prompt "One sunny morning"',
                  f"generate {BASE} --data {SAMPLES}/prompts.jsonl --out runs/answers.jsonl"]),
    "evaluate": ("evaluate.evaluate", "Perplexity of texts, exact match of answers, accuracy on preference pairs.",
                 [f"evaluate {BASE} --data {SAMPLES}/completions.jsonl"]),
    "chat": ("use.chat", "Talk with a model; its words appear as they come. /quit ends it.", [f"chat {BASE}"]),
    "merge": ("use.merge", "Write an adapter and its base as one plain model.",
              [f"sft {BASE} --data {SAMPLES}/messages.jsonl --lora 8 --out runs/adapter",
               "merge --model runs/adapter --out runs/merged"]),
}


class Parser(argparse.ArgumentParser):
    """argparse, with errors like all others: one sentence."""

    def error(self, message):
        raise MiniftError(f"{message}; see {self.prog} --help")


def parse(argv):
    """The options of a command line. Raises MiniftError for a wrong one; --help prints and exits, as argparse does."""
    parser = Parser(prog=COMMAND, description="minift: fine-tuning from scratch, in pure PyTorch.", allow_abbrev=False,
                    formatter_class=layout, epilog=f"{COMMAND} VERB --help says more, with an example.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (job, summary, examples) in VERBS.items():
        lines = "\n".join(f"  {COMMAND} {example}" for example in examples)
        sub = verbs.add_parser(verb, help=summary, description=summary, usage=f"{COMMAND} {verb} [options]",
                               allow_abbrev=False, formatter_class=layout, epilog=f"example:\n{lines}")
        sub.set_defaults(job=job)
        ADD[verb](sub, verb)
    options = parser.parse_args(argv)
    options.argv = list(argv)
    if getattr(options, "lr", 0) is None:
        options.lr = float(RATES[options.verb][bool(options.lora)])
    return options


def layout(prog):
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100)
