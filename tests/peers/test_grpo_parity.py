"""The critic-free losses and the clip against TRL 1.16's GRPOTrainer and RLOOTrainer, on random numbers in float64.

TRL's loss code runs on a trainer without a model: the log-probabilities of each token are given to it. Its advantages
are lines of a long method, which cannot be called alone; they are compared with the same arithmetic in test_grpo.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from minift.methods import grpo

REASON = "is missing: pip install -r tests/peers/requirements.txt compares with it"
pytest.importorskip("trl", reason=f"trl {REASON}")
grpo_trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason=f"trl {REASON}").GRPOTrainer
rloo_trainer = pytest.importorskip("trl.trainer.rloo_trainer", reason=f"trl {REASON}").RLOOTrainer

N, T, LONGEST = 6, 7, 9


class Alone:
    """An accelerator of one process."""

    num_processes, sync_gradients = 1, True

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction):
        return x


def draw(seed):
    """New, old and reference log-probs (N, T), masks of answers of 2 to T tokens, advantages (N,)."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, T + 1, (N, 1), generator=generator)
    mask = torch.arange(T) < lengths
    new = -torch.rand(N, T, dtype=torch.float64, generator=generator) * 2
    old, ref = (new + 0.3 * torch.randn(N, T, dtype=torch.float64, generator=generator) for _ in range(2))
    advantages = torch.randn(N, dtype=torch.float64, generator=generator)
    return new.requires_grad_(), old, ref, mask, advantages


def their_loss(kind, new, inputs, **settings):
    """TRL's loss of a batch of one prompt token and T answer tokens."""
    made = kind.__new__(kind)
    defaults = {
        "accelerator": Alone(), "aux_loss_enabled": False, "_metrics": defaultdict(lambda: defaultdict(list)),
        "model": SimpleNamespace(training=True), "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None,
        "importance_sampling_level": "token", "use_vllm": False, "_entropy_bonus_enabled": False,
        "current_gradient_accumulation_steps": 1, "max_completion_length": LONGEST,
        "args": SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        "_get_per_token_logps_and_entropies": lambda *args, **kwargs: (new, torch.zeros_like(new), None)}
    for name, value in {**defaults, **settings}.items():
        setattr(made, name, value)
    return made._compute_loss(None, inputs)


def inputs_of(old, ref, mask, advantages):
    prompt = torch.ones(N, 1, dtype=torch.long)
    return {
        "prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": torch.ones(N, T, dtype=torch.long),
        "completion_mask": mask.long(), "advantages": advantages, "old_per_token_logps": old,
        "old_logps": (old * mask).sum(1), "ref_per_token_logps": ref, "num_items_in_batch": mask.sum()}


def assert_same(ours, theirs, new):
    assert (ours - theirs).abs() < 1e-9
    found, expected = (torch.autograd.grad(loss, new, retain_graph=True)[0] for loss in (ours, theirs))
    assert (found - expected).abs().max() < 1e-9 and expected.abs().max() > 1e-3


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("method", ["grpo", "dapo", "dr_grpo"])
def test_losses_of_tokens(method, beta, seed):
    """GRPO, DAPO and Dr. GRPO, clipped by .1 down and .2 up, with and without k3 in the loss."""
    new, old, ref, mask, advantages = draw(seed)
    config = grpo.GRPOConfig(
        method=method, beta=beta, clip_range=0.1, clip_range_high=0.2, max_new_tokens=LONGEST)
    batch = {"response_mask": mask, "old_logprobs": old, "advantages": advantages}
    ours, metrics = grpo.group_loss(new, ref, batch, config)
    theirs = their_loss(
        grpo_trainer, new, inputs_of(old, ref, mask, advantages), loss_type=method, beta=beta, epsilon_low=0.1,
        epsilon_high=0.2)
    assert_same(ours, theirs, new)
    assert metrics["clip_low"] > 0 or metrics["clip_high"] > 0, "a draw in which tokens are clipped"


@pytest.mark.parametrize("seed", range(5))
def test_losses_of_whole_answers(seed):
    """RLOO: one ratio for each answer, clipped; without clipping it is REINFORCE with these advantages."""
    new, old, _, mask, advantages = draw(seed)
    batch = {"response_mask": mask, "old_logprobs": old, "advantages": advantages}
    for method, low, high in (("rloo", 0.1, 0.2), ("reinforce", 1e3, 1e3)):
        config = grpo.GRPOConfig(method=method, clip_range=low, clip_range_high=high, max_new_tokens=LONGEST)
        ours, _ = grpo.group_loss(new, None, batch, config)
        theirs = their_loss(
            rloo_trainer, new, inputs_of(old, None, mask, advantages), epsilon_low=low, epsilon_high=high)
        assert_same(ours, theirs, new)
