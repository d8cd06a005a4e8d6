"""Preference pairs as ids: a prompt with a chosen and a rejected answer, in the chat template.

A prompt that does not fit is shortened from the left, because people judged the answer: cutting on the
right would make many chosen and rejected answers alike. Left out: pairs whose answers follow different prompts.
"""

import warnings

import torch

from minift.errors import MiniftError
from minift.text.batches import pad
from minift.text.chat import encode_answer, encode_prompt

SIDES = ("chosen", "rejected")


def encode_pair(tokenizer, prompt, chosen, rejected, context_length):
    """A pair as an example, or None when both answers are the same within the context.

    The arguments are those of encode_answers. Returns lists chosen_input_ids, chosen_response_mask, rejected_..., and
    n_cut, how many tokens were removed.
    """
    answers, n_cut = encode_answers(tokenizer, prompt, (chosen, rejected), context_length)
    if answers[0] == answers[1]:
        return None
    example = {"n_cut": n_cut}
    for side, (ids, mask) in zip(SIDES, answers):
        example[f"{side}_input_ids"], example[f"{side}_response_mask"] = ids, mask
    return example


def encode_answers(tokenizer, prompt, texts, context_length):
    """Answers to one prompt, which all of them follow: [(input_ids, response_mask), ...], n_cut.

    prompt: str or messages. texts: str each; each gets the token that ends it. If the prompt is too long, its oldest
    text tokens are removed; control tokens stay. If an answer is still too long, it is cut at its end, so it has no end
    token. n_cut: how many tokens were removed.
    """
    prompt_ids = encode_prompt(tokenizer, prompt)
    control = set(tokenizer.special.values())
    room = context_length - sum(i in control for i in prompt_ids)
    if room < 1:
        raise MiniftError(
            f"context_length is {context_length}; the prompt's control tokens alone fill it")
    whole = [encode_answer(tokenizer, text) for text in texts]
    answers = [answer[:room] for answer in whole]
    excess = max(0, len(prompt_ids) + max(map(len, answers)) - context_length)
    oldest = set([place for place, i in enumerate(prompt_ids) if i not in control][:excess])
    prompt_ids = [i for place, i in enumerate(prompt_ids) if place not in oldest]
    n_cut = len(oldest) + sum(len(a) - len(b) for a, b in zip(whole, answers))
    return [
        (prompt_ids + answer, [False] * len(prompt_ids) + [True] * len(answer)) for answer in answers], n_cut


def encode_pairs(tokenizer, rows, context_length):
    """encode_pair of each row {"prompt", "chosen", "rejected"}: a list of examples, without pairs of equal answers.

    Warns how many pairs were left out and how many were shortened. Raises MiniftError when none is left.
    """
    examples = []
    for number, row in enumerate(rows):
        try:
            examples.append(
                encode_pair(tokenizer, row["prompt"], row["chosen"], row["rejected"], context_length))
        except MiniftError as error:
            raise MiniftError(f"pair {number}: {error}") from error
    kept = [example for example in examples if example is not None]
    if not kept:
        raise MiniftError(
            f"there is no pair to learn from: in {len(examples)} of {len(examples)} the chosen and the "
            f"rejected answer are the same within {context_length} tokens")
    n_alike, n_cut = len(examples) - len(kept), sum(example["n_cut"] > 0 for example in kept)
    if n_alike or n_cut:
        warnings.warn(
            f"of {len(examples)} pairs, {n_alike} were dropped (chosen and rejected are the same) and "
            f"{n_cut} were shortened to {context_length} tokens", stacklevel=2)
    return kept


def collate_pairs(examples, pad_id):
    """A right-padded batch: {chosen, rejected}_{input_ids, attention_mask, response_mask}, all (B, T), one T for all.

    Examples with the reference's sums (from add_reference_logprobs) also give ref_chosen_logprobs and
    ref_rejected_logprobs, (B,). If one has a "margin", the batch has it, (B,): 0 where an example has none. The masks
    come from the lengths, never from the ids.
    """
    # One length for both sides, so that chosen and rejected can go through the model as one batch.
    batch, lengths = {}, [0]
    for side in SIDES:
        lengths += [len(example[f"{side}_input_ids"]) for example in examples]
    length = max(lengths)
    for side in SIDES:
        rows = [example[f"{side}_input_ids"] for example in examples]
        masks = [example[f"{side}_response_mask"] for example in examples]
        # Check that ids and mask belong together, then pad both.
        for number, (row, mask) in enumerate(zip(rows, masks)):
            if len(row) != len(mask):
                raise MiniftError(
                    f"pair {number}: {len(row)} {side}_input_ids, but {len(mask)} entries in the mask")
        batch[f"{side}_input_ids"] = pad(rows, pad_id, length=length)
        batch[f"{side}_attention_mask"] = pad(
            [[True] * len(row) for row in rows], False, length=length)
        batch[f"{side}_response_mask"] = pad(masks, False, length=length)
        # The reference's sums, if every pair has them.
        sums = [example[f"ref_{side}_logprobs"] for example in examples if f"ref_{side}_logprobs" in example]
        if 0 < len(sums) < len(examples):
            raise MiniftError(
                f"{len(sums)} of {len(examples)} pairs hold ref_{side}_logprobs; run "
                "add_reference_logprobs on all of them")
        if sums:
            batch[f"ref_{side}_logprobs"] = torch.tensor(sums)
    if any("margin" in example for example in examples):
        batch["margin"] = torch.tensor([example.get("margin", 0.0) for example in examples])
    return batch
