"""Log-probabilities of written tokens, and the masked arithmetic on them; the shift by one happens here only.

logits[:, t] predict token t + 1, so (B, T) ids have (B, T - 1) log-probabilities (other code: logps, log_probs).
KL estimators: Schulman 2020, "Approximating KL Divergence" (k1, k2, k3). Left out: fused linear-and-loss kernels.
"""

import contextlib
import warnings

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minift.errors import MiniftError

# The label of tokens that are not learned; torch's cross_entropy skips it.
IGNORE_INDEX = -100
# Logits that may exist at once: 128 MiB in float32.
CHUNK_LOGITS = 2**25


def token_logprobs(logits, input_ids):
    """log p(token t | before) = log_softmax(logits[t - 1])[input_ids[t]], nats: (B, T, V), (B, T) -> (B, T - 1)."""
    return pick(logits[:, :-1], input_ids[:, 1:])


def pick(logits, targets):
    """log_softmax(logits) at the targets, in at least float32: (..., V), (...) -> (...)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).long(), reduction="none")
    return -flat.view(targets.shape)


def response_logprobs(
        hidden, head, input_ids, response_mask, temperature=1.0, chunk_logits=CHUNK_LOGITS):
    """token_logprobs(head(hidden) / temperature, input_ids) at response tokens, 0 elsewhere: (B, T - 1), nats.

    hidden: (B, T, D). head: any module (N, D) -> (N, V), applied to response tokens only. response_mask: (B, T), or
    already cut to (B, T - 1). Many tokens are computed in chunks of at most chunk_logits logits, which the backward
    pass computes again, so that all logits never exist at once.
    """
    # Pick the response tokens; only their logits are needed.
    mask = response_mask.bool()
    mask = mask[:, 1:] if mask.shape[1] == input_ids.shape[1] else mask  # (B, T - 1)
    if mask.shape != input_ids[:, 1:].shape:
        raise MiniftError(
            f"response_mask has shape {tuple(response_mask.shape)}; expected {tuple(input_ids.shape)}, "
            f"or one column less")
    states = hidden[:, :-1][mask]     # (N, D) token t - 1 predicts token t
    targets = input_ids[:, 1:][mask]  # (N,)

    def chunk_logprobs(states, targets):
        logits = head(states)  # (n, V)
        if temperature != 1:
            logits = logits / temperature
        return pick(logits, targets)

    # Compute few tokens at once and many in chunks, then put the results back at their places.
    with torch.no_grad():
        rows = max(1, chunk_logits // head(states[:1]).shape[-1])
    chunks = zip(states.split(rows), targets.split(rows))
    if len(states) <= rows:
        picked = chunk_logprobs(states, targets)
    elif torch.is_grad_enabled():
        parts = [checkpoint(chunk_logprobs, *chunk, use_reentrant=False) for chunk in chunks]
        picked = torch.cat(parts)
    else:
        picked = torch.cat([chunk_logprobs(*chunk) for chunk in chunks])
    return picked.new_zeros(mask.shape).masked_scatter(mask, picked)  # (B, T - 1)


def labelled_nll(hidden, head, labels, vocab_size):
    """(sum of -log p(label) in nats, number of labels): each label is predicted from the position before it.

    hidden: (B, T, D). head: (N, D) -> (N, V), applied only where a label is learned. labels: (B, T), -100 where nothing
    is learned; the first column is predicted by nothing and does not count. MiniftError for a label outside 0..V-1.
    """
    learned = labels != IGNORE_INDEX           # (B, T)
    targets = labels.masked_fill(~learned, 0)  # (B, T)
    wrong = (targets < 0) | (targets >= vocab_size)
    # On the CPU only: on a GPU the check would wait for all queued work.
    if labels.device.type == "cpu" and wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise MiniftError(
            f"label {labels[row, column].item()} at row {row}, column {column}; expected an id below "
            f"{vocab_size}, or {IGNORE_INDEX} for nothing to learn")
    logprobs = response_logprobs(hidden, head, targets, learned)  # (B, T - 1)
    return -logprobs.sum(), int(learned[:, 1:].sum())


def batch_nll(model, batch, labels):
    """labelled_nll of a language model; batch: input_ids (B, T), attention_mask, position_ids, segment_ids if any."""
    hidden = model.body(
        batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids"),
        batch.get("segment_ids"))  # (B, T, D)
    return labelled_nll(hidden, model.head, labels, model.config.vocab_size)


def make_next_token_loss(model):
    """-log p(label), nats, the mean over labels that are not -100: a loss_fn(batch) -> (loss, metrics) for `train`.

    batch: input_ids (B, T), and optionally labels (B, T; without them every token is learned), attention_mask,
    position_ids, segment_ids. Nothing to learn: the loss is 0, never NaN.
    """
    def loss_fn(batch):
        labels = batch.get("labels", batch["input_ids"])
        nll, n_tokens = batch_nll(model, batch, labels)
        return nll / max(n_tokens, 1), {"n_tokens": n_tokens}
    return loss_fn


def entropy(logits):
    """-sum_v p_v log p_v of each distribution: (..., V) -> (...), nats; a logit of -inf adds 0."""
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(-1)


def kl_estimate(logprobs, ref_logprobs, kind="k3"):
    """Estimates of KL(policy || reference) from tokens that the policy wrote, with d = log p - log p_ref.

    k1 = d: unbiased, may be negative. k2 = d^2 / 2: biased, low variance. k3 = exp(-d) - 1 + d: unbiased, never
    negative. Same shape as the inputs, nats; take a masked mean over tokens.
    """
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        # exp(-d) - 1 would cancel in float32 near d = 0.
        return torch.expm1(-d) + d
    raise MiniftError(f"kind is {kind!r}; expected k1, k2 or k3")


def masked_sum(x, mask, dim=None):
    """Sum of x where mask, over `dim` or everything. Values outside the mask, even NaN, do not matter."""
    kept = torch.where(mask.bool(), x, 0)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x, mask, dim=None):
    """Mean of x where mask, over `dim` or everything; 0 where the mask is empty."""
    return masked_sum(x, mask, dim) / masked_sum(torch.ones_like(x), mask, dim).clamp(min=1)


def masked_whiten(x, mask, keep_mean=False):
    """(x - mean) / std over the mask, unbiased variance, 0 outside. keep_mean adds the mean back (for rewards).

    Fewer than two elements have no variance: x comes back unchanged, with a warning.
    """
    if mask.sum() < 2:
        warnings.warn(
            "whitening needs at least two elements; the values stay as they are", stacklevel=2)
        return x
    # Values outside the mask, even NaN, must not enter the sums.
    x = torch.where(mask.bool(), x, 0)
    mean = masked_mean(x, mask)
    count = masked_sum(torch.ones_like(x), mask)
    variance = masked_sum((x - mean).square(), mask) / (count - 1)
    white = (x - mean) * variance.clamp(min=1e-8).rsqrt() + (mean if keep_mean else 0)
    return torch.where(mask.bool(), white, 0)


@contextlib.contextmanager
def eval_mode(model):
    """Evaluation mode (no dropout) inside the block; afterwards each module has its own earlier mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def make_reference(model, temperature=1.0):
    """A callable (input_ids, attention_mask) -> (B, T - 1) log-probabilities of `model`: no gradient, dropout off.

    Its attribute `.model` is the model, so that trainers can check that the reference is not the policy itself.
    """

    @torch.no_grad()
    def reference(input_ids, attention_mask=None):
        with eval_mode(model):
            hidden = model.body(input_ids, attention_mask)  # (B, T, D)
            return response_logprobs(
                hidden, model.head, input_ids, torch.ones_like(input_ids), temperature)

    reference.model = model
    return reference
