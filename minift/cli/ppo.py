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
    add.judge(parser)
    add.rollouts(parser, "ppo", iterations=20, batch_size=32, epochs=2, beta=0.05, missing_eos_penalty=1.0)
    add.option(parser, "--target-kl", "X", add.POSITIVE, None, "steer beta to this KL, in nats an answer")
    add.running(parser)


def run(options):
    """Train policy and value model on the policy's own answers."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from functools import partial

    from minift.cli.rewards import open_reward
    from minift.cli.rollouts import open_run, practise, set_policy
    from minift.cli.value_model import first_values
    from minift.methods.ppo_loop import PPOConfig, train_ppo
    run, config, data = open_run(options, PPOConfig, target_kl=options.target_kl)
    reward_fn, reward_model = open_reward(options, run, data)
    value_model = first_values(run, reward_model)
    reference = set_policy(run, config.temperature)
    train = partial(train_ppo, run.model, reference, value_model, reward_fn)
    practise(run, config, data, reference, reward_fn, train)
