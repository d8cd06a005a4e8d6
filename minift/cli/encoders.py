"""One encoder for each kind of data: encode(row, tally, ...) -> an example, or None after counting the reason."""

import sys
from dataclasses import replace

from minift.errors import MiniftError
from minift.methods.sft import encode_example
from minift.text.batches import chunks
from minift.text.chat import chat_of, check_messages, encode_chat, encode_prompt
from minift.text.pairs import encode_answers, encode_pair
from minift.text.segments import encode_segments

UNUSED_MARGIN = "with a margin, which this loss does not use"


def encode_text(row, tally, tokenizer):
    """A document and then <eos>. Training joins all documents, so none is too long."""
    if not row.values["text"].strip():
        tally.dropped["empty text"] += 1
        return None
    ids = tokenizer.encode(row.values["text"]) + [tokenizer.eos_id]
    return {"input_ids": ids, "labels": ids}


def encode_pieces(row, tally, tokenizer, context):
    """A document as an encoder reads it: pieces [CLS] ... [SEP] of at most `context` tokens."""
    if context < 3:
        raise MiniftError(f"a context of {context} has no room between <cls> and <sep>; take at least 3")
    if not row.values["text"].strip():
        tally.dropped["empty text"] += 1
        return None
    pieces = chunks(tokenizer.encode(row.values["text"]), context - 2)
    if len(pieces) > 1:
        tally.noted[f"longer than {context} tokens, and cut into pieces"] += 1
    first, last = tokenizer.special_id("<cls>"), tokenizer.special_id("<sep>")
    return [{"input_ids": [first, *piece, last]} for piece in pieces]


def encode_labelled_row(row, tally, tokenizer, context):
    """A text, or a pair of texts, for a classifier; what goes beyond the context is cut at the end.

    "label" is the label's name in the row. "where" is for errors, "row" for the bag-of-words baseline.
    """
    text, pair, label = (row.values.get(name) for name in ("text", "text_pair", "label"))
    if pair is not None and not isinstance(pair, str):
        raise MiniftError(f"{row.where}: 'text_pair' must be a string; got {pair!r:.60}")
    if row.form == "label" and not str(label).strip():
        raise MiniftError(f"{row.where}: 'label' is empty; a label is a name, give it one")
    if not text.strip():
        tally.dropped["empty text"] += 1
        return None
    ids, n_cut = encode_segments(tokenizer, text, pair, context)
    if n_cut:
        tally.noted[f"cut to {context} tokens"] += 1
    return {"input_ids": ids, "label": None if label is None else str(label), "where": row.where, "row": row.values}


def messages_of(row):
    """The conversation of a row with messages, or with prompt and completion; checked to hold an answer."""
    messages = row.values.get("messages")
    if row.form == "completion":
        if row.values.get("label") is False:
            raise MiniftError(f"{row.where}: 'label' is false, so this answer is not one to learn; leave the row out")
        answer = {"role": "assistant", "content": row.values["completion"]}
        messages = [*chat_of(row.values["prompt"], row.where), answer]
    check_messages(messages, row.where, need_assistant=True)
    return messages


def encode_dialogue(row, tally, tokenizer, context):
    """A conversation whose assistant tokens are learned. What goes beyond the context is cut at the end."""
    input_ids, response_mask = encode_chat(tokenizer, messages_of(row))
    example = encode_example(input_ids, response_mask, context)
    if example is None:
        tally.dropped[f"no answer within {context} tokens"] += 1
    elif len(input_ids) > context:
        tally.noted[f"cut to {context} tokens"] += 1
    return example


