"""Add tokens to a model: new rows in its embedding and its output layer.

Hewitt 2021, "Initializing new word embeddings for pretrained language models": a new row is the mean of the old ones,
so that the new token is an average one at first, neither likely nor unlikely. Left out: taking tokens away.
"""

import dataclasses

import torch
from torch import nn

from minift.core.heads import LanguageModel, MaskedLanguageModel
from minift.errors import MiniftError


def resize_vocabulary(model, vocab_size):
    """Give the model `vocab_size` tokens. The old rows stay the same bit for bit, and so do the old tokens' logits.

    The larger matrices are trainable even if LoRA froze all others: after add_lora, the adapter file stores them too.
    Returns the model. Raises MiniftError when tokens would be lost.
    """
    old = model.config.vocab_size
    if vocab_size < old:
        raise MiniftError(
            f"the vocabulary of {old} tokens cannot shrink to {vocab_size}; old rows must stay")
    if vocab_size == old:
        return model
    grown = {}
    for name in vocabulary_parameters(model):
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        parameter = getattr(module, leaf)
        # A tied parameter appears twice here, and must stay one parameter.
        if id(parameter) not in grown:
            grown[id(parameter)] = nn.Parameter(longer(parameter.detach(), vocab_size))
        setattr(module, leaf, grown[id(parameter)])
        size = "num_embeddings" if isinstance(module, nn.Embedding) else "out_features"
        setattr(module, size, vocab_size)
    model.config = model.body.config = dataclasses.replace(model.config, vocab_size=vocab_size)
    return model


def vocabulary_parameters(model):
    """Names of the parameters with one row per token: the embedding, and the output layer of a language model."""
    outputs = {LanguageModel: ("head.weight",), MaskedLanguageModel: ("head.decoder.weight", "head.decoder.bias")}
    return ("body.embed.weight", *outputs.get(type(model), ()))


def longer(rows, n):
    """The rows, then copies of their mean until there are n rows."""
    return torch.cat((rows, rows.mean(0, keepdim=True).expand(n - len(rows), *rows.shape[1:])))
