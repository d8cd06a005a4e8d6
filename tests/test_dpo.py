"""DPO and its family: known values, what the loss reads from a model, and the optimum that it must reach."""

import copy
import functools
import math

import pytest
import torch

from minift.core.heads import LanguageModel
from minift.core.logprobs import make_reference
from minift.core.step import make_optimizer
from minift.core.train import take_step
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.evaluation import exact
from minift.methods import dpo
from minift.text.pairs import collate_pairs

LN2 = math.log(2)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


EXAMPLE = numbers(-10.0), numbers(-12.0), numbers(-11.0), numbers(-11.5)     # policy's chosen, rejected; reference's
MEANS = numbers(-10 / 4), numbers(-12 / 5)                                   # 4 and 5 tokens


def small_model(seed=0, vocab_size=12, tie=True):
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size, 16, n_layer=1, n_head=2, d_model=16, d_ff=32, positions="learned")
    model = LanguageModel(config, tie_embeddings=tie).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
    return model


def pair(chosen, rejected, n_prompt=2):
    return {f"{side}_{name}": value for side, row in (("chosen", chosen), ("rejected", rejected))
            for name, value in (("input_ids", row), ("response_mask", [i >= n_prompt for i in range(len(row))]))}


def pairs():
    """Pairs of unequal lengths; 0 is a real token in some, and the id of the padding."""
    return [pair([1, 2, 3, 4, 0, 5], [1, 2, 6]), pair([7, 8, 9], [7, 8, 9, 0, 0]), pair([1, 10, 3], [1, 10, 4, 3], 1)]


def by_hand(model, row, mask):
    """The sum and the number of the response's log-probs, from a plain forward pass of the unpadded row."""
    with torch.no_grad():
        logprobs = model(torch.tensor([row]))[0].log_softmax(-1)
    picked = [logprobs[t - 1, row[t]].item() for t in range(1, len(row)) if mask[t]]
    return sum(picked), len(picked)


def sums(model, examples, side):
    return torch.tensor([by_hand(model, e[f"{side}_input_ids"], e[f"{side}_response_mask"])[0] for e in examples])


def means(model, examples, side):
    both = [by_hand(model, e[f"{side}_input_ids"], e[f"{side}_response_mask"]) for e in examples]
    return torch.tensor([total / count for total, count in both])


# ---- the formulas ----


def test_dpo_known_value(dpo_loss=dpo.dpo_loss):
    """Log-ratios of 1 and -0.5 at beta .1: rewards .1 and -.05, margin .15, loss -log sigmoid(.15) = 0.620957."""
    loss, metrics = dpo_loss(*EXAMPLE, 0.1)
    assert loss.item() == pytest.approx(0.620957, abs=1e-6)
    assert metrics["chosen_rewards"] == pytest.approx(0.1, abs=1e-9)
    assert metrics["rejected_rewards"] == pytest.approx(-0.05, abs=1e-9)
    assert metrics["margin"] == pytest.approx(0.15, abs=1e-9)
    assert metrics["accuracy"] == 1.0
    without = dpo_loss(*EXAMPLE[:2], numbers(0.0), numbers(0.0), 0.1)[0]
    assert without.item() == pytest.approx(0.598139, abs=1e-6)


def test_dpo_margins(dpo_loss=dpo.dpo_loss):
    """Margins beta * (...) of 0, 1, 2 cost .693147, .313262, .126928; a batch costs their mean."""
    zeros = torch.zeros(3, dtype=torch.float64)
    losses = [dpo_loss(numbers(m / 0.4), numbers(0.0), numbers(0.0), numbers(0.0), 0.4)[0].item() for m in (0, 1, 2)]
    assert losses == pytest.approx([0.693147, 0.313262, 0.126928], abs=1e-6)
    together = dpo_loss(numbers(0.0, 2.5, 5.0), zeros, zeros, zeros, 0.4)[0].item()
    assert together == pytest.approx(sum(losses) / 3, abs=1e-9)


