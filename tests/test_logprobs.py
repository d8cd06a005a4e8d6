"""Log-probabilities and masked arithmetic: hand-worked numbers, brute force, nothing leaks from outside a mask."""

import math
import warnings

import pytest
import torch
from torch import nn

from minift.core import logprobs
from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError

TINY = TransformerConfig(vocab_size=37, context_length=32, n_layer=1, n_head=2, d_model=16, d_ff=16, dropout=0.2)


def close(got, expected, atol):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hidden_ids_mask(B=3, T=7, D=5, V=11):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, V, (B, T), generator=generator)
    mask = torch.rand(B, T, generator=generator) < 0.6
    mask[0, 0] = True                                                        # nothing predicts the first token
    torch.manual_seed(0)
    return random(B, T, D).requires_grad_(), nn.Linear(D, V).double(), ids, mask


def test_logprobs_by_hand(token_logprobs=logprobs.token_logprobs):
    """Odds 1 : 3 for the next token: log p = ln 1/4 and ln 3/4, read from the logits one position before the token."""
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0], [9.0, -9.0]]], dtype=torch.float64)
    for ids, odds in (([[0, 0, 0]], [[1 / 4, 1 / 2]]), ([[0, 1, 1]], [[3 / 4, 1 / 2]])):
        close(token_logprobs(logits, torch.tensor(ids)), torch.tensor(odds, dtype=torch.float64).log(), 1e-7)


def test_logprobs_by_brute_force(token_logprobs=logprobs.token_logprobs):
    """logprobs[b, t] = logits[b, t, ids[b, t + 1]] - log sum_v exp logits[b, t, v], for every b and t."""
    logits, ids = random(3, 6, 9), torch.randint(0, 9, (3, 6), generator=torch.Generator().manual_seed(1))
    got = token_logprobs(logits, ids)
    assert got.shape == (3, 5)
    for b in range(3):
        for t in range(5):
            total = sum(math.exp(z) for z in logits[b, t].tolist())
            assert abs(got[b, t] - (logits[b, t, ids[b, t + 1]] - math.log(total))) < 1e-9


def test_logprobs_of_huge_and_half_precision_logits(token_logprobs=logprobs.token_logprobs):
    """Logits of 1e4 do not overflow, bfloat16 logits are summed in float32, and a float64 result stays float64."""
    logits = torch.tensor([[[1e4, 0.0], [0.0, 0.0]]])
    assert token_logprobs(logits, torch.tensor([[0, 0]])).item() == 0
    assert token_logprobs(logits, torch.tensor([[0, 1]])).item() == -1e4
    many = torch.zeros(1, 2, 5000, dtype=torch.bfloat16)                     # bfloat16 has 3 digits: ln 5000 = 8.517193
    assert abs(token_logprobs(many, torch.tensor([[0, 7]])).item() + math.log(5000)) < 1e-5
    assert token_logprobs(random(1, 2, 3), torch.tensor([[0, 1]])).dtype == torch.float64


