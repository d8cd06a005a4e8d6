"""Supervised fine-tuning on JSONL rows {"messages"} or {"prompt", "completion"}."""

from functools import partial

from minift.cli import options as add

EXAMPLES = ["sft --model data/base --data data/samples/messages.jsonl --out runs/sft"]


def add_options(parser):
    add.model(parser)
    add.data(parser)
    add.files(parser)
    add.training(parser, "sft")


def run(options):
    """Train on chats, and keep the weights that are best on the validation rows."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.encoders import encode_dialogue
    from minift.cli.examples import load
    from minift.cli.run import Run
    from minift.methods.sft import make_sft_loss
    from minift.text.batches import collate
    run = Run(options)
    data = load(
        options, partial(encode_dialogue, tokenizer=run.tokenizer, context=run.context),
        ("messages", "completion"))
    run.set_data(data)
    run.set_model(run.model)
    batches, valid = run.batches(data.train, collate), run.batches(data.valid, collate, shuffle=False)
    run.train(make_sft_loss(run.model), batches, valid)
    run.finish()
