"""The tokenizers of published models as a Tokenizer: byte-level BPE (GPT-2, Llama 3, SmolLM2) and BERT's WordPiece.

They come as tokenizer.json, as vocab.txt, or in a .gguf file. A tokenizer.json describes a chain of steps. Our
Tokenizer has one fixed chain, in which only data differ: a regular expression cuts a text into pieces, and ranks (bytes
of a token -> id) say how a piece becomes ids. So a tokenizer is read in four steps.

1. The steps that minift does not have, such as a normalizer, must be switched off. If one is not, the model is opened
   without a tokenizer, with a warning that names the step: wrong ids would go unnoticed.
2. `find_pattern` turns the step that cuts (pre_tokenizer) into one regular expression.
3. `byte_level.make_ranks` turns vocabulary and merges into ranks, and checks that these say the same.
4. `make_bpe` finds the ids that end and pad a text, and the format of chats.

No text becomes a special token here, so the ids are those of the `tokenizers` package for texts that spell none of
their names. Left out: SentencePiece (Llama 1 and 2, TinyLlama), adding <bos> (a chat's format says where it belongs).
"""

import warnings
from contextlib import contextmanager

from minift.core.files import read_bytes, read_json
from minift.formats.byte_level import make_ranks
from minift.formats.chat_template import recognise
from minift.formats.gguf_file import ADDED, CONTROL, NORMAL
from minift.formats.settings import Unreadable, explain_errors, require
from minift.text import wordpiece
from minift.text.chat_format import plain_format
from minift.text.tokenizer import Tokenizer

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Each digit alone, then as GPT2.
DIGITS = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+")
# The same under llama.cpp's names; in a .gguf file of ours the regular expression itself may stand beside the name.
PATTERNS = {"gpt-2": GPT2, "smollm": DIGITS, "llama-bpe": LLAMA3}
OWN_PATTERN = "minift.pattern"
# What a token is used for -> BERT's name of it.
ROLES = {"<pad>": "[PAD]", "<eos>": "[SEP]", "<cls>": "[CLS]", "<sep>": "[SEP]", "<mask>": "[MASK]"}


@contextmanager
def report_problems(where):
    """Inside, a tokenizer that minift does not have becomes a warning, and a damaged one a MiniftError."""
    try:
        with explain_errors(f"the tokenizer in {where}"):
            yield
    except Unreadable as error:
        warnings.warn(f"{where}: the model is opened without its tokenizer, because {error}", stacklevel=4)


# ---- from a Hugging Face folder ----


def read_tokenizer(folder, config):
    """The Tokenizer of a folder; None when there is none, or, with a warning, when it works in another way.

    config: the contents of config.json, which may name the end token.
    """
    with report_problems(folder):
        if (folder / "tokenizer.json").exists():
            stored = read_json(folder / "tokenizer.json")
            if stored["model"].get("type") == "WordPiece":
                return read_wordpiece(stored)
            return read_bpe(stored, read_settings(folder), config)
        if (folder / "vocab.txt").exists():
            text = read_bytes(folder / "vocab.txt").decode("utf-8")
            lines = text.removesuffix("\n").split("\n")
            vocab = {line.removesuffix("\r"): i for i, line in enumerate(lines)}
            return make_wordpiece(vocab, read_settings(folder).get("do_lower_case", True))
    return None


def read_settings(folder):
    """tokenizer_config.json, with the chat template from its own file where it has one."""
    settings = {}
    if (folder / "tokenizer_config.json").exists():
        settings = read_json(folder / "tokenizer_config.json")
    if (folder / "chat_template.jinja").exists():
        settings["chat_template"] = read_bytes(folder / "chat_template.jinja").decode("utf-8")
    return settings


