"""PPO: its formulas against worked numbers, and the loop's promises, up to the optimum that it must reach."""

import copy
import itertools
import math
import signal

import pytest
import torch

from minift.core.generate import Generation
from minift.core.heads import LanguageModel, TokenScorer
from minift.core.logprobs import make_reference, token_logprobs
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.evaluation import exact
from minift.methods import lora, ppo, ppo_loop, rollout

EOS, PAD = 1, 0


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def ones(x):
    return torch.ones_like(x, dtype=torch.bool)


# ---- the formulas ----


def test_token_rewards(token_rewards=ppo.token_rewards):
    """Each token pays beta * (log p - log p_ref), the last one earns the score: [-.05, 2.02]; the sum is 1.97."""
    rewards = token_rewards(rows(2.0), rows([-1.0, -2.0]), rows([-1.5, -1.8]), ones(rows([0, 0])), 0.1)
    assert rewards[0].tolist() == pytest.approx([-0.05, 2.02], abs=1e-9)
    assert rewards.sum().item() == pytest.approx(1.97, abs=1e-9)


def test_the_score_stands_on_each_rows_last_token(token_rewards=ppo.token_rewards):
    """Rows of unequal length: the score is on the last response token, and each row sums to score - beta * KL."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]])
    logprobs, ref = -torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    scores = rows(5.0, -3.0, 1.0)
    rewards = token_rewards(scores, logprobs, ref, mask, 0.3)
    without = token_rewards(rows(0.0, 0.0, 0.0), logprobs, ref, mask, 0.3)
    earned = torch.zeros(3, 5, dtype=torch.float64)
    earned[0, 3], earned[1, 2], earned[2, 4] = 5, -3, 1
    assert (rewards - without - earned).abs().max() < 1e-9
    total = scores - 0.3 * ((logprobs - ref) * mask).sum(1)
    assert (rewards.sum(1) - total).abs().max() < 1e-9
    assert (rewards[mask == 0] == 0).all()


def test_at_the_reference_only_the_score_is_paid(token_rewards=ppo.token_rewards):
    """While policy = reference no KL is paid: rewards are 0 but for the score; rubbish elsewhere is ignored."""
    mask = torch.tensor([[False, True, True, False]])
    logprobs = rows([math.nan, -1.0, -2.0, math.inf])
    rewards = token_rewards(rows(3.0), logprobs, logprobs.nan_to_num(), mask, 0.5)
    assert rewards.tolist() == [[0, 0, 3, 0]]


def test_an_empty_response_has_no_place_for_a_score(token_rewards=ppo.token_rewards):
    """A row without a response token is refused by its number."""
    mask = torch.tensor([[True, True], [False, False]])
    with pytest.raises(MiniftError, match="row 1"):
        token_rewards(rows(1.0, 1.0), rows([0, 0], [0, 0]), rows([0, 0], [0, 0]), mask, 0.1)


def test_gae_known_values(gae=ppo.gae):
    """Rewards 0, 0, 1, values .5, .6, .7: lam .95 -> A = .46575, .385, .3; lam 1 -> .5, .4, .3; lam 0 -> .1, .1, .3."""
    rewards, values = rows([0.0, 0.0, 1.0]), rows([0.5, 0.6, 0.7])
    for gamma, lam, expected in ((1.0, 0.95, [0.46575, 0.385, 0.3]), (1.0, 1.0, [0.5, 0.4, 0.3]),
                                 (1.0, 0.0, [0.1, 0.1, 0.3]), (0.9, 0.95, [0.284958, 0.2865, 0.3])):
        advantages, returns = gae(rewards, values, ones(rewards), gamma, lam)
        assert advantages[0].tolist() == pytest.approx(expected, abs=1e-6)
        assert (returns - advantages - values).abs().max() < 1e-12
    assert gae(rewards, values, ones(rewards))[1][0].tolist() == pytest.approx([0.96575, 0.985, 1.0], abs=1e-9)


def test_gae_by_brute_force(gae=ppo.gae):
    """A_t is the sum over k of (gamma lam)^k delta_{t+k} within the response, for random rows, lengths and settings."""
    generator = torch.Generator().manual_seed(0)
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (0.7, 1.0), (0.5, 0.9)):
        rewards, values = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
        spans = [(0, 7), (2, 5), (3, 4), (4, 7)]
        mask = torch.tensor([[first <= t < end for t in range(7)] for first, end in spans])
        advantages, returns = gae(rewards, values, mask, gamma, lam)
        for i, (first, end) in enumerate(spans):
            value = [values[i, t].item() if t < end else 0.0 for t in range(8)]
            delta = [rewards[i, t].item() + gamma * value[t + 1] - value[t] for t in range(7)]
            for t in range(7):
                inside = first <= t < end
                expected = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, end)) if inside else 0
                assert advantages[i, t].item() == pytest.approx(expected, abs=1e-9)
                assert returns[i, t].item() == pytest.approx(expected + value[t] if inside else 0, abs=1e-9)


def test_nothing_leaks_into_gae_from_the_padding(gae=ppo.gae):
    """After the end the value is 0: rewards 0, 1, values .5, .6 and a padding of 9.9 or NaN give A = .48, .4."""
    for rubbish in (9.9, math.nan, math.inf):
        mask = torch.tensor([[False, True, True, False]])
        advantages, returns = gae(rows([rubbish, 0, 1, rubbish]), rows([rubbish, 0.5, 0.6, rubbish]), mask)
        assert advantages[0].tolist() == pytest.approx([0, 0.48, 0.4, 0], abs=1e-9)
        assert returns[0].tolist() == pytest.approx([0, 0.98, 1.0, 0], abs=1e-9)


def test_discounts_outside_0_and_1(gae=ppo.gae):
    """gamma and lam must lie between 0 and 1."""
    for gamma, lam in ((1.1, 0.9), (-0.1, 0.9), (1.0, 1.5), (1.0, math.nan)):
        with pytest.raises(MiniftError, match="at least 0 and at most 1"):
            gae(rows([0.0]), rows([0.0]), ones(rows([0.0])), gamma, lam)


def test_the_clipped_loss(policy_loss=ppo.policy_loss):
    """Log-ratios .2 and 0, advantages 1 and -2, clip .2: the mean of -1.2 and 2 is 0.4; the first token is clipped."""
    loss, metrics = policy_loss(rows([0.2, 0.0]), rows([0.0, 0.0]), rows([1.0, -2.0]), ones(rows([0, 0])), 0.2)
    assert loss.item() == pytest.approx(0.4, abs=1e-9)
    assert metrics["clip_fraction"] == 0.5
    assert metrics["ratio"] == pytest.approx((math.exp(0.2) + 1) / 2, abs=1e-9)
    assert metrics["ratio_error"] == pytest.approx(math.exp(0.2) - 1, abs=1e-9)
    assert metrics["approx_kl"] == pytest.approx((math.exp(0.2) - 1 - 0.2) / 2, abs=1e-9)


def test_clipping_is_pessimistic(policy_loss=ppo.policy_loss):
    """Clipping ends what a token gains by going further, never what it gains by coming back: there gradient flows."""
    for ratio, advantage, expected, flows in ((1.3, -1, 1.3, True), (0.5, -1, 0.8, False), (0.5, 1, -0.5, True),
                                              (1.3, 1, -1.2, False), (1.1, 1, -1.1, True), (0.9, -1, 0.9, True)):
        logprobs = rows([math.log(ratio)]).requires_grad_()
        loss, metrics = policy_loss(logprobs, rows([0.0]), rows([float(advantage)]), ones(logprobs), 0.2)
        loss.backward()
        assert loss.item() == pytest.approx(expected, abs=1e-9)
        assert logprobs.grad.item() == pytest.approx(-advantage * ratio if flows else 0, abs=1e-9)
        assert metrics["clip_fraction"] == (0 if flows else 1)


def test_before_the_first_update(policy_loss=ppo.policy_loss):
    """With new = old the ratio is 1, nothing is clipped, the loss is -mean(A), and its gradient -A / n is not 0."""
    generator = torch.Generator().manual_seed(0)
    logprobs, advantages = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    mask, logprobs = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0]]).bool(), logprobs.requires_grad_()
    loss, metrics = policy_loss(logprobs, logprobs, advantages, mask)
    loss.backward()
    assert loss.item() == pytest.approx(-advantages[mask].mean().item(), abs=1e-9)
    assert (metrics["ratio"], metrics["ratio_error"], metrics["approx_kl"], metrics["clip_fraction"]) == (1, 0, 0, 0)
    assert (logprobs.grad - torch.where(mask, -advantages / 6, 0.0)).abs().max() < 1e-9


def test_only_the_new_logprobs_and_values_learn(policy_loss=ppo.policy_loss, value_loss=ppo.value_loss):
    """No gradient reaches old log-probs, advantages, old values or returns; the padding gets exactly 0."""
    mask = torch.tensor([[True, True, False]])
    for loss_function in (lambda a, b, c: policy_loss(a, b, c, mask)[0], lambda a, b, c: value_loss(a, b, c, mask)):
        inputs = [rows([0.1, -0.1, math.nan]).requires_grad_() for _ in range(3)]
        loss_function(*inputs).backward()
        assert inputs[1].grad is None and inputs[2].grad is None
        assert inputs[0].grad[0, 2] == 0 and inputs[0].grad.isfinite().all()


def test_rubbish_outside_the_response_changes_no_bit(policy_loss=ppo.policy_loss, value_loss=ppo.value_loss):
    """Whatever stands outside the response, both losses and all metrics stay bit-equal."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0]]).bool()
    clean = torch.randn(3, 2, 4, generator=generator)
    for rubbish in (0.0, 1e6, math.nan, -math.inf):
        dirty = torch.where(mask, clean, rubbish)
        assert policy_loss(*dirty, mask)[0] == policy_loss(*clean, mask)[0]
        assert policy_loss(*dirty, mask)[1] == policy_loss(*clean, mask)[1]
        assert value_loss(*dirty, mask) == value_loss(*clean, mask)