@pytest.mark.parametrize("cut", [False, True], ids=["whole mask", "cut mask"])
@pytest.mark.parametrize("chunk", [2**25, 33, 1], ids=["one chunk", "three rows a chunk", "one row a chunk"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_logprobs(cut, chunk, temperature, response_logprobs=logprobs.response_logprobs):
    """token_logprobs(head(hidden) / temperature) at response tokens, 0 elsewhere; in chunks too, gradients too."""
    hidden, head, ids, mask = hidden_ids_mask()
    weights = random(3, 6, seed=5)
    expected = logprobs.token_logprobs(head(hidden) / temperature, ids) * mask[:, 1:]
    want = torch.autograd.grad((expected * weights).sum(), [hidden, head.weight, head.bias])
    got = response_logprobs(hidden, head, ids, mask[:, 1:] if cut else mask, temperature, chunk)
    close(got, expected, 1e-9)
    assert (got[~mask[:, 1:]] == 0).all()
    have = torch.autograd.grad((got * weights).sum(), [hidden, head.weight, head.bias])
    for a, b in zip(have, want):
        close(a, b, 1e-9)
    with torch.no_grad():
        close(response_logprobs(hidden, head, ids, mask.int(), temperature, chunk), expected, 1e-9)


def test_response_logprobs_never_make_all_logits(response_logprobs=logprobs.response_logprobs):
    """The head sees no prompt token and no more rows at once than chunk_logits allows, forward and backward."""
    hidden, head, ids, mask = hidden_ids_mask(B=4, T=9)
    sizes = []
    head.register_forward_hook(lambda module, args, out: sizes.append(out.shape[:-1].numel()))
    response_logprobs(hidden, head, ids, mask, chunk_logits=4 * 11).sum().backward()
    n = int(mask[:, 1:].sum())
    assert max(sizes) <= 4 and n > 8
    assert 2 * n <= sum(sizes) <= 2 * n + 1                                  # once forward, once for the backward pass


def test_response_logprobs_of_an_empty_response(response_logprobs=logprobs.response_logprobs):
    """No response token: zeros, through which a backward pass still runs (gradient 0 or none, not NaN)."""
    hidden, head, ids, mask = hidden_ids_mask()
    got = response_logprobs(hidden, head, ids, torch.zeros_like(mask))
    assert torch.equal(got, torch.zeros(3, 6).double())
    got.sum().backward()
    assert all(x.grad is None or (x.grad == 0).all() for x in (hidden, head.weight))


def test_response_logprobs_refuse_a_wrong_mask(response_logprobs=logprobs.response_logprobs):
    """A mask of another length is a MiniftError."""
    hidden, head, ids, mask = hidden_ids_mask()
    for wrong in (mask[:, 2:], mask[:2]):
        with pytest.raises(MiniftError, match="response_mask has shape"):
            response_logprobs(hidden, head, ids, wrong)


def test_entropy_by_hand(entropy=logprobs.entropy):
    """Uniform over four: ln 4; [1/2, 1/4, 1/4]: 1.5 ln 2 = 1.039721; certain: 0; a banned id (-inf) counts nothing."""
    half = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert abs(entropy(torch.zeros(4).double()) - math.log(4)) < 1e-9
    assert abs(entropy(half.log() + 3) - 1.5 * math.log(2)) < 1e-9
    assert entropy(torch.tensor([0.0, -1e4])).item() == 0
    banned = torch.tensor([0.0, -math.inf, 0.0], requires_grad=True)
    value = entropy(banned)
    value.backward()
    assert abs(value.item() - math.log(2)) < 1e-6 and banned.grad.isfinite().all()
    assert entropy(random(2, 3, 5)).shape == (2, 3)


def test_entropy_equals_torchs_and_its_gradient(entropy=logprobs.entropy):
    """The same numbers as torch.distributions.Categorical, and the gradient that finite differences give."""
    logits = random(4, 6).requires_grad_()
    close(entropy(logits), torch.distributions.Categorical(logits=logits).entropy(), 1e-9)
    assert torch.autograd.gradcheck(entropy, (logits,))


def test_kl_estimates_by_hand(kl_estimate=logprobs.kl_estimate):
    """policy [1/2, 1/2], reference [1/4, 3/4]: k1, k2, k3 token by token; the mean of k1 and of k3 is the exact KL."""
    policy, reference = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.25, 0.75]).double()
    expected = {"k1": [0.693147, -0.405465], "k2": [0.240227, 0.082201], "k3": [0.193147, 0.094535]}
    for kind, values in expected.items():
        close(kl_estimate(policy.log(), reference.log(), kind), torch.tensor(values).double(), 1e-6)
    exact = (policy * (policy / reference).log()).sum()
    assert abs((policy * kl_estimate(policy.log(), reference.log(), "k1")).sum() - exact) < 1e-9
    assert abs((policy * kl_estimate(policy.log(), reference.log(), "k3")).sum() - exact) < 1e-9
    assert torch.equal(kl_estimate(policy.log(), reference.log()), kl_estimate(policy.log(), reference.log(), "k3"))
    with pytest.raises(MiniftError, match="kind is 'k4'"):
        kl_estimate(policy, reference, "k4")


def test_k3_is_unbiased_and_never_negative(kl_estimate=logprobs.kl_estimate):
    """Over a whole vocabulary, the policy's mean of k3 is the exact KL; each one is >= 0, in float32 near 0 as well."""
    policy, reference = random(20, seed=1).log_softmax(-1), random(20, seed=2).log_softmax(-1)
    k3 = kl_estimate(policy, reference)
    assert abs((policy.exp() * k3).sum() - (policy.exp() * (policy - reference)).sum()) < 1e-9 and (k3 >= 0).all()
    tiny = torch.tensor([1e-6, -1e-6, 1e-4, -1e-4, 0.0])
    small = kl_estimate(tiny, torch.zeros(5))
    close(small[2:], torch.tensor([5e-9, 5e-9, 0.0]), 2e-11)
    assert abs(small[0].item() - 4.5e-13) < 2e-13 and (small >= 0).all()     # exp(-d) - 1 + d gives -4.6e-8