def encode_preference(row, tally, tokenizer, context, use_margin=True):
    """A prompt with a chosen and a rejected answer; a row that is too long loses the beginning of its prompt.

    A row may have a "margin". use_margin=False: the loss has no use for it, and the row is counted.
    """
    prompt, chosen, rejected = (row.values[name] for name in ("prompt", "chosen", "rejected"))
    margin = read_margin(row)
    chat_of(prompt, row.where)
    if not chosen.strip() or not rejected.strip():
        tally.dropped["empty answer"] += 1
        return None
    example = encode_pair(tokenizer, prompt, chosen, rejected, context)
    if example is None or chosen.strip() == rejected.strip():
        tally.dropped["chosen and rejected are the same"] += 1
        return None
    if example.pop("n_cut"):
        tally.noted[f"cut to {context} tokens"] += 1
    if margin is not None and use_margin:
        example["margin"] = margin
    elif margin is not None:
        tally.noted[UNUSED_MARGIN] += 1
    return example


def read_margin(row):
    """A row's "margin", a finite number; None if it has none."""
    margin = row.values.get("margin")
    is_number = isinstance(margin, (int, float)) and not isinstance(margin, bool)
    # JSON may hold whole numbers that are too large for a float.
    if margin is not None and not (is_number and abs(margin) <= sys.float_info.max):
        raise MiniftError(f"{row.where}: 'margin' must be a finite number; got {margin!r:.60}")
    return None if margin is None else float(margin)


def encode_judged(row, tally, tokenizer, context):
    """Answers that are wanted or not: one of a row with a label, two of a pair. A list of examples, or None.

    A row that is too long loses the beginning of its prompt, as a pair does for DPO.
    """
    # The texts of the answers, and whether each is wanted.
    if row.form == "pair":
        texts, wanted = [row.values["chosen"], row.values["rejected"]], [True, False]
    else:
        texts, wanted = [row.values["completion"]], [row.values["label"]]
    if not all(text.strip() for text in texts):
        tally.dropped["empty answer"] += 1
        return None
    chat_of(row.values["prompt"], row.where)
    answers, n_cut = encode_answers(tokenizer, row.values["prompt"], texts, context)
    # What a pair loses when it is read as two rows.
    if row.form == "pair":
        if answers[0] == answers[1] or texts[0].strip() == texts[1].strip():
            tally.dropped["chosen and rejected are the same"] += 1
            return None
        tally.noted["pairs, each read as a wanted and an unwanted answer"] += 1
        if read_margin(row) is not None:
            tally.noted[UNUSED_MARGIN] += 1
    if n_cut:
        tally.noted[f"cut to {context} tokens"] += 1
    return [
        {"answer_input_ids": ids, "answer_response_mask": mask, "wanted": label}
        for (ids, mask), label in zip(answers, wanted)]


def encode_request(row, tally, tokenizer, room):
    """A prompt in the chat template, or a raw text, for the model to answer. room: tokens that it may have.

    "truth" is the row's right answer, if it has one ("answer", else "completion"); "where" is for errors.
    """
    if row.form == "messages":
        row = split_chat(row)
    prompt = row.values["text"] if row.form == "text" else row.values["prompt"]
    ids = tokenizer.encode(prompt) if row.form == "text" else encode_prompt(tokenizer, chat_of(prompt, row.where))
    if not ids:
        tally.dropped["empty text"] += 1
        return None
    if len(ids) > room:
        tally.dropped[f"prompt of more than {max(room, 0)} tokens, which leaves no room to answer"] += 1
        return None
    return {"input_ids": ids, "prompt": prompt, "truth": right_answer(row), "where": row.where}


def split_chat(row):
    """A chat as a row with a prompt; if the assistant has the last turn, it is the completion."""
    messages = row.values["messages"]
    check_messages(messages, row.where)
    *before, last = messages
    if last["role"] != "assistant":
        return replace(row, form="prompt", values=row.values | {"prompt": messages})
    values = row.values | {"prompt": before, "completion": last["content"]}
    return replace(row, form="completion", values=values)


def right_answer(row):
    """The text of a row's "answer", else of its "completion"; None if it has neither."""
    truth = row.values.get("answer")
    truth = row.values.get("completion") if truth is None else truth
    if not isinstance(truth, (str, int, float, type(None))):
        raise MiniftError(f"{row.where}: 'answer' must be a string or a number; got {truth!r:.60}")
    return None if truth is None else str(truth)