def test_the_clipped_value_loss(value_loss=ppo.value_loss):
    """Old 0, new .5, clip .2: a return of 1 costs .8^2 / 2 = .32, a return of 0 .5^2 / 2 = .125; a masked mean."""
    old, new, mask = rows([0.0]), rows([0.5]), ones(rows([0.0]))
    assert value_loss(new, old, rows([1.0]), mask).item() == pytest.approx(0.32, abs=1e-9)
    assert value_loss(new, old, rows([0.0]), mask).item() == pytest.approx(0.125, abs=1e-9)
    assert value_loss(new, old, rows([1.0]), mask, value_clip_range=None).item() == pytest.approx(0.125, abs=1e-9)
    assert value_loss(-new, old, rows([-1.0]), mask).item() == pytest.approx(0.32, abs=1e-9)
    two = value_loss(rows([0.5, 0.5, 7]), rows([0, 0, 0]), rows([1, 0, 0]), torch.tensor([[1, 1, 0]]))
    assert two.item() == pytest.approx((0.32 + 0.125) / 2, abs=1e-9)


def test_gradcheck(policy_loss=ppo.policy_loss, value_loss=ppo.value_loss):
    """Finite differences agree with both losses' gradients in float64, away from the corners of the clipping."""
    generator = torch.Generator().manual_seed(1)
    new, old, target = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    mask, new = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]), new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, target, mask)[0], new)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, target, mask), new)
    assert torch.autograd.gradcheck(lambda x: value_loss(x, old, target, mask, None), new)


