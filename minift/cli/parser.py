"""Reads a command line: which verb it asks for, and with which options."""

import importlib

from minift.cli import options as add

COMMAND = "python -m minift"
# In the order of --help. The module of a verb has its name, with _ for -.
VERBS = (
    "tour", "pretrain", "mlm", "classify", "sft", "reward", "ppo", "grpo", "dpo", "check-data", "generate", "evaluate",
    "chat", "templates", "label", "merge", "export", "lesson", "lab")


def find_module(verb):
    """The module of a verb."""
    return importlib.import_module(f"minift.cli.{verb.replace('-', '_')}")


def parse(argv):
    """The options of a command line. MiniftError for a wrong one; --help prints and exits, as argparse does."""
    parser = add.Parser(
        prog=COMMAND, description="minift: fine-tuning from scratch, in pure PyTorch.",
        allow_abbrev=False, formatter_class=add.layout,
        epilog=f"{COMMAND} VERB --help says more, with an example.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        module = find_module(verb)
        lines = [f"  {COMMAND} {example}" for example in module.EXAMPLES]
        summary = module.__doc__.splitlines()[0]
        one = verbs.add_parser(
            verb, help=summary, description=summary, usage=f"{COMMAND} {verb} [options]",
            allow_abbrev=False, formatter_class=add.layout,
            epilog="\n".join(["example:", *lines]))
        module.add_options(one)
    options = parser.parse_args(argv)
    options.argv = list(argv)
    return options
