"""Heads on the body's hidden states: logits over the vocabulary, a label for a text, or a score for each token.

Tied embeddings: Press & Wolf 2017. Masked head: Devlin et al. 2018 (BERT), section 3.1, and its code's transform. The
scorer's initialisation: Stiennon et al. 2020, "Learning to summarize from human feedback", appendix. Left out: biases
on a causal vocabulary (no family here has them), BERT's pooler and its next-sentence head.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from minift.core.transformer import Transformer, init_weights
from minift.errors import MiniftError


class LanguageModel(nn.Module):
    """Body + linear head: logits of the next token. If tied, its weight is the embedding matrix itself."""

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

    def forward(
            self, input_ids, attention_mask=None, position_ids=None, segment_ids=None, cache=None):
        """The body's arguments -> logits (B, T, V); logits[:, t] predict the token at t + 1."""
        return self.head(self.body(input_ids, attention_mask, position_ids, segment_ids, cache))


class MaskedLanguageModel(nn.Module):
    """Body + BERT's head: logits of the original token at each position. The body must be bidirectional."""

    def __init__(self, config):
        super().__init__()
        if config.causal:
            raise MiniftError(
                "a masked language model reads in both directions: its config needs causal=False")
        self.config = config
        self.body = Transformer(config)
        self.head = MaskedHead(config, self.body.embed)

    def forward(self, input_ids, attention_mask=None, position_ids=None, segment_ids=None):
        """The body's arguments -> logits (B, T, V); logits[:, t] predict the token at t itself."""
        return self.head(self.body(input_ids, attention_mask, position_ids, segment_ids))


class MaskedHead(nn.Module):
    """decoder(norm(gelu(dense(x)))). The decoder's weight is the embedding matrix itself; its bias is its own."""

    def __init__(self, config, embed):
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.decoder = nn.Linear(config.d_model, config.vocab_size)
        for linear in (self.dense, self.decoder):
            init_weights(linear)
        self.decoder.weight = embed.weight

    def forward(self, hidden):
        """(..., D) -> (..., V)."""
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


class Encoder(nn.Module):
    """A body without a head, as sentence encoders are published (MiniLM): hidden states, or one vector for a text."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.body = Transformer(config)

    def forward(self, input_ids, attention_mask=None, position_ids=None, segment_ids=None):
        """The body's arguments -> hidden states (B, T, D)."""
        return self.body(input_ids, attention_mask, position_ids, segment_ids)

    def vectors(self, input_ids, attention_mask=None):
        """(B, D): the mean hidden state of the real tokens, scaled to length 1: a dot product is then a cosine."""
        return F.normalize(
            pool(self(input_ids, attention_mask), attention_mask, "mean"), dim=-1)


class SequenceClassifier(nn.Module):
    """One label for a text: the body's hidden states, pooled to one vector, then a linear head.

    pooling: "mean" of the hidden states of all real tokens, or "cls", the state of the first real token. A frozen body
    (none of its parameters is trained) stays in evaluation mode, even after train(), and no gradient is kept for it.
    labels: the names of the classes, in order; kept with the model. The body is used, not copied.
    """

    def __init__(self, body, n_label, pooling="mean", labels=None):
        super().__init__()
        if n_label < 2 or (
                labels is not None and not len(set(labels)) == len(labels) == n_label):
            raise MiniftError(
                f"a classifier needs at least 2 different labels; got n_label {n_label}, labels {labels}")
        if pooling not in POOLINGS:
            raise MiniftError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
        self.config, self.body, self.pooling = body.config, body, pooling
        self.labels = [str(i) for i in range(n_label)] if labels is None else list(labels)
        self.head = nn.Linear(body.config.d_model, n_label)
        init_weights(self.head)
        # The body's device and dtype.
        self.head.to(body.embed.weight)

    @property
    def frozen(self):
        """Whether none of the body's parameters is trained."""
        return not any(p.requires_grad for p in self.body.parameters())

    def train(self, mode=True):
        """As nn.Module.train, but a frozen body stays in evaluation mode: dropout would be noise in its features."""
        super().train(mode)
        if self.frozen:
            self.body.eval()
        return self

    def features(self, input_ids, attention_mask=None):
        """The pooled hidden states (B, D), which the head reads."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return pool(self.body(input_ids, attention_mask), attention_mask, self.pooling)

    def forward(self, input_ids, attention_mask=None):
        """Logits (B, L)."""
        return self.head(self.features(input_ids, attention_mask))


POOLINGS = ("mean", "cls")


def pool(hidden, attention_mask, pooling):
    """(B, T, D) -> (B, D): the mean over real tokens, or the first real token; padding on either side changes nothing.

    Raises MiniftError for a row without a real token.
    """
    if attention_mask is None:
        return hidden.mean(1) if pooling == "mean" else hidden[:, 0]
    mask = attention_mask.bool()
    check_rows(mask)
    if pooling == "mean":
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (B, D)
    return hidden[torch.arange(len(hidden), device=mask.device), mask.int().argmax(-1)]


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
        # The body's device and dtype.
        self.score.to(body.embed.weight)

    def forward(self, input_ids, attention_mask=None):
        """Scores (B, T)."""
        return self.score(self.body(input_ids, attention_mask)).squeeze(-1)

    def last_scores(self, input_ids, attention_mask=None):
        """Scores (B,) at each row's last real token, padded on either side. MiniftError for a row of padding only."""
        hidden = self.body(input_ids, attention_mask)  # (B, T, D)
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.score(hidden[rows, last_real(input_ids, attention_mask)]).squeeze(-1)


def last_real(input_ids, attention_mask):
    """(B,) the column of each row's last real token; the mask decides, never the id."""
    B, T = input_ids.shape
    if attention_mask is None:
        return torch.full((B,), T - 1, device=input_ids.device)
    mask = attention_mask.bool()
    check_rows(mask)
    return (mask * torch.arange(T, device=mask.device)).argmax(-1)


def check_rows(mask):
    """MiniftError for a row of nothing but padding."""
    empty = (~mask.any(-1)).nonzero()
    if len(empty):
        raise MiniftError(
            f"row {int(empty[0])} holds only padding, there is no token to read; drop the row")
