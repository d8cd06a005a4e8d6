"""The enumerable world, and the one fixed point that reward model, PPO and DPO must all reach in it."""

import copy
import math

import pytest
import torch

from minift.core import generate as sampler
from minift.core.heads import TokenScorer
from minift.core.logprobs import kl_estimate, make_reference, token_logprobs
from minift.core.step import make_optimizer
from minift.core.train import take_step
from minift.errors import MiniftError
from minift.evaluation import exact
from minift.methods import dpo, ppo_loop, reward

PROMPT, BETA = [0], 0.5


def world():
    """(reference, its log-probs, all answers, their rewards, pi*) of the 4,096 strings."""
    reference, answers = exact.example_reference(), exact.all_answers(8, 4)
    ref_logprobs, rewards = exact.answer_logprobs(reference, PROMPT, 4), exact.example_reward(answers)
    return reference, ref_logprobs, answers, rewards, exact.optimum(ref_logprobs, rewards, BETA)


def distance(policy, star):
    return exact.total_variation(exact.answer_logprobs(policy, PROMPT, 4).exp(), star)


def pair_batch(answers, chosen, rejected):
    """A batch as collate_pairs makes it, from rows of answers after the prompt."""
    batch = {}
    for side, rows in (("chosen", chosen), ("rejected", rejected)):
        input_ids = torch.cat([torch.full((len(rows), 1), PROMPT[0]), answers[rows]], dim=1)
        batch[f"{side}_input_ids"] = input_ids
        batch[f"{side}_attention_mask"] = torch.ones_like(input_ids, dtype=torch.bool)
        batch[f"{side}_response_mask"] = torch.ones_like(input_ids, dtype=torch.bool)
        batch[f"{side}_response_mask"][:, 0] = False
    return batch


# ---- the enumeration ----


def test_every_answer_is_listed_once(all_answers=exact.all_answers):
    """All V ** L strings, each once, the last token changing fastest: row i is i written in base V."""
    answers = all_answers(3, 4)
    assert answers.shape == (81, 4)
    assert ((answers * torch.tensor([27, 9, 3, 1])).sum(1) == torch.arange(81)).all()
    assert all_answers(5, 1).tolist() == [[0], [1], [2], [3], [4]]
    with pytest.raises(MiniftError, match="too many"):
        all_answers(50_000, 4)


def test_the_probabilities_of_all_answers(answer_logprobs=exact.answer_logprobs):
    """Each answer's log-prob is the sum of its tokens' in one plain forward pass; all probabilities sum to 1."""
    for length, temperature, prompt in ((4, 1.0, [0]), (3, 0.7, [2, 4, 1]), (1, 1.3, [5, 5])):
        # In float64: the sum of float32 probabilities is 1 to 1e-8 or to 1e-10, as the processor rounds.
        model = exact.example_reference(6, length).double().train()
        answers = exact.all_answers(6, length)
        ids = torch.cat([torch.tensor(prompt).expand(len(answers), -1), answers], dim=1)
        with torch.no_grad():
            one_by_one = token_logprobs(model(ids) / temperature, ids)[:, len(prompt) - 1:].sum(1)
        logprobs = answer_logprobs(model, prompt, length, temperature=temperature, batch_size=7)
        assert (logprobs - one_by_one).abs().max() < 1e-9
        assert abs(logprobs.exp().sum().item() - 1) < 1e-9
        assert model.training


def test_the_sampler_draws_from_the_enumerated_distribution(answer_logprobs=exact.answer_logprobs):
    """Frequencies of 20,000 sampled answers differ from the exact probabilities by no more than chance (chi-square)."""
    model, n = exact.example_reference(4, 2), 20_000
    expected = answer_logprobs(model, [1], 2).exp() * n
    out = sampler.generate(model, torch.ones(n, 1, dtype=torch.long), max_new_tokens=2, eos_id=None, pad_id=0,
                           generator=torch.Generator().manual_seed(0))
    count = torch.bincount(out.input_ids[:, 1] * 4 + out.input_ids[:, 2], minlength=16)
    chi_square = ((count - expected) ** 2 / expected).sum().item()
    assert chi_square < 37.7        # the 0.999 quantile at 15 degrees of freedom