def test_equals_log_two_at_the_reference(dpo_loss=dpo.dpo_loss):
    """While the policy is the reference the loss is ln 2, the accuracy 0 (strict), the gradient -+beta / 2 per pair."""
    for beta in (0.1, 0.5):
        chosen, rejected = numbers(-3.0, -40.0).requires_grad_(), numbers(-7.0, -2.0).requires_grad_()
        loss, metrics = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta)
        loss.backward()
        assert loss.item() == pytest.approx(LN2, abs=1e-9)
        assert metrics["accuracy"] == metrics["margin"] == 0
        assert chosen.grad.tolist() == pytest.approx([-beta / 4] * 2, abs=1e-9)      # the mean over two pairs
        assert rejected.grad.tolist() == pytest.approx([beta / 4] * 2, abs=1e-9)


def test_dpo_gradient(dpo_loss=dpo.dpo_loss):
    """d loss / d chosen = -beta * sigmoid(-margin), the opposite for rejected: -+0.046257 in the worked example."""
    chosen, rejected = EXAMPLE[0].clone().requires_grad_(), EXAMPLE[1].clone().requires_grad_()
    dpo_loss(chosen, rejected, *EXAMPLE[2:], 0.1)[0].backward()
    assert chosen.grad.item() == pytest.approx(-0.046257, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.046257, abs=1e-6)


def test_dpo_stays_finite(dpo_loss=dpo.dpo_loss):
    """At margins of +-1000 the loss is 0 and 1000, in float32 too, with gradients 0 and -beta."""
    for ratio, expected, slope in ((1000.0, 0.0, 0.0), (-1000.0, 1000.0, -1.0)):
        chosen, zero = torch.tensor([ratio], requires_grad=True), torch.zeros(1)
        loss, _ = dpo_loss(chosen, zero, zero, zero, 1.0)
        loss.backward()
        assert loss.item() == expected and chosen.grad.item() == slope


def test_conservative_dpo(dpo_loss=dpo.dpo_loss):
    """With labels wrong at rate e the loss is (1-e) L(m) + e L(-m): .635957 at e = .1, least at m = ln((1-e)/e)."""
    assert dpo_loss(*EXAMPLE, 0.1, label_smoothing=0.1)[0].item() == pytest.approx(0.635957, abs=1e-6)
    margin, zero = numbers(math.log(0.9 / 0.1)).requires_grad_(), numbers(0.0)
    dpo_loss(margin, zero, zero, zero, 1.0, label_smoothing=0.1)[0].backward()
    assert margin.grad.item() == pytest.approx(0, abs=1e-9)
    rates, zeros = numbers(0.0, 0.1, 0.5), torch.zeros(3, dtype=torch.float64)
    each = [dpo_loss(numbers(1.5), zero, zero, zero, 0.1, rate)[0].item() for rate in (0.0, 0.1)]
    half = (dpo_loss(numbers(1.5), zero, zero, zero, 0.1)[0] + dpo_loss(numbers(-1.5), zero, zero, zero, 0.1)[0]) / 2
    together = dpo_loss(numbers(1.5, 1.5, 1.5), zeros, zeros, zeros, 0.1, rates)[0].item()
    assert together == pytest.approx((sum(each) + half.item()) / 3, abs=1e-9)


def test_ipo(ipo_loss=dpo.ipo_loss):
    """(difference of log-ratios - 1 / (2 beta))^2 on sums: 12.25 in the worked example, 25 at the reference."""
    loss, metrics = ipo_loss(*EXAMPLE, 0.1)
    assert loss.item() == pytest.approx(12.25, abs=1e-9)
    assert metrics["margin"] == pytest.approx(0.15, abs=1e-9)
    assert ipo_loss(EXAMPLE[0], EXAMPLE[1], EXAMPLE[0], EXAMPLE[1], 0.1)[0].item() == pytest.approx(25, abs=1e-9)
    per_token = ipo_loss(*MEANS, numbers(-11 / 4), numbers(-11.5 / 5), 0.1)[0]
    assert per_token.item() == pytest.approx(21.6225, abs=1e-9)
    reached = numbers(5.0).requires_grad_()      # a margin of 1 / (2 beta) is enough, and more is too much
    ipo_loss(reached, numbers(0.0), numbers(0.0), numbers(0.0), 0.1)[0].backward()
    assert reached.grad.item() == pytest.approx(0, abs=1e-9)


