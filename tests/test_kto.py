"""KTO's training: answers to other prompts, the batch, the loss by hand, and what it learns."""

import copy

import pytest
import torch
from test_dpo import small_model

from minift.core.logprobs import make_reference
from minift.core.step import make_optimizer
from minift.core.train import take_step
from minift.errors import MiniftError
from minift.methods import dpo, kto


def example(prompt, answer, wanted=True):
    return {"answer_input_ids": prompt + answer, "wanted": wanted,
            "answer_response_mask": [False] * len(prompt) + [True] * len(answer)}


def make_examples():
    """Three prompts; the first has two answers."""
    return [
        example([1, 2], [5, 6]), example([1, 2], [7], False), example([3], [8, 9, 10]), example([4, 4], [11], False)]


def test_each_prompt_gets_the_answer_of_another(add_other_answers=kto.add_other_answers):
    """Not the next answer to the same prompt; the last row takes the first; what is too long is cut."""
    found = add_other_answers(make_examples(), 4)
    assert [one["other_input_ids"] for one in found] == [[1, 2, 8, 9], [1, 2, 8, 9], [3, 11], [4, 4, 5, 6]]
    assert found[0]["other_response_mask"] == [False, False, True, True]
    with pytest.raises(MiniftError, match="two different prompts"):
        add_other_answers(make_examples()[:2], 9)


def batch_of(model):
    examples = kto.add_other_answers(make_examples(), 9)
    dpo.add_reference_logprobs(examples, make_reference(model), 0, sides=kto.SIDES)
    return kto.collate_judged(examples, 0)


def sum_by_hand(model, ids, n_prompt):
    logprobs = model(torch.tensor([ids])).log_softmax(-1)[0]
    return sum(logprobs[t - 1, ids[t]] for t in range(n_prompt, len(ids)))


def test_the_loss_by_hand(make_kto_loss=kto.make_kto_loss):
    """Rows one by one, without padding: 1 - sigmoid(+-beta (log-ratio - kl)), kl from the answers to other prompts."""
    model, reference = small_model(1), small_model(2)
    batch = batch_of(reference)
    loss, metrics = make_kto_loss(model, 0.3, wanted_weight=1.5, unwanted_weight=0.5)(batch)
    examples = kto.add_other_answers(make_examples(), 9)
    ratios = {}
    for side in kto.SIDES:
        ratios[side] = []
        for one in examples:
            ids, n_prompt = one[f"{side}_input_ids"], one[f"{side}_response_mask"].count(False)
            ratios[side].append(sum_by_hand(model, ids, n_prompt) - sum_by_hand(reference, ids, n_prompt))
    kl = max(0.0, sum(ratios["other"]).item() / 4)
    total = 0.0
    for one, ratio in zip(examples, ratios["answer"]):
        sign, weight = (1, 1.5) if one["wanted"] else (-1, 0.5)
        total += weight * (1 - torch.sigmoid(torch.tensor(sign * 0.3 * (ratio.item() - kl)))).item()
    assert loss.item() == pytest.approx(total / 4, abs=1e-5)
    assert metrics["kl"] == pytest.approx(kl, abs=1e-4) and metrics["n_tokens"] == 4


def test_the_kl_has_no_gradient():
    """Only a row's own answer is learned: a batch without wanted or unwanted rows has the gradient of its answers."""
    model = small_model(1)
    batch = batch_of(small_model(2))
    loss, _ = kto.make_kto_loss(model, 0.3)(batch)
    loss.backward()
    got = model.head.weight.grad.clone()
    fixed = kto.make_kto_loss(model, 0.3)
    model.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        kl = dpo.kto_kl(kto.sum_logprobs(model, batch, "other"), batch["ref_other_logprobs"]).item()
        patch.setattr(kto, "kto_kl", lambda *sums: torch.tensor(kl))
        fixed(batch)[0].backward()
    torch.testing.assert_close(got, model.head.weight.grad, atol=1e-6, rtol=0)


def test_what_kto_refuses(make_kto_loss=kto.make_kto_loss):
    """A beta that is not above 0, before any step, and a batch without the reference's sums."""
    for beta in (0, -0.1, float("nan")):
        with pytest.raises(MiniftError, match="beta is"):
            make_kto_loss(small_model(), beta)
    batch = kto.collate_judged(kto.add_other_answers(make_examples(), 9), 0)
    with pytest.raises(MiniftError, match="add_reference_logprobs"):
        make_kto_loss(small_model(), 0.3)(batch)


@pytest.mark.parametrize("n", [1, 4])
def test_it_learns_what_is_wanted(n):
    """Wanted answers become likelier and unwanted ones less likely, also with one row a batch."""
    model = small_model(1)
    reference = copy.deepcopy(model)
    examples = kto.add_other_answers(make_examples(), 9)
    dpo.add_reference_logprobs(examples, make_reference(reference), 0, sides=kto.SIDES)
    optimizer, loss_fn = make_optimizer(model, lr=3e-3, weight_decay=0.0), kto.make_kto_loss(model, 0.3)
    for step in range(40):
        first = step * n % 4
        take_step(optimizer, [kto.collate_judged(examples[first:first + n], 0)], loss_fn, lr=3e-3)
    gain = kto.sum_logprobs(model, kto.collate_judged(examples, 0), "answer") - torch.tensor(
        [one["ref_answer_logprobs"] for one in examples])
    assert (gain[[0, 2]] > 0.5).all() and (gain[[1, 3]] < -0.5).all()
