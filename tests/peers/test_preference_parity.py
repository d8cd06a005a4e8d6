"""The preference losses against TRL 1.16's own trainers, on random log-probabilities in float64.

TRL's loss code runs on a trainer without a model: a stub of a model returns the log-probabilities of each token. Its
IPO takes means per token; ours takes the paper's sums, and is given means here. Its ORPO adds the cross-entropy of a
batch's tokens, prompts included; ours adds the mean over answers. So of ORPO only the odds ratio is compared.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from test_dpo import small_model

from minift.core.logprobs import make_reference, token_logprobs
from minift.methods import dpo, kto, reward

REASON = "is missing: pip install -r tests/peers/requirements.txt compares with it"
pytest.importorskip("trl", reason=f"trl {REASON}")
dpo_trainer = pytest.importorskip("trl.trainer.dpo_trainer", reason=f"trl {REASON}").DPOTrainer
kto_trainer = pytest.importorskip("trl.trainer.kto_trainer", reason=f"trl {REASON}").KTOTrainer
reward_trainer = pytest.importorskip("trl.trainer.reward_trainer", reason=f"trl {REASON}").RewardTrainer
cpo_trainer = pytest.importorskip("trl.experimental.cpo", reason=f"trl {REASON}").CPOTrainer
orpo_trainer = pytest.importorskip("trl.experimental.orpo", reason=f"trl {REASON}").ORPOTrainer

KTO = {"loss_type": "kto", "beta": 0.3, "calculate_KL": True, "precompute_ref_logps": True}
N, T = 6, 9
SEEDS = range(5)


class Alone:
    """An accelerator of one process."""

    device = torch.device("cpu")

    def gather(self, x):
        return x

    gather_for_metrics = gather


def trainer(kind, **settings):
    """A trainer without its __init__, which would load a model."""
    made = kind.__new__(kind)
    settings = {"accelerator": Alone(), "aux_loss_enabled": False, "_metrics": defaultdict(lambda: defaultdict(list)),
                "model": SimpleNamespace(training=False), "_total_train_tokens": 0, **settings}
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def draw_answers(n, seed):
    """Token log-probs (n, T - 1), 0 outside the answers, of policy and reference; the masks (n, T) of the answers.

    The reference is near the policy, so that neither loss nor gradient vanishes.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(1, 4, (n, 1), generator=generator)
    end = torch.randint(5, T + 1, (n, 1), generator=generator)
    mask = (torch.arange(T) >= start) & (torch.arange(T) < end)
    policy = -torch.rand(n, T - 1, dtype=torch.float64, generator=generator) * 3 * mask[:, 1:]
    reference = policy + torch.randn(n, T - 1, dtype=torch.float64, generator=generator) * mask[:, 1:]
    return policy.requires_grad_(), reference, mask


def model_of(logprobs):
    """A stub of a model, called as TRL calls one."""
    def model(**inputs):
        other = torch.zeros_like(logprobs)
        return SimpleNamespace(log_probs=logprobs, entropy=other, mean_logits=other, is_top1=other.bool())
    return model


def gradient(loss, logprobs):
    return torch.autograd.grad(loss, logprobs, retain_graph=True)[0]


def assert_same(ours, theirs, logprobs):
    """The same loss and the same gradient, to 1e-9."""
    assert (ours - theirs).abs() < 1e-9
    found, expected = gradient(ours, logprobs), gradient(theirs, logprobs)
    assert (found - expected).abs().max() < 1e-9 and expected.abs().max() > 1e-3


def their_pair_loss(name, policy, reference, mask, beta, label_smoothing):
    made = trainer(
        dpo_trainer, loss_types=[name], loss_weights=[1.0], beta=beta, label_smoothing=label_smoothing, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", use_weighting=False)
    ref_chosen, ref_rejected = reference.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long), "attention_mask": mask, "completion_mask": mask.long(),
        "ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    return made._compute_loss(model_of(policy), inputs, return_outputs=False)


@pytest.mark.parametrize("name, loss, more", [
    ("sigmoid", dpo.dpo_loss, ()), ("hinge", dpo.hinge_loss, ()), ("robust", dpo.robust_loss, (0.2,)),
    ("ipo", dpo.ipo_loss, ())])
