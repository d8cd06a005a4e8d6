"""GRPO and its family on JSONL rows {"prompt"}: answers to one prompt are compared; no critic."""

from minift.cli import options as add
from minift.errors import MiniftError

METHODS = ("grpo", "dr_grpo", "dapo", "rloo", "reinforce")
EXAMPLES = ["grpo --model data/base --data data/samples/completions.jsonl --checker exact --out runs/grpo"]


def add_options(parser):
    """The judge, the size of a rollout, and the settings of the methods."""
    add.model(parser, "a model folder or an adapter folder; it is also the reference")
    add.data(parser, 'JSONL; "answer" or "completion": what --checker calls right')
    add.files(parser)
    add.judge(parser)
    parser.add_argument(
        "--checker", metavar="NAME", choices=("exact",), help="exact: 1 for the right answer if it ends, else 0")
    parser.add_argument(
        "--method", metavar="NAME", choices=METHODS, default="grpo", help=f"{', '.join(METHODS)} (default grpo)")
    add.option(parser, "--group-size", "N", add.COUNT, 8, "answers to each prompt")
    add.rollouts(parser, "grpo", iterations=20, batch_size=32, epochs=1, beta=0.0, missing_eos_penalty=0.0)
    parser.add_argument(
        "--kl-in", metavar="PLACE", choices=("loss", "reward"), default="loss",
        help="where --beta is paid: loss or reward (default loss)")
    parser.add_argument(
        "--clip-range", metavar="X", type=add.POSITIVE, nargs="+", default=[0.2],
        help="how far a ratio may move from 1; a second number: upwards (default 0.2)")
    add.flag(parser, "--mask-truncated", "do not learn from answers that were cut")
    add.running(parser)


def run(options):
    """Train the policy on its own answers."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from functools import partial

    from minift.cli.rewards import open_reward
    from minift.cli.rollouts import open_run, practise, set_policy
    from minift.methods.grpo import GRPOConfig, train_grpo
    if len(options.clip_range) > 2:
        raise MiniftError("--clip-range takes one number, or two: downwards and upwards")
    low, high = options.clip_range[0], options.clip_range[-1]
    run, config, data = open_run(
        options, GRPOConfig, method=options.method, group_size=options.group_size, kl_in=options.kl_in,
        clip_range=low, clip_range_high=high, mask_truncated=options.mask_truncated)
    reward_fn, _ = open_reward(options, run, data)
    reference = set_policy(run, config.temperature)
    train = partial(train_grpo, run.model, reference, reward_fn)
    practise(run, config, data, reference, reward_fn, train)