def test_simpo(simpo_loss=dpo.simpo_loss):
    """-log sigmoid(beta * difference of means - gamma): 1.463282 for means -2.5, -2.4 at beta 2, gamma 1."""
    loss, metrics = simpo_loss(*MEANS, beta=2.0, gamma=1.0)
    assert loss.item() == pytest.approx(1.463282, abs=1e-6)
    assert metrics["margin"] == pytest.approx(-0.2, abs=1e-9) and metrics["accuracy"] == 0
    assert simpo_loss(numbers(-1.0), numbers(-1.0), beta=2.0, gamma=0.0)[0].item() == pytest.approx(LN2, abs=1e-9)


def test_orpo(orpo_loss=dpo.orpo_loss):
    """-mean log p of chosen - weight * log sigmoid(log odds ratio): 2.574937 at weight .1, log odds ratio -0.109449."""
    loss, metrics = orpo_loss(*MEANS, weight=0.1)
    assert loss.item() == pytest.approx(2.574937, abs=1e-6)
    assert metrics["margin"] == pytest.approx(-0.0109449, abs=1e-7)
    p, q = math.exp(-0.3), math.exp(-0.9)
    odds = (p / (1 - p)) / (q / (1 - q))
    assert orpo_loss(numbers(-0.3), numbers(-0.9), weight=0.5)[0].item() == pytest.approx(
        0.3 + 0.5 * math.log(1 + 1 / odds), abs=1e-9)
    certain = torch.zeros(1, requires_grad=True)
    loss, _ = orpo_loss(certain, torch.full((1,), -1.0))
    loss.backward()
    assert math.isfinite(loss.item()) and math.isfinite(certain.grad.item())


def test_kto(kto_loss=dpo.kto_loss):
    """1 - sigmoid(beta (ratio - kl)) for wanted, 1 - sigmoid(beta (kl - ratio)) for unwanted: .480011 and .482507."""
    none = torch.zeros(0, dtype=torch.float64)
    wanted = kto_loss(EXAMPLE[0], none, EXAMPLE[2], none, 0.1, 0.2)[0].item()
    unwanted = kto_loss(none, EXAMPLE[1], none, EXAMPLE[3], 0.1, 0.2)[0].item()
    assert wanted == pytest.approx(0.480011, abs=1e-6) and unwanted == pytest.approx(0.482507, abs=1e-6)
    two = EXAMPLE[0].repeat(2), EXAMPLE[1], EXAMPLE[2].repeat(2), EXAMPLE[3]
    loss, metrics = kto_loss(*two, 0.1, 0.2, chosen_weight=1.5, rejected_weight=2.0)
    assert loss.item() == pytest.approx((2 * 1.5 * wanted + 2.0 * unwanted) / 3, abs=1e-9)
    assert metrics["chosen_rewards"] == pytest.approx(0.1, abs=1e-9)
    assert kto_loss(two[0], two[1], two[0], two[1], 0.1, 0.0)[0].item() == pytest.approx(0.5, abs=1e-9)


def test_kto_kl(kto_kl=dpo.kto_kl):
    """max(0, mean log-ratio) over mismatched answers, without gradient; one row alone is refused."""
    logprobs = numbers(-1.0, -2.0).requires_grad_()
    kl = kto_kl(logprobs, numbers(-2.0, -2.5))
    assert kl.item() == pytest.approx(0.75, abs=1e-9) and not kl.requires_grad
    assert kto_kl(numbers(-3.0, -2.0), numbers(-1.0, -2.0)).item() == 0
    with pytest.raises(MiniftError, match="two rows"):
        kto_kl(numbers(-1.0), numbers(-2.0))


