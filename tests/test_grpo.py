"""Critic-free methods: each advantage rule against brute force, each gradient against enumeration, and the loop."""

import copy
import itertools
import math

import pytest
import torch
from test_ppo import EOS, FAST, PAD, PROMPTS, TRUTH, count_fives, ones, rows, small_policy

from minift.core.generate import Generation
from minift.core.logprobs import kl_estimate, make_reference
from minift.errors import MiniftError
from minift.evaluation import exact
from minift.methods import grpo, lora, ppo, rollout

# A world of three answers of one token (oracle 1.13): policy, reference, rewards, and the true gradient dJ/dlogits.
P, REF, R = (torch.tensor(x, dtype=torch.float64) for x in ([.5, .3, .2], [.4, .4, .2], [1.0, 0.0, -1.0]))
TRUE = P * (R - (P * R).sum())


def settings(method="grpo", **changes):
    return grpo.GRPOConfig(**{**FAST, "method": method, "beta": 0.0, "group_size": 2, **changes})


# ---- the formulas ----


def test_advantages(group_advantages=grpo.group_advantages):
    """[1, 0, 0, 1] by each rule."""
    one = rows(1.0, 0.0, 0.0, 1.0)
    for method, expected in (
            ("rloo", [2 / 3, -2 / 3, -2 / 3, 2 / 3]), ("dr_grpo", [.5, -.5, -.5, .5]), ("reinforce", [1, 0, 0, 1]),
            ("grpo", [.8658754, -.8658754, -.8658754, .8658754]), ("dapo", [.8658754] + [-.8658754] * 2 + [.8658754])):
        assert group_advantages(one, 4, method).tolist() == pytest.approx(expected, abs=1e-7)
    assert group_advantages(one, 4, "grpo", eps=0)[0].item() == pytest.approx(math.sqrt(3) / 2, abs=1e-9)


@pytest.mark.parametrize("method", grpo.METHODS)
def test_advantages_answer_by_answer(method, group_advantages=grpo.group_advantages):
    """Against loops over groups of unequal sizes and scales: no group knows of another."""
    generator = torch.Generator().manual_seed(0)
    for size in (2, 3, 5):
        groups = torch.randn(4, size, generator=generator, dtype=torch.float64) * torch.tensor([[1], [10], [.1], [3]])
        found = group_advantages(groups.reshape(-1), size, method).view(4, size)
        for group, mine in zip(groups.tolist(), found.tolist()):
            mean = sum(group) / size
            spread = math.sqrt(sum((r - mean) ** 2 for r in group) / (size - 1))
            expected = {
                "reinforce": group, "dr_grpo": [r - mean for r in group],
                "rloo": [r - (sum(group) - r) / (size - 1) for r in group]}
            assert mine == pytest.approx(expected.get(method, [(r - mean) / (spread + 1e-4) for r in group]), abs=1e-9)


@pytest.mark.parametrize("method", ["rloo", "grpo", "dr_grpo", "dapo"])
def test_a_group_of_equal_rewards_teaches_nothing(method, group_advantages=grpo.group_advantages):
    """Exactly 0, though the float32 mean of seven times .1 is not .1; the group beside it counts as always."""
    rewards = torch.tensor([0.1] * 7 + [1.0] + [0.0] * 6)
    assert rewards[:7].mean() != rewards[0], "the case must be one in which rounding would leave a trace"
    found = group_advantages(rewards, 7, method)
    assert (found[:7] == 0).all() and (found[7:] != 0).all()


def test_groups_must_be_whole(group_advantages=grpo.group_advantages):
    with pytest.raises(MiniftError, match="5 rewards cannot be split into groups of 2"):
        group_advantages(torch.zeros(5), 2)


def test_weights_of_tokens(token_weights=grpo.token_weights):
    """answers of 2 and 8 tokens with a limit of 8. Whole answers: the sum over tokens, the mean over rows."""
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    for method, short, long in (("grpo", .25, .0625), ("dapo", .1, .1), ("dr_grpo", .0625, .0625), ("rloo", .5, .5)):
        weights = token_weights(mask, method, 8, torch.float64)
        assert weights[0].tolist() == pytest.approx([short] * 2 + [0] * 6, abs=1e-12)
        assert weights[1].tolist() == pytest.approx([long] * 8, abs=1e-12)