def test_a_clip_range_must_be_positive(policy_loss=ppo.policy_loss, value_loss=ppo.value_loss):
    """A clip range of 0 or less would stop all learning."""
    x = rows([0.0])
    for clip_range in (0.0, -0.2):
        with pytest.raises(MiniftError, match="clip_range is"):
            policy_loss(x, x, x, ones(x), clip_range)
        with pytest.raises(MiniftError, match="clip_range is"):
            value_loss(x, x, x, ones(x), clip_range)


def test_explained_variance(explained_variance=ppo.explained_variance):
    """1 - Var(error) / Var(returns): values 1, 2, 2 for returns 1, 2, 3 explain 2/3; constant returns have none."""
    assert explained_variance(rows([1, 2, 2]), rows([1, 2, 3])) == pytest.approx(2 / 3, abs=1e-9)
    assert explained_variance(rows([6, 7, 8]), rows([1, 2, 3])) == pytest.approx(1, abs=1e-9)
    assert explained_variance(rows([5, 5, 5]), rows([1, 2, 3])) == pytest.approx(0, abs=1e-9)
    assert explained_variance(rows([1, 2, 3]), rows([2, 2, 2])) is None
    mask = torch.tensor([[1, 1, 1, 0]])
    assert explained_variance(rows([1, 2, 2, 9]), rows([1, 2, 3, -9]), mask) == pytest.approx(2 / 3, abs=1e-9)
    assert explained_variance(rows([1, 2]), rows([1, 2]), torch.tensor([[0, 0]])) is None


def test_the_adaptive_beta(AdaptiveKL=ppo.AdaptiveKL):
    """From .15 towards 6 nats, horizon 10,000, 64 responses: KL 12 gives .150192, 3 .149808, 6.6 is unclipped."""
    assert AdaptiveKL(0.15, 6, 10_000).update(12, 64) == pytest.approx(0.150192, abs=1e-9)
    assert AdaptiveKL(0.15, 6, 10_000).update(3, 64) == pytest.approx(0.149808, abs=1e-9)
    assert AdaptiveKL(0.15, 6, 10_000).update(6.6, 64) == pytest.approx(0.15 * (1 + 0.1 * 64 / 10_000), abs=1e-9)
    controller = AdaptiveKL(0.15, 6, 10_000)
    controller.update(12, 64)
    assert controller.update(12, 64) == controller.beta == pytest.approx(0.15 * 1.00128 ** 2, abs=1e-9)


def test_settings_that_make_no_sense(PPOConfig=ppo_loop.PPOConfig):
    """A setting out of its range is refused at once, by name."""
    for name, value in (("beta", -0.1), ("lr", 0), ("clip_range", 0), ("gamma", 1.1), ("lam", -0.1), ("epochs", 0),
                        ("minibatch_size", 0), ("max_new_tokens", 1.5), ("temperature", 0), ("target_kl", 0),
                        ("value_clip_range", -1), ("beta", None), ("missing_eos_penalty", -1), ("clip", 0)):
        with pytest.raises(MiniftError, match=f"^{name} is"):
            PPOConfig(**{name: value})
    PPOConfig(beta=0.0, value_clip_range=None, target_kl=None, clip=None)


def test_each_prompt_is_drawn_once_a_pass(draw_prompts=rollout.draw_prompts):
    """The stream of prompts is one permutation after another, each a new one, and the same again for the same seed."""
    prompts = list(range(7))
    drawn = [p for iteration in range(14) for p in draw_prompts(prompts, 3, iteration, seed=0)]
    passes = [drawn[start:start + 7] for start in range(0, 42, 7)]
    assert all(sorted(part) == prompts for part in passes)
    assert len({tuple(part) for part in passes}) == 6
    assert draw_prompts(prompts, 3, 4, seed=0) == drawn[12:15] != draw_prompts(prompts, 3, 4, seed=1)
    assert sorted(draw_prompts([0, 1], 5, 1, seed=0)) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


# ---- the loop ----


