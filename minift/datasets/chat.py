"""A conversation as ids, and which of them the model itself writes.

The template: <system> text (optional), then <user> text <assistant> text <eos>, again and again. The roles are special
tokens, put in as ids and never searched for in text, so whatever a text says stays text; each text is encoded alone, so
a prompt has the same ids in training and in use. Left out: tools, images, templates of other models.
"""

from minift.errors import MiniftError

ROLES = ("system", "user", "assistant")


def encode_chat(tokenizer, messages, add_generation_prompt=False):
    """Messages to (input_ids, response_mask), two lists of one length.

    messages: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, ...]
    response_mask: True on what the model writes: the text of each assistant turn and the <eos> that ends it.
    add_generation_prompt: end with <assistant>, so that the model's turn is next; the last message is then the user's.
    """
    check_messages(messages)
    if add_generation_prompt and messages[-1]["role"] != "user":
        raise MiniftError(f"a prompt must end with a user turn; its last role is {messages[-1]['role']!r}")
    input_ids, response_mask = [], []
    for message in messages:
        written = message["role"] == "assistant"
        text = tokenizer.encode(message["content"]) + [tokenizer.eos_id] * written
        input_ids += [tokenizer.special_id(f"<{message['role']}>"), *text]
        response_mask += [False] + [written] * len(text)
    if add_generation_prompt:
        input_ids.append(tokenizer.special_id("<assistant>"))
        response_mask.append(False)
    return input_ids, response_mask


def chat_of(prompt, where="prompt"):
    """A prompt as messages: a string becomes the user's one turn, a list of messages is checked and returned."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    check_messages(prompt, where)
    return prompt


def encode_prompt(tokenizer, prompt):
    """The ids after which the model's answer begins. prompt: a string, or messages that end with the user's turn."""
    return encode_chat(tokenizer, chat_of(prompt), add_generation_prompt=True)[0]


def check_messages(messages, where="messages", need_assistant=False):
    """MiniftError unless messages are an optional system turn, then user, assistant, user, ... in turn.

    where: what the error calls them ("train.jsonl:7"). need_assistant: for training, where an answer must be learned.
    A user may say nothing (""), an assistant may not: learning from it would teach silence.
    """
    if not isinstance(messages, list) or not messages:
        raise MiniftError(f"{where}: expected a list of messages, at least one; got {messages!r:.80}")
    expected = "user"
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise MiniftError(f"{where}[{i}]: expected an object with the keys role and content; got {message!r:.80}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise MiniftError(f"{where}[{i}]: unknown role {role!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise MiniftError(f"{where}[{i}]: content must be a string; got {content!r:.80}")
        if role == "assistant" and not content.strip():
            raise MiniftError(f"{where}[{i}]: the assistant's content is empty; write an answer, or drop this")
        if role == "system" and i == 0:
            continue
        if role != expected:
            raise MiniftError(f"{where}[{i}]: a turn of the role {role!r}, expected {expected!r}; user and assistant "
                              "take turns, the user begins, and only the first message may be the system's")
        expected = "assistant" if role == "user" else "user"
    if need_assistant and not any(message["role"] == "assistant" for message in messages):
        raise MiniftError(f"{where}: no assistant turn, so that there is nothing to learn; add the answer")
    if len(messages) == 1 and messages[0]["role"] == "system":
        raise MiniftError(f"{where}: only a system turn; add the user's")
