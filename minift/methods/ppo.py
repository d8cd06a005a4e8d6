"""Proximal policy optimization: the policy writes, a reward scores, and a KL penalty keeps it near a reference.

Schulman et al. 2017, "Proximal Policy Optimization", eq. 7 (policy_loss); Schulman et al. 2016, "Generalized Advantage
Estimation", eq. 16 (gae); Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", eq. 2
(token_rewards) and section 2.2 (AdaptiveKL). Left out: an entropy bonus.
"""

import torch

from minift.core import logprobs as lp
from minift.core.settings import check_number
from minift.errors import MiniftError

# ---- the formulas, on (B, T-1) tensors; response_mask is already cut to [:, 1:] ----


def token_rewards(scores, logprobs, ref_logprobs, response_mask, beta):
    """-beta * (log p - log p_ref) at each response token, plus the row's score at the last of them; 0 elsewhere.

    scores: (B,). The others: (B, T-1). A row sums to score - beta * (k1 estimate of the row's KL).
    Returns (B, T-1). Raises MiniftError when a row has no response token: its score would have no place.
    """
    mask = response_mask.bool()
    empty = (~mask.any(1)).nonzero()
    if len(empty):
        raise MiniftError(
            f"the response of row {int(empty[0])} is empty, so its score has no place; drop the row")
    kl = torch.where(mask, logprobs - ref_logprobs, 0.0)  # (B, T-1)
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1, keepdim=True)  # (B, 1)
    return (-beta * kl).scatter_add(1, last, scores.to(kl.dtype).unsqueeze(1))  # (B, T-1)


def gae(rewards, values, response_mask, gamma=1.0, lam=0.95):
    """A_t = sum_k (gamma * lam)^k delta_{t+k}, with delta_t = r_t + gamma * V_{t+1} - V_t, and V = 0 after the end.

    rewards, values, response_mask: (B, T-1); values[:, t] was read before the token that earned rewards[:, t].
    Returns (advantages, returns), returns = advantages + values; both are 0 outside the response.
    """
    check_number("gamma", gamma, least=0, most=1)
    check_number("lam", lam, least=0, most=1)
    mask = response_mask.bool()
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])  # (B,)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]  # eq. 10
        next_advantage = torch.where(mask[:, t], delta + gamma * lam * next_advantage, 0.0)  # eq. 16
        next_value, advantages[:, t] = values[:, t], next_advantage
    return advantages, advantages + values


def clipped_losses(ratio, advantages, clip_range=0.2, clip_range_high=None):
    """-ratio * A, and the larger of it and -clip(ratio, 1 - clip_range, 1 + clip_range_high) * A: two (B, T-1).

    ratio: new / old probability of each token. clip_range_high: None is clip_range. The second tensor is the loss of
    eq. 7; the tokens where the two differ are clipped, and get no gradient.
    """
    check_number("clip_range", clip_range, above=0)
    high = clip_range if clip_range_high is None else clip_range_high
    check_number("clip_range_high", high, above=0)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + high)
    return unclipped, torch.maximum(unclipped, clipped)


def policy_loss(
        logprobs, old_logprobs, advantages, response_mask, clip_range=0.2, clip_range_high=None, weights=None):
    """The clipped loss of each token, the mean over response tokens. Only logprobs carry a gradient.

    All (B, T-1). weights: (B, T-1), of each token in a sum, instead of the mean. Returns (loss, metrics): clip_low and
    clip_high, the shares of tokens that are clipped below 1 and above (as in TRL); clip_fraction, both (CleanRL counts
    every |ratio - 1| > clip_range); approx_kl, the k3 estimate of KL(old || new) per token; ratio, its mean;
    ratio_error, the largest |ratio - 1|.
    """
    mask = response_mask.bool()
    log_ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0.0)
    advantages = torch.where(mask, advantages.detach(), 0.0)
    ratio = log_ratio.exp()  # (B, T-1)
    unclipped, losses = clipped_losses(ratio, advantages, clip_range, clip_range_high)
    loss = lp.masked_mean(losses, mask) if weights is None else lp.masked_sum(weights * losses, mask)
    with torch.no_grad():
        kl = lp.kl_estimate(-log_ratio, torch.zeros_like(ratio), "k3")
        was_clipped = losses > unclipped
        low = lp.masked_mean((was_clipped & (ratio < 1)).to(ratio.dtype), mask).item()
        high = lp.masked_mean((was_clipped & (ratio > 1)).to(ratio.dtype), mask).item()
        metrics = {
            "clip_fraction": low + high, "clip_low": low, "clip_high": high,
            "approx_kl": lp.masked_mean(kl, mask).item(),
            "ratio": lp.masked_mean(ratio, mask).item(),
            "ratio_error": (ratio - 1).abs().max().item()}
    return loss, metrics


def value_loss(values, old_values, returns, response_mask, value_clip_range=0.2):
    """Half the mean, over response tokens, of the larger squared error: of values, or of values kept near old_values.

    All (B, T-1); only values carry a gradient. old_values: from the rollout. value_clip_range: the largest distance
    from old_values; None for no limit.
    """
    mask = response_mask.bool()
    values, old_values, returns = (
        torch.where(mask, x, 0.0) for x in (values, old_values.detach(), returns.detach()))
    squares = (values - returns).square()  # (B, T-1)
    if value_clip_range is not None:
        check_number("value_clip_range", value_clip_range, above=0)
        clipped = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
        squares = torch.maximum(squares, (clipped - returns).square())
    return 0.5 * lp.masked_mean(squares, mask)


def explained_variance(values, returns, response_mask=None):
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for one that knows only the mean.

    Tensors of one shape; the mask chooses what counts. A float, or None when the returns do not vary.
    """
    if response_mask is not None:
        values, returns = values[response_mask.bool()], returns[response_mask.bool()]
    if returns.numel() == 0 or returns.max() == returns.min():
        return None
    return (1 - (returns - values).var(unbiased=False) / returns.var(unbiased=False)).item()


class AdaptiveKL:
    """Raises beta while the KL is above `target` (nats per response), lowers it while below. horizon: in responses."""

    def __init__(self, beta, target, horizon):
        self.beta, self.target, self.horizon = beta, target, horizon

    def update(self, kl, n):
        """beta *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon, after n responses of mean `kl`. Returns beta."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * n / self.horizon
        return self.beta