def small_policy(seed=0, dropout=0.0, vocab_size=6):
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size, 16, n_layer=1, n_head=2, d_model=16, d_ff=16, dropout=dropout)
    model = LanguageModel(config, tie_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    return model


PROMPTS = [[2, 3], [4], [5, 2, 2], [3, 3], [2, 5]]
FAST = {"beta": 0.1, "lr": 1e-3, "epochs": 2, "minibatch_size": 4, "max_new_tokens": 5}


def count_fives(generation):
    return ((generation.input_ids == 5) & generation.response_mask).sum(1).float()


def start(seed=0, dropout=0.0):
    """(policy, reference, value model), the policy a copy of the reference's model."""
    policy = small_policy(seed, dropout)
    return policy, make_reference(copy.deepcopy(policy)), ppo_loop.zero_head(TokenScorer(copy.deepcopy(policy.body)))


def run(policy, reference, value_model, reward_fn=count_fives, iterations=1, train_ppo=ppo_loop.train_ppo, **changes):
    options = {name: changes.pop(name) for name in ("on_iteration", "state_path", "resume", "save_every", "eos_id")
               if name in changes}
    config = ppo_loop.PPOConfig(**{**FAST, **changes})
    return train_ppo(policy, reference, value_model, reward_fn, PROMPTS, config, iterations=iterations, batch_size=10,
                     pad_id=PAD, seed=0, progress=False, **{"eos_id": EOS, **options})


def spy(monkeypatch, name, module=ppo_loop):
    """Record the arguments of every call of MODULE.NAME, which still does its work."""
    calls, function = [], getattr(module, name)

    def spied(*args, **kwargs):
        calls.append((args, kwargs))
        return function(*args, **kwargs)
    monkeypatch.setattr(module, name, spied)
    return calls


def test_the_first_iteration(monkeypatch):
    """At the start KL and values are 0, ratios 1; the loss, minus the mean white advantage, is 0, its gradient not."""
    steps = []
    take_step = rollout.take_step
    monkeypatch.setattr(rollout, "take_step", lambda *a, **k: steps.append(take_step(*a, **k)) or steps[-1])
    calls = spy(monkeypatch, "gae")
    row, = run(*start(), minibatch_size=10, epochs=1)
    assert abs(row["kl"]) < 1e-5 and 0 <= row["kl_k3"] < 1e-6
    (rewards, values, mask, _, _), _ = calls[0]
    assert (values[mask] == 0).all() and row["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert rewards[mask].sum().item() == pytest.approx(10 * row["score"], abs=1e-4)
    assert row["policy_loss"] == pytest.approx(0, abs=1e-5) and row["grad_norm"] > 0.01
    assert row["ratio_error"] < 1e-5 and row["clip_fraction"] == 0 and row["approx_kl"] < 1e-9
    assert len(steps) == 1


def test_the_rollout_is_what_the_formulas_say(monkeypatch):
    """Old log-probs, rewards, values and whitened advantages of short and long rows, worked again by hand."""
    policy, reference, value_model = start()
    other = small_policy(seed=1)
    losses = spy(monkeypatch, "ppo_loss")
    before = copy.deepcopy(policy)
    critic = TokenScorer(copy.deepcopy(small_policy(seed=2).body))
    critic_before = copy.deepcopy(critic)
    row, = run(policy, make_reference(other), critic, minibatch_size=10, epochs=1, missing_eos_penalty=0.7)
    batch = losses[0][0][2]
    ids, real, mask = batch["input_ids"], batch["attention_mask"], batch["response_mask"]
    assert len(set(mask.sum(1).tolist())) > 1
    whole = []
    for i in range(10):
        answer = ids[i, 1:][mask[i]]
        n = len(answer)
        alone = ids[i][real[i]][None]
        with torch.no_grad():
            old, ref = (token_logprobs(m(alone), alone)[0, -n:] for m in (before, other))
            values = critic_before(alone)[0, -n - 1:-1]
        assert (batch["old_logprobs"][i][mask[i]] - old).abs().max() < 1e-5
        assert (batch["old_values"][i][mask[i]] - values).abs().max() < 1e-5
        ended = answer[-1] == EOS
        assert EOS not in answer[:-1] and (ended or n == 5)
        rewards = -0.1 * (old - ref)
        rewards[-1] += (answer == 5).sum() - (0 if ended else 0.7)
        advantages, following = torch.zeros(n), torch.tensor(0.0)
        for t in reversed(range(n)):
            following = rewards[t] + (values[t + 1] if t + 1 < n else 0) - values[t] + 0.95 * following
            advantages[t] = following
        assert (batch["returns"][i][mask[i]] - advantages - values).abs().max() < 1e-4
        whole.append((advantages, (old - ref).sum(), ended, n, (answer == 5).sum()))
    flat = torch.cat([advantages for advantages, *_ in whole])
    assert (batch["advantages"][mask] - torch.cat(
        [(advantages - flat.mean()) / flat.std() for advantages, *_ in whole])).abs().max() < 1e-4
    means = [torch.tensor([float(part[k]) for part in whole]).mean().item() for k in (1, 2, 3, 4)]
    assert [row[name] for name in ("kl", "eos_share", "response_length", "score")] == pytest.approx(means, abs=1e-4)
    assert 0 < row["eos_share"] < 1
    assert row["entropy"] == pytest.approx(-batch["old_logprobs"][mask].mean().item(), abs=1e-5)


def test_each_response_is_used_once_an_epoch(monkeypatch):
    """Ten responses in minibatches of 4, 4 and 2, three epochs: each row once an epoch, in a new order each time."""
    losses = spy(monkeypatch, "ppo_loss")
    run(*start(), epochs=3)
    minibatches = [call[0][2]["returns"].sum(1).tolist() for call in losses]
    assert [len(m) for m in minibatches] == [4, 4, 2] * 3
    epochs = [list(itertools.chain(*minibatches[i:i + 3])) for i in (0, 3, 6)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_rubbish_after_the_end_changes_no_bit(ppo_loss=ppo_loop.ppo_loss):
    """Other ids, old log-probs, values, advantages and returns in the padding: the loss is bit-equal."""
    policy, reference, value_model = start()
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_loop, "ppo_loss", lambda *a, **k: seen.append(copy.deepcopy(a[2])) or ppo_loss(*a, **k))
        run(policy, reference, value_model, minibatch_size=10, epochs=1)
    clean, config = seen[0], ppo_loop.PPOConfig(**FAST)
    dirty = {name: x.clone() for name, x in clean.items()}
    after_the_end = ~clean["attention_mask"]
    assert after_the_end[:, 3:].any()
    dirty["input_ids"][after_the_end] = 5
    for name in ("old_logprobs", "old_values", "returns", "advantages"):
        dirty[name][~clean["response_mask"]] = 123.0
    policy.eval()
    value_model.eval()
    assert ppo_loss(policy, value_model, dirty, config)[0] == ppo_loss(policy, value_model, clean, config)[0]


def test_the_whole_loss(ppo_loss=ppo_loop.ppo_loss):
    """policy_loss + value_coef * value_loss, from a plain pass at a temperature."""
    policy, value_model = small_policy().eval(), TokenScorer(small_policy(seed=1).body).eval()
    ids = torch.tensor([[2, 3, 4, 5, 1], [5, 4, 3, 1, 0]])
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    mask = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 0]]).bool()
    old, old_values, returns, advantages = torch.randn(4, 2, 4, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": real, "response_mask": mask, "old_logprobs": old - 1,
             "old_values": old_values, "returns": returns, "advantages": advantages}
    config = ppo_loop.PPOConfig(value_coef=0.3, temperature=0.7, clip_range=0.1, value_clip_range=0.4)
    loss, metrics = ppo_loss(policy, value_model, batch, config)
    logits = policy(ids) / 0.7
    parts = (ppo.policy_loss(token_logprobs(logits, ids), old - 1, advantages, mask, 0.1)[0].item(),
             ppo.value_loss(value_model(ids)[:, :-1], old_values, returns, mask, 0.4).item())
    assert loss.item() == pytest.approx(parts[0] + 0.3 * parts[1], abs=1e-5)
    assert metrics["policy_loss"] == pytest.approx(parts[0], abs=1e-5)
    assert metrics["value_loss"] == pytest.approx(parts[1], abs=1e-5)
    assert metrics["n_tokens"] == 5


