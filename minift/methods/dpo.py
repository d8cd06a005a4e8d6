"""Direct preference optimization: learn from pairs without a reward model.

Rafailov et al. 2023, "Direct Preference Optimization", eq. 7 (dpo_loss). Its family: Azar et al. 2023, "A General
Theoretical Paradigm to Understand Learning from Human Preferences" (IPO), eq. 17; Zhao et al. 2023, "SLiC-HF" (hinge);
Chowdhury et al. 2024, "Provably Robust DPO"; Meng et al. 2024, "SimPO", eq. 6; Hong et al. 2024, "ORPO", eq. 6 and 7;
Ethayarajh et al. 2024, "KTO", eq. 8 (its training is in kto.py). Left out: updates of the reference.
"""

import torch
from torch.nn import functional as F

from minift.core.logprobs import masked_sum, response_logprobs
from minift.core.settings import check_number
from minift.errors import MiniftError
from minift.text.batches import chunks, pad


def dpo_loss(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta, label_smoothing=0.0,
        margin=0.0):
    """-log sigmoid(beta * (chosen log-ratio - rejected log-ratio)), the mean over pairs: log 2 at the reference.

    *_logprobs: (B,), nats, SUMMED over each response, its EOS included (TRL: *_logps). beta: weight of the KL, > 0.
    label_smoothing: the chance that a label is wrong (conservative DPO), a float in [0, 0.5) or (B,), one per pair.
    margin: by how much the chosen reward must win (Amini et al. 2024, DPO with an offset), a float or (B,).
    Returns (loss, metrics); metrics hold the implicit rewards beta * log-ratio and how often chosen strictly wins.
    """
    check_number("beta", beta, above=0)
    _check_smoothing(label_smoothing)
    chosen_rewards = beta * (chosen_logprobs - ref_chosen_logprobs)        # (B,), eq. 5
    rejected_rewards = beta * (rejected_logprobs - ref_rejected_logprobs)  # (B,)
    gap = chosen_rewards - rejected_rewards - margin
    loss = -(1 - label_smoothing) * F.logsigmoid(gap) - label_smoothing * F.logsigmoid(-gap)  # eq. 7
    return loss.mean(), _metrics(chosen_rewards, rejected_rewards)


def robust_loss(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta, label_smoothing):
    """dpo_loss made unbiased for labels of which a share label_smoothing is wrong: its mean is that of right labels.

    The arguments are those of dpo_loss. ((1 - e) l(gap) - e l(-gap)) / (1 - 2 e), with l = -log sigmoid and
    e = label_smoothing. Returns (loss, metrics).
    """
    check_number("beta", beta, above=0)
    _check_smoothing(label_smoothing)
    chosen_rewards = beta * (chosen_logprobs - ref_chosen_logprobs)        # (B,)
    rejected_rewards = beta * (rejected_logprobs - ref_rejected_logprobs)  # (B,)
    gap = chosen_rewards - rejected_rewards
    loss = -(1 - label_smoothing) * F.logsigmoid(gap) + label_smoothing * F.logsigmoid(-gap)
    return (loss / (1 - 2 * label_smoothing)).mean(), _metrics(chosen_rewards, rejected_rewards)


def hinge_loss(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta):
    """max(0, 1 - beta * (chosen log-ratio - rejected log-ratio)), the mean over pairs: a gap of 1 / beta is enough.

    The arguments are those of dpo_loss. SLiC itself has no reference. Returns (loss, metrics).
    """
    check_number("beta", beta, above=0)
    chosen_rewards = beta * (chosen_logprobs - ref_chosen_logprobs)        # (B,)
    rejected_rewards = beta * (rejected_logprobs - ref_rejected_logprobs)  # (B,)
    loss = torch.relu(1 - (chosen_rewards - rejected_rewards))
    return loss.mean(), _metrics(chosen_rewards, rejected_rewards)


def ipo_loss(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta):
    """(chosen log-ratio - rejected log-ratio - 1 / (2 beta)) ** 2, the mean over pairs: a margin of 1 / (2 beta).

    *_logprobs: (B,), nats, SUMMED over each response as in the paper (newer TRL passes means per token). beta: > 0, the
    paper's tau. Returns (loss, metrics) as dpo_loss does.
    """
    check_number("beta", beta, above=0)
    chosen_ratio = chosen_logprobs - ref_chosen_logprobs        # (B,)
    rejected_ratio = rejected_logprobs - ref_rejected_logprobs  # (B,)
    loss = (chosen_ratio - rejected_ratio - 1 / (2 * beta)) ** 2
    return loss.mean(), _metrics(beta * chosen_ratio, beta * rejected_ratio)


