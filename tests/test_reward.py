"""The reward model: Bradley-Terry on pairs, read at the last real token, with a zero and a unit of our choice."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from minift.core.generate import Generation
from minift.core.heads import TokenScorer
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError
from minift.methods import reward
from minift.text.pairs import collate_pairs


def small_scorer(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    config = TransformerConfig(12, 16, n_layer=1, n_head=2, d_model=16, d_ff=32, dropout=dropout)
    return TokenScorer(Transformer(config)).eval()


def pair(chosen, rejected):
    """An example whose first two tokens are the prompt."""
    return {"chosen_input_ids": chosen, "chosen_response_mask": [False] * 2 + [True] * (len(chosen) - 2),
            "rejected_input_ids": rejected, "rejected_response_mask": [False] * 2 + [True] * (len(rejected) - 2)}


PAIRS = [pair([1, 2, 3, 4, 0, 5], [1, 2, 6]), pair([7, 8, 9], [7, 8, 9, 0, 0]), pair([1, 1, 10, 11], [1, 1, 11, 10])]


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_known_losses(bradley_terry_loss=reward.bradley_terry_loss):
    """-log sigmoid(difference - margin): .313262 at 1, log 2 at 0, .474077 at 1 with a margin of .5."""
    assert bradley_terry_loss(numbers(1.0), numbers(0.0)).item() == pytest.approx(0.313262, abs=1e-6)
    assert bradley_terry_loss(numbers(3.0), numbers(3.0)).item() == pytest.approx(math.log(2), abs=1e-9)
    assert bradley_terry_loss(numbers(1.0), numbers(0.0), margin=0.5).item() == pytest.approx(0.474077, abs=1e-6)


def test_a_mean_over_pairs(bradley_terry_loss=reward.bradley_terry_loss):
    """The loss of a batch is the mean of its pairs' losses; the three pairs of a ranking 2 > 1 > 0 have 0.251150."""
    assert bradley_terry_loss(numbers(2, 2, 1), numbers(1, 0, 0)).item() == pytest.approx(0.251150, abs=1e-6)
    margins = numbers(0.1, 0.2, 0.3)
    one_by_one = [bradley_terry_loss(numbers(c), numbers(r), m) for c, r, m in ((2, 1, 0.1), (2, 0, 0.2), (1, 0, 0.3))]
    together = bradley_terry_loss(numbers(2, 2, 1), numbers(1, 0, 0), margins)
    assert together.item() == pytest.approx(sum(one_by_one).item() / 3, abs=1e-9)