def test_the_losses_average_over_tokens_not_over_rows(value_loss=ppo.value_loss, policy_loss=ppo.policy_loss):
    """By hand on a row of three tokens and a row of one: each token weighs a quarter.

    Values: squares 1, 4, 9 and 16; half of their mean is 3.75 (rows first: 5.167). Policy: the ratios are 1, so the
    loss is minus the mean advantage, -(1 + 2 + 3 - 8) / 4 = 0.5 (rows first: 3).
    """
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    returns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 99.0, 99.0]], dtype=torch.float64)
    zero = torch.zeros_like(returns)
    assert value_loss(zero, zero, returns, mask, None).item() == pytest.approx(3.75, abs=1e-9)
    advantages = torch.tensor([[1.0, 2.0, 3.0], [-8.0, 99.0, 99.0]], dtype=torch.float64)
    assert policy_loss(zero, zero, advantages, mask)[0].item() == pytest.approx(0.5, abs=1e-9)


def test_an_end_token_in_the_prompt_ends_no_response():
    """A prompt of several turns holds <eos> after each answer; only one that the model wrote ends its response."""
    ids = torch.tensor([[2, EOS, 3, 4, 5], [2, EOS, 3, 4, EOS], [2, 3, 3, 4, 5]])
    written = torch.tensor([[0, 0, 0, 1, 1]] * 3).bool()
    generation = Generation(ids, torch.ones_like(written), written, torch.zeros(3, 4))
    assert generation.ended(EOS).tolist() == [False, True, False]
    assert generation.ended(None).tolist() == [False] * 3 and generation.responses() == [[4, 5], [4, EOS], [4, 5]]


def test_the_missing_end_costs_though_the_prompt_has_one(monkeypatch):
    """In the loop: prompts with <eos> inside do not spare their responses the penalty for a missing end."""
    monkeypatch.setitem(globals(), "PROMPTS", [[2, EOS, 3], [4, EOS, 5]])
    calls = spy(monkeypatch, "token_rewards")
    run(*start(), reward_fn=lambda generation: torch.zeros(len(generation.input_ids)), missing_eos_penalty=3.0,
        eos_id=EOS, max_new_tokens=1)
    (paid, *_), _ = calls[0]
    row_ended = paid == 0
    assert (paid[~row_ended] == -3).all() and (~row_ended).any()


def test_explained_variance_leaves_out_pads(monkeypatch):
    """The history's number is that of response tokens: pads, where values and returns are both 0, would flatter it."""
    calls = spy(monkeypatch, "explained_variance")
    policy, reference, value_model = start()
    torch.nn.init.normal_(value_model.score.weight, std=0.5)
    row, = run(policy, reference, value_model)
    (values, returns, mask), _ = calls[0]
    assert not mask.all(), "a rollout without pads would prove nothing"
    kept_values, kept_returns = values[mask], returns[mask]
    by_hand = 1 - (kept_returns - kept_values).var(unbiased=False) / kept_returns.var(unbiased=False)
    assert row["explained_variance"] == pytest.approx(by_hand.item(), abs=1e-6)


