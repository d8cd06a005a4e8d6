"""Masked accuracy: how often a model guesses a hidden token, compared with two simple guesses.

The first guess is always the most frequent token. The bigram guess is the token that most often followed the token on
the left. Left out: perplexity of hidden tokens (the loss of methods.mlm gives it).
"""

import torch

from minift.core.logprobs import IGNORE_INDEX, eval_mode
from minift.core.resume import move_batch


@torch.no_grad()
def masked_accuracy(model, batches):
    """The share of hidden tokens that are the model's first guess. batches: masked ones, from methods.mlm.Masked."""
    hits, total, device = 0, 0, next(model.parameters()).device
    with eval_mode(model):
        for batch in batches:
            batch = move_batch(batch, device)
            selected = batch["labels"] != IGNORE_INDEX  # (B, T)
            hidden = model.body(batch["input_ids"], batch.get("attention_mask"))[selected]
            hits += int((model.head(hidden).argmax(-1) == batch["labels"][selected]).sum())
            total += int(selected.sum())
    return hits / max(total, 1)


class Bigrams:
    """Counts of neighbouring tokens in some texts. rows: lists of ids. special_ids: ids that are never guessed."""

    def __init__(self, rows, vocab_size, special_ids=()):
        # counts[left, right]
        counts = torch.zeros(vocab_size, vocab_size)
        for row in rows:
            ids = torch.as_tensor(row)
            counts.index_put_((ids[:-1], ids[1:]), torch.ones(len(ids) - 1), accumulate=True)
        counts[:, list(special_ids)] = 0
        self.most_frequent = int(counts.sum(0).argmax())
        self.after = torch.where(counts.sum(1) > 0, counts.argmax(1), self.most_frequent)  # (V,)

    def accuracies(self, batches):
        """(most frequent token, bigram): the share of hidden tokens that each guess hits."""
        frequent, bigram, total = 0, 0, 0
        for batch in batches:
            labels = batch["labels"][:, 1:]  # (B, T-1), [CLS] is never hidden
            selected = labels != IGNORE_INDEX
            frequent += int((labels[selected] == self.most_frequent).sum())
            bigram += int((labels == self.after[batch["input_ids"][:, :-1]])[selected].sum())
            total += int(selected.sum())
        return frequent / max(total, 1), bigram / max(total, 1)