def test_the_clip_may_be_higher_upwards():
    """.2 down and .28 up; the shares that were clipped below and above are told apart."""
    ratios, advantages = rows([1.25, 1.3, 0.7, 0.7]), rows([1.0, 1.0, -1.0, 1.0])
    for column, high, expected in ((0, .28, -1.25), (0, None, -1.2), (1, .28, -1.28), (2, .28, .8), (3, .28, -.7)):
        one = ratios[:, column:column + 1]
        advantage = advantages[:, column:column + 1]
        loss, _ = ppo.policy_loss(one.log(), torch.zeros_like(one), advantage, ones(one), .2, high)
        assert loss.item() == pytest.approx(expected, abs=1e-9)
    _, metrics = ppo.policy_loss(ratios.log(), torch.zeros_like(ratios), advantages, ones(ratios), .2, .28)
    assert (metrics["clip_low"], metrics["clip_high"], metrics["clip_fraction"]) == (.25, .25, .5)


def gradient_of(loss_of_logprobs):
    """d loss / d logits of the three answers, where loss_of_logprobs gets their log-probabilities (3,)."""
    logits = P.log().clone().requires_grad_(True)
    loss_of_logprobs(logits.log_softmax(0)).backward()
    return logits.grad


def expected_gradient(method, size, group_loss=grpo.group_loss):
    """The ascent direction of group_loss, its expectation over all groups of `size` one-token answers."""
    def loss(logprobs):
        total = 0.0
        for group in itertools.product(range(3), repeat=size):
            drawn = list(group)
            batch = {
                "response_mask": torch.ones(size, 1, dtype=torch.bool),
                "old_logprobs": logprobs[drawn].detach().unsqueeze(1),
                "advantages": grpo.group_advantages(R[drawn], size, method, eps=0)}
            config = settings(method, max_new_tokens=1, group_size=size)
            value, _ = group_loss(logprobs[drawn].unsqueeze(1), None, batch, config)
            total = total + P[drawn].prod() * value
        return total
    return -gradient_of(loss)


def test_expected_gradients():
    """REINFORCE and RLOO have the true gradient, r - mean (G - 1) / G of it, GRPO another direction."""
    assert TRUE.tolist() == pytest.approx([.35, -.09, -.26], abs=1e-12)
    for size in (2, 4):
        assert (expected_gradient("reinforce", size) - TRUE).abs().max() < 1e-9
        assert (expected_gradient("rloo", size) - TRUE).abs().max() < 1e-9
        assert (expected_gradient("dr_grpo", size) - TRUE * (size - 1) / size).abs().max() < 1e-9
    assert expected_gradient("grpo", 2).tolist() == pytest.approx([.176777, -.06364, -.113137], abs=1e-6)
    assert expected_gradient("grpo", 4).tolist() == pytest.approx([.331508, -.120954, -.210554], abs=1e-6)


def test_the_kl_in_the_loss(group_loss=grpo.group_loss):
    """under samples of the policy the gradient of k3 is that of KL(ref || policy), beta times."""
    def loss(logprobs):
        batch = {"response_mask": torch.ones(3, 1, dtype=torch.bool), "advantages": torch.zeros(3, dtype=torch.float64)}
        total = 0.0
        for answer in range(3):
            one = {name: x[:1] for name, x in batch.items()}
            one["old_logprobs"] = logprobs[answer].detach().view(1, 1)
            value, _ = group_loss(
                logprobs[answer].view(1, 1), REF[answer].log().view(1, 1), one, settings(beta=0.7, max_new_tokens=1))
            total = total + P[answer] * value
        return total
    found = gradient_of(loss)
    assert (found - 0.7 * torch.tensor([.1, -.1, 0])).abs().max() < 1e-9
    reverse = gradient_of(lambda logprobs: (REF * (REF.log() - logprobs)).sum())
    assert (found - 0.7 * reverse).abs().max() < 1e-9


