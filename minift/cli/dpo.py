"""DPO and its family, on JSONL rows {"prompt", "chosen", "rejected"}; KTO on single answers too.

The losses have TRL's names, but for "dpo", which is "sigmoid" in TRL. KTO's rows are {"prompt", "completion", "label"}.
"""

from functools import partial
from itertools import chain

from minift.cli import options as add
from minift.errors import MiniftError

EXAMPLES = [
    "dpo --model data/base --data data/samples/pairs.jsonl --out runs/dpo",
    "dpo --model data/base --data data/samples/judged.jsonl --loss kto --out runs/kto"]
LOSSES = ("dpo", "ipo", "hinge", "robust", "simpo", "orpo", "kto")
# The default of --beta where it is not 0.1.
BETAS = {"simpo": 2.0}
# The losses with a --label-smoothing, and those without a reference.
SMOOTHED, FREE = ("dpo", "robust"), ("simpo", "orpo")


def add_options(parser):
    add.model(parser, "a model folder or an adapter folder; it is also the reference")
    add.data(parser)
    add.files(parser)
    parser.add_argument(
        "--loss", metavar="NAME", choices=LOSSES, default="dpo", help=f"{', '.join(LOSSES)} (default dpo)")
    add.option(
        parser, "--beta", "X", add.POSITIVE, None,
        "price of leaving the reference (default 0.1); simpo: scale of the gap (2); orpo: weight of the odds ratio")
    add.option(parser, "--label-smoothing", "X", add.number(float, 0, most=0.49), 0.0, "chance that a label is wrong")
    add.training(parser, "dpo")


def run(options):
    """Train on preferences. The reference's log-probabilities are computed once, before the training."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.reward import load_pairs
    from minift.cli.run import Run
    check_options(options)
    options.beta = options.beta or BETAS.get(options.loss, 0.1)
    run = Run(options)
    if options.loss == "kto":
        data, make_batches, sides = load_judged(run)
    else:
        data, make_batches = load_pairs(run, use_margin=options.loss == "dpo")
        sides = ("chosen", "rejected")
    run.set_model(run.model)
    if options.loss not in FREE:
        add_reference(run, data, sides)
    loss_fn = make_loss(run.model, options)
    run.train(loss_fn, make_batches(data.train), make_batches(data.valid, shuffle=False))
    run.finish()


def check_options(options):
    """MiniftError for options that do not go together."""
    if options.loss == "kto" and options.batch_size == 1:
        raise MiniftError("--loss kto measures its KL over a batch; give --batch-size 2 or more")
    if options.label_smoothing and options.loss not in SMOOTHED:
        raise MiniftError(f"--label-smoothing has no meaning with --loss {options.loss}; leave it out")
    if options.loss == "robust" and not options.label_smoothing:
        raise MiniftError("--loss robust needs --label-smoothing, the chance that a label is wrong, such as 0.1")


def load_judged(run):
    """Single answers as Data, the function that makes batches of them, and the names of an example's two answers."""
    from minift.cli.encoders import encode_judged
    from minift.cli.examples import load
    from minift.methods.kto import SIDES, add_other_answers, collate_judged
    encode = partial(encode_judged, tokenizer=run.tokenizer, context=run.context)
    data = load(run.options, encode, ("judged", "pair"))
    for part in (data.train, data.valid):
        part[:] = chain.from_iterable(part)
        if part:
            add_other_answers(part, run.context)
    run.set_data(data)
    return data, partial(run.batches, collate=collate_judged), SIDES


def add_reference(run, data, sides):
    """Store the reference's sums in every example."""
    from minift.core.logprobs import make_reference
    from minift.methods.dpo import add_reference_logprobs
    from minift.methods.lora import base_reference
    reference = base_reference(run.model) if run.options.lora else make_reference(run.model)
    for examples in (data.train, data.valid):
        add_reference_logprobs(
            examples, reference, run.tokenizer.pad_id, run.settings.batch_size, run.device, sides)


def make_loss(model, options):
    """The loss_fn that --loss names."""
    from minift.methods import dpo
    from minift.methods.kto import make_kto_loss
    beta = options.beta
    if options.loss == "kto":
        return make_kto_loss(model, beta)
    if options.loss == "simpo":
        return dpo.make_reference_free_loss(model, partial(dpo.simpo_loss, beta=beta))
    if options.loss == "orpo":
        return dpo.make_reference_free_loss(model, partial(dpo.orpo_loss, weight=beta))
    names = {"dpo": dpo.dpo_loss, "ipo": dpo.ipo_loss, "hinge": dpo.hinge_loss, "robust": dpo.robust_loss}
    return dpo.make_dpo_loss(model, beta, options.label_smoothing, names[options.loss])
