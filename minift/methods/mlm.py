"""Masked language modelling: hide some tokens, and predict them from the tokens on both sides.

Devlin et al. 2018, "BERT", section 3.1, task 1: 15 % of the tokens are selected; of these 80 % become the mask token,
10 % a random token, and 10 % stay, so that the encoder cannot rely on the mask. Only selected tokens enter the loss.
Whole words: the BERT authors' release of May 2019. Left out: next-sentence prediction, spans (SpanBERT).
"""

import torch
from torch.nn import functional as F

from minift.core.logprobs import IGNORE_INDEX
from minift.errors import MiniftError
from minift.text.batches import Epochs

# Shares of the selected tokens; the rest stays as it is.
MASKED, RANDOM = 0.8, 0.1


def mask_tokens(
        input_ids, special_mask, *, mask_id, vocab_size, generator=None, probability=0.15, word_ids=None):
    """Select tokens at random and hide them. Returns (masked_ids, labels), new tensors (B, T).

    special_mask: (B, T) bool, True at tokens that are never selected ([CLS], [SEP], padding). labels: the original id
    where selected, -100 elsewhere. A random token is any id below vocab_size except mask_id and the ids
    under special_mask. word_ids: (B, T), from word_ids(): tokens with the same number in a row are one word and are
    selected together.
    """
    if not 0 < probability < 1:
        raise MiniftError(
            f"probability is {probability}; expected the share of tokens to hide, above 0 and below 1")

    def uniform():
        return torch.rand(input_ids.shape, generator=generator).to(input_ids.device)

    # Select: one random number for each token, or for each word.
    chance = uniform()
    if word_ids is not None:
        chance = chance.gather(1, word_ids)
    selected = (chance < probability) & ~special_mask.bool()  # (B, T)
    labels = input_ids.masked_fill(~selected, IGNORE_INDEX)
    # List the ids that may replace a token.
    ordinary = torch.ones(vocab_size, dtype=torch.bool, device=input_ids.device)
    ordinary[input_ids[special_mask.bool()]] = False
    ordinary[mask_id] = False
    ordinary = ordinary.nonzero().squeeze(1)
    if len(ordinary) == 0:
        raise MiniftError(
            "every id of the vocabulary is special, there is none to put in at random")
    places = (uniform() * len(ordinary)).long()
    random_ids = ordinary[places.clamp(max=len(ordinary) - 1)]
    # Replace 80 % by the mask and 10 % by a random token.
    fate = uniform()
    masked_ids = torch.where(selected & (fate < MASKED), mask_id, input_ids)
    masked_ids = torch.where(
        selected & (fate >= MASKED) & (fate < MASKED + RANDOM), random_ids, masked_ids)
    return masked_ids, labels


def word_ids(input_ids, letters):
    """(B, T): the number of each token's word, counted from 0 in each row. letters: from letters_of.

    A token continues the word before it when its first byte and the byte before it both belong to letters.
    """
    first, last = (side.to(input_ids.device)[input_ids] for side in letters)  # (B, T)
    starts = ~(first[:, 1:] & last[:, :-1])  # (B, T-1)
    return F.pad(starts.long().cumsum(1), (1, 0))


def letters_of(tokenizer):
    """Two (V,) bool: does a token's first byte, and its last, belong to a letter? Special tokens have none."""
    first, last = (torch.zeros(tokenizer.vocab_size, dtype=torch.bool) for _ in range(2))
    for token, i in tokenizer.ranks.items():
        first[i], last[i] = (
            byte >= 128 or chr(byte).isalpha() for byte in (token[0], token[-1]))
    return first, last


def mlm_loss(logits, labels):
    """-log p(original token), nats, the mean over the selected tokens; 0 when nothing is selected.

    logits: (B, T, V); labels: (B, T), -100 where nothing is learned. Nothing is shifted: each place predicts itself.
    """
    selected = labels != IGNORE_INDEX  # (B, T)
    return F.cross_entropy(logits[selected], labels[selected], reduction="sum") / max(int(selected.sum()), 1)


def make_mlm_loss(model):
    """mlm_loss of the model as loss_fn(batch) for `train`; the vocabulary is computed at selected places only.

    batch: input_ids (masked), labels, and attention_mask where there is padding; from Masked. The metrics hold the
    accuracy on the selected tokens.
    """
    def loss_fn(batch):
        hidden = model.body(batch["input_ids"], batch.get("attention_mask"))
        selected = batch["labels"] != IGNORE_INDEX  # (B, T)
        logits, labels = model.head(hidden[selected]), batch["labels"][selected]  # (N, V), (N,)
        accuracy = (logits.argmax(-1) == labels).float().sum() / max(len(labels), 1)
        return mlm_loss(logits[None], labels[None]), {"n_tokens": len(labels), "accuracy": accuracy}
    return loss_fn


class Masked(Epochs):
    """Batches with some of their tokens hidden, and a fresh mask every epoch: a re-iterable for `train`.

    batches: a re-iterable of dicts with input_ids (B, T); one with an `epoch` of its own is set to the same epoch.
    special_ids: ids that are never hidden. fresh=False: the same mask in every epoch (for evaluation). letters: from
    letters_of, to hide whole words. The mask depends on seed, epoch and the batches before it.
    """

    def __init__(
            self, batches, *, mask_id, special_ids, vocab_size, seed=0, probability=0.15, letters=None,
            fresh=True):
        super().__init__(batches, seed=seed, fresh=fresh)
        self.batches, self.letters = batches, letters
        self.special_ids = torch.tensor(sorted(special_ids))
        self.settings = {"mask_id": mask_id, "vocab_size": vocab_size, "probability": probability}

    def make_batches(self, generator):
        return (self.hide(batch, generator) for batch in self.batches)

    def hide(self, batch, generator):
        ids = batch["input_ids"]
        special = torch.isin(ids, self.special_ids)
        if "attention_mask" in batch:
            special = special | ~batch["attention_mask"].bool()
        words = None if self.letters is None else word_ids(ids, self.letters)
        masked_ids, labels = mask_tokens(
            ids, special, generator=generator, word_ids=words, **self.settings)
        return {**batch, "input_ids": masked_ids, "labels": labels}
