"""The value model with which the verb ppo begins."""

import copy

from minift.cli.run import with_lora
from minift.core.heads import TokenScorer
from minift.methods.ppo_loop import zero_head


def first_values(run, reward_model):
    """The value model. It starts as a copy of the reward model, if that has the policy's sizes, else from the policy.

    A copy of the policy gets a head that gives 0. With LoRA the body's weights are frozen, so the copy shares them.
    """
    known = reward_model is not None and reward_model.config == run.model.config
    body = reward_model.body if known else run.model.body
    shared = {id(p): p for p in body.parameters()} if run.options.lora else {}
    model = TokenScorer(copy.deepcopy(body, shared))
    if known:
        model.score.load_state_dict(reward_model.score.state_dict())
    else:
        zero_head(model)
    model.body.checkpointing = run.options.checkpointing
    return with_lora(model.requires_grad_(True), run.options.lora).eval().to(run.device)
