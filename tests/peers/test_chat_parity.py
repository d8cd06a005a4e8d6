"""Conversations beside the models' own Jinja templates: the same string, the same ids, and only the answers learned.

jinja2 comes with torch. The template of SmolLM2 is read from its file (requirements-real.txt) where that is installed;
the templates below are written after the published descriptions of the formats.
"""

import functools
import random

import pytest

from minift.errors import MiniftError
from minift.formats import chat_template, vocabulary
from minift.formats.gguf_file import open_gguf
from minift.formats.pretrained import locate
from minift.text import chat, chat_format, pairs
from minift.text.chat_format import ChatFormat
from minift.text.tokenizer import Tokenizer

jinja2 = pytest.importorskip("jinja2", reason="jinja2 is missing; it comes with torch")

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SYSTEM = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe exact.<|im_end|>\\n' }}{% endif %}"
LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ "
          "(m.content | trim) ~ '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}")
LLAMA31 = ("{% if messages[0].role == 'system' %}{% set said = messages[0].content | trim %}"
           "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
           "{{ bos_token ~ '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n"
           "Today Date: ' ~ (date_string or '26 Jul 2024') ~ '\\n\\n' ~ said ~ '<|eot_id|>' }}"
           + LLAMA3.replace("{{ bos_token }}", "").replace("in messages", "in rest"))
TEMPLATES = {"chatml": CHATML, "chatml with a system turn": SYSTEM + CHATML, "llama 3": LLAMA3, "llama 3.1": LLAMA31}
BOS = "<|begin_of_text|>"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", BOS]


def jinja(template, messages, add_generation_prompt):
    """The template's own output, as transformers renders it."""
    return compiled(template).render(messages=messages, bos_token=BOS, add_generation_prompt=add_generation_prompt)


@functools.cache
def compiled(template):
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)


def conversations(n, seed=0):
    """Random conversations: one to four exchanges, often a system turn, white space and template words in texts."""
    rng = random.Random(seed)
    words = ["The", " kite", "\n", " ", "  ", "?", "7", "é🙂", "user", "<|im_end|>", "{{ x }}", "assistant\n", "\n\n"]
    for _ in range(n):
        texts = ["".join(rng.choices(words, k=rng.randint(0, 6))) + rng.choice(["", "!", " "]) for _ in range(9)]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text if i % 2 == 0 else text + "a"}
                    for i, text in enumerate(texts[:rng.randint(1, 8)])]
        yield ([{"role": "system", "content": texts[8]}] if rng.random() < 0.5 else []) + messages


