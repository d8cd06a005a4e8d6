"""Text to ids and back: bpe.py learns the merges, and tiktoken applies them with the same ranks.

Left out: Unicode normalisation (text comes back byte for byte).

Ids: 0..255 are the raw bytes, so no text is ever unknown; then the merges in the order in which they were learned; the
special tokens come last. Templates insert special tokens as ids: no text ever becomes one.
The vocabularies of published models (vocabulary.py) have their own order of ids, and may be WordPiece.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import tiktoken

from minift.core.files import read_json, write_json
from minift.errors import MiniftError
from minift.text import wordpiece
from minift.text.bpe import PATTERN, count_words, learn_merges, utf8
from minift.text.chat_format import MINIFT, ChatFormat

DEFAULT_SPECIAL = (
    "<pad>", "<eos>", "<system>", "<user>", "<assistant>", "<mask>", "<cls>", "<sep>")

# bpe: every text comes back byte for byte. bpe-lossy: bytes without a token are dropped (SmolLM2 lacks 21 of them).
KINDS = ("bpe", "bpe-lossy", "wordpiece", "wordpiece-cased")


class Tokenizer:
    """Text to ids and back. Make one with `Tokenizer.train` or `Tokenizer.load`.

    ranks: bytes -> id; the lower the id, the earlier the merge; all 256 single bytes are in it (kind "bpe").
    special: name -> id, ids that no text can produce. pattern: the regular expression that cuts text into pieces.
    kind: one of KINDS. roles: which ids serve as "<pad>", "<eos>", "<cls>", ... when special has no tokens of these
    names. chat: the ChatFormat of conversations; None when it is unknown.
    """

    def __init__(self, ranks, special, pattern=PATTERN, *, kind="bpe", roles=None, chat=MINIFT):
        if kind not in KINDS:
            raise MiniftError(f"the tokenizer is of the unknown kind {kind!r}; update minift")
        self.ranks, self.special, self.pattern = dict(ranks), dict(special), pattern
        self.kind, self.roles, self.chat = kind, dict(roles or {}), chat
        self._bytes = {i: token for token, i in ranks.items()} | {i: name.encode() for name, i in special.items()}
        if len(self._bytes) != len(ranks) + len(special):
            raise MiniftError(
                "two tokens of the tokenizer share one id; every token needs its own")
        self._special_ids = frozenset(special.values())
        self._encode = self._make_encode()

    def _make_encode(self):
        """The function text -> ids that does the work."""
        if self.kind.startswith("wordpiece"):
            if wordpiece.UNKNOWN not in self.ranks:
                raise MiniftError(
                    "the WordPiece vocabulary has no [UNK] for what it cannot spell")
            return lambda text: wordpiece.encode(
                text, self.ranks, lower=self.kind == "wordpiece")
        # A byte without an id makes tiktoken crash: give it one that is removed again.
        missing = [byte for byte in range(256) if bytes([byte]) not in self.ranks]
        if missing and self.kind == "bpe":
            raise MiniftError(
                f"the tokenizer lacks {len(missing)} of the 256 single bytes (the first is {missing[0]})")
        n, ranks = self.vocab_size, dict(self.ranks)
        for i, byte in enumerate(missing):
            ranks[bytes([byte])] = n + i
        encoding = tiktoken.Encoding(
            "minift", pat_str=self.pattern, mergeable_ranks=ranks, special_tokens={})
        if not missing:
            return encoding.encode_ordinary
        return lambda text: [i for i in encoding.encode_ordinary(text) if i < n]

    @classmethod
    def train(cls, texts, vocab_size, special_tokens=DEFAULT_SPECIAL):
        """Learn merges: join the most frequent pair of neighbours, again and again, until the vocabulary is full.

        texts: strings. vocab_size: counts the 256 bytes, the merges and the special tokens. The vocabulary is smaller
        when no pair is left to merge. Of equally frequent pairs the smallest is merged, so no order of texts matters.
        """
        special_tokens = list(special_tokens)
        n_merges = vocab_size - 256 - len(special_tokens)
        if n_merges < 0:
            raise MiniftError(
                f"vocab_size {vocab_size} is too small: 256 bytes and {len(special_tokens)} special "
                f"tokens need at least {256 + len(special_tokens)}")
        if len(set(special_tokens)) < len(special_tokens) or not all(special_tokens):
            raise MiniftError(
                f"special tokens must be distinct and not empty; got {special_tokens}")
        texts = [texts] if isinstance(texts, str) else texts
        words = count_words(texts)
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in learn_merges(words, n_merges):
            tokens.append(tokens[left] + tokens[right])
        special = {name: len(tokens) + i for i, name in enumerate(special_tokens)}
        return cls({token: i for i, token in enumerate(tokens)}, special)

    def with_special(self, names):
        """The same tokenizer with more special tokens, whose ids come last; the model needs resize_vocabulary."""
        special = self.special | {name: self.vocab_size + i for i, name in enumerate(names)}
        if len(special) < len(self.special) + len(names):
            raise MiniftError(
                f"special tokens must be new and distinct; got {names}, there are {sorted(self.special)}")
        return Tokenizer(
            self.ranks, special, self.pattern, kind=self.kind, roles=self.roles, chat=self.chat)

    @property
    def vocab_size(self):
        """One more than the highest id."""
        return max(self._bytes) + 1

    @property
    def pad_id(self):
        return self.special_id("<pad>")

    @property
    def eos_id(self):
        return self.special_id("<eos>")

    def special_id(self, name):
        """The id of a special token, or of the one in that role; MiniftError when this tokenizer has no such token."""
        if name in self.roles:
            return self.roles[name]
        if name not in self.special:
            raise MiniftError(
                f"the tokenizer has no special token {name}; it has {sorted(self.special)}")
        return self.special[name]

    def encode(self, text):
        """The ids of a text, as a list; never a special id, even where the text spells a special token's name."""
        if not isinstance(text, str):
            raise MiniftError(f"only a string can be encoded; got {type(text).__name__}")
        # Tiktoken would silently turn a lone surrogate into U+FFFD.
        utf8(text)
        try:
            return self._encode(text)
        # A crash inside tiktoken is a BaseException, not an Exception.
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise MiniftError(
                "the text has a run of white space so long that this tokenizer's pattern cannot cut it; "
                "shorten it below 100,000 characters") from error

    def decode(self, ids, skip_special=False):
        """The text of some ids; special tokens appear as their names unless skipped; broken UTF-8 appears as U+FFFD."""
        ids = [int(i) for i in ids]
        kept = [i for i in ids if not (skip_special and i in self._special_ids)]
        text = b"".join(self.token_bytes(i) for i in kept).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.kind.startswith("wordpiece") else text

    def token_bytes(self, token_id):
        """The bytes of one token: a character may need several tokens, so streamed text is decoded from bytes."""
        if token_id not in self._bytes:
            raise MiniftError(
                f"token id {token_id} is not in the vocabulary of {self.vocab_size} tokens")
        return self._bytes[token_id]

    def hash(self):
        """Hex digest of everything that encode and decode depend on; equal only for equal tokenizers."""
        return hashlib.sha256(json.dumps(self._as_dict(), sort_keys=True).encode()).hexdigest()

    def save(self, path):
        """Write one JSON file, atomically. A token is stored as a string, one character (U+0000..U+00FF) per byte."""
        write_json(path, {**self._as_dict(), "sha256": self.hash()})

    @classmethod
    def load(cls, path):
        """Read what `save` wrote: the file itself, or the folder in which it is called tokenizer.json."""
        # Read the file, and refuse what another program or version wrote.
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        stored = read_json(path)
        if not isinstance(stored, dict) or stored.get("format") != "minift-tokenizer":
            raise MiniftError(f"{path} is not a tokenizer that minift wrote")
        if stored.get("version") != 1:
            raise MiniftError(
                f"{path} has tokenizer version {stored.get('version')}, this minift reads version 1; "
                "update minift")
        # Build the tokenizer, and compare its hash with the stored one.
        try:
            ranks = {token.encode("latin-1"): int(i) for token, i in stored["ranks"].items()}
            chat = stored.get("chat", dataclasses.asdict(MINIFT))
            if chat is not None:
                chat = ChatFormat(**chat)
            tokenizer = cls(
                ranks, stored["special"], stored["pattern"], kind=stored.get("kind", "bpe"),
                roles=stored.get("roles"), chat=chat)
            intact = tokenizer.hash() == stored["sha256"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise MiniftError(f"{path} is corrupted ({error}); restore it or train the tokenizer again") from error
        if not intact:
            raise MiniftError(
                f"{path} is corrupted: its contents do not match their checksum; restore it")
        return tokenizer

    def _as_dict(self):
        ranks = {token.decode("latin-1"): i for token, i in sorted(self.ranks.items(), key=lambda item: item[1])}
        stored = {
            "format": "minift-tokenizer", "version": 1, "pattern": self.pattern, "special": self.special,
            "ranks": ranks}
        # Settings with their default value are not written.
        if self.kind != "bpe":
            stored["kind"] = self.kind
        if self.roles:
            stored["roles"] = self.roles
        if self.chat != MINIFT:
            stored["chat"] = None if self.chat is None else dataclasses.asdict(self.chat)
        return stored
