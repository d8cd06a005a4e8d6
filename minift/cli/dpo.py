"""Direct preference optimization on JSONL rows {"prompt", "chosen", "rejected"}."""

from minift.cli import options as add

EXAMPLES = ["dpo --model data/base --data data/samples/pairs.jsonl --out runs/dpo"]


def add_options(parser):
    add.model(parser, "a model folder or an adapter folder; it is also the reference")
    add.data(parser)
    add.files(parser)
    add.option(parser, "--beta", "X", add.POSITIVE, 0.1, "price of leaving the reference")
    add.option(parser, "--label-smoothing", "X", add.number(float, 0, most=0.49), 0.0, "chance that a label is wrong")
    add.training(parser, "dpo")


def run(options):
    """Train on pairs. The reference's log-probabilities are computed once, before the training."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.reward import load_pairs
    from minift.cli.run import Run
    from minift.core.logprobs import make_reference
    from minift.methods.dpo import add_reference_logprobs, make_dpo_loss
    from minift.methods.lora import base_reference
    run = Run(options)
    data, make_batches = load_pairs(run)
    run.set_model(run.model)
    reference = base_reference(run.model) if options.lora else make_reference(run.model)
    for examples in (data.train, data.valid):
        add_reference_logprobs(examples, reference, run.tokenizer.pad_id, run.settings.batch_size, run.device)
    loss_fn = make_dpo_loss(run.model, options.beta, options.label_smoothing)
    run.train(loss_fn, make_batches(data.train), make_batches(data.valid, shuffle=False))
    run.finish()
