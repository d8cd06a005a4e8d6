"""A reward model, from JSONL rows {"prompt", "chosen", "rejected"}."""

from functools import partial
from itertools import chain, islice

from minift.cli import options as add

EXAMPLES = ["reward --model data/base --data data/samples/pairs.jsonl --out runs/reward"]
# Batches of pairs from which the mean and the standard deviation of the scores are measured.
SCORED = 32


def add_options(parser):
    add.model(parser)
    add.data(parser)
    add.files(parser)
    add.training(parser, "reward")


def run(options):
    """Train on pairs, keep the best weights, and normalise their scores."""
    # The imports stand here, so that --help answers without loading PyTorch.
    import torch

    from minift.cli.run import Run
    from minift.core.heads import TokenScorer
    from minift.methods.reward import make_reward_loss, normalise_scores, score_pairs
    run = Run(options)
    data, make_batches = load_pairs(run)
    run.set_model(TokenScorer(run.model.body))
    run.train(make_reward_loss(run.model), make_batches(data.train), make_batches(data.valid, shuffle=False))

    # Normalise the scores on some pairs, and save the model again.
    some = islice(make_batches(data.train), SCORED)
    scores = chain.from_iterable(score_pairs(run.model, some))
    normalise_scores(run.model, torch.cat(list(scores)))
    run.save()
    run.finish()


def load_pairs(run, use_margin=True):
    """Preference pairs as Data, and the function that makes batches of them."""
    from minift.cli.encoders import encode_preference
    from minift.cli.examples import load
    from minift.text.pairs import collate_pairs
    encode = partial(encode_preference, tokenizer=run.tokenizer, context=run.context, use_margin=use_margin)
    data = load(run.options, encode, ("pair",))
    run.set_data(data)
    return data, partial(run.batches, collate=collate_pairs)
