"""The tokenizers of published models as a Tokenizer: byte-level BPE (GPT-2, Llama 3, SmolLM2) and BERT's WordPiece.

From tokenizer.json, vocab.txt, or the vocabulary in a .gguf file. No text becomes a special token here, so the ids are
those of the `tokenizers` package for texts that spell none of their names. Left out: SentencePiece (Llama 1 and 2,
TinyLlama), normalisers, adding <bos> (a chat's format says where it belongs).
"""

import warnings
from contextlib import contextmanager

from minift.core.files import read_bytes, read_json
from minift.errors import MiniftError
from minift.text import wordpiece
from minift.text.chat_format import plain_format, recognise
from minift.text.tokenizer import Tokenizer

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = r"\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"  # digit by digit, then GPT2
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
OWN_PATTERN = "minift.pattern"         # the regular expression, in a .gguf file of ours
PATTERNS = {"gpt-2": GPT2, "smollm": DIGITS, "llama-bpe": LLAMA3}               # llama.cpp's names
ROLES = {"<pad>": "[PAD]", "<eos>": "[SEP]", "<cls>": "[CLS]", "<sep>": "[SEP]", "<mask>": "[MASK]"}


class Unreadable(Exception):
    """A tokenizer that works in a way which minift does not have; the message says which."""


@contextmanager
def told(where):
    """A tokenizer that minift does not have becomes a warning, and what does not fit together a MiniftError."""
    try:
        yield
    except Unreadable as error:
        warnings.warn(f"{where}: the model is opened without its tokenizer, because {error}", stacklevel=4)
    except MiniftError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise MiniftError(f"the tokenizer in {where} is corrupted ({error!r}); download it again") from error


def read_tokenizer(folder, config):
    """The Tokenizer of a Hugging Face folder; None without one, or, with a warning, when it works in another way.

    config: of config.json, which may name the end token.
    """
    with told(folder):
        if (folder / "tokenizer.json").exists():
            return from_json(folder, config)
        if (folder / "vocab.txt").exists():
            lines = read_bytes(folder / "vocab.txt").decode("utf-8").removesuffix("\n").split("\n")
            lower = read_settings(folder).get("do_lower_case", True)
            return make_wordpiece({token.removesuffix("\r"): i for i, token in enumerate(lines)}, lower)
    return None


def read_settings(folder):
    """tokenizer_config.json, with the chat template from its own file where it has one."""
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    if (folder / "chat_template.jinja").exists():
        settings["chat_template"] = read_bytes(folder / "chat_template.jinja").decode("utf-8")
    return settings


def from_json(folder, config):
    """A tokenizer.json."""
    stored, settings = read_json(folder / "tokenizer.json"), read_settings(folder)
    special = {token["content"]: token["id"] for token in stored.get("added_tokens") or []}
    model, normalizer = stored["model"], stored.get("normalizer") or {}
    if model.get("type") == "WordPiece":
        lower = normalizer.get("lowercase")
        want("normalizer", normalizer, type="BertNormalizer", clean_text=True, handle_chinese_chars=True)
        want("normalizer", {"strip_accents": None, **normalizer}, strip_accents=(None, lower))
        want("pre_tokenizer", stored["pre_tokenizer"], type="BertPreTokenizer")
        return make_wordpiece(model["vocab"], lower)
    want("tokenizer", stored, normalizer=None)
    want("model", model, type="BPE", byte_fallback=(False, None), dropout=None, end_of_word_suffix=("", None))
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    ranks = make_ranks(model["vocab"], merges, special, model.get("ignore_merges"))
    names = {key: value["content"] if isinstance(value, dict) else value
             for key, value in settings.items() if key in ("bos_token", "eos_token", "pad_token")}
    eos_id = config.get("eos_token_id")
    eos_id = special.get(names.get("eos_token"), eos_id[0] if isinstance(eos_id, list) else eos_id)
    template = settings.get("chat_template")
    if isinstance(template, list):                                           # several, each with a name
        template = {one["name"]: one["template"] for one in template}.get("default")
    return make_bpe(ranks, special, pattern_of(stored["pre_tokenizer"]), eos_id, special.get(names.get("pad_token")),
                    template, names.get("bos_token") or "")


def from_gguf(fields, where):
    """The Tokenizer in a .gguf file's metadata (name -> value); None without one, or, with a warning, for another."""
    if "tokenizer.ggml.model" not in fields:
        return None
    with told(where):
        return from_fields({name.removeprefix("tokenizer."): value for name, value in fields.items()})
    return None


