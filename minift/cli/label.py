"""A page on which people compare answers, label texts, or write instructions."""

from minift.cli import options as add

PROG = "python -m minift label"
# Mode -> (one line of help, an example).
MODES = {
    "compare": (
        "Choose the better of two answers: rows for reward and dpo.",
        "compare --model data/base --prompts data/samples/prompts.jsonl --out runs/prefs.jsonl"),
    "annotate": (
        "Give labels to texts, several people the same ones.",
        "annotate --items data/samples/unlabelled.jsonl --labels happy,sad --annotators Ada Ben "
        "--guidelines data/guidelines.md --out runs/annotated.jsonl"),
    "write": (
        "Write instructions and their responses: rows for sft.",
        "write --guidelines data/guidelines.md --out runs/written.jsonl")}
EXAMPLES = [f"label {example}" for _, example in MODES.values()]


def add_options(parser):
    """Three modes under one verb; each prints the address of a page and serves it until Ctrl-C."""
    parser.usage = f"{PROG} MODE [options]"
    modes = parser.add_subparsers(dest="mode", metavar="MODE", required=True, prog=PROG)
    for mode, (text, example) in MODES.items():
        one = modes.add_parser(
            mode, help=text, description=text, usage=f"{PROG} {mode} [options]", allow_abbrev=False,
            formatter_class=add.layout, epilog=f"example:\n  {PROG} {example}")
        if mode == "compare":
            add_answers(one)
        elif mode == "annotate":
            add_items(one)
        one.add_argument(
            "--out", metavar="FILE", required=True,
            help="a JSONL file; if it exists, the work continues in it; ties and skips go to NAME.undecided.jsonl")
        one.add_argument("--guidelines", metavar="FILE", help="a text to show beside the items")
        add.option(one, "--port", "N", add.number(int, 0, most=65535), 0, "of this machine; 0 is any free one")


def run(options):
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.label_page import label
    label(options)


def add_answers(sub):
    add.model(sub, "who answers: a model folder or an adapter folder", required=False)
    sub.add_argument("--prompts", metavar="FILE", nargs="+", help='JSONL rows {"prompt"} to be answered')
    sub.add_argument(
        "--pairs", metavar="FILE", nargs="+",
        help='ready answers instead: {"prompt", "answers": [a, b]} or {"prompt", "chosen", "rejected"}')
    add.length(sub)
    add.option(sub, "--temperature", "X", add.POSITIVE, 1.0, "of sampling")
    add.option(sub, "--batch-size", "N", add.COUNT, 32, "prompts at a time")
    add.machine(sub)


def add_items(sub):
    sub.add_argument(
        "--items", metavar="FILE", nargs="+", required=True,
        help='JSONL rows {"text"}, where needed with "text_pair" and "id"')
    sub.add_argument("--labels", metavar="A,B,C", required=True, help="what a text can be, with commas between")
    sub.add_argument("--annotators", metavar="NAME", nargs="+", required=True, help="who labels; each sees every text")