def test_the_loss_in_loops(group_loss=grpo.group_loss):
    """Rows of unequal length, clipping and k3, by plain loops over tokens, for each method; padding may be rubbish."""
    generator = torch.Generator().manual_seed(1)
    new, old, ref = (-torch.rand(4, 6, generator=generator, dtype=torch.float64) for _ in range(3))
    lengths, advantages = [6, 1, 3, 4], rows(1.0, -2.0, 0.5, -0.3)
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    for method in grpo.METHODS:
        config = settings(method, beta=0.3, clip_range=.1, clip_range_high=.2, max_new_tokens=9)
        batch = {"response_mask": mask, "old_logprobs": old.masked_fill(~mask, math.nan), "advantages": advantages}
        loss, metrics = group_loss(new.masked_fill(~mask, math.inf), ref, batch, config)
        total = penalty = 0.0
        for i, length in enumerate(lengths):
            weight = {"grpo": 1 / 4 / length, "dapo": 1 / 14, "dr_grpo": 1 / 4 / 9}.get(method, 1 / 4)
            ratios = [math.exp(new[i, t] - old[i, t]) for t in range(length)]
            if method in ("reinforce", "rloo"):
                ratios = [math.prod(ratios)]
            for ratio in ratios:
                total += weight * max(-ratio * advantages[i], -min(max(ratio, .9), 1.2) * advantages[i]).item()
            for t in range(length):
                gap = (ref[i, t] - new[i, t]).item()
                penalty += weight * (math.exp(gap) - 1 - gap)
        assert metrics["policy_loss"] == pytest.approx(total, abs=1e-9)
        assert loss.item() == pytest.approx(total + 0.3 * penalty, abs=1e-9) and metrics["n_tokens"] == 14


def test_settings_that_make_no_sense():
    """A setting out of its range is refused at once, by name; so is a batch that holds no whole groups."""
    for name, value in (
            ("method", "ppo"), ("kl_in", "nowhere"), ("group_size", 1), ("clip_range_high", 0), ("beta", -1)):
        with pytest.raises(MiniftError, match=f"^{name} is"):
            grpo.GRPOConfig(**{name: value})
    grpo.GRPOConfig(method="reinforce", group_size=1)
    with pytest.raises(MiniftError, match="batch_size is 9; expected a multiple of group_size, 2"):
        run(*start(), batch_size=9)


# ---- CS336's functions, made of ours ----


def test_the_functions_of_cs336():
    """Group-normalised rewards, the clipped loss of each token, the masked mean over a fixed length (assignment 5)."""
    rewards = rows(1.0, 0.0, 0.0, 1.0, 3.0, 3.0, 0.0, 0.0)
    groups = rewards.view(2, 4)
    normal = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).reshape(-1)
    assert (grpo.group_advantages(rewards, 4, "grpo", eps=1e-6) - normal).abs().max() < 1e-9
    generator = torch.Generator().manual_seed(2)
    new, old = -torch.rand(2, 8, 5, generator=generator, dtype=torch.float64)
    ratio, advantages = (new - old).exp(), normal.unsqueeze(1)
    expected = -torch.minimum(ratio * advantages, ratio.clamp(.9, 1.1) * advantages)
    _, losses = ppo.clipped_losses(ratio, advantages, 0.1)
    assert (losses - expected).abs().max() < 1e-9
    mask = torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5, 1, 2]).unsqueeze(1)
    constant = (grpo.token_weights(mask, "dr_grpo", 7, torch.float64) * losses).sum()
    assert constant.item() == pytest.approx(((losses * mask).sum(1) / 7).mean().item(), abs=1e-9)


# ---- the loop ----


def start(seed=0, dropout=0.0):
    policy = small_policy(seed, dropout)
    return policy, make_reference(copy.deepcopy(policy))


def run(policy, reference, reward_fn=count_fives, iterations=1, batch_size=10, train_grpo=grpo.train_grpo, **changes):
    options = {name: changes.pop(name) for name in ("on_iteration", "state_path", "resume", "save_every", "eos_id")
               if name in changes}
    return train_grpo(policy, reference, reward_fn, PROMPTS, settings(**changes), iterations=iterations,
                      batch_size=batch_size, pad_id=PAD, seed=0, progress=False, **{"eos_id": EOS, **options})


def spy_updates(monkeypatch):
    """The rollouts that reach the update: a list of dicts of tensors."""
    seen, update_on = [], rollout.update_on
    monkeypatch.setattr(rollout, "update_on", lambda data, *a, **k: seen.append(data) or update_on(data, *a, **k))
    return seen


def add_ids(generation):
    """A score that differs in almost every group."""
    return (generation.input_ids * generation.response_mask).sum(1).float()


def generation_of(data):
    """The Generation from which the data of an update were made."""
    written = torch.nn.functional.pad(data["response_mask"], (1, 0))
    return Generation(data["input_ids"], data["attention_mask"], written, data["old_logprobs"])