def test_the_reference_is_asked_again_once(monkeypatch):
    """Once a run, after its first update: later a reference that moved would have spoiled the run already."""
    policy, reference, value_model = start()
    asked = []

    def counted(input_ids, attention_mask=None):
        asked.append(len(asked))
        return reference(input_ids, attention_mask)
    steps = []
    take_step = rollout.take_step
    monkeypatch.setattr(rollout, "take_step", lambda *a, **k: steps.append(len(asked)) or take_step(*a, **k))
    run(policy, counted, value_model, iterations=3)
    # Two questions in the first iteration, one of them right after its first update; one in each later iteration.
    assert len(asked) == 4 and steps[0] == 1 and steps[1] == 2


def test_what_must_not_move_does_not(train_ppo=ppo_loop.train_ppo):
    """Reference and reward model keep every bit and share no storage with what learns; policy and values move."""
    policy, reference, value_model = start(dropout=0.3)
    judge = TokenScorer(copy.deepcopy(policy.body)).eval()
    policy.train()
    frozen = [copy.deepcopy(m.state_dict()) for m in (reference.model, judge)]
    moving = [copy.deepcopy(m.state_dict()) for m in (policy, value_model)]
    run(policy, reference, value_model, lambda g: judge.last_scores(g.input_ids, g.attention_mask), 2, train_ppo)
    for model, state in zip((reference.model, judge), frozen):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    for model, state in zip((policy, value_model), moving):
        assert not any(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert policy.training and value_model.training      # as they were given
    storages = [{p.data_ptr() for p in m.parameters()} for m in (policy, value_model, reference.model, judge)]
    assert sum(len(s) for s in storages) == len(set.union(*storages))


def test_a_policy_with_lora_is_its_own_reference(base_reference=lora.base_reference):
    """With LoRA the policy without its adapter is the reference: the base keeps every bit, and the KL starts at 0."""
    policy, _, value_model = start()
    base = copy.deepcopy(policy.state_dict())
    lora.add_lora(policy, rank=2, alpha=4)
    first, second = run(policy, base_reference(policy), value_model, iterations=2, lr=1e-2)
    assert abs(first["kl"]) < 1e-5 and second["kl_k3"] > 1e-4
    with lora.without_lora(policy), torch.no_grad():
        ids = torch.tensor([[2, 3, 4]])
        plain = small_policy()
        plain.load_state_dict(base)
        assert torch.equal(policy.eval()(ids), plain.eval()(ids))


def test_the_seed_decides_the_answers(train_ppo=ppo_loop.train_ppo):
    """The same seed writes the same answers, another seed others, and each iteration new ones."""
    def answers(seed):
        written = []

        def reward_fn(generation):
            written.append(generation.input_ids.tolist())
            return count_fives(generation)
        policy, reference, value_model = start()
        train_ppo(policy, reference, value_model, reward_fn, [[2, 3]], ppo_loop.PPOConfig(**{**FAST, "lr": 1e-9}),
                  iterations=2, batch_size=10, eos_id=None, pad_id=PAD, seed=seed, progress=False)
        return written
    first, second = answers(0)
    assert answers(0) == [first, second]
    assert first != second and first != answers(1)[0]


def test_the_seed_decides_the_prompts(monkeypatch, train_ppo=ppo_loop.train_ppo):
    """Iteration by iteration the prompts are those that draw_prompts gives for the seed; no bar is shown on demand."""
    drawn, shown = spy(monkeypatch, "draw_prompts", rollout), spy(monkeypatch, "Run", rollout)
    train_ppo(*start(), count_fives, PROMPTS, ppo_loop.PPOConfig(**FAST), iterations=2, batch_size=3, eos_id=EOS,
              pad_id=PAD, seed=7, progress=False)
    assert [args[1:] for args, _ in drawn] == [(3, 0, 7), (3, 1, 7)]
    assert shown[0][1]["progress"] is False


def test_resuming_with_other_settings_warns(tmp_path):
    """Another number of iterations changes the learning rate of each, another lam the advantages: both are said."""
    state = tmp_path / "state.safetensors"
    run(*start(), iterations=1, state_path=state)
    with pytest.warns(UserWarning) as caught:
        run(*start(), iterations=2, lam=0.5, state_path=state, resume=True)
    said = " ".join(str(warning.message) for warning in caught)
    assert "resuming with iterations=2" in said and "resuming with lam=0.5" in said


def test_the_learning_rate_falls_to_zero(train_ppo=ppo_loop.train_ppo):
    """Once an iteration, linearly: lr, 3/4, 1/2 and 1/4 of it over four iterations."""
    history = run(*start(), iterations=4, train_ppo=train_ppo)
    assert [row["lr"] for row in history] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4], abs=1e-9)
    assert [row["iteration"] for row in history] == [1, 2, 3, 4]
    assert all(row[f"seconds_{part}"] > 0 for row in history for part in ("rollout", "scoring", "update"))


def test_a_reference_that_is_the_policy(train_ppo=ppo_loop.train_ppo):
    """The policy, a wrapper of it, or a model that shares its weights cannot be the reference, nor can logits."""
    policy, _, value_model = start()
    for reference in (policy, make_reference(policy)):
        with pytest.raises(MiniftError, match="policy itself"):
            run(policy, reference, value_model, train_ppo=train_ppo)
    twin = copy.deepcopy(policy)
    twin.body = policy.body
    with pytest.raises(MiniftError, match="reference changed"):
        run(policy, make_reference(twin), value_model, train_ppo=train_ppo)
    with pytest.raises(MiniftError, match="make_reference"):
        run(policy, copy.deepcopy(policy), value_model, train_ppo=train_ppo)
    with pytest.raises(MiniftError, match="share one body"):
        run(policy, make_reference(copy.deepcopy(policy)), TokenScorer(policy.body), train_ppo=train_ppo)