def test_hinge(hinge_loss=dpo.hinge_loss):
    """max(0, 1 - beta * gap): .85 at a gap of 1.5 and beta .1, 0 where the gap is above 1 / beta."""
    assert hinge_loss(*EXAMPLE, 0.1)[0].item() == pytest.approx(0.85, abs=1e-9)
    assert hinge_loss(*EXAMPLE, 1.0)[0].item() == 0
    assert hinge_loss(*EXAMPLE, 1.0)[1]["margin"] == pytest.approx(1.5, abs=1e-9)


def test_robust(robust_loss=dpo.robust_loss, dpo_loss=dpo.dpo_loss):
    """Its mean over labels of which a share e is flipped is the loss of the right labels, for any gap."""
    for e in (0.1, 0.3):
        swapped = EXAMPLE[1], EXAMPLE[0], EXAMPLE[3], EXAMPLE[2]
        right, wrong = robust_loss(*EXAMPLE, 0.7, e)[0], robust_loss(*swapped, 0.7, e)[0]
        assert ((1 - e) * right + e * wrong - dpo_loss(*EXAMPLE, 0.7)[0]).abs() < 1e-9
    for e in (-0.1, 0.5):
        with pytest.raises(MiniftError, match="label_smoothing is"):
            robust_loss(*EXAMPLE, 0.7, e)


def test_a_margin_must_be_won():
    """-log sigmoid(beta * gap - margin), pair by pair; and a batch brings its margins to the loss."""
    pairs = [torch.cat([one, one]) for one in EXAMPLE]
    loss, metrics = dpo.dpo_loss(*pairs, 0.1, margin=numbers(0.0, 0.4))
    expected = sum(math.log(1 + math.exp(-(0.15 - margin))) for margin in (0.0, 0.4)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-9) and metrics["margin"] == pytest.approx(0.15, abs=1e-9)
    model = small_model()
    examples = [
        {"chosen_input_ids": [1, 2, 3], "chosen_response_mask": [False, True, True], "rejected_input_ids": [1, 4],
         "rejected_response_mask": [False, True]} for _ in range(2)]
    examples[1]["margin"] = 2.0
    dpo.add_reference_logprobs(examples, make_reference(copy.deepcopy(model)), 0)
    batch = collate_pairs(examples, 0)
    assert batch["margin"].tolist() == [0.0, 2.0]
    loss, _ = dpo.make_dpo_loss(model, 0.1)(batch)
    assert loss.item() == pytest.approx((LN2 + math.log(1 + math.exp(2))) / 2, abs=1e-5)


def test_gradcheck(losses=(dpo.dpo_loss, dpo.ipo_loss, dpo.simpo_loss, dpo.orpo_loss, dpo.kto_loss)):
    """Finite differences agree with each loss's gradient in float64."""
    generator = torch.Generator().manual_seed(0)
    dpo_loss, ipo_loss, simpo_loss, orpo_loss, kto_loss = losses
    four = [(-torch.rand(4, dtype=torch.float64, generator=generator) - 0.1).requires_grad_() for _ in range(4)]
    rates = numbers(0.0, 0.1, 0.3, 0.5)
    assert torch.autograd.gradcheck(lambda *x: dpo_loss(*x, 0.7)[0], four)
    assert torch.autograd.gradcheck(lambda *x: dpo_loss(*x, 0.7, rates)[0], four)
    assert torch.autograd.gradcheck(lambda *x: ipo_loss(*x, 0.7)[0], four)
    assert torch.autograd.gradcheck(lambda *x: dpo.hinge_loss(*x, 0.7)[0], four)
    assert torch.autograd.gradcheck(lambda *x: dpo.robust_loss(*x, 0.7, 0.2)[0], four)
    assert torch.autograd.gradcheck(lambda *x: simpo_loss(*x)[0], four[:2])
    assert torch.autograd.gradcheck(lambda *x: orpo_loss(*x)[0], four[:2])
    assert torch.autograd.gradcheck(lambda *x: kto_loss(*x, 0.7, 0.3)[0], four)