def simpo_loss(chosen_logprobs, rejected_logprobs, beta=2.0, gamma=1.0):
    """-log sigmoid(beta * (chosen - rejected) - gamma), the mean over pairs; there is no reference.

    *_logprobs: (B,), nats, the MEAN per token of each response: sums would reward short answers. gamma: the margin by
    which beta * chosen should win. Returns (loss, metrics).
    """
    check_number("beta", beta, above=0)
    loss = -F.logsigmoid(beta * (chosen_logprobs - rejected_logprobs) - gamma)
    return loss.mean(), _metrics(beta * chosen_logprobs, beta * rejected_logprobs)


def orpo_loss(chosen_logprobs, rejected_logprobs, weight=0.1):
    """SFT on the chosen answer and, in the same step, `weight` times -log sigmoid(log of the odds ratio); no reference.

    *_logprobs: (B,), nats, < 0, the MEAN per token of each response: with sums the odds of a long answer vanish.
    odds(y) = p / (1 - p) with p = exp(mean log p). weight: the paper's lambda, > 0. Returns (loss, metrics).
    """
    check_number("weight", weight, above=0)
    chosen_odds, rejected_odds = _log_odds(chosen_logprobs), _log_odds(rejected_logprobs)  # (B,)
    loss = -chosen_logprobs - weight * F.logsigmoid(chosen_odds - rejected_odds)           # eq. 6
    return loss.mean(), _metrics(weight * chosen_odds, weight * rejected_odds)


def kto_loss(
        chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs, beta, kl,
        chosen_weight=1.0, rejected_weight=1.0):
    """1 - sigmoid(beta * (log-ratio - kl)) for wanted answers, 1 - sigmoid(beta * (kl - log-ratio)) for unwanted ones.

    Answers need not come in pairs: chosen_* are (N,), rejected_* (M,), nats, SUMMED over each response; the loss is the
    mean over all N + M. beta: > 0. kl: from kto_kl, how far the policy is from the reference. Returns (loss, metrics).
    """
    check_number("beta", beta, above=0)
    chosen_rewards = beta * (chosen_logprobs - ref_chosen_logprobs)        # (N,)
    rejected_rewards = beta * (rejected_logprobs - ref_rejected_logprobs)  # (M,)
    wanted = chosen_weight * (1 - torch.sigmoid(chosen_rewards - beta * kl))
    unwanted = rejected_weight * (1 - torch.sigmoid(beta * kl - rejected_rewards))
    metrics = {}
    # A batch may hold answers of one kind only.
    if len(chosen_rewards):
        metrics["chosen_rewards"] = _mean(chosen_rewards)
    if len(rejected_rewards):
        metrics["rejected_rewards"] = _mean(rejected_rewards)
    return torch.cat([wanted, unwanted]).mean(), metrics


def kto_kl(logprobs, ref_logprobs):
    """max(0, mean log-ratio) of MISMATCHED answers, each after another row's prompt; (B,) sums; no gradient."""
    if len(logprobs) < 2:
        raise MiniftError(
            "a KTO batch needs two rows or more: with one, the mismatched answer is the answer itself")
    mean = (logprobs - ref_logprobs).mean()
    return mean.clamp(min=0).detach()


@torch.no_grad()
def add_reference_logprobs(examples, reference, pad_id, batch_size=16, device=None, sides=("chosen", "rejected")):
    """Run the reference once over every pair; store ref_chosen_logprobs and ref_rejected_logprobs (float sums) in each.

    examples: dicts of lists (chosen_input_ids, chosen_response_mask, rejected_...), changed in place and returned.
    reference: callable (input_ids, attention_mask) -> logprobs (B, T-1), say make_reference(model). sides: the names of
    an example's answers. Run it again whenever the examples or the reference change: no check can find old sums later.
    """
    # List every answer: its example, the name of its sum, its ids and its mask.
    if device is None and hasattr(reference, "model"):
        device = next(reference.model.parameters()).device
    answers = []
    for example in examples:
        for side in sides:
            ids, mask = example[f"{side}_input_ids"], example[f"{side}_response_mask"]
            answers.append((example, f"ref_{side}_logprobs", ids, mask))
    # Run batches of answers; answers of similar length need little padding.
    answers.sort(key=lambda answer: len(answer[2]))
    for part in chunks(answers, batch_size):
        input_ids = pad([ids for _, _, ids, _ in part], pad_id).to(device)  # (B, T)
        real = pad([[True] * len(ids) for _, _, ids, _ in part], False).to(device)  # (B, T)
        written = pad([mask for _, _, _, mask in part], False).to(device)  # (B, T)
        logprobs = reference(input_ids, real)  # (B, T-1)
        sums = masked_sum(logprobs, written[:, 1:], dim=1)  # (B,)
        for (example, name, _, _), value in zip(part, sums.tolist()):
            example[name] = value
    return examples