def test_dropout_is_refused(train_ppo=ppo_loop.train_ppo):
    """A reference with active dropout is noticed, and so is a policy that someone puts into training mode."""
    policy, _, value_model = start(dropout=0.5)
    other = copy.deepcopy(policy).train()

    def noisy(input_ids, attention_mask):
        return token_logprobs(other(input_ids, attention_mask), input_ids)
    with pytest.raises(MiniftError, match="dropout is active"):
        run(policy, noisy, value_model, train_ppo=train_ppo)

    def meddler(generation):
        policy.train()
        return count_fives(generation)
    policy, reference, value_model = start(dropout=0.5)
    with pytest.raises(MiniftError, match="training mode"):
        run(policy, reference, value_model, meddler, train_ppo=train_ppo)


def test_a_first_ratio_away_from_1_is_refused(train_ppo=ppo_loop.train_ppo):
    """When the sampler's log-probs are not those of the update (here: off by .01), no step is taken."""
    generate = rollout.generate

    def off(*args, **kwargs):
        generation = generate(*args, **kwargs)
        generation.logprobs[generation.response_mask[:, 1:]] += 0.01
        return generation
    policy, reference, value_model = start()
    before = copy.deepcopy(policy.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "generate", off)
        with pytest.raises(MiniftError, match="away from 1"):
            run(policy, reference, value_model, train_ppo=train_ppo)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_scores_must_be_finite_and_one_a_row(train_ppo=ppo_loop.train_ppo):
    """A NaN or infinite score is refused by its row, a wrong shape by its shape; the weights stay as they were."""
    policy, reference, value_model = start()
    before = copy.deepcopy(policy.state_dict())
    for bad in (math.nan, math.inf):
        def reward_fn(generation):
            return [0.0] * 7 + [bad] + [0.0] * 2
        with pytest.raises(MiniftError, match="row 7"):
            run(policy, reference, value_model, reward_fn, train_ppo=train_ppo)
    for shape in ((10, 1), (9,)):
        with pytest.raises(MiniftError, match="expected"):
            run(policy, reference, value_model, lambda g: torch.zeros(shape), train_ppo=train_ppo)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    with pytest.raises(MiniftError, match="prompts"):
        train_ppo(policy, reference, value_model, count_fives, [[2], []], ppo_loop.PPOConfig(), iterations=1,
                  batch_size=1, eos_id=EOS, pad_id=PAD)


def test_without_an_end_token_all_responses_are_long(train_ppo=ppo_loop.train_ppo):
    """eos_id=None: every response has max_new_tokens, none has ended."""
    row, = run(*start(), train_ppo=train_ppo, eos_id=None)
    assert row["response_length"] == 5 and row["eos_share"] == 0


def test_resuming_is_bit_equal(tmp_path):
    """Stopped after the second of four iterations and resumed: weights and history equal those of the unbroken run."""
    settings = {"iterations": 4, "target_kl": 0.01, "kl_horizon": 100}
    whole, straight = start(), None
    straight = run(*whole, **settings)
    assert len({row["beta"] for row in straight}) == 4      # the adaptive beta is part of what must be resumed

    def stop(row):
        if row["iteration"] == 2:
            raise KeyboardInterrupt
    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(*start(), **settings, state_path=state, on_iteration=stop)
    again = start()
    torch.manual_seed(99)
    resumed = run(*again, **settings, state_path=state, resume=True)
    for a, b in zip(whole[::2], again[::2]):
        assert all(torch.equal(a.state_dict()[name], value) for name, value in b.state_dict().items())
    assert len(resumed) == 4
    for a, b in zip(straight, resumed):
        assert all(a[name] == b[name] for name in a if not name.startswith("seconds"))
    with pytest.raises(MiniftError, match="resume"):
        run(*start(), state_path=tmp_path / "nothing", resume=True)


def test_ctrl_c_finishes_the_iteration_and_saves(tmp_path):
    """Ctrl-C in the middle of an iteration ends the run after it, with a state from which it goes on."""
    def interrupted(generation):
        signal.raise_signal(signal.SIGINT)
        return count_fives(generation)
    state = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt, match="iteration 1 of 3"):
        run(*start(), interrupted, iterations=3, state_path=state, save_every=0)
    assert [row["iteration"] for row in run(*start(), iterations=3, state_path=state, resume=True)] == [1, 2, 3]


def test_rewards_can_be_whitened(monkeypatch):
    """whiten_rewards: what GAE gets has a standard deviation of 1 and the mean that it had."""
    plain, white = spy(monkeypatch, "token_rewards"), spy(monkeypatch, "gae")
    run(*start(), whiten_rewards=True)
    before, (after, _, mask, _, _) = ppo.token_rewards(*plain[0][0]), white[0][0]
    assert after[mask].std().item() == pytest.approx(1, abs=1e-4)
    assert after[mask].mean().item() == pytest.approx(before[mask].mean().item(), abs=1e-4)


# ---- one fixed point ----


TRUTH = torch.tensor([1.0, 0.0, -1.0])


