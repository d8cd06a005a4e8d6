"""How a model wants a conversation written: the text around each turn, as data; and which format a model's template is.

Models come with a Jinja template, a small program. Of those, minift knows ChatML (SmolLM2) and Llama 3's: a template is
recognised by what it writes about a few conversations, character by character. Left out: all others, tools, images.
"""

import json
from dataclasses import dataclass, replace

# conversations that tell templates apart: with and without a system turn, several turns, white space at the ends
PROBES = [
    [("user", " a\n")], [("system", " s "), ("user", "a")],
    [("user", "a"), ("assistant", " b "), ("user", "c"), ("assistant", "d")]]


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

    def jinja(self):
        """The same as a Jinja template, for programs that read those."""
        def put(*texts):
            return "{{ " + " ~ ".join(texts) + " }}"
        quoted = {
            name: json.dumps(getattr(self, name)) for name in
            ("begin", "others_end", "end", "after", "system", "system_prefix")}
        header = [json.dumps(part) for part in self.header.split("{role}")]
        system = put(header[0], '"system"', header[1], quoted["system_prefix"], quoted["system"], quoted["others_end"])
        said = "{% if messages[0].role != 'system' %}" + system + "{% endif %}" if self.system is not None else ""
        text = "m.content" + " | trim" * self.strip
        return (
            put(quoted["begin"]) + said + "{% for m in messages %}" + put(header[0], "m.role", header[1])
            + "{% if m.role == 'system' %}" + put(quoted["system_prefix"]) + "{% endif %}" + put(f"({text})")
            + "{% if m.role == 'assistant' %}" + put(quoted["end"], quoted["after"])
            + "{% else %}" + put(quoted["others_end"]) + "{% endif %}{% endfor %}"
            + "{% if add_generation_prompt %}" + put(header[0], '"assistant"', header[1]) + "{% endif %}")


MINIFT = ChatFormat()
CHATML = ChatFormat("<|im_start|>{role}\n", "<|im_end|>\n", "<|im_end|>", "\n")
LLAMA3 = ChatFormat(
    "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", "<|eot_id|>", strip=True,
    begin="<|begin_of_text|>")
# The date is the template's own, so that the same chat has the same ids.
LLAMA31 = replace(
    LLAMA3, system="",
    system_prefix="Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n")


def plain_format(eos):
    """For a base model, which has no template: lines that it understands without new tokens. eos: name of its token."""
    return ChatFormat("{role}:\n", "\n", eos, "\n")


def recognise(template, bos="", eos=""):
    """The ChatFormat that writes what a Jinja template writes, or None: minift has none. bos, eos: names of tokens."""
    wanted = [render(template, probe, prompt, bos) for probe, prompt in probes()]
    said = (wanted[0] or "").removeprefix("<|im_start|>system\n").partition("<|im_end|>")[0]
    for known in (MINIFT, CHATML, replace(CHATML, system=said), LLAMA3, LLAMA31, plain_format(eos)):
        if wanted == [known.text(probe, prompt) for probe, prompt in probes()]:
            return known
    return None


def probes():
    """(messages, add_generation_prompt) of each probe."""
    return [
        ([{"role": role, "content": text} for role, text in probe], prompt)
        for probe in PROBES for prompt in (False, probe[-1][0] == "user")]


def render(template, messages, add_generation_prompt, bos):
    """What a Jinja template writes; None when it refuses the messages, or does something that a template must not."""
    # Comes with torch; slow to load, and rarely needed.
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(template).render(
            messages=messages, bos_token=bos,
            add_generation_prompt=add_generation_prompt)
    # A template is a program that others wrote: whatever it does.
    except Exception:
        return None
