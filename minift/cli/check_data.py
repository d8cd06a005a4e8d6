"""What files will become: rows, tokens, what is learned, time, memory."""

from minift.cli import options as add

EXAMPLES = ["check-data --model data/base --data data/samples/messages.jsonl"]


def add_options(parser):
    add.model(parser, "the model that will be trained: its tokenizer, context, speed")
    add.data(parser, "JSONL, .txt or .md files, or patterns")
    add.context(parser)
    add.sized(parser, "--batch-size", "rows in a batch, for the estimates")
    add.option(parser, "--show", "N", add.WHOLE, 2, "rows of each form to show, coloured by what is learned")
    add.machine(parser, seed=False)


def run(options):
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.data_report import check_data
    check_data(options)