def read_wordpiece(stored):
    """The Tokenizer of a tokenizer.json with a WordPiece model."""
    normalizer = stored.get("normalizer") or {}
    lower = normalizer.get("lowercase")
    require("its normalizer", normalizer, {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": (None, lower)})
    require("its pre_tokenizer", stored["pre_tokenizer"], {"type": "BertPreTokenizer"})
    return make_wordpiece(stored["model"]["vocab"], lower)


def read_bpe(stored, settings, config):
    """The Tokenizer of a tokenizer.json with a byte-level BPE model. settings: of tokenizer_config.json."""
    model = stored["model"]
    require("its tokenizer", stored, {"normalizer": None})
    require("its model", model, {
        "type": "BPE", "byte_fallback": (False, None), "dropout": None, "end_of_word_suffix": ("", None)})
    special = {token["content"]: token["id"] for token in stored.get("added_tokens") or []}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    eos_id = special.get(token_name(settings, "eos_token"))
    if eos_id is None:
        eos_id = config.get("eos_token_id")
        eos_id = eos_id[0] if isinstance(eos_id, list) else eos_id
    template = settings.get("chat_template")
    if isinstance(template, list):
        # Several, each with a name.
        template = {one["name"]: one["template"] for one in template}.get("default")
    ranks = make_ranks(model["vocab"], merges, special, model.get("ignore_merges"))
    pattern = find_pattern(stored["pre_tokenizer"])
    pad_id = special.get(token_name(settings, "pad_token"))
    bos = token_name(settings, "bos_token") or ""
    return make_bpe(ranks, special, pattern, eos_id, pad_id, template, bos)


def token_name(settings, key):
    """The name of the token that tokenizer_config.json gives for a key: a string, or an object with a "content"."""
    value = settings.get(key)
    return value["content"] if isinstance(value, dict) else value


def find_pattern(pre_tokenizer):
    """The regular expression that cuts text as the pre_tokenizer of a tokenizer.json says."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    require("its pre_tokenizer", steps[-1], {"type": "ByteLevel", "add_prefix_space": False})
    # Does the last step cut the text as well, as GPT-2's does?
    by_gpt2 = steps[-1].get("use_regex", True)
    kinds = [step["type"] for step in steps]
    if by_gpt2 and kinds == ["ByteLevel"]:
        return GPT2
    if by_gpt2 and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return DIGITS
    if not by_gpt2 and kinds == ["Split", "ByteLevel"] and "Regex" in steps[0]["pattern"]:
        require("its pre_tokenizer", steps[0], {"behavior": "Isolated", "invert": (False, None)})
        return steps[0]["pattern"]["Regex"]
    raise Unreadable(f"its pre_tokenizer has the steps {kinds}, unknown to minift")


# ---- from a .gguf file ----


def read_gguf_tokenizer(fields, where):
    """The Tokenizer in a .gguf file's metadata (name -> value); None without one, or, with a warning, for another."""
    if "tokenizer.ggml.model" not in fields:
        return None
    with report_problems(where):
        ggml = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items()}
        require("its tokenizer", ggml, {"model": "gpt2", "pre": tuple(PATTERNS)})
        special, vocab = {}, {}
        for i, (token, kind) in enumerate(zip(ggml["tokens"], ggml["token_type"])):
            if kind in (CONTROL, ADDED):
                special[token] = i
            elif kind == NORMAL:
                vocab[token] = i
        merges = [merge.split(" ") for merge in ggml["merges"]]
        whole_pieces = ggml["pre"] == "llama-bpe" or OWN_PATTERN in fields
        ranks = make_ranks(vocab, merges, special, whole_pieces)
        pattern = fields.get(OWN_PATTERN, PATTERNS[ggml["pre"]])
        template, bos_id = fields.get("tokenizer.chat_template"), ggml.get("bos_token_id")
        bos = "" if bos_id is None else ggml["tokens"][bos_id]
        return make_bpe(ranks, special, pattern, ggml.get("eos_token_id"), ggml.get("padding_token_id"), template, bos)
    return None


# ---- the Tokenizer ----


def make_bpe(ranks, special, pattern, eos_id, pad_id, template, bos):
    """A byte-level Tokenizer. special: name -> id. template: of chats, or None. bos: the name that it may write.

    Its end token is the one that ends a chat's answers. Its pad is never its end, whatever the file says.
    """
    names = {i: name for name, i in special.items()}
    if eos_id not in names:
        raise Unreadable(f"its end token {eos_id!r} is not among its special tokens")
    chat = recognise(template, bos, names[eos_id]) if template else plain_format(names[eos_id])
    if chat:
        eos_id = special.get(chat.end, eos_id)
    if pad_id is None or pad_id == eos_id:
        pad_id = choose_pad(names, eos_id)
    roles = {"<pad>": pad_id, "<eos>": eos_id}
    roles = {role: i for role, i in roles.items() if special.get(role) != i}
    complete = all(bytes([byte]) in ranks for byte in range(256))
    kind = "bpe" if complete else "bpe-lossy"
    return Tokenizer(ranks, special, pattern, kind=kind, roles=roles, chat=chat)


def choose_pad(names, eos_id):
    """An id to pad with. names: id -> name of the special tokens, of which one with "pad" in it is best.

    Without any other special token it is an ordinary one: masks, not ids, decide what is padding.
    """
    others = sorted(i for i in names if i != eos_id)
    for i in others:
        if "pad" in names[i]:
            return i
    return others[0] if others else int(eos_id == 0)


def make_wordpiece(vocab, lower):
    """A WordPiece Tokenizer. vocab: token -> id. [UNK] is no special token: texts do produce it."""
    special = {name: vocab[name] for name in sorted(set(ROLES.values()))}
    ranks = {wordpiece.token_bytes(token): i for token, i in vocab.items() if token not in special}
    roles = {role: special[name] for role, name in ROLES.items()}
    kind = "wordpiece" if lower else "wordpiece-cased"
    return Tokenizer(ranks, special, kind=kind, roles=roles, chat=None)
