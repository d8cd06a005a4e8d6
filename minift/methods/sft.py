"""Supervised fine-tuning: learn to answer by predicting the response's tokens, and only those.

Wei et al. 2022, "Finetuned Language Models Are Zero-Shot Learners"; Ouyang et al. 2022, step 1. The loss is that of
pre-training with the prompt masked out: the mean over response tokens of -log p(token | prompt, response so far).
Left out: a weight on the prompt's loss. Packed batches (datasets.batches.pack) are taken as they are.
"""

import warnings

from minift.core.logprobs import IGNORE_INDEX, masked_mean, response_logprobs, token_logprobs
from minift.errors import MiniftError


def sft_loss(logits, labels):
    """-log p(label), nats, the mean over labels that are not -100, each predicted by the logits one position before.

    logits: (B, T, V). labels: (B, T), input_ids where they are learned (response and its <eos>), else -100.
    A token counts the same in a short and in a long response. Nothing to learn: 0, never NaN.
    """
    learned, targets = split_labels(labels, logits.shape[-1])
    logprobs = token_logprobs(logits, targets)              # (B, T-1), the shift happens there
    return -masked_mean(logprobs, learned[:, 1:])


def split_labels(labels, vocab_size):
    """(B, T) labels -> which are learned (bool), and the ids to learn, 0 where nothing is. MiniftError: no such id."""
    learned = labels != IGNORE_INDEX
    targets = labels.masked_fill(~learned, 0)
    if labels.device.type == "cpu" and ((targets < 0) | (targets >= vocab_size)).any():
        row, column = ((targets < 0) | (targets >= vocab_size)).nonzero()[0].tolist()
        raise MiniftError(f"label {labels[row, column].item()} at row {row}, column {column}; expected an id below "
                          f"{vocab_size}, or {IGNORE_INDEX} for nothing to learn")
    return learned, targets


def make_sft_loss(model):
    """sft_loss of the model, its logits computed at response positions only: a loss_fn(batch) for `train`.

    batch: input_ids and labels (B, T), and where given attention_mask, position_ids, segment_ids.
    """
    def loss_fn(batch):
        learned, targets = split_labels(batch["labels"], model.config.vocab_size)
        hidden = model.body(batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids"),
                            batch.get("segment_ids"))                        # (B, T, D)
        logprobs = response_logprobs(hidden, model.head, targets, learned)   # (B, T-1), 0 where nothing is learned
        n_tokens = int(learned[:, 1:].sum())
        return -logprobs.sum() / max(n_tokens, 1), {"n_tokens": n_tokens}
    return loss_fn


def make_labels(input_ids, response_mask):
    """The ids where the model wrote them, -100 elsewhere: two lists of one length -> a list of that length."""
    if len(input_ids) != len(response_mask):
        raise MiniftError(f"there are {len(input_ids)} input_ids but {len(response_mask)} entries in response_mask")
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
    """encode_example for many (input_ids, response_mask) pairs; drops those with nothing to learn, and says how many.

    Raises MiniftError when none is left.
    """
    chats = list(chats)
    examples = [encode_example(input_ids, mask, context_length) for input_ids, mask in chats]
    kept = [example for example in examples if example is not None]
    n_cut = sum(len(input_ids) > context_length for input_ids, _ in chats)
    report = (f"of {len(chats)} examples, {len(chats) - len(kept)} were dropped, because no response token lies within "
              f"the context of {context_length} tokens, and {n_cut} are longer than it")
    if not kept:
        raise MiniftError(f"nothing to learn: {report}; shorten the prompts, or add responses")
    if n_cut or len(kept) < len(chats):
        warnings.warn(report, stacklevel=2)
    return kept