@pytest.mark.parametrize("seed", SEEDS)
def test_losses_with_a_reference(name, loss, more, seed):
    """DPO, hinge and robust DPO from sums, IPO from means per token: loss and gradient of TRL's DPOTrainer."""
    policy, reference, mask = draw_answers(2 * N, seed)
    lengths = mask.sum(1) if name == "ipo" else 1
    ours, metrics = loss(*(policy.sum(1) / lengths).chunk(2), *(reference.sum(1) / lengths).chunk(2), 0.3, *more)
    theirs = their_pair_loss(name, policy, reference, mask, 0.3, *(more or (0.0,)))
    assert_same(ours, theirs, policy)
    assert 0 < metrics["accuracy"] < 1, "pairs on both sides"


@pytest.mark.parametrize("seed", SEEDS)
def test_conservative_dpo(seed):
    """TRL's CPOTrainer has label smoothing without a reference: ours with a reference of 0."""
    policy, _, _ = draw_answers(2 * N, seed)
    chosen, rejected = policy.sum(1).chunk(2)
    made = trainer(cpo_trainer, loss_type="sigmoid", alpha=0.0, beta=0.3, label_smoothing=0.2)
    zero = torch.zeros(N, dtype=torch.float64)
    ours, _ = dpo.dpo_loss(chosen, rejected, zero, zero, 0.3, label_smoothing=0.2)
    assert_same(ours, made.cpo_loss(chosen, rejected)[0].mean(), policy)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_simpo(seed, gamma):
    """TRL's CPOTrainer with loss_type="simpo", on means per token."""
    policy, _, mask = draw_answers(2 * N, seed)
    chosen, rejected = (policy.sum(1) / mask.sum(1)).chunk(2)
    made = trainer(cpo_trainer, loss_type="simpo", alpha=0.0, beta=2.0, simpo_gamma=gamma, label_smoothing=0.0)
    ours, _ = dpo.simpo_loss(chosen, rejected, beta=2.0, gamma=gamma)
    assert_same(ours, made.cpo_loss(chosen, rejected)[0].mean(), policy)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_odds_ratio_of_orpo(seed, monkeypatch):
    """The second term of ORPO, on means per token; TRL would compute it in float32."""
    policy, _, mask = draw_answers(2 * N, seed)
    chosen, rejected = (policy.sum(1) / mask.sum(1)).chunk(2)
    ours, _ = dpo.orpo_loss(chosen, rejected, weight=0.7)
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    theirs = -trainer(orpo_trainer, beta=0.7).odds_ratio_loss(chosen, rejected)[0].mean()
    assert_same(ours + chosen.mean(), theirs, policy)


def their_kto_loss(answers, others, wanted, weights):
    policy, reference, mask = answers
    made = trainer(
        kto_trainer, **KTO, desirable_weight=weights[0], undesirable_weight=weights[1],
        _compute_kl_logps=lambda model, batch: others[0].sum(1).detach())
    inputs = {
        "input_ids": torch.zeros(mask.shape, dtype=torch.long), "attention_mask": mask, "completion_mask": mask.long(),
        "label": wanted, "ref_logps": reference.sum(1), "ref_KL_logps": others[1].sum(1)}
    return made._compute_loss(model_of(policy), inputs, return_outputs=False), made._metrics["eval"]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
@pytest.mark.parametrize("wanted", ["110100", "111111", "000000"])
@pytest.mark.parametrize("seed", SEEDS)
def test_kto(seed, wanted, weights):
    """TRL's KTOTrainer, with answers of both kinds or of one, and with a KL above 0 or cut to 0."""
    answers, others = draw_answers(N, seed), draw_answers(N, seed + 100)
    policy, reference, _ = answers
    labels = torch.tensor([letter == "1" for letter in wanted])
    kl = dpo.kto_kl(others[0].sum(1), others[1].sum(1))
    sums, refs = policy.sum(1), reference.sum(1)
    ours, metrics = dpo.kto_loss(
        sums[labels], sums[~labels], refs[labels], refs[~labels], 0.3, kl, *weights)
    theirs, their_metrics = their_kto_loss(answers, others, labels, weights)
    assert_same(ours, theirs, policy)
    assert kl.item() == pytest.approx(their_metrics["kl"][0], abs=1e-9)
    for name, their_name in (("chosen_rewards", "rewards/chosen"), ("rejected_rewards", "rewards/rejected")):
        assert (name in metrics) == (their_name in their_metrics)
        if name in metrics:
            assert metrics[name] == pytest.approx(their_metrics[their_name][0], abs=1e-9)


