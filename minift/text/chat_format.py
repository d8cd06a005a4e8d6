"""How a model wants a conversation written: the text around each turn, as data.

A conversation is written as the texts of its turns, each between a header and an end; chat.py turns these pieces into
ids. Published models say it by a Jinja template, a small program: formats/chat_template.py knows which template is
which format. Left out: tools, images.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatFormat:
    """The template text around the turns' own texts; names of special tokens in it become their ids."""

    # The text before each turn.
    header: str = "<{role}>"
    # After a text that the model did not write.
    others_end: str = ""
    # After a text of the model's, which writes this as well.
    end: str = "<eos>"
    # The text after that.
    after: str = ""
    # The text before the whole conversation.
    begin: str = ""
    # What the system says when a conversation has no system turn.
    system: str | None = None
    # Before what the system says.
    system_prefix: str = ""
    # White space at both ends of a text is dropped.
    strip: bool = False

    def pieces(self, messages, add_generation_prompt=False):
        """Yield (text, from the template?, written by the model?) in order; together they are the conversation."""
        yield self.begin, True, False
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        for message in messages:
            role, content = message["role"], message["content"].strip() if self.strip else message["content"]
            yield self.header.format(role=role) + self.system_prefix * (role == "system"), True, False
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
    """For a base model, which has no template: lines that it understands without new tokens. eos: name of its token."""
    return ChatFormat("{role}:\n", "\n", eos, "\n")