def tokenizer_with(template):
    """One id a byte, the special tokens of all formats, and the format that the template is recognised as."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    special = {name: 256 + i for i, name in enumerate(SPECIAL)}
    return Tokenizer(ranks, special, roles={"<pad>": 256, "<eos>": 257}, chat=chat_template.recognise(template, BOS))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_same_string(name, recognise=chat_template.recognise):
    """A recognised template, its format, and the template that we write for it write the same characters."""
    found = recognise(TEMPLATES[name], BOS)
    assert isinstance(found, ChatFormat) and recognise(chat_template.write_template(found), BOS) == found
    for messages in conversations(300):
        prompt = messages[-1]["role"] == "user"
        for add in (False, True)[:1 + prompt]:
            assert found.text(messages, add) == jinja(TEMPLATES[name], messages, add)
            assert found.text(messages, add) == jinja(chat_template.write_template(found), messages, add)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_spell_the_string_and_the_mask_the_answers(name, encode_chat=chat.encode_chat):
    """The ids decode to the template's output; what is learned is each answer with the token that ends it, no more."""
    tokenizer = tokenizer_with(TEMPLATES[name])
    end = tokenizer.chat.end
    for messages in conversations(200, seed=1):
        ids, mask = encode_chat(tokenizer, messages)
        assert tokenizer.decode(ids) == jinja(TEMPLATES[name], messages, False)
        answers = [m["content"].strip() if tokenizer.chat.strip else m["content"]
                   for m in messages if m["role"] == "assistant"]
        assert tokenizer.decode(i for i, learned in zip(ids, mask) if learned) == "".join(a + end for a in answers)
        if messages[-1]["role"] == "assistant" and len(messages) > 1 + (messages[0]["role"] == "system"):
            prompt, _ = encode_chat(tokenizer, messages[:-1], add_generation_prompt=True)
            assert ids[:len(prompt)] == prompt and mask[len(prompt)] and not mask[len(prompt) - 1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_pairs_are_the_template_s_chats(name, encode_pair=pairs.encode_pair):
    """Prompt and either answer decode to the template's output up to the answer's end, white space at the ends too."""
    tokenizer = tokenizer_with(TEMPLATES[name])
    chat = tokenizer.chat
    for messages in conversations(100, seed=3):
        prompt = messages if messages[-1]["role"] == "user" else [*messages, {"role": "user", "content": " So? "}]
        answers = {"chosen": " Yes\n", "rejected": "\tNo "}
        example = encode_pair(tokenizer, prompt, *answers.values(), 10_000)
        for side, answer in answers.items():
            ids, mask = example[f"{side}_input_ids"], example[f"{side}_response_mask"]
            whole = jinja(TEMPLATES[name], [*prompt, {"role": "assistant", "content": answer}], False)
            assert tokenizer.decode(ids) == whole.removesuffix(chat.after)
            learned = tokenizer.decode(i for i, mine in zip(ids, mask) if mine)
            assert learned == (answer.strip() if chat.strip else answer) + chat.end


def test_models_without_a_template(encode_chat=chat.encode_chat):
    """A base model gets plain lines, made of tokens that it knows; its end token closes what it writes."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    plain = Tokenizer(ranks, {"</s>": 256}, roles={"<pad>": 0, "<eos>": 256}, chat=chat_format.plain_format("</s>"))
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    ids, mask = encode_chat(plain, messages)
    written = jinja(chat_template.write_template(plain.chat), messages, False)
    assert plain.decode(ids) == "user:\nHi\nassistant:\nYo</s>\n" == written
    assert plain.decode(i for i, learned in zip(ids, mask) if learned) == "Yo</s>"
    assert chat_template.recognise(chat_template.write_template(plain.chat), "", "</s>") == plain.chat


def test_a_text_cannot_end_its_turn(encode_chat=chat.encode_chat):
    """<|im_end|> typed by a user is ten characters; the template's own is one id."""
    tokenizer = tokenizer_with(CHATML)
    ids, _ = encode_chat(tokenizer, [{"role": "user", "content": "<|im_end|>"}])
    assert ids.count(tokenizer.special["<|im_end|>"]) == 1


@pytest.mark.parametrize("template", [
    CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "{{ messages[0].content }}", "{{ oops",
    CHATML.replace("{% endfor %}", "{% endfor %}<|end|>"), LLAMA3.replace("| trim", ""),
    "{{ raise_exception('no') }}", "{% for i in range(10**9) %}{% endfor %}",
])
def test_other_templates_are_not_taken_for_these(
    template, recognise=chat_template.recognise, encode_chat=chat.encode_chat
):
    """A template that writes anything else is unknown; a conversation is then refused, in a sentence."""
    assert recognise(template, BOS) is None
    with pytest.raises(MiniftError, match="template"):
        encode_chat(tokenizer_with(template), [{"role": "user", "content": "Hi"}])


def test_a_format_without_its_tokens_is_refused(encode_chat=chat.encode_chat):
    """Role tokens that the vocabulary lacks are an error, not text."""
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, {}, chat=chat_template.CHATML)
    with pytest.raises(MiniftError, match="im_start"):
        encode_chat(tokenizer, [{"role": "user", "content": "Hi"}])


@pytest.fixture(scope="module")
def smollm2():
    """(fields of the file, our tokenizer)."""
    pytest.importorskip("gguf", reason="gguf is missing: pip install -r requirements-real.txt")
    try:
        fields, _ = open_gguf(locate("smollm2"))
    except MiniftError as error:
        pytest.skip(str(error))
    return fields, vocabulary.read_gguf_tokenizer(fields, "x.gguf")


def test_smollm2(smollm2, encode_chat=chat.encode_chat):
    """Its own template from its own file, default system turn included, on random conversations."""
    fields, tokenizer = smollm2
    template = fields["tokenizer.chat_template"]
    for messages in conversations(100, seed=2):
        ids, _ = encode_chat(tokenizer, messages)
        assert tokenizer.decode(ids) == jinja(template, messages, False)
    ids, _ = encode_chat(tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    said = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert tokenizer.decode(ids) == (f"<|im_start|>system\n{said}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                                     "<|im_start|>assistant\n")
    assert ids[0] == 1 and ids[-4:] == [1, *tokenizer.encode("assistant\n")]


def test_smollm2_ids_are_those_of_the_whole_string(smollm2, encode_chat=chat.encode_chat):
    """The package's tokenizer, given the rendered string, finds the same ids, white space before a prompt included."""
    tokenizers = pytest.importorskip("tokenizers")
    fields, tokenizer = smollm2
    vocab = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    theirs.add_special_tokens(list(tokenizer.special))
    template = fields["tokenizer.chat_template"]
    for messages in ([("user", "What is 7 + 5?")],
                     [("system", " Be brief."), ("user", "\n\nHi "), ("assistant", "Yes."), ("user", "  Why?"),
                      ("assistant", "So.\n\n")]):
        messages = [{"role": role, "content": text} for role, text in messages]
        assert encode_chat(tokenizer, messages)[0] == theirs.encode(jinja(template, messages, False)).ids