def test_masked_sums_and_means(masked_sum=logprobs.masked_sum, masked_mean=logprobs.masked_mean):
    """[1, 2, (9)], [3, (9), (9)]: sum 6, mean 2; by row sums 3, 3, means 1.5, 3; an empty mask gives 0."""
    x = torch.tensor([[1.0, 2, 9], [3, 9, 9]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    for m in (mask, mask.int(), mask.double()):
        assert masked_sum(x, m) == 6 and masked_mean(x, m) == 2
        assert masked_sum(x, m, dim=1).tolist() == [3, 3] and masked_mean(x, m, dim=1).tolist() == [1.5, 3]
        assert masked_mean(x, m, dim=0).tolist() == [2, 2, 0]
    assert masked_sum(x, ~mask & mask) == 0 and masked_mean(x, ~mask & mask) == 0


def test_nothing_leaks_from_outside_a_mask(masked_sum=logprobs.masked_sum, masked_mean=logprobs.masked_mean,
                                           masked_whiten=logprobs.masked_whiten):
    """NaN and infinity outside the mask change no result and no gradient."""
    mask = torch.tensor([[True, True, False, True, False]])
    clean = random(1, 5).masked_fill(~mask, 7.0)
    dirty = clean.masked_fill(~mask, math.nan)
    dirty[0, 4] = math.inf
    def whiten(x, mask):
        return masked_whiten(x, mask)[mask][0] + masked_whiten(x, mask, keep_mean=True)[mask][1]

    for function in (masked_sum, masked_mean, whiten):
        a, b = clean.clone().requires_grad_(), dirty.clone().requires_grad_()
        close(function(a, mask), function(b, mask), 1e-12)
        (one,), (other,) = torch.autograd.grad(function(a, mask), a), torch.autograd.grad(function(b, mask), b)
        close(one[mask], other[mask], 1e-12)
    assert masked_whiten(dirty, mask)[~mask].tolist() == [0, 0]


def test_whitening_by_hand(masked_whiten=logprobs.masked_whiten):
    """[1, 2, 3] -> [-1, 0, 1] (unbiased variance 1); with keep_mean [1, 2, 3]; pads change nothing."""
    x, mask = torch.tensor([1.0, 2, 3]).double(), torch.ones(3, dtype=torch.bool)
    close(masked_whiten(x, mask), torch.tensor([-1.0, 0, 1]).double(), 1e-9)
    close(masked_whiten(x, mask, keep_mean=True), x, 1e-9)
    padded = torch.tensor([[1.0, 2, 100], [3, -50, 0]]).double()
    white = masked_whiten(padded, torch.tensor([[True, True, False], [True, False, False]]))
    close(white, torch.tensor([[-1.0, 0, 0], [1, 0, 0]]).double(), 1e-9)


def test_whitening_sets_mean_and_variance(masked_whiten=logprobs.masked_whiten):
    """Over the mask the result has mean 0 (or x's own) and unbiased variance 1, and does not change with a x + b."""
    x, mask = random(6, 8) * 3 + 5, random(6, 8, seed=1) > -0.3
    white = masked_whiten(x, mask)
    assert abs(white[mask].mean()) < 1e-9 and abs(white[mask].var() - 1) < 1e-9
    assert abs(masked_whiten(x, mask, keep_mean=True)[mask].mean() - x[mask].mean()) < 1e-9
    close(masked_whiten(0.5 * x - 4, mask), white, 1e-9)
    same = torch.full((2, 3), 0.25)
    assert torch.equal(masked_whiten(same, torch.ones(2, 3)), torch.zeros(2, 3))


def test_whitening_one_element_warns(masked_whiten=logprobs.masked_whiten):
    """One element, or none, has no variance: unchanged, never NaN, and a warning says so; two give no warning."""
    x = torch.tensor([3.0, 5.0])
    for mask in (torch.tensor([True, False]), torch.tensor([False, False])):
        with pytest.warns(UserWarning, match="at least two"):
            assert torch.equal(masked_whiten(x, mask), x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked_whiten(x, torch.tensor([True, True]))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_reference_is_the_model_without_gradient(temperature, make_reference=logprobs.make_reference):
    """reference(ids, mask) = token_logprobs(logits / temperature) of a forward in eval mode, and it leaves no trace."""
    torch.manual_seed(0)
    model = LanguageModel(TINY)
    model.body.layers[0].mlp.eval()                                          # one part has a mode of its own
    ids, mask = torch.randint(0, 37, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    mask[0, :2] = False
    reference = make_reference(model, temperature)
    got = reference(ids, mask)
    assert reference.model is model and not got.requires_grad
    assert model.training and model.body.layers[0].attn.training and not model.body.layers[0].mlp.training
    expected = logprobs.token_logprobs(model.eval()(ids, mask) / temperature, ids)
    close(got, expected.detach(), 1e-6)
    close(reference(ids), logprobs.token_logprobs(model(ids) / temperature, ids).detach(), 1e-6)


def test_eval_mode_restores_after_an_error(eval_mode=logprobs.eval_mode):
    """Inside, every module is in eval mode; afterwards each has its own mode again, after an exception too."""
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[1].eval()
    with pytest.raises(RuntimeError), eval_mode(model):
        assert not model.training and not model[0].training
        raise RuntimeError
    assert model.training and model[0].training and not model[1].training


def test_whitening_what_does_not_vary(masked_whiten=logprobs.masked_whiten):
    """Equal values have no spread: they become 0 (or their mean), never NaN or infinity."""
    x, mask = torch.full((2, 3), 4.0), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    x[0, 2] = math.nan
    assert (masked_whiten(x, mask) == 0).all()
    assert masked_whiten(x, mask, keep_mean=True)[mask].tolist() == [4.0] * 5