@pytest.mark.parametrize("method", grpo.METHODS)
def test_the_first_iteration(method, monkeypatch):
    """Each group answers one prompt; the KL is 0, each ratio 1, and the advantages are those of the scores."""
    seen, before = spy_updates(monkeypatch), small_policy()
    policy, reference = start()
    row, = run(policy, reference, add_ids, method=method, group_size=5, minibatch_size=10, epochs=1)
    assert abs(row["kl"]) < 1e-5 and row["ratio_error"] < 1e-4 and row["clip_fraction"] == 0
    generation = generation_of(seen[0])
    assert generation.prompts() == [prompt for prompt in rollout.draw_prompts(PROMPTS, 2, 0, seed=0) for _ in range(5)]
    assert torch.equal(grpo.group_advantages(add_ids(generation), 5, method), seen[0]["advantages"])
    assert any(not torch.equal(a, b) for a, b in zip(policy.state_dict().values(), before.state_dict().values()))


def test_groups_without_variance_are_left_out(monkeypatch):
    """Answers whose group has one score do not reach the update, and are counted; REINFORCE learns from all."""
    def reward_fn(generation):      # the first prompt's answers all score 1
        return torch.tensor([1.0] * 5 + [0.0, 1.0, 0.0, 0.0, 0.0])
    for method, left in (("grpo", 5), ("reinforce", 10)):
        seen = spy_updates(monkeypatch)
        row, = run(*start(), reward_fn, method=method, group_size=5)
        assert len(seen[0]["input_ids"]) == left and row["answers_left_out"] == 10 - left
        assert row["equal_groups"] == 0.5 and row["score_std"] == pytest.approx(math.sqrt(.24))
        assert row["group_std"] == pytest.approx(0.2)


@pytest.mark.parametrize("method", grpo.METHODS)
def test_what_is_left_out_changes_no_gradient(method, monkeypatch):
    """The update's gradient is that of the loss of all rows, minibatch by minibatch on average."""
    def reward_fn(generation):      # the second prompt's answers all score 1
        return torch.cat([torch.tensor([1.0, 0, 0, 2.0]), torch.ones(4), torch.tensor([0.0, 1.0, 1.0, 1.0])])
    seen, losses = spy_updates(monkeypatch), []
    step = rollout.take_step

    def spied(optimizer, batches, loss_fn, **kwargs):
        losses.append(loss_fn(batches[0])[0].item())
        return step(optimizer, batches, lambda batch: loss_fn(batch), **kwargs)
    monkeypatch.setattr(rollout, "take_step", spied)
    policy, reference = start()
    run(policy, reference, reward_fn, method=method, group_size=4, batch_size=12, minibatch_size=4, epochs=1, lr=1e-12)
    kept, config = seen[0], settings(method, group_size=4)
    assert len(kept["input_ids"]) == (12 if method == "reinforce" else 8)
    policy, _ = start()
    generation = shared_rollout(policy)
    advantages = grpo.group_advantages(reward_fn(generation), 4, method)
    data = {"response_mask": generation.response_mask[:, 1:], "old_logprobs": generation.logprobs,
            "advantages": advantages}
    whole, _ = grpo.group_loss(generation.logprobs, None, data, config)
    assert sum(losses) / len(losses) == pytest.approx(whole.item(), abs=1e-5)


def shared_rollout(policy):
    """The answers of the first iteration of `run` with three groups of four."""
    drawn = rollout.draw_prompts(PROMPTS, 3, 0, seed=0)
    repeated = [prompt for prompt in drawn for _ in range(4)]
    return rollout.write_answers(policy, repeated, settings(), eos_id=EOS, pad_id=PAD, seed=0, iteration=0)


def test_a_kl_in_the_loss_keeps_all_answers(monkeypatch):
    """With beta above 0 in the loss, groups without variance stay: their answers are still pulled to the reference."""
    seen = spy_updates(monkeypatch)
    run(*start(), lambda generation: torch.ones(10), beta=0.1, group_size=5)
    run(*start(), lambda generation: torch.ones(10), beta=0.1, group_size=5, kl_in="reward", method="rloo")
    assert [len(data["input_ids"]) for data in seen] == [10, 0]


def test_a_rollout_without_any_variance_changes_nothing():
    """All scores equal: no update, a row of metrics all the same, and the run goes on."""
    policy, reference = start()
    before = copy.deepcopy(policy.state_dict())
    history = run(policy, reference, lambda generation: torch.ones(10), iterations=2)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert [row["answers_left_out"] for row in history] == [10, 10] and history[0]["equal_groups"] == 1