def test_kto_has_seen_both_sides_of_the_clamp():
    """The seeds above give a KL above 0, and one below 0 that is cut."""
    ratios = [(policy - reference).sum(1).mean() for policy, reference, _ in
              (draw_answers(N, seed + 100) for seed in SEEDS)]
    assert min(ratios) < 0 < max(ratios)


@pytest.mark.parametrize("seed", SEEDS)
def test_kto_of_a_model(seed):
    """A batch of ours, given to TRL's trainer with our model under it: both passes, masks, references and weights."""
    model, reference = small_model(seed).double(), small_model(seed + 100)
    rows = [([1, 2], [5, 6], True), ([1, 2], [7, 0], False), ([3], [8, 9, 10], True), ([4, 4, 1], [11], False)]
    examples = [{
        "answer_input_ids": prompt + answer, "wanted": wanted,
        "answer_response_mask": [False] * len(prompt) + [True] * len(answer)} for prompt, answer, wanted in rows]
    kto.add_other_answers(examples, 9)
    dpo.add_reference_logprobs(examples, make_reference(reference), 0, sides=kto.SIDES)
    batch = kto.collate_judged(examples, 0)
    ours, metrics = kto.make_kto_loss(model, 0.3, 1.5, 0.5)(batch)

    def called(input_ids, attention_mask, labels, **more):
        logprobs = token_logprobs(model(input_ids, attention_mask), input_ids)
        return model_of(logprobs * (labels[:, 1:] != -100))()
    inputs = {"label": batch["wanted"], "ref_logps": batch["ref_answer_logprobs"],
              "ref_KL_logps": batch["ref_other_logprobs"]}
    for side, prefix in (("answer", ""), ("other", "KL_")):
        inputs |= {f"{prefix}input_ids": batch[f"{side}_input_ids"],
                   f"{prefix}attention_mask": batch[f"{side}_attention_mask"],
                   f"{prefix}completion_mask": batch[f"{side}_response_mask"].long()}
    made = trainer(kto_trainer, **KTO, desirable_weight=1.5, undesirable_weight=0.5)
    theirs = made._compute_loss(called, inputs, return_outputs=False)
    assert_same(ours, theirs, model.head.weight)
    assert metrics["kl"] == pytest.approx(made._metrics["eval"]["kl"][0], abs=1e-9)


def their_reward_loss(scores, margin=None):
    made = trainer(reward_trainer, args=SimpleNamespace(center_rewards_coefficient=None))
    inputs = {"attention_mask": torch.ones(2 * N, T)} | ({} if margin is None else {"margin": margin})
    return made.compute_loss(lambda **inputs: SimpleNamespace(logits=scores[:, None]), inputs)


@pytest.mark.parametrize("margins", [None, [0.0, 0.5, 1.0, 2.0, -1.0, 0.3]])
@pytest.mark.parametrize("seed", SEEDS)
def test_reward_margins(seed, margins):
    """The loss of TRL's RewardTrainer, with and without a margin for each pair."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2 * N, dtype=torch.float64, generator=generator).requires_grad_()
    more = (torch.tensor(margins, dtype=torch.float64),) if margins else ()
    assert_same(reward.bradley_terry_loss(*scores.chunk(2), *more), their_reward_loss(scores, *more), scores)


@pytest.mark.parametrize("seed", SEEDS)
def test_dpo_with_an_offset(seed):
    """TRL's DPO has no margin; its RewardTrainer on the implicit rewards beta * log-ratio has the same loss."""
    policy, reference, _ = draw_answers(2 * N, seed)
    margin = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rewards = 0.3 * (policy.sum(1) - reference.sum(1))
    theirs = their_reward_loss(rewards, margin)
    ours, _ = dpo.dpo_loss(*policy.sum(1).chunk(2), *reference.sum(1).chunk(2), 0.3, margin=margin)
    assert_same(ours, theirs, policy)
