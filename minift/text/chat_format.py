"""How a model wants a conversation written: the text around each turn, as data.

A conversation is written as the texts of its turns, each between a header and an end; chat.py turns these pieces into
ids. Published models come with a Jinja template, a small program: formats/chat_template.py knows which template means
which format. Left out: tools, images.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatFormat:
    """The template text around the turns' own texts. Names of special tokens in the template become their ids."""

    # The text before each turn.
    header: str = "<{role}>"
    # The text after a turn that the model did not write.
    others_end: str = ""
    # The text after the model's turn; the model writes it too.
    end: str = "<eos>"
    # The text after `end`, which the model does not write.
    after: str = ""
    # The text before the whole conversation.
    begin: str = ""
    # The system's text that is added to a conversation without a system turn; None: none is added.
    system: str | None = None
    # The text before the text of a system turn.
    system_prefix: str = ""
    # Whether white space at both ends of a turn's text is removed.
    strip: bool = False

    def pieces(self, messages, add_generation_prompt=False):
        """Yield (text, from the template?, written by the model?) in order; together they are the conversation."""
        yield self.begin, True, False
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        for message in messages:
            role, content = message["role"], message["content"]
            if self.strip:
                content = content.strip()
            header = self.header.format(role=role)
            if role == "system":
                header += self.system_prefix
            yield header, True, False
            if role == "assistant":
                yield content, False, True
                yield self.end, True, True
                yield self.after, True, False
            else:
                yield content, False, False
                yield self.others_end, True, False
        if add_generation_prompt:
            yield self.header.format(role="assistant"), True, False

    def text(self, messages, add_generation_prompt=False):
        """The whole conversation as one string."""
        return "".join(text for text, _, _ in self.pieces(messages, add_generation_prompt))


MINIFT = ChatFormat()


def plain_format(eos):
    """The format for a base model, which has no template: plain lines, no new tokens. eos: name of its end token."""
    return ChatFormat("{role}:\n", "\n", eos, "\n")