def test_the_worked_optimum(optimum=exact.optimum):
    """ref (.5, .3, .2), rewards (1, 0, -1), beta .5: pi* = (.918672, .074597, .006730), and its KL and reward."""
    ref, rewards = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([1.0, 0.0, -1.0])
    star = optimum(ref.log(), rewards, 0.5)
    assert star.tolist() == pytest.approx([0.918672, 0.074597, 0.006730], abs=1e-6)
    assert exact.kl_divergence(star, ref) == pytest.approx(0.432205, abs=1e-6)
    assert exact.expected_reward(star, rewards) == pytest.approx(0.911942, abs=1e-6)
    half = torch.tensor([0.5, 0.5]).log()
    assert optimum(half, torch.tensor([1.0, 0.0]), 1.0).tolist() == pytest.approx([0.731059, 0.268941], abs=1e-6)
    assert optimum(half, torch.tensor([1.0, 0.0]), 0.5).tolist() == pytest.approx([0.880797, 0.119203], abs=1e-6)
    with pytest.raises(MiniftError, match="beta"):
        optimum(half, torch.tensor([1.0, 0.0]), 0.0)


def test_nothing_beats_the_optimum(optimum=exact.optimum):
    """No other distribution has a larger E[reward] - beta * KL, and beta * log of Z is that largest value."""
    generator = torch.Generator().manual_seed(0)
    for beta in (0.1, 0.5, 3.0):
        ref = torch.rand(9, generator=generator, dtype=torch.float64).softmax(0)
        rewards = torch.randn(9, generator=generator, dtype=torch.float64)

        def value(p):
            return exact.expected_reward(p, rewards) - beta * exact.kl_divergence(p, ref)

        best = value(optimum(ref.log(), rewards, beta))
        assert best == pytest.approx(beta * math.log((ref * (rewards / beta).exp()).sum().item()), abs=1e-9)
        for _ in range(200):
            other = (3 * torch.randn(9, generator=generator, dtype=torch.float64)).softmax(0)
            assert value(other) < best


def test_the_frontier(frontier=exact.frontier):
    """A smaller beta buys more reward for more KL; a point's slope is its beta (d reward / d KL)."""
    generator = torch.Generator().manual_seed(1)
    ref, rewards = torch.randn(50, generator=generator).double().log_softmax(0), torch.randn(50, generator=generator)
    points = frontier(ref, rewards, [2.0, 1.0, 0.5, 0.25])
    assert [point["beta"] for point in points] == [2.0, 1.0, 0.5, 0.25]
    for a, b in zip(points, points[1:]):
        assert b["kl"] > a["kl"] > 0 and b["reward"] > a["reward"]
    near, far = frontier(ref, rewards, [1.0001, 0.9999])
    assert (far["reward"] - near["reward"]) / (far["kl"] - near["kl"]) == pytest.approx(1.0, rel=1e-3)


def test_distances(total_variation=exact.total_variation, kl_divergence=exact.kl_divergence):
    """TV is the largest difference of any event's probability; KL counts a probability of 0 as 0."""
    p, q = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64), torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    events = [[i for i in range(3) if bits >> i & 1] for bits in range(8)]
    assert total_variation(p, q) == pytest.approx(max(abs((p - q)[event].sum().item()) for event in events), abs=1e-12)
    assert kl_divergence(p, q) == pytest.approx(math.log(2), abs=1e-12)
    assert kl_divergence(q, p) == math.inf
    assert total_variation(p, p) == kl_divergence(p, p) == 0


def test_best_of_n_by_brute_force(best_of_n=exact.best_of_n):
    """Best of n: of every n-tuple of answers the best is kept, tied ones share the tuple equally."""
    generator = torch.Generator().manual_seed(0)
    for n, rewards in ((1, [0.0, 1.0, 2.0, 2.0]), (2, [1.0, 1.0, 0.0, 2.0]), (4, [3.0, 1.0, 1.0, 1.0])):
        ref, rewards = torch.rand(4, generator=generator, dtype=torch.float64).softmax(0), torch.tensor(rewards)
        expected = torch.zeros(4, dtype=torch.float64)
        for draw in torch.cartesian_prod(*[torch.arange(4)] * n).reshape(-1, n):
            best = draw[rewards[draw] == rewards[draw].max()]
            expected.index_add_(0, best, (ref[draw].prod() / len(best)).expand(len(best)))
        assert (best_of_n(ref.log(), rewards, n) - expected).abs().max() < 1e-12