def test_gradients(bradley_terry_loss=reward.bradley_terry_loss):
    """Chosen gets -(1 - sigmoid(difference)), rejected the opposite: -+0.268941 at 1; finite differences agree."""
    chosen, rejected = numbers(1.0).requires_grad_(), numbers(0.0).requires_grad_()
    bradley_terry_loss(chosen, rejected).backward()
    assert chosen.grad.item() == pytest.approx(-0.268941, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.268941, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(lambda c, r: bradley_terry_loss(c, r, 0.3), inputs)


def test_only_differences_count(bradley_terry_loss=reward.bradley_terry_loss):
    """A constant added to all scores changes nothing, and swapping the pair gives L(-d) = L(d) + d."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        c, r = torch.randn(2, 1, dtype=torch.float64, generator=generator) * 3
        loss = bradley_terry_loss(c, r).item()
        assert bradley_terry_loss(c + 7, r + 7).item() == pytest.approx(loss, abs=1e-9)
        assert bradley_terry_loss(r, c).item() == pytest.approx(loss + (c - r).item(), abs=1e-9)


def test_a_hopeless_pair_is_finite(bradley_terry_loss=reward.bradley_terry_loss):
    """At a difference of -1000 the loss is 1000, in float32 too, with a gradient of 1."""
    chosen = torch.tensor([-1000.0], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.tensor([0.0]))
    loss.backward()
    assert loss.item() == 1000.0 and chosen.grad.item() == -1.0


def test_recovers_the_scores_of_a_whole_population(bradley_terry_loss=reward.bradley_terry_loss):
    """Fitted to the exact win rates of scores 1, 0, -1, a table of scores returns them up to a constant, to 1e-6."""
    truth, table = numbers(1, 0, -1), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([table], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)
    ordered = [(i, j) for i in range(3) for j in range(3) if i != j]

    def closure():
        optimizer.zero_grad()
        loss = sum(torch.sigmoid(truth[i] - truth[j]) * bradley_terry_loss(table[[i]], table[[j]]) for i, j in ordered)
        loss.backward()
        return loss
    optimizer.step(closure)
    assert ((table - table.mean()) - truth).abs().max().item() < 1e-6


def test_recovers_scores_from_single_choices(bradley_terry_loss=reward.bradley_terry_loss):
    """A scorer fitted to 60,000 sampled choices between three answers finds their score differences within 0.05."""
    truth, generator = torch.tensor([1.0, 0.0, -1.0]), torch.Generator().manual_seed(0)
    first = torch.randint(3, (60_000,), generator=generator)
    second = (first + torch.randint(1, 3, (60_000,), generator=generator)) % 3
    wins = torch.rand(60_000, generator=generator) < torch.sigmoid(truth[first] - truth[second])
    chosen, rejected = torch.where(wins, first, second), torch.where(wins, second, first)
    model, ids = small_scorer(), torch.tensor([[5, 0], [5, 1], [5, 2]])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        scores = model.last_scores(ids)
        bradley_terry_loss(scores[chosen], scores[rejected]).backward()
        optimizer.step()
    difference = scores.detach()[:, None] - scores.detach()[None]
    assert (difference - (truth[:, None] - truth[None])).abs().max().item() < 0.05


def test_the_batch_loss_reads_each_answer_at_its_last_token(make_reward_loss=reward.make_reward_loss):
    """The loss of a padded batch is that of scores read one by one from unpadded answers, whatever the padding id."""
    model = small_scorer()
    with torch.no_grad():
        chosen, rejected = (torch.stack([model(torch.tensor([p[f"{side}_input_ids"]]))[0, -1] for p in PAIRS])
                            for side in ("chosen", "rejected"))
        expected = F.softplus(rejected - chosen).mean().item()
        for pad_id in (0, 11):
            loss, metrics = make_reward_loss(model)(collate_pairs(PAIRS, pad_id))
            assert loss.item() == pytest.approx(expected, abs=1e-5)
            assert metrics["n_tokens"] == 3
            assert metrics["margin"] == pytest.approx((chosen - rejected).mean().item(), abs=1e-5)
            assert metrics["accuracy"] == pytest.approx((chosen > rejected).float().mean().item(), abs=1e-6)
            assert metrics["ties"] == 0


def test_a_batch_brings_its_margins(make_reward_loss=reward.make_reward_loss):
    """Of two like answers chosen must win by its pair's margin: -log sigmoid(-margin); without one, by 0."""
    pairs = [pair([1, 2, 3], [1, 2, 3]) for _ in range(3)]
    pairs[0]["margin"], pairs[2]["margin"] = 0.5, 2.0
    loss, metrics = make_reward_loss(small_scorer())(collate_pairs(pairs, 0))
    expected = sum(math.log(1 + math.exp(margin)) for margin in (0.5, 0.0, 2.0)) / 3
    assert loss.item() == pytest.approx(expected, abs=1e-5) and abs(metrics["margin"]) < 1e-5


def test_a_tie_is_no_win(make_reward_loss=reward.make_reward_loss):
    """Two like answers tie: accuracy 0, ties 1, and the loss is log 2."""
    loss, metrics = make_reward_loss(small_scorer())(collate_pairs([pair([1, 2, 3], [1, 2, 3])] * 2, 0))
    assert (metrics["accuracy"], metrics["ties"], metrics["margin"]) == (0.0, 1.0, 0.0)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_a_step_of_training_raises_the_margin(make_reward_loss=reward.make_reward_loss):
    """One small gradient step lowers the loss and lifts chosen over rejected; all parameters but the bias move."""
    model = small_scorer()
    batch, loss_fn = collate_pairs(PAIRS, 0), make_reward_loss(model)
    loss, before = loss_fn(batch)
    loss.backward()
    # Only differences count, so the bias cancels, to the rounding of the processor at hand.
    largest = {name: p.grad.abs().max().item() for name, p in model.named_parameters()}
    assert largest.pop("score.bias") < 1e-6 < 1e-4 < min(largest.values())
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad
    after_loss, after = loss_fn(batch)
    assert after["margin"] > before["margin"] and after_loss < loss


def test_normalising_mean_2_and_std_4(normalise_scores=reward.normalise_scores):
    """Scores of mean 2 and std 4 give the head a gain of 1/4 and a bias of -1/2."""
    model = small_scorer()
    weight = model.score.weight.detach().clone()
    normalise_scores(model, torch.tensor([-2.0, 6.0, 6.0, -2.0]))
    assert torch.equal(model.score.weight, weight / 4)
    assert model.score.bias.item() == -0.5


def test_normalised_scores_have_mean_0_and_std_1(normalise_scores=reward.normalise_scores):
    """After folding, the same answers score (old - mean) / std, also when done again; the order stays."""
    model = small_scorer()
    model.score.bias.data.fill_(3.0)
    ids = torch.randint(12, (50, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old = model.last_scores(ids)
        for _ in range(2):
            normalise_scores(model, model.last_scores(ids))
            new = model.last_scores(ids)
            assert new.mean().item() == pytest.approx(0, abs=1e-4)
            assert new.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
            assert torch.allclose(new, (old - old.mean()) / old.std(unbiased=False), atol=1e-4, rtol=0)


def test_what_cannot_be_normalised(normalise_scores=reward.normalise_scores):
    """Equal, single, missing or non-finite scores are refused and leave the head as it is."""
    model = small_scorer()
    before = copy.deepcopy(model.score.state_dict())
    for scores in ([1.0, 1.0], [1.0], [], [1.0, math.nan], [0.0, math.inf]):
        with pytest.raises(MiniftError, match="scores"):
            normalise_scores(model, scores)
    assert all(torch.equal(before[name], value) for name, value in model.score.state_dict().items())


def test_a_reward_model_scores_generations(reward_from_model=reward.reward_from_model):
    """A padded generation scores as its real tokens alone do; no gradient, no dropout, the mode restored."""
    model = small_scorer(dropout=0.5).train()
    rows = [[3, 4, 5, 6, 7], [8, 9, 0]]
    generation = Generation(
        input_ids=torch.tensor([[3, 4, 5, 6, 7], [11, 8, 9, 0, 11]]),
        attention_mask=torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 0]]).bool(),
        response_mask=torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]).bool(), logprobs=torch.zeros(2, 4))
    scores = reward_from_model(model)(generation)
    assert model.training and not scores.requires_grad
    model.eval()
    expected = torch.stack([model(torch.tensor([row]))[0, -1] for row in rows])
    assert (scores - expected).abs().max() < 1e-5
