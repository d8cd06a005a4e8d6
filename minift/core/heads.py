"""Heads that turn the body's hidden states into something: scores over the vocabulary, or one score a token.

Tied embeddings: Press & Wolf 2017. The scorer's initialisation: Stiennon et al. 2020, "Learning to summarize from human
feedback", appendix. Left out: biases on the vocabulary (no causal family here has them).
"""

import math

import torch
from torch import nn

from minift.core.transformer import Transformer, init_weights
from minift.errors import MiniftError


class LanguageModel(nn.Module):
    """Body + linear head: logits of the next token. Tied, the head is the embedding matrix itself, one parameter."""

    def __init__(self, config, tie_embeddings=True):
        super().__init__()
        self.config = config
        self.tie_embeddings = tie_embeddings
        self.body = Transformer(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if tie_embeddings:
            self.head.weight = self.body.embed.weight
        else:
            init_weights(self.head)

    def forward(self, input_ids, attention_mask=None, position_ids=None, segment_ids=None, cache=None):
        """The body's arguments -> logits (B, T, V); logits[:, t] scores the token at t + 1."""
        return self.head(self.body(input_ids, attention_mask, position_ids, segment_ids, cache))


class TokenScorer(nn.Module):
    """One number for each token: a reward model (read at the last token) or a value model (read at every token).

    The body is used, not copied: give it copy.deepcopy(model.body) where the language model must stay as it is.
    """

    def __init__(self, body):
        super().__init__()
        self.config = body.config
        self.body = body
        self.score = nn.Linear(body.config.d_model, 1)
        nn.init.normal_(self.score.weight, std=1 / math.sqrt(body.config.d_model + 1))
        nn.init.zeros_(self.score.bias)
        self.score.to(body.embed.weight)                 # the body's device and dtype

    def forward(self, input_ids, attention_mask=None):
        """Scores (B, T)."""
        return self.score(self.body(input_ids, attention_mask)).squeeze(-1)

    def last_scores(self, input_ids, attention_mask=None):
        """Scores (B,) at each row's last real token, whichever side the padding is on (MiniftError: a row of pads)."""
        hidden = self.body(input_ids, attention_mask)                        # (B, T, D)
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.score(hidden[rows, last_real(input_ids, attention_mask)]).squeeze(-1)


def last_real(input_ids, attention_mask):
    """(B,) the column of each row's last real token; the mask decides, never the id."""
    B, T = input_ids.shape
    if attention_mask is None:
        return torch.full((B,), T - 1, device=input_ids.device)
    mask = attention_mask.bool()
    if not mask.any(-1).all():
        row = int((~mask.any(-1)).nonzero()[0])
        raise MiniftError(f"row {row} holds only padding, so that it has no last token; drop the row")
    return (mask * torch.arange(T, device=mask.device)).argmax(-1)