def test_the_kl_of_best_of_n_is_bounded(best_of_n=exact.best_of_n):
    """KL(best of n || ref) <= log n - (n - 1) / n, nearly reached by a fine reference without ties."""
    ref = torch.full((4096,), 1 / 4096).log()
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 4, 16, 64):
        bound = math.log(n) - (n - 1) / n
        assert exact.best_of_n_kl_bound(n) == pytest.approx(bound, abs=1e-12)
        free = exact.kl_divergence(best_of_n(ref, torch.randn(4096, generator=generator), n), ref.exp())
        tied = exact.kl_divergence(best_of_n(ref, torch.randint(4, (4096,), generator=generator), n), ref.exp())
        assert tied <= free + 1e-9 <= bound + 2e-9
        assert free > bound - 0.01


def test_the_kl_estimators_by_exact_summation(kl_estimate=kl_estimate):
    """Under the policy k1 and k3 average to the exact KL, k2 does not; k3 is never negative."""
    p, q = (exact.answer_logprobs(exact.example_reference(seed=seed), PROMPT) for seed in (0, 1))
    kl = exact.kl_divergence(p.exp(), q.exp())
    k1, k2, k3 = (kl_estimate(p, q, kind) for kind in ("k1", "k2", "k3"))
    assert (p.exp() * k1).sum().item() == pytest.approx(kl, abs=1e-9)
    assert (p.exp() * k3).sum().item() == pytest.approx(kl, abs=1e-9)
    assert abs((p.exp() * k2).sum().item() - kl) > 1e-3
    assert k3.min() >= 0 > k1.min()


def test_population_preferences(preference_probability=exact.preference_probability):
    """sigmoid of the reward difference: two points are preferred to none by 0.880797, and the two orders sum to 1."""
    a, b = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([0.0, 2.0, 1.0])
    assert preference_probability(a, b).tolist() == pytest.approx([0.880797, 0.119203, 0.5], abs=1e-6)
    assert (preference_probability(a, b) + preference_probability(b, a)).tolist() == pytest.approx([1, 1, 1], abs=1e-12)


# ---- the people of the example ----


def test_people_choose_as_bradley_and_terry_say(sample_choices=exact.sample_choices):
    """Each pair is drawn from ref; a point more wins in 73.1 % of 4,000 pairs; the reference's sums come along."""
    answers, ref = exact.all_answers(3, 2), torch.tensor([0.3, 0.2, 0.0, 0.1, 0.0, 0.1, 0.1, 0.1, 0.1]).double()
    rewards = torch.arange(9) % 2 * 1.0                                       # 1 for every second answer
    examples = sample_choices(answers, ref.log(), rewards, 4000, [5, 6])
    place = {tuple([5, 6, *answer]): i for i, answer in enumerate(answers.tolist())}
    pairs = torch.tensor([[place[tuple(e[f"{side}_input_ids"])] for side in ("chosen", "rejected")] for e in examples])
    shares = torch.bincount(pairs.flatten(), minlength=9) / 8000
    assert (shares - ref).abs().max() < 5 * math.sqrt(0.25 / 8000)
    unequal = rewards[pairs[:, 0]] != rewards[pairs[:, 1]]
    n, wins = int(unequal.sum()), int((rewards[pairs[:, 0]] > rewards[pairs[:, 1]]).sum())
    p = 1 / (1 + math.exp(-1))
    assert abs(wins - n * p) < 5 * math.sqrt(n * p * (1 - p)) and n > 1000
    assert examples[0]["chosen_response_mask"] == [False, False, True, True]
    for example, pair in zip(examples, pairs):
        logprobs = example["ref_chosen_logprobs"], example["ref_rejected_logprobs"]
        assert logprobs == pytest.approx(ref[pair].log().tolist(), abs=1e-9)
    again = sample_choices(answers, ref.log(), rewards, 4000, [5, 6])
    assert again == examples != sample_choices(answers, ref.log(), rewards, 4000, [5, 6], seed=1)


