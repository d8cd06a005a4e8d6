"""Tokenizers beside the `tokenizers` package, id by id: GPT-2's, SmolLM2's and Llama 3's cutting, BERT's WordPiece.

Needs the packages of tests/peers/requirements.txt, and for the real vocabularies those of requirements-real.txt;
without them the tests here are skipped, and say so.
"""

import json
import random
import unicodedata

import pytest

from minift.errors import MiniftError
from minift.formats import chat_template, vocabulary
from minift.formats.pretrained import locate
from minift.text.tokenizer import Tokenizer

try:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
except ImportError as error:
    pytest.skip(f"{error.name} is not installed: pip install -r tests/peers/requirements.txt", allow_module_level=True)

HARD = [
    "", " ", "  ", "\n", "\r\n", "\t \n  x", "a\n\n\nb", "   leading", "trailing   ", "I'll they've we'd you're it's",
    "I'LL THEY'VE", "don't 'tis ''", "3 dogs, 14 cats and 1,234,567.89 mice", "2026-11-23T12:30", "x1y2z3", "٣٤٥ ½ Ⅳ ²",
    "naïve café Ångström İstanbul ΟΔΥΣΣΕΥΣ straße", "e\u0301 a\u0308 n\u0303", "日本語のテキスト。中文字符",
    "한국어 텍스트", "नमस्ते दुनिया", "שלום עולם مرحبا", "👩‍👩‍👧‍👦 🙂🇫🇷 🏳️‍🌈", "a\u00a0b\u2003c\u200bd\ufeffe\u2028f",
    "<|im_start|", "[CLS", "##ing ## #", "def f(x):\n    return x ** 2  # squared\n", "http://example.org/?q=1&r=a%20b",
    "…—–“quoted”‘x’", "$5 + 3 = 8 < 9 > ^ ` | ~", "\u0130\u0131\u017f\u1e9e", "\x00\x07\x1b[0m", "a" * 99, "b" * 101,
    "ab" * 80, "\ue000\ufffd\u00ad", "ﬁ ﬂ ﬀ", "𝒜𝓑 𠀀𠀁", " 7 8  9   10", "\n1\n 2\n  3", "!!!???...", " !  ?",
    "a\u0301\u0302b", "\u3000全角\u3000\uff21\uff22\uff11\uff12", "A\u030a\u0323",
]
# characters that Unicode has long had, and always in the same class: the libraries know different versions of it
OLD = [c for c in map(chr, range(0xA1, 0x3100)) if unicodedata.category(c) == unicodedata.ucd_3_2_0.category(c) != "Cn"]


def texts(n, seed=0):
    """Hard strings, and n random ones of letters, digits, signs, white space and characters from many scripts."""
    rng = random.Random(seed)
    alphabet = [*" \n\t'.,!?-_()0123456789abcdefghijklmnopqrstuvwxyzABCDEZ", "  ", "\n\n", "'s", "the ", " and", "ing "]
    for _ in range(n):
        pool = alphabet if rng.random() < 0.6 else alphabet + rng.sample(OLD, 40) + list("中文日本語한국🙂🎉")
        yield "".join(rng.choices(pool, k=rng.randint(1, 40)))
    yield from HARD


def assert_same(ours, theirs, n):
    """The same ids for all texts, and back to the text."""
    for text in texts(n):
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == expected, repr(text)
        if ours.kind == "bpe":
            assert ours.decode(expected) == text


# ---- byte-level BPE, trained here, in the three ways of cutting ----

CUTS = {
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "digits": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama3": [pre_tokenizers.Split(tokenizers.Regex(vocabulary.LLAMA3), "isolated"),
               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
}


def trained(cut, special=("<|endoftext|>", "<|pad|>")):
    """A byte-level tokenizer of the package, trained on random text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    steps = CUTS[cut]
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=list(special), show_progress=False)
    corpus = [*texts(3000, seed=1), *HARD, *["the cat and the dog're singing in 1984"] * 50]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def saved(folder, tokenizer, eos="<|endoftext|>", **settings):
    """A folder as the hub has it: tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, **settings}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("cut", CUTS)
def test_byte_level_ids(tmp_path, cut, read_tokenizer=vocabulary.read_tokenizer):
    """Thousands of texts, random and hard: the same ids; saved by us and loaded again, too."""
    theirs = trained(cut)
    ours = read_tokenizer(saved(tmp_path, theirs), {})
    assert_same(ours, theirs, 3000)
    assert ours.eos_id == theirs.token_to_id("<|endoftext|>") and ours.pad_id == theirs.token_to_id("<|pad|>")
    assert ours.vocab_size == theirs.get_vocab_size()
    ours.save(tmp_path / "ours.json")
    again = Tokenizer.load(tmp_path / "ours.json")
    assert again.hash() == ours.hash() and again.pad_id == ours.pad_id and again.chat == ours.chat
    assert_same(again, theirs, 100)


