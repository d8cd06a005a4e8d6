"""A conversation as ids, and which of them the model itself writes.

Each tokenizer brings its model's format (text/chat_format.py); minift's own is <system> text (optional), then <user>
text <assistant> text <eos>, and so on. The format's special tokens are inserted as ids and never searched for in a
text, so a text that spells one stays text. Each answer is encoded alone, so a prompt has the same ids in training and
in use. Left out: tools, images.
"""

import re

from minift.errors import MiniftError
from minift.text.chat_format import MINIFT

ROLES = ("system", "user", "assistant")
# The name of a special token in a template.
SPECIAL = re.compile(r"(<[^<>\s]+>)")


def encode_chat(tokenizer, messages, add_generation_prompt=False):
    """Messages to (input_ids, response_mask), two lists of one length.

    messages: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, ...]
    response_mask: True at the ids that the model writes: the text of each assistant turn and the token that ends it.
    add_generation_prompt: end where the model's turn begins; the last message is then the user's.
    """
    check_messages(messages)
    if add_generation_prompt and messages[-1]["role"] != "user":
        raise MiniftError(
            f"a prompt must end with a user turn; its last role is {messages[-1]['role']!r}")
    input_ids, response_mask = [], []
    for text, written in segments(
            tokenizer, format_of(tokenizer).pieces(messages, add_generation_prompt)):
        ids = [text] if isinstance(text, int) else tokenizer.encode(text)
        input_ids += ids
        response_mask += [written] * len(ids)
    return input_ids, response_mask


def format_of(tokenizer):
    """The ChatFormat of a tokenizer's model; MiniftError when it is unknown."""
    # A tokenizer that says nothing of chats gets minift's own form.
    chat = getattr(tokenizer, "chat", MINIFT)
    if chat is None:
        raise MiniftError(
            "this model's chat template is none that minift knows (ChatML, Llama 3); give it plain "
            'texts, {"text"}, or take another model')
    return chat


def segments(tokenizer, pieces):
    """Yield (id of a special token, or a text; written by the model?) in order. MiniftError for an unknown token.

    pieces: from ChatFormat.pieces. Neighbouring texts that the model does not write are joined into one text, because
    other programs encode a conversation in this way.
    """
    waiting = ""
    for text, of_template, written in pieces:
        parts = filter(None, SPECIAL.split(text)) if of_template else [text]
        for part in parts:
            special = of_template and bool(SPECIAL.fullmatch(part))
            if special or written:
                yield waiting, False
                waiting = ""
                yield tokenizer.special_id(part) if special else part, written
            else:
                waiting += part
    yield waiting, False


def chat_of(prompt, where="prompt"):
    """A prompt as messages: a string becomes the user's one turn, a list of messages is checked and returned."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    check_messages(prompt, where)
    return prompt


def encode_prompt(tokenizer, prompt):
    """The ids after which the model's answer begins. prompt: a string, or messages that end with the user's turn."""
    return encode_chat(tokenizer, chat_of(prompt), add_generation_prompt=True)[0]


def encode_answer(tokenizer, text):
    """The ids of one answer and the token that ends it, as encode_chat has them after a prompt; text may be empty."""
    chat = format_of(tokenizer)
    if chat.strip:
        text = text.strip()
    return tokenizer.encode(text) + [tokenizer.special_id(chat.end)]


def check_messages(messages, where="messages", need_assistant=False):
    """MiniftError unless messages are an optional system turn, then user and assistant turns alternately.

    where: what the error calls them ("train.jsonl:7"). need_assistant: for training, where an answer must be learned.
    A user's text may be empty, an assistant's may not: the model would learn to say nothing.
    """
    if not isinstance(messages, list) or not messages:
        raise MiniftError(
            f"{where}: expected a list of messages, at least one; got {messages!r:.80}")
    # Each message alone, then its place in the order of turns.
    expected = "user"
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise MiniftError(
                f"{where}[{i}]: expected an object with the keys role and content; got {message!r:.80}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise MiniftError(
                f"{where}[{i}]: unknown role {role!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise MiniftError(f"{where}[{i}]: content must be a string; got {content!r:.80}")
        if role == "assistant" and not content.strip():
            raise MiniftError(
                f"{where}[{i}]: the assistant's content is empty; write an answer, or drop this")
        if role == "system" and i == 0:
            continue
        if role != expected:
            raise MiniftError(
                f"{where}[{i}]: a turn of the role {role!r}, expected {expected!r}; user and assistant "
                "take turns, the user begins, and only the first message may be the system's")
        expected = "assistant" if role == "user" else "user"
    # The whole conversation must hold something to learn from or to answer.
    if need_assistant and not any(message["role"] == "assistant" for message in messages):
        raise MiniftError(
            f"{where}: no assistant turn, so that there is nothing to learn; add the answer")
    if len(messages) == 1 and messages[0]["role"] == "system":
        raise MiniftError(f"{where}: only a system turn; add the user's")