# ---- one fixed point for PPO, DPO and the reward model ----


def test_ppo_reaches_the_optimum_of_4096_answers(train_ppo=ppo_loop.train_ppo):
    """From 5,120 sampled answers PPO comes within a total variation of 0.1 of pi*, which is 0.5 away from ref."""
    reference, ref_logprobs, _, rewards, star = world()
    assert exact.total_variation(star, ref_logprobs.exp()) > 0.3
    policy = copy.deepcopy(reference)
    config = ppo_loop.PPOConfig(beta=BETA, lr=5e-3, epochs=2, minibatch_size=64, max_new_tokens=4, value_coef=1.0,
                           value_clip_range=None)
    value_model = ppo_loop.zero_head(TokenScorer(copy.deepcopy(reference.body)))
    history = train_ppo(policy, make_reference(reference), value_model,
                        lambda generation: exact.example_reward(generation.input_ids[:, -4:]), [PROMPT], config,
                        iterations=20, batch_size=256, eos_id=None, pad_id=0, seed=0, progress=False)
    learned = exact.answer_logprobs(policy, PROMPT).exp()
    assert exact.total_variation(learned, star) < 0.1
    assert history[-1]["score"] == pytest.approx(exact.expected_reward(learned, rewards), abs=0.15)
    assert history[-1]["kl"] == pytest.approx(exact.kl_divergence(learned, ref_logprobs.exp()), abs=0.2)


def test_dpo_reaches_the_optimum_of_4096_answers(dpo_loss=dpo.dpo_loss):
    """From pairs labelled by the whole population, DPO comes within a total variation of 0.05 of PPO's optimum."""
    reference, ref_logprobs, answers, rewards, star = world()
    policy, steps, generator = copy.deepcopy(reference), 250, torch.Generator().manual_seed(0)
    optimizer = make_optimizer(policy, lr=5e-3, weight_decay=0.0)
    for step in range(steps):
        first, second = torch.multinomial(ref_logprobs.exp(), 128, True, generator=generator).view(2, 64)
        chance = exact.preference_probability(rewards[first], rewards[second])
        chosen, rejected = torch.where(chance >= 0.5, first, second), torch.where(chance >= 0.5, second, first)
        batch = pair_batch(answers, chosen, rejected)
        batch["ref_chosen_logprobs"] = ref_logprobs[chosen].float()
        batch["ref_rejected_logprobs"] = ref_logprobs[rejected].float()
        dissent = torch.minimum(chance, 1 - chance).float()      # the share of people who would choose the other one
        loss_fn = dpo.make_dpo_loss(policy, BETA, loss=lambda *args: dpo_loss(*args, label_smoothing=dissent))
        take_step(optimizer, [batch], loss_fn, lr=5e-3 * (1 - step / steps))
    assert distance(policy, star) < 0.05


def test_a_reward_model_leads_to_the_optimum_of_4096_answers(make_reward_loss=reward.make_reward_loss):
    """Fitted to 19,200 single choices, a scorer gives scores whose optimum is within a TV of 0.15 of pi*."""
    reference, ref_logprobs, answers, rewards, star = world()
    torch.manual_seed(0)
    model, steps, generator = TokenScorer(copy.deepcopy(reference.body)), 300, torch.Generator().manual_seed(0)
    optimizer, loss_fn = make_optimizer(model, lr=5e-3, weight_decay=0.0), make_reward_loss(model)
    for step in range(steps):
        first, second = torch.multinomial(ref_logprobs.exp(), 128, True, generator=generator).view(2, 64)
        chance = exact.preference_probability(rewards[first], rewards[second])
        wins = torch.rand(64, generator=generator) < chance
        batch = pair_batch(answers, torch.where(wins, first, second), torch.where(wins, second, first))
        take_step(optimizer, [batch], loss_fn, lr=5e-3 * (1 - step / steps))
    with torch.no_grad():
        scores = model.last_scores(torch.cat([torch.zeros(4096, 1, dtype=torch.long), answers], dim=1))
    assert exact.total_variation(exact.optimum(ref_logprobs, scores, BETA), star) < 0.15
