"""Kahneman-Tversky optimization: learn from single answers that are wanted or unwanted; no pairs are needed.

Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", section 4.1; the loss, eq. 8, is
dpo.kto_loss. It compares each answer's log-ratio with an estimate of KL(policy || reference), for which each prompt
also gets the answer of another prompt. TRL takes the answer of the previous row of its batch, whose prompt may be the
same. Here the next row with another prompt gives it, once for all epochs: the reference runs only once, and the same
weights always have the same validation loss. Left out: other estimates of the KL, one KL for several processes.
"""

import torch

from minift.core.logprobs import response_logprobs
from minift.core.settings import check_number
from minift.errors import MiniftError
from minift.methods.dpo import kto_kl, kto_loss
from minift.text.batches import pad

# The two answers of an example: its own, and that of another prompt.
SIDES = ("answer", "other")


def add_other_answers(examples, context_length):
    """Give each example, after its own prompt, the answer of the next example that has another prompt.

    examples: dicts with answer_input_ids and answer_response_mask (lists, the response last); changed in place and
    returned, with other_input_ids and other_response_mask, at most context_length tokens. Raises MiniftError when all
    prompts are the same.
    """
    prompts = [split(example)[0] for example in examples]
    for i, example in enumerate(examples):
        following = (j % len(examples) for j in range(i + 1, i + len(examples)))
        place = next((j for j in following if prompts[j] != prompts[i]), None)
        if place is None:
            raise MiniftError("KTO needs at least two different prompts: its KL is measured with answers to others")
        answer = split(examples[place])[1]
        ids = (prompts[i] + answer)[:context_length]
        example["other_input_ids"] = ids
        example["other_response_mask"] = [False] * len(prompts[i]) + [True] * (len(ids) - len(prompts[i]))
    return examples


def split(example):
    """(prompt ids, answer ids) of an example."""
    start = example["answer_response_mask"].index(True)
    return example["answer_input_ids"][:start], example["answer_input_ids"][start:]


def collate_judged(examples, pad_id):
    """A right-padded batch: {answer, other}_{input_ids, attention_mask, response_mask} (B, T), wanted (B,) bool.

    Examples with the reference's sums also give ref_answer_logprobs and ref_other_logprobs, (B,).
    """
    batch = {"wanted": torch.tensor([example["wanted"] for example in examples])}
    for side in SIDES:
        rows = [example[f"{side}_input_ids"] for example in examples]
        batch[f"{side}_input_ids"] = pad(rows, pad_id)
        batch[f"{side}_attention_mask"] = pad([[True] * len(row) for row in rows], False)
        batch[f"{side}_response_mask"] = pad([example[f"{side}_response_mask"] for example in examples], False)
        if f"ref_{side}_logprobs" in examples[0]:
            batch[f"ref_{side}_logprobs"] = torch.tensor([example[f"ref_{side}_logprobs"] for example in examples])
    return batch


def make_kto_loss(model, beta, wanted_weight=1.0, unwanted_weight=1.0):
    """A loss_fn(batch) -> (loss, metrics) for train(): `batch` comes from collate_judged, with the reference's sums.

    Where one kind of answer is rare, choose weights such that n_wanted * wanted_weight is 1 to 4/3 times n_unwanted *
    unwanted_weight. metrics: kl (the estimate, nats an answer), chosen_rewards and rejected_rewards (beta * log-ratio
    of wanted and unwanted answers), n_tokens (answers).
    """
    check_number("beta", beta, above=0)

    def loss_fn(batch):
        if "ref_answer_logprobs" not in batch:
            raise MiniftError(
                "the batch has no ref_answer_logprobs; call add_reference_logprobs on the examples first, with "
                f"sides={SIDES}")
        logprobs = sum_logprobs(model, batch, "answer")  # (B,)
        with torch.no_grad():
            other, ref_other = sum_logprobs(model, batch, "other"), batch["ref_other_logprobs"]
        if len(other) == 1:
            # A last batch of one row: its other answer still comes from another prompt.
            other, ref_other = other.expand(2), ref_other.expand(2)
        kl = kto_kl(other, ref_other)
        wanted, references = batch["wanted"], batch["ref_answer_logprobs"]
        loss, metrics = kto_loss(
            logprobs[wanted], logprobs[~wanted], references[wanted], references[~wanted], beta, kl,
            wanted_weight, unwanted_weight)
        return loss, metrics | {"kl": kl.item(), "n_tokens": len(logprobs)}
    return loss_fn


def sum_logprobs(model, batch, side):
    """The policy's summed log-probabilities of one side's answers: (B,)."""
    input_ids = batch[f"{side}_input_ids"]  # (B, T)
    hidden = model.body(input_ids, batch[f"{side}_attention_mask"])  # (B, T, D)
    return response_logprobs(hidden, model.head, input_ids, batch[f"{side}_response_mask"]).sum(1)
