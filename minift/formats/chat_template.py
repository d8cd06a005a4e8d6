"""The chat templates of published models, which are Jinja programs, as a ChatFormat, and a ChatFormat as a template.

Two templates can differ as programs and still write the same text. So a template is recognised by what it writes: it
is run on a few conversations (PROBES), and its output must equal a known format's, character by character. The known
formats are minift's own, ChatML (SmolLM2), Llama 3's, and bare texts. Left out: all others.
"""

import json
from dataclasses import replace

from minift.text.chat_format import MINIFT, ChatFormat, plain_format

# Conversations that distinguish templates: with and without a system turn, several turns, white space at the ends.
PROBES = [
    [("user", " a\n")], [("system", " s "), ("user", "a")],
    [("user", "a"), ("assistant", " b "), ("user", "c"), ("assistant", "d")]]
CHATML = ChatFormat("<|im_start|>{role}\n", "<|im_end|>\n", "<|im_end|>", "\n")
LLAMA3 = ChatFormat(
    "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", "<|eot_id|>", strip=True,
    begin="<|begin_of_text|>")
# The date is the one in Llama's template, not today's, so that the same chat always has the same ids.
LLAMA31 = replace(
    LLAMA3, system="",
    system_prefix="Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n")


def recognise(template, bos="", eos=""):
    """The ChatFormat that writes the same as a Jinja template; None if minift has none. bos, eos: names of tokens."""
    wanted = [render(template, probe, prompt, bos) for probe, prompt in probes()]
    # To a chat without a system turn a ChatML template may add one. Its text is taken from the output.
    said = (wanted[0] or "").removeprefix("<|im_start|>system\n").partition("<|im_end|>")[0]
    for known in (MINIFT, CHATML, replace(CHATML, system=said), LLAMA3, LLAMA31, plain_format(eos)):
        if wanted == [known.text(probe, prompt) for probe, prompt in probes()]:
            return known
    return None


def probes():
    """(messages, add_generation_prompt) of each probe."""
    found = []
    for probe in PROBES:
        messages = [{"role": role, "content": text} for role, text in probe]
        found += [(messages, False), (messages, probe[-1][0] == "user")]
    return found


def render(template, messages, add_generation_prompt, bos):
    """What a Jinja template writes; None when it refuses the messages, or does something that a template must not."""
    # It comes with torch. It is imported here because it loads slowly and is rarely needed.
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(template).render(
            messages=messages, bos_token=bos,
            add_generation_prompt=add_generation_prompt)
    except Exception:
        # A template is a program that others wrote, so it may raise anything.
        return None


def write_template(chat):
    """A ChatFormat as a Jinja template, for programs that read those."""
    def put(*texts):
        return "{{ " + " ~ ".join(texts) + " }}"
    quoted = {
        name: json.dumps(getattr(chat, name)) for name in
        ("begin", "others_end", "end", "after", "system", "system_prefix")}
    header = [json.dumps(part) for part in chat.header.split("{role}")]
    system = put(header[0], '"system"', header[1], quoted["system_prefix"], quoted["system"], quoted["others_end"])
    said = "{% if messages[0].role != 'system' %}" + system + "{% endif %}" if chat.system is not None else ""
    text = "m.content | trim" if chat.strip else "m.content"
    return (
        put(quoted["begin"]) + said + "{% for m in messages %}" + put(header[0], "m.role", header[1])
        + "{% if m.role == 'system' %}" + put(quoted["system_prefix"]) + "{% endif %}" + put(f"({text})")
        + "{% if m.role == 'assistant' %}" + put(quoted["end"], quoted["after"])
        + "{% else %}" + put(quoted["others_end"]) + "{% endif %}{% endfor %}"
        + "{% if add_generation_prompt %}" + put(header[0], '"assistant"', header[1]) + "{% endif %}")
