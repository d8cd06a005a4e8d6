"""Perplexity of texts, exact match of answers, accuracy on pairs and labels."""

from minift.cli import options as add

EXAMPLES = [
    "evaluate --model data/base --data data/samples/completions.jsonl",
    "evaluate --leave-one-cluster-out --model data/base --data data/samples/tasks.jsonl --steps 5 "
    "--out runs/folds"]


def add_options(parser):
    add.model(parser, "a language model, a reward model or a classifier; or an adapter folder")
    add.data(parser, "texts, answers, pairs, labels; JSONL, .txt or .md", required=False)
    add.context(parser)
    parser.add_argument("--reference", metavar="DIR", help="for pairs: what --model was trained from (implicit reward)")
    add.option(parser, "--show", "N", add.WHOLE, 0, "answers to show beside the expected ones")
    add.option(parser, "--batch-size", "N", add.COUNT, 32, "rows at a time")
    parser.add_argument("--out", metavar="PATH", help="a JSON file for the numbers; for the folds, a folder")
    add.length(parser)
    add.machine(parser, seed=False)
    add.overwrite(parser)
    add.folds(parser)


def run(options):
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.leave_out import leave_out
    from minift.cli.measures import evaluate
    if options.leave_one_cluster_out:
        leave_out(options)
    else:
        evaluate(options)