def test_settings_that_make_no_sense(dpo_loss=dpo.dpo_loss, make_dpo_loss=dpo.make_dpo_loss):
    """beta <= 0 and label_smoothing outside [0, 0.5) are refused, by every member of the family, before any step."""
    for beta in (0, -0.1, math.nan):
        for call in (lambda: dpo_loss(*EXAMPLE, beta), lambda: dpo.ipo_loss(*EXAMPLE, beta),
                     lambda: dpo.simpo_loss(*MEANS, beta=beta), lambda: dpo.kto_loss(*EXAMPLE, beta, 0.0),
                     lambda: make_dpo_loss(small_model(), beta)):
            with pytest.raises(MiniftError, match="beta is"):
                call()
    with pytest.raises(MiniftError, match="weight is"):
        dpo.orpo_loss(*MEANS, weight=0.0)
    for rate in (-0.1, 0.5, 1.0):
        with pytest.raises(MiniftError, match="label_smoothing is"):
            dpo_loss(*EXAMPLE, 0.1, label_smoothing=rate)


# ---- a model under the loss ----


def test_the_reference_runs_once(add_reference_logprobs=dpo.add_reference_logprobs):
    """Each example gets its own two sums, equal to a plain pass over the unpadded row, whatever batch and padding."""
    model = small_model(1)
    for batch_size, pad_id in ((1, 0), (4, 0), (16, 11)):
        examples = add_reference_logprobs(pairs(), make_reference(model), pad_id, batch_size)
        for side in ("chosen", "rejected"):
            got = torch.tensor([example[f"ref_{side}_logprobs"] for example in examples])
            assert isinstance(examples[0][f"ref_{side}_logprobs"], float)
            assert (got - sums(model, examples, side)).abs().max() < 1e-5
    sizes = []

    def own_reference(input_ids, attention_mask):    # -2 nats for each token of the answer
        sizes.append(len(input_ids))
        return torch.full(input_ids[:, 1:].shape, -2.0)
    for example in add_reference_logprobs(pairs(), own_reference, 0, 4):
        assert example["ref_chosen_logprobs"] == -2 * sum(example["chosen_response_mask"])
    assert sizes == [4, 2], "two answers of each of three pairs, four at a time"


def test_the_loss_of_a_batch(make_dpo_loss=dpo.make_dpo_loss):
    """One padded forward pass gives the loss of log-probs summed row by row over response and <eos>, nothing else."""
    model, reference = small_model(0), small_model(1)
    examples = dpo.add_reference_logprobs(pairs(), make_reference(reference), 0)
    policy_sums = [sums(model, examples, side) for side in ("chosen", "rejected")]
    ref_sums = [sums(reference, examples, side) for side in ("chosen", "rejected")]
    for loss_function in (dpo.dpo_loss, dpo.ipo_loss):
        expected, _ = loss_function(*policy_sums, *ref_sums, 0.3)
        for pad_id in (0, 11):
            loss, metrics = make_dpo_loss(model, 0.3, loss=loss_function)(collate_pairs(examples, pad_id))
            assert loss.item() == pytest.approx(expected.item(), abs=1e-4 if loss_function is dpo.ipo_loss else 1e-5)
            assert metrics["n_tokens"] == 3
            assert metrics["chosen_logprobs"] == pytest.approx(policy_sums[0].mean().item(), abs=1e-5)
            assert metrics["rejected_logprobs"] == pytest.approx(policy_sums[1].mean().item(), abs=1e-5)
    smoothed, _ = make_dpo_loss(model, 0.3, label_smoothing=0.2)(collate_pairs(examples, 0))
    assert smoothed.item() == pytest.approx(dpo.dpo_loss(*policy_sums, *ref_sums, 0.3, 0.2)[0].item(), abs=1e-5)


def test_losses_without_a_reference_get_means(make_reference_free_loss=dpo.make_reference_free_loss):
    """SimPO and ORPO see the mean log-prob per response token, so that length does not pay."""
    model, examples = small_model(0), pairs()
    chosen, rejected = means(model, examples, "chosen"), means(model, examples, "rejected")
    for loss_function in (dpo.simpo_loss, functools.partial(dpo.simpo_loss, beta=1.0, gamma=0.5), dpo.orpo_loss):
        loss, metrics = make_reference_free_loss(model, loss_function)(collate_pairs(examples, 0))
        assert loss.item() == pytest.approx(loss_function(chosen, rejected)[0].item(), abs=1e-5)
        assert metrics["n_tokens"] == 3