def test_the_pad_is_never_the_end(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """A file whose pad is its end, or that has none, gets another id as pad: a special one, or if need be any."""
    for settings in ({"pad_token": "<|endoftext|>"}, {}):
        ours = read_tokenizer(saved(tmp_path, trained("gpt2"), **settings), {})
        assert ours.pad_id == ours.special["<|pad|>"] != ours.eos_id
    ours = read_tokenizer(saved(tmp_path, trained("gpt2", ["<|endoftext|>"])), {})
    assert ours.pad_id != ours.eos_id == ours.special["<|endoftext|>"]


def test_the_end_is_that_of_a_chat(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """A file that names the end of a text as its end, while its chats end turns otherwise (Llama 3's first release)."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    template = chat_template.write_template(chat_template.CHATML)
    ours = read_tokenizer(saved(tmp_path, trained("gpt2", special), chat_template=template), {})
    assert ours.chat == chat_template.CHATML and ours.eos_id == ours.special["<|im_end|>"] != ours.pad_id


def test_text_never_becomes_a_special_token(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """Where the package reads the end token in a text, ours reads its characters."""
    theirs = trained("gpt2")
    ours = read_tokenizer(saved(tmp_path, theirs), {})
    text = "a<|endoftext|>b"
    assert ours.eos_id in theirs.encode(text).ids and ours.eos_id not in ours.encode(text)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("change, says", [
    ({"normalizer": {"type": "NFC"}}, "normalizer"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}, "add_prefix_space"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Whitespace"}, {"type": "ByteLevel", "add_prefix_space": False}]}}, "Whitespace"),
    ({"model": {"type": "Unigram"}}, "Unigram"),
])
def test_other_tokenizers_are_left_out_by_name(tmp_path, change, says, read_tokenizer=vocabulary.read_tokenizer):
    """One that works in another way is not guessed at: None, and a warning that says what is different."""
    saved(tmp_path, trained("gpt2"))
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8")) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.warns(UserWarning, match=says):
        assert read_tokenizer(tmp_path, {}) is None


def test_a_vocabulary_out_of_order_is_left_out(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """Two merges exchanged: the id would not be the rank."""
    saved(tmp_path, trained("gpt2"))
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    merges = stored["model"]["merges"]
    merges[3], merges[90] = merges[90], merges[3]
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.warns(UserWarning, match="order"):
        assert read_tokenizer(tmp_path, {}) is None


def test_a_merge_of_three_parts_is_damage(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """One sentence with the folder's name, not a traceback."""
    saved(tmp_path, trained("gpt2"))
    stored = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    stored["model"]["merges"][3] = ["a", "b", "c"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(MiniftError, match=f"{tmp_path.name} is damaged"):
        read_tokenizer(tmp_path, {})


# ---- WordPiece ----


def bert_tokenizer(lower, vocab):
    """The package's BERT tokenizer over a vocabulary."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


@pytest.mark.parametrize("lower", [True, False])
def test_wordpiece_ids(tmp_path, lower, read_tokenizer=vocabulary.read_tokenizer):
    """Random vocabularies with and without capitals: the same ids, from tokenizer.json and from vocab.txt."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    theirs = bert_tokenizer(lower, {})
    theirs.train_from_iterator([*texts(3000, seed=1), *HARD * 3], trainers.WordPieceTrainer(
        vocab_size=900, special_tokens=special, show_progress=False))
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer(tmp_path, {})
    assert_same(ours, theirs, 3000)
    vocab = sorted(theirs.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in vocab), encoding="utf-8", newline="\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}), encoding="utf-8")
    again = read_tokenizer(tmp_path, {})
    assert again.hash() == ours.hash()
    assert [again.special_id(role) for role in ("<pad>", "<cls>", "<sep>", "<mask>")] == [0, 2, 3, 4]


# ---- the real vocabularies ----


@pytest.fixture(scope="module")
def smollm2():
    """(ours, the package's) SmolLM2 tokenizer: vocabulary and merges of the .gguf file, cut as its authors publish."""
    path = need("smollm2")
    gguf = pytest.importorskip("gguf", reason="gguf is missing: pip install -r requirements-real.txt")
    from minift.formats.gguf_file import open_gguf
    assert gguf
    fields, _ = open_gguf(path)
    tokens = fields["tokenizer.ggml.tokens"]
    theirs = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)},
                                             [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"]]))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(CUTS["digits"])
    return vocabulary.read_gguf_tokenizer(fields, "x.gguf"), theirs


def need(name):
    try:
        return locate(name)
    except MiniftError as error:
        pytest.skip(str(error))


def test_smollm2_ids(smollm2):
    """The same ids for 10,000 texts, and each token of the vocabulary comes back as itself."""
    ours, theirs = smollm2
    kept = [text for text in texts(10_000, seed=3) if not set("\x00\x07\x1b") & set(text)]
    assert len(kept) > 10_000
    for text in kept:
        assert ours.encode(text) == theirs.encode(text).ids, repr(text)
        assert ours.decode(ours.encode(text)) == text
    for token, i in list(ours.ranks.items())[::7]:
        if token.decode("utf-8", "replace").encode() == token:
            assert ours.encode(token.decode()) == [i] == theirs.encode(token.decode()).ids


def test_bytes_that_smollm2_lacks_are_dropped(smollm2):
    """21 bytes have no token; text that holds them loses them, here as there, and nothing crashes."""
    ours, theirs = smollm2
    missing = [byte for byte in range(256) if bytes([byte]) not in ours.ranks]
    assert len(missing) == 21 and ours.kind == "bpe-lossy"
    for text in ("a\x04b \x06 c\x14", "\x1d", chr(0x50000) + "x"):
        assert ours.encode(text) == theirs.encode(text).ids
    assert ours.decode(ours.encode("a\x04b")) == "ab"
    assert max(ours.encode("".join(map(chr, range(32))))) < ours.vocab_size == 49152


def test_minilm_ids():
    """MiniLM's tokenizer.json, and its vocab.txt, give the ids of the package for 5,000 texts."""
    folder = need("minilm")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    ours = vocabulary.read_tokenizer(folder, {})
    assert_same(ours, theirs, 5000)
    assert ours.vocab_size == 30522 and ours.special == {"[PAD]": 0, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
