"""Pre-training: predict the next token of plain text. Continued pre-training: on a new domain, without losing the old.

Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 1: maximise the sum of
log p(token | the tokens before it). Replay: Ibrahim et al. 2024, "Simple and Scalable Strategies to Continually
Pre-train Large Language Models", section 3: mix in a share of old text, and warm up the learning rate again.
Left out: endless schedules.
"""

import torch
from torch.nn import functional as F

from minift.core.logprobs import IGNORE_INDEX, make_next_token_loss
from minift.errors import MiniftError
from minift.text.batches import Epochs

# All other entries of a batch are padded with 0.
PAD_VALUES = {"labels": IGNORE_INDEX, "segment_ids": -1}


def make_pretrain_loss(model):
    """-log p(next token), nats, the mean over the labels that are not -100; returns loss_fn(batch) for `train`.

    batch: input_ids (B, T), and optionally labels (B, T), equal to them or -100 (without labels all are learned),
    attention_mask, position_ids, segment_ids. The first token has nothing before it, so it is never learned.
    """
    return make_next_token_loss(model)


def replay(new, old, share, seed=0):
    """Batches of `new` in which about `share` of the rows are replaced by rows of `old`: a re-iterable for `train`.

    new, old: re-iterables of dicts of tensors. An epoch is as long as that of `new`; `old` starts again at its end.
    share: in [0, 1). The choice of rows depends on (seed, epoch) alone. Raises MiniftError for another share.
    """
    if not 0 <= share < 1:
        raise MiniftError(
            f"share is the part of old rows in a batch, at least 0 and below 1; got {share}")
    return Replay(new, old, share, seed)


class Replay(Epochs):
    """What replay() returns; setting `epoch` sets that of the two sources as well."""

    def __init__(self, new, old, share, seed):
        super().__init__(new, old, seed=seed)
        self.new, self.old, self.share = new, old, share

    def make_batches(self, generator):
        return self._mix(iter(self.new), generator)

    def _mix(self, new, generator):
        old = iter(())
        for new_batch in new:
            old_batch = next(old, None)
            if old_batch is None:
                # This is the first batch, or the old text has run out.
                old = iter(self.old)
                old_batch = next(old, None)
            if old_batch is None:
                raise MiniftError("there is nothing to replay: the old dataset is empty")
            yield self._exchange(new_batch, old_batch, generator)

    def _exchange(self, new_batch, old_batch, generator):
        n_new, n_old = len(new_batch["input_ids"]), len(old_batch["input_ids"])
        chance = torch.rand((), generator=generator).item()
        # On average share * n_new rows, rounded at random.
        n_exchanged = min(int(self.share * n_new + chance), n_old)
        keep = torch.randperm(n_new, generator=generator)[n_exchanged:]
        take = torch.randperm(n_old, generator=generator)[:n_exchanged]
        return join_rows(
            {name: x[keep] for name, x in new_batch.items()},
            {name: x[take] for name, x in old_batch.items()})


def join_rows(first, second):
    """One batch of the rows of two, the shorter rows padded on the right; both must have the same entries."""
    if first.keys() != second.keys():
        raise MiniftError(
            f"cannot mix batches with entries {sorted(first)} and {sorted(second)}; make both alike")
    joined = {}
    for name in first:
        length = max(first[name].shape[1], second[name].shape[1])
        rows = [F.pad(x, (0, length - x.shape[1]), value=PAD_VALUES.get(name, 0)) for x in (first[name], second[name])]
        joined[name] = torch.cat(rows)  # (B, T)
    return joined