def test_the_first_loss_is_log_two(make_dpo_loss=dpo.make_dpo_loss):
    """In the first step of training the loss is ln 2 to 1e-6; without the reference's sums there is an error."""
    model = small_model()
    examples = dpo.add_reference_logprobs(pairs(), make_reference(model), 0)
    loss, metrics = make_dpo_loss(model, 0.1)(collate_pairs(examples, 0))
    assert loss.item() == pytest.approx(LN2, abs=1e-6)
    with pytest.raises(MiniftError, match="add_reference_logprobs"):
        make_dpo_loss(model, 0.1)(collate_pairs(pairs(), 0))


def test_a_step_raises_the_margin_and_spares_the_reference(make_dpo_loss=dpo.make_dpo_loss):
    """One step lifts chosen over rejected (swapped labels: lowers it); the reference keeps every bit, no gradient."""
    for swapped in (False, True):
        reference = small_model()
        policy, before = copy.deepcopy(reference), copy.deepcopy(reference.state_dict())
        examples = dpo.add_reference_logprobs(pairs(), make_reference(reference), 0)
        batch = collate_pairs(examples, 0)
        if swapped:
            batch = {name.replace("chosen", "?").replace("rejected", "chosen").replace("?", "rejected"): x
                     for name, x in batch.items()}
        take_step(make_optimizer(policy, lr=1e-3, weight_decay=0.0), [batch], make_dpo_loss(policy, 0.1), lr=1e-3)
        margin = [sums(m, examples, "chosen") - sums(m, examples, "rejected") for m in (reference, policy)]
        assert ((margin[1] - margin[0]).mean() > 0) != swapped
        assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
        assert all(p.grad is None for p in reference.parameters())


def test_like_answers_teach_nothing(make_dpo_loss=dpo.make_dpo_loss):
    """Where chosen equals rejected the loss is ln 2 and the gradient 0."""
    model = small_model()
    examples = dpo.add_reference_logprobs([pair([1, 2, 3], [1, 2, 3])], make_reference(small_model(1)), 0)
    loss, _ = make_dpo_loss(model, 0.5)(collate_pairs(examples, 0))
    loss.backward()
    assert loss.item() == pytest.approx(LN2, abs=1e-6)
    assert max(p.grad.abs().max().item() for p in model.parameters()) < 1e-6


def test_dpo_reaches_the_optimum_of_three_answers(dpo_loss=dpo.dpo_loss):
    """From the population's choices between three answers DPO finds ref * exp(reward / beta) / Z to a TV of 0.01."""
    reference, rewards, beta = small_model(3, vocab_size=3, tie=False), torch.tensor([1.0, 0.0, -1.0]), 0.5
    ref_logprobs = exact.answer_logprobs(reference, [0], 1)
    star = exact.optimum(ref_logprobs, rewards, beta)
    assert exact.total_variation(star, ref_logprobs.exp()) > 0.3
    policy = copy.deepcopy(reference)
    examples = dpo.add_reference_logprobs([pair([0, c], [0, r], 1) for c, r in ((0, 1), (0, 2), (1, 2))],
                                          make_reference(reference), 0)
    batch = collate_pairs(examples, 0)
    dissent = torch.sigmoid(-torch.tensor([1.0, 2.0, 1.0]))
    loss_fn = dpo.make_dpo_loss(policy, beta, loss=lambda *args: dpo_loss(*args, label_smoothing=dissent))
    optimizer = make_optimizer(policy, lr=5e-3, weight_decay=0.0)
    for step in range(150):
        take_step(optimizer, [batch], loss_fn, lr=5e-3 * (1 - step / 150))
    assert exact.total_variation(exact.answer_logprobs(policy, [0], 1).exp(), star) < 0.01