def test_answers_that_were_cut(monkeypatch):
    """They are punished or left out of the update, as asked; in both cases their group sees their reward."""
    for changes in ({"mask_truncated": True}, {"missing_eos_penalty": 3.0}, {}):
        seen = spy_updates(monkeypatch)
        row, = run(*start(), group_size=5, max_new_tokens=2, **changes)
        ended = ((seen[0]["input_ids"][:, 1:] == EOS) & seen[0]["response_mask"]).any(1)
        assert 0 < row["eos_share"] < 1
        if "mask_truncated" in changes:
            assert ended.all() and row["answers_left_out"] == 10 - len(ended)
        else:
            assert not ended.all()
        if "missing_eos_penalty" in changes:
            assert seen[0]["advantages"][ended].mean() > 0.5 > seen[0]["advantages"][~ended].mean()


def test_the_kl_in_the_reward(monkeypatch):
    """With kl_in="reward" the answer's k1 KL is taken from its score before the groups are compared."""
    seen = spy_updates(monkeypatch)
    policy, reference = start()
    other = small_policy(seed=3)
    run(policy, make_reference(other), method="rloo", group_size=5, beta=0.4, kl_in="reward", minibatch_size=10)
    data = seen[0]
    kl = (kl_estimate(data["old_logprobs"], data["ref_logprobs"], "k1") * data["response_mask"]).sum(1)
    rewards = count_fives(generation_of(data)) - 0.4 * kl
    assert (data["advantages"] - grpo.group_advantages(rewards, 5, "rloo")).abs().max() < 1e-5


def test_resume_is_bit_equal(tmp_path):
    """Four iterations, or two and two more in another run: the same weights and history."""
    whole, reference = start()
    history = run(whole, reference, iterations=4, epochs=2)
    path = tmp_path / "state.safetensors"

    def stop(row):
        if row["iteration"] == 2:
            raise KeyboardInterrupt
    first, reference = start()
    with pytest.raises(KeyboardInterrupt):
        run(first, reference, iterations=4, epochs=2, state_path=path, on_iteration=stop)
    second, reference = start()
    again = run(second, reference, iterations=4, epochs=2, state_path=path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values()))
    assert [row["score"] for row in again] == [row["score"] for row in history]


def test_lora_is_its_own_reference():
    """With an adapter the frozen base is the reference, and only the adapter moves."""
    policy = small_policy()
    before = copy.deepcopy(policy.state_dict())
    lora.add_lora(policy, 2, 4)
    run(policy, lora.base_reference(policy), iterations=2, lr=0.01)
    after = {name: value for name, value in policy.state_dict().items() if "lora" not in name}
    assert all(torch.equal(value, before[name.replace(".linear", "")]) for name, value in after.items())
    assert any(value.abs().sum() > 0 for name, value in policy.state_dict().items() if "lora_B" in name)


def test_what_would_be_meaningless_is_refused():
    """The reference is the policy; dropout is on; the reference shares the policy's weights."""
    policy, reference = start(dropout=0.5)
    with pytest.raises(MiniftError, match="reference is the policy itself"):
        run(policy, make_reference(policy))

    def meddler(generation):
        policy.train()
        return count_fives(generation)
    with pytest.raises(MiniftError, match="the policy was put into training mode"):
        run(policy, reference, meddler)
    policy, _ = start()
    with pytest.raises(MiniftError, match="changed with the first update"):
        run(policy, lambda *batch: make_reference(policy)(*batch))


@pytest.mark.parametrize("method", ["rloo", "dr_grpo"])
def test_the_optimum_is_reached(method, train_grpo=grpo.train_grpo):
    """With the KL in the reward, from samples alone: ref * exp(reward / beta) / Z within a total variation of .03."""
    model = small_policy(vocab_size=3)
    with torch.no_grad():
        hidden = model.body(torch.tensor([[0]]))[0, 0]
        model.head.weight.copy_(torch.outer(torch.tensor([0.5, 0.3, 0.2]).log(), hidden) / hidden.square().sum())
    ref, policy = exact.answer_logprobs(model, [0], 1), copy.deepcopy(model)
    config = grpo.GRPOConfig(
        method=method, beta=0.5, kl_in="reward", lr=0.02, epochs=2, minibatch_size=128, max_new_tokens=1, group_size=8)
    train_grpo(policy, make_reference(model), lambda generation: TRUTH[generation.input_ids[:, -1]], [[0]],
               config, iterations=30, batch_size=128, eos_id=None, pad_id=0, seed=0, progress=False)
    star, learned = exact.optimum(ref, TRUTH, 0.5), exact.answer_logprobs(policy, [0], 1).exp()
    assert exact.total_variation(ref.exp(), star) > 0.3 and exact.total_variation(learned, star) < 0.03