def from_fields(fields):
    """The same, of fields named without the "tokenizer." before them."""
    want("tokenizer", fields, **{"ggml.model": "gpt2", "ggml.pre": tuple(PATTERNS)})
    tokens, kinds, pre = fields["ggml.tokens"], fields["ggml.token_type"], fields["ggml.pre"]
    special = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind in (3, 4)}    # control, added
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds)) if kind == 1}
    merges = [merge.split(" ") for merge in fields["ggml.merges"]]
    ranks = make_ranks(vocab, merges, special, pre == "llama-bpe" or OWN_PATTERN in fields)
    bos = "" if fields.get("ggml.bos_token_id") is None else tokens[fields["ggml.bos_token_id"]]
    return make_bpe(ranks, special, fields.get(OWN_PATTERN, PATTERNS[pre]), fields.get("ggml.eos_token_id"),
                    fields.get("ggml.padding_token_id"), fields.get("chat_template"), bos)


def want(what, given, **known):
    """Unreadable unless each key has its known value, or one of several."""
    for key, values in known.items():
        values = values if isinstance(values, tuple) else (values,)
        if given.get(key) not in values:
            raise Unreadable(f"its {what} has {key} {given.get(key)!r:.60}; minift reads {values}")


def pattern_of(pre_tokenizer):
    """The regular expression that cuts text as a tokenizer.json says."""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    want("pre_tokenizer", steps[-1], type="ByteLevel", add_prefix_space=False)
    by_gpt2 = steps[-1].get("use_regex", True)
    if len(steps) == 1 and by_gpt2:
        return GPT2
    if len(steps) == 2 and by_gpt2 and steps[0] == {"type": "Digits", "individual_digits": True}:
        return DIGITS
    if len(steps) == 2 and not by_gpt2 and "Regex" in steps[0].get("pattern", {}):
        want("pre_tokenizer", steps[0], type="Split", behavior="Isolated", invert=(False, None))
        return steps[0]["pattern"]["Regex"]
    raise Unreadable(f"its pre_tokenizer has the steps {[step['type'] for step in steps]}, which minift does not know")


def byte_alphabet():
    """character -> byte: GPT-2's files write a byte that prints as itself, and the others as U+0100, U+0101, ..."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in prints)
    return {chr(byte): byte for byte in prints} | {chr(256 + i): byte for i, byte in enumerate(others)}


def make_ranks(vocab, merges, special, whole_pieces):
    """bytes -> id. Here the id is the rank of the merge as well: Unreadable when the file merges in another order.

    vocab: token -> id. whole_pieces: a piece that is a token needs no merges (tokenizer.json: ignore_merges).
    """
    merged = [vocab[left + right] for left, right in merges]
    alphabet = byte_alphabet()
    long = {i for token, i in vocab.items() if len(token) > 1 and token not in special}
    if merged != sorted(merged) or not (whole_pieces or long <= set(merged)):
        raise Unreadable("its ids are not in the order of its merges")
    try:
        return {bytes(alphabet[character] for character in token): i for token, i in vocab.items()
                if token not in special}
    except KeyError as error:
        raise Unreadable(f"its vocabulary is not one of bytes (it has {error})") from error


def make_bpe(ranks, special, pattern, eos_id, pad_id, template, bos):
    """A byte-level Tokenizer; its end is the one of a chat's answers, its pad another id, whatever the file says."""
    names = {i: name for name, i in special.items()}
    if eos_id not in names:
        raise Unreadable(f"its end token {eos_id!r} is not among its special tokens")
    chat = recognise(template, bos, names[eos_id]) if template else plain_format(names[eos_id])
    eos_id = special.get(chat.end, eos_id) if chat else eos_id
    if pad_id is None or pad_id == eos_id:
        others = [("pad" not in name, i) for i, name in names.items() if i != eos_id]
        _, pad_id = min(others, default=(None, int(eos_id == 0)))            # at worst an ordinary token: masks decide
    complete = all(bytes([byte]) in ranks for byte in range(256))
    roles = {role: i for role, i in (("<pad>", pad_id), ("<eos>", eos_id)) if special.get(role) != i}
    return Tokenizer(ranks, special, pattern, kind="bpe" if complete else "bpe-lossy", roles=roles, chat=chat)


def make_wordpiece(vocab, lower):
    """A WordPiece Tokenizer. vocab: token -> id. [UNK] is no special token: texts do produce it."""
    special = {name: vocab[name] for name in sorted(set(ROLES.values()))}
    ranks = {wordpiece.token_bytes(token): i for token, i in vocab.items() if token not in special}
    return Tokenizer(ranks, special, kind="wordpiece" if lower else "wordpiece-cased",
                     roles={role: special[name] for role, name in ROLES.items()}, chat=None)