def make_dpo_loss(model, beta, label_smoothing=0.0, loss=dpo_loss):
    """A loss_fn(batch) -> (loss, metrics) for train(): `batch` comes from collate_pairs and holds the reference's sums.

    loss: dpo_loss, or another function of four (B,) sums and beta, such as ipo_loss. A batch with "margin" (B,) needs
    dpo_loss. metrics add the policy's mean chosen_logprobs and rejected_logprobs (both often fall: only their
    difference is trained) and n_tokens = pairs.
    """
    check_number("beta", beta, above=0)
    smoothing = {"label_smoothing": label_smoothing} if label_smoothing else {}

    def loss_fn(batch):
        if "ref_chosen_logprobs" not in batch:
            raise MiniftError(
                "the batch has no ref_chosen_logprobs; call add_reference_logprobs on the examples first")
        chosen, rejected, _ = _pair_logprobs(model, batch)
        references = batch["ref_chosen_logprobs"], batch["ref_rejected_logprobs"]
        margin = {"margin": batch["margin"]} if "margin" in batch else {}
        value, metrics = loss(chosen, rejected, *references, beta, **smoothing, **margin)
        return value, _with_logprobs(metrics, chosen, rejected)
    return loss_fn


def make_reference_free_loss(model, loss=simpo_loss):
    """make_dpo_loss without reference, for simpo_loss and orpo_loss: `loss` gets the means per token, (B,) each."""
    def loss_fn(batch):
        chosen, rejected, (chosen_count, rejected_count) = _pair_logprobs(model, batch)
        value, metrics = loss(chosen / chosen_count, rejected / rejected_count)
        return value, _with_logprobs(metrics, chosen, rejected)
    return loss_fn


def _pair_logprobs(model, batch):
    """The summed log-probs of chosen and rejected responses, (B,) each, from one forward pass; their token counts."""
    def both(name):
        return torch.cat([batch[f"chosen_{name}"], batch[f"rejected_{name}"]])  # (2B, T)

    input_ids, written = both("input_ids"), both("response_mask")
    hidden = model.body(input_ids, both("attention_mask"))  # (2B, T, D)
    logprobs = response_logprobs(hidden, model.head, input_ids, written)  # (2B, T-1)
    chosen, rejected = logprobs.sum(1).chunk(2)  # (B,) each
    counts = written[:, 1:].sum(1).clamp(min=1)  # (2B,)
    return chosen, rejected, counts.chunk(2)


def _check_smoothing(label_smoothing):
    if isinstance(label_smoothing, (int, float)) and not 0 <= label_smoothing < 0.5:
        raise MiniftError(
            f"label_smoothing is {label_smoothing}; expected a chance of at least 0 and below 0.5")


def _log_odds(logprobs):
    """log(p / (1 - p)) from log p; finite even where p is 1 after rounding."""
    logprobs = logprobs.clamp(max=-torch.finfo(logprobs.dtype).eps)
    return logprobs - torch.log(-torch.expm1(logprobs))


def _metrics(chosen_rewards, rejected_rewards):
    margin = chosen_rewards - rejected_rewards
    return {
        "chosen_rewards": _mean(chosen_rewards),
        "rejected_rewards": _mean(rejected_rewards),
        "margin": _mean(margin),
        # A tie does not count as a win.
        "accuracy": _mean((margin > 0).float())}


def _with_logprobs(metrics, chosen, rejected):
    return metrics | {
        "chosen_logprobs": _mean(chosen), "rejected_logprobs": _mean(rejected), "n_tokens": len(chosen)}


def _mean(x):
    return x.detach().mean().item()
