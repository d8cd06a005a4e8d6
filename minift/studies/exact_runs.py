"""One setting for every method that a study trains on a world whose answers can all be listed.

Left out: prompts of several kinds, answers of unequal length.
"""

import copy
from functools import partial

from minift.core.heads import TokenScorer
from minift.core.logprobs import make_reference
from minift.core.train import train
from minift.methods.grpo import GRPOConfig, train_grpo
from minift.methods.ppo_loop import PPOConfig, train_ppo, zero_head
from minift.text.batches import Batches
from minift.text.pairs import collate_pairs

# The token after which every answer begins.
PROMPT = [0]


def train_on_rewards(policy, model, reward_fn, length, method="ppo", values=None, running=None, **changes):
    """Train the policy in place by PPO, or by one of grpo.METHODS. model: where it started, and the reference.

    reward_fn(answers (B, length)) -> (B,). values: PPO's value model; None: a copy of the policy with a head of 0.
    running: iterations, batch_size, seed and more arguments of the loop. changes: settings of PPOConfig or GRPOConfig.
    """
    common = {"epochs": 2, "minibatch_size": 64, "max_new_tokens": length}
    running = {"eos_id": None, "pad_id": 0, "progress": False, **running}
    reference = make_reference(model)

    def reward(generation):
        return reward_fn(generation.input_ids[:, -length:])

    if method == "ppo":
        config = PPOConfig(**{"value_coef": 1.0, **common, **changes})
        if values is None:
            values = zero_head(TokenScorer(copy.deepcopy(policy.body)))
        train_ppo(policy, reference, values, reward, [PROMPT], config, **running)
    else:
        config = GRPOConfig(**{"method": method, "group_size": 8, **common, **changes})
        train_grpo(policy, reference, reward, [PROMPT], config, **running)


def train_on_choices(model, rows, loss_fn, seed, steps=None, weight_decay=0.0, **options):
    """Train a policy or a reward model on examples of collate_pairs; steps=None: one pass over them."""
    batches = Batches(rows, 64, partial(collate_pairs, pad_id=0), seed=seed)
    train(
        model, batches, loss_fn, steps=steps or len(batches), weight_decay=weight_decay,
        progress=False, **options)
