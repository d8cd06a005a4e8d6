"""Supervised fine-tuning: learn to answer by predicting the tokens of the response, and only those.

Wei et al. 2022, "Finetuned Language Models Are Zero-Shot Learners"; Ouyang et al. 2022, step 1. The loss is that of
pre-training with the prompt masked out: the mean over response tokens of -log p(token | prompt, response so far).
Left out: a weight on the prompt's loss. Packed batches (text.batches.pack) are taken as they are.
"""

import warnings

from torch import nn

from minift.core.logprobs import IGNORE_INDEX, labelled_nll, make_next_token_loss
from minift.core.train import train
from minift.errors import MiniftError
from minift.text.batches import Batches, collate
from minift.text.chat import encode_chat


def sft_loss(logits, labels):
    """-log p(label), nats, the mean over labels that are not -100, each predicted by the logits one position before.

    logits: (B, T, V). labels: (B, T), input_ids where they are learned (response and its <eos>), else -100.
    A token counts the same in a short and in a long response. Nothing to learn: 0, never NaN.
    """
    nll, n_tokens = labelled_nll(logits, nn.Identity(), labels, logits.shape[-1])
    return nll / max(n_tokens, 1)


def make_sft_loss(model):
    """sft_loss of the model as loss_fn(batch) for `train`, with logits at response positions only.

    batch: input_ids and labels (B, T), and optionally attention_mask, position_ids, segment_ids.
    """
    return make_next_token_loss(model)


def make_labels(input_ids, response_mask):
    """The ids where the model wrote them, -100 elsewhere: two lists of one length -> a list of that length."""
    if len(input_ids) != len(response_mask):
        raise MiniftError(
            f"there are {len(input_ids)} input_ids but {len(response_mask)} entries in response_mask")
    return [token if written else IGNORE_INDEX for token, written in zip(input_ids, response_mask)]


def encode_example(input_ids, response_mask, context_length):
    """One training example, {"input_ids", "labels"}, from what encode_chat returns; None when nothing is left to learn.

    A conversation beyond the context loses its end, so a response that is cut learns no <eos>: it did not end there.
    """
    labels = make_labels(input_ids, response_mask)[:context_length]
    # Nothing predicts the first token.
    if all(label == IGNORE_INDEX for label in labels[1:]):
        return None
    return {"input_ids": list(input_ids)[:context_length], "labels": labels}


def encode_examples(chats, context_length):
    """encode_example for many (input_ids, response_mask) pairs; drops those with nothing to learn, with a warning.

    Raises MiniftError when none is left.
    """
    chats = list(chats)
    examples = [encode_example(input_ids, mask, context_length) for input_ids, mask in chats]
    kept = [example for example in examples if example is not None]
    n_cut = sum(len(input_ids) > context_length for input_ids, _ in chats)
    report = (
        f"of {len(chats)} examples, {len(chats) - len(kept)} were dropped, because no response token lies within "
        f"the context of {context_length} tokens, and {n_cut} are longer than it")
    if not kept:
        raise MiniftError(f"nothing to learn: {report}; shorten the prompts, or add responses")
    if n_cut or len(kept) < len(chats):
        warnings.warn(report, stacklevel=2)
    return kept


def tune_on_examples(
        model, tokenizer, examples, *, batch_size, seed=0, progress=False, **settings):
    """Train the model, in place, on encoded examples. settings: those of `train`. Returns the history."""
    batches = Batches(
        examples, batch_size, lambda rows: collate(rows, tokenizer.pad_id), seed=seed)
    return train(model, batches, make_sft_loss(model), progress=progress, **settings)


def tune_on_chats(model, tokenizer, rows, *, batch_size=8, **settings):
    """tune_on_examples on rows {"messages"}, through the tokenizer's chat template. Returns the history."""
    chats = [encode_chat(tokenizer, row["messages"]) for row in rows]
    examples = encode_examples(chats, model.config.context_length)
    return tune_on_examples(model, tokenizer, examples, batch_size=batch_size, **settings)
