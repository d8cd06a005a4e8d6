"""PPO on JSONL rows {"prompt"}, with a reward model or your own function as the judge."""

from minift.cli import options as add

EXAMPLES = [
    "ppo --model data/base --data data/samples/prompts.jsonl --reward-fn data/samples/reward_fn.py:score "
    "--out runs/ppo"]


def add_options(parser):
    """The judge, the size of a rollout, and the settings of PPO."""
    add.model(parser, "a model folder or an adapter folder; it is also the reference")
    add.data(parser, 'JSONL; {"prompt"} goes through the chat template, {"text"} does not')
    add.files(parser)
    parser.add_argument("--reward-model", metavar="DIR", help="a folder that the verb reward wrote")
    parser.add_argument(
        "--reward-fn", metavar="FILE.py:NAME",
        help="a function of (prompts, responses), returns floats")
    add.rate(parser, "ppo")
    add.option(parser, "--iterations", "N", add.COUNT, 20, "rollouts, each with its updates")
    add.option(parser, "--batch-size", "N", add.COUNT, 32, "answers in a rollout")
    add.sized(parser, "--minibatch-size", "answers in an optimizer step")
    add.option(parser, "--epochs", "N", add.COUNT, 2, "passes over each rollout")
    add.option(parser, "--beta", "X", add.NOT_NEGATIVE, 0.05, "price of a nat of KL to the reference")
    add.option(parser, "--target-kl", "X", add.POSITIVE, None, "steer beta to this KL, in nats an answer")
    add.option(parser, "--missing-eos-penalty", "X", add.NOT_NEGATIVE, 1.0, "for an answer that was cut")
    add.option(parser, "--max-new-tokens", "N", add.COUNT, 96, "tokens of an answer at most")
    add.option(parser, "--temperature", "X", add.POSITIVE, 1.0, "of sampling and update")
    add.running(parser)


def run(options):
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.ppo_run import ppo
    ppo(options)