def three_answers(beta, iterations, train_ppo, lr=0.02):
    """Train on one prompt and three answers of one token: (TV to pi*, TV to the reference)."""
    model = small_policy(vocab_size=3)
    with torch.no_grad():       # the logits after the prompt are the logs of .5, .3, .2
        hidden = model.body(torch.tensor([[0]]))[0, 0]
        model.head.weight.copy_(torch.outer(torch.tensor([0.5, 0.3, 0.2]).log(), hidden) / hidden.square().sum())
    ref = exact.answer_logprobs(model, [0], 1)
    assert ref.exp().tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-5)
    policy, value_model = copy.deepcopy(model), ppo_loop.zero_head(TokenScorer(copy.deepcopy(model.body)))
    config = ppo_loop.PPOConfig(beta=beta, lr=lr, epochs=2, minibatch_size=128, max_new_tokens=1, value_clip_range=None,
                           value_coef=1.0)
    train_ppo(policy, make_reference(model), value_model, lambda generation: TRUTH[generation.input_ids[:, -1]], [[0]],
              config, iterations=iterations, batch_size=128, eos_id=None, pad_id=0, seed=0, progress=False)
    learned, star = exact.answer_logprobs(policy, [0], 1).exp(), exact.optimum(ref, TRUTH, beta)
    return exact.total_variation(learned, star), exact.total_variation(learned, ref.exp())


def test_ppo_reaches_the_optimum_of_three_answers(train_ppo=ppo_loop.train_ppo):
    """From samples PPO finds ref * exp(reward / beta) / Z, 0.42 away from where it starts, to a TV of 0.03."""
    to_star, to_ref = three_answers(0.5, 30, train_ppo)
    assert to_star < 0.03 and to_ref > 0.3


def test_a_high_price_of_kl_keeps_the_policy_at_the_reference(train_ppo=ppo_loop.train_ppo):
    """At beta = 50 the optimum is 0.008 from the reference, and the policy ends within a TV of 0.02 of it."""
    assert three_answers(50.0, 15, train_ppo, lr=0.005)[1] < 0.02


def test_the_wrong_sign_of_kl_misses_the_optimum(train_ppo=ppo_loop.train_ppo):
    """A policy that is paid for leaving the reference does not end at the optimum: the check above can fail."""
    right = ppo.token_rewards

    def wrong(scores, logprobs, ref_logprobs, response_mask, beta):
        return right(scores, logprobs, ref_logprobs, response_mask, -beta)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_loop, "token_rewards", wrong)
        assert three_answers(0.5, 30, train_ppo)[0] > 0.05


# ---- details that can be switched ----


def test_the_kl_in_the_loss(ppo_loss=ppo_loop.ppo_loss):
    """With kl_in="loss" the mean k3 of the response tokens is added beta times; the token rewards hold no KL."""
    policy, reference, value_model = start()
    other = make_reference(small_policy(seed=3))
    with pytest.MonkeyPatch.context() as patch:
        paid, seen = spy(patch, "token_rewards"), spy(patch, "ppo_loss")
        run(policy, other, value_model, kl_in="loss", beta=0.3, epochs=1, minibatch_size=10)
    assert paid[0][0][4] == 0.0
    (_, _, batch), given = seen[0]
    policy, _, value_model = start()
    with_kl, metrics = ppo_loss(policy, value_model, batch, given["config"], beta=0.3)
    without, _ = ppo_loss(policy, value_model, batch, given["config"], beta=0.0)
    gap, mask = batch["ref_logprobs"] - batch["old_logprobs"], batch["response_mask"]
    k3 = ((gap.exp() - 1 - gap) * mask).sum() / mask.sum()
    assert k3 > 0.05 and (with_kl - without).item() == pytest.approx(0.3 * k3.item(), abs=1e-5)


def test_updates_end_at_a_large_kl():
    """An iteration takes no further step after one in which approx_kl went above stop_kl; the next one begins anew."""
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        take_step = rollout.take_step
        patch.setattr(rollout, "take_step", lambda *a, **k: steps.append(take_step(*a, **k)) or steps[-1])
        run(*start(), lr=0.05, epochs=4, minibatch_size=5, iterations=1)
        free = [step["approx_kl"] for step in steps]
        limit = sorted(free)[4]
        steps.clear()
        run(*start(), lr=0.05, epochs=4, minibatch_size=5, iterations=1, stop_kl=limit)
    first = next(i for i, kl in enumerate(free) if kl > limit)
    assert len(free) == 8 and [step["approx_kl"] for step in steps] == free[:first + 1] and first < 7


def test_one_body_for_policy_and_values():
    """It is refused unless it is asked for; then both losses move the one body, and its weights are there once."""
    policy, reference, _ = start()
    with pytest.raises(MiniftError, match="share one body"):
        run(policy, reference, TokenScorer(policy.body))
    value_model = ppo_loop.zero_head(TokenScorer(policy.body))
    row, = run(policy, reference, value_model, share_body=True, value_coef=1.0)
    assert value_model.body is policy.body and row["value_loss"] > 0
    alone, reference, other = start()
    run(alone, reference, other, value_coef=1.0)
    assert not torch.equal(alone.body.embed.weight, policy.body.embed.weight)


def test_advantages_as_they_are():
    """whiten_advantages=False leaves those of gae; by default they have mean 0 and standard deviation 1."""
    for whiten in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            seen = spy(patch, "ppo_loss")
            run(*start(), whiten_advantages=whiten, minibatch_size=10, epochs=1)
        batch = seen[0][0][2]
        inside = batch["advantages"][batch["response_mask"]]
        if whiten:
            assert abs(inside.mean()) < 1e-5 and inside.std().item() == pytest.approx(1, abs=1e-4)
        else:
            assert torch.equal(inside, (batch["returns"] - batch["old_values"])[batch["response_mask"]])
            assert abs(inside.mean()) > 0.1
