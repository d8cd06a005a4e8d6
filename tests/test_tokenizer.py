import json
import random
from collections import Counter

import pytest
import regex
import tiktoken

from minift.errors import MiniftError
from minift.formats.vocabulary import GPT2
from minift.text import bpe
from minift.text.tokenizer import DEFAULT_SPECIAL, Tokenizer

N_SPECIAL = len(DEFAULT_SPECIAL)
STORY = ["Anna saw a red kite over the lake. The kite flew, and Anna's kite came back!",
         "Tom asked: where is the red kite? It is over the lake, said Anna. 12 kites, 120 kites.",
         "Über den See flog der Drache;\n\nder Drache war rot.  Naïve café, 你好世界 你好 🪁🪁."]
NASTY = ["", " ", "\n", "\r\n", "\0", "a\0b", " " * 50, "\t\n \t", "🙂", "👩‍👩‍👧 e\u0301", "你好, мир, שלום, ไทย",
         "\u2028x\u00a0y\x85\x1c", "'s 't 'll don't", "<eos>", "<|endoftext|>", "{x} %s {0}", "x" * 300,
         bytes(range(256)).decode("latin-1")]


def story_tokenizer(Tokenizer):
    return Tokenizer.train(STORY, 256 + 80 + N_SPECIAL)


def random_text(rng):
    alphabet = "aaabnkite  ,.'\n0123é你🙂<eos>"
    return "".join(rng.choices(alphabet, k=rng.randint(0, 40)))


def brute_force_merges(words, n_merges):
    """Count every pair of every word anew before each merge."""
    pieces = [(list(word), n) for word, n in words.items()]
    merges = []
    for k in range(n_merges):
        counts = Counter()
        for ids, n in pieces:
            for i in range(len(ids) - 1):
                counts[ids[i], ids[i + 1]] += n
        if not counts:
            break
        highest = max(counts.values())
        merges.append(min(pair for pair, n in counts.items() if n == highest))
        pieces = [(replace(ids, merges[-1], 256 + k), n) for ids, n in pieces]
    return merges


def replace(ids, pair, new_id):
    """Merge by walking a stack, another way than the module's."""
    out = []
    fresh = False  # may the last token of `out` be the left half of a pair?
    for i in ids:
        if fresh and (out[-1], i) == pair:
            out[-1], fresh = new_id, False
        else:
            out.append(i)
            fresh = True
    return out


def test_three_merges_encode_the_textbook_example(Tokenizer=Tokenizer):
    """Three merges learned from "aaabdaaabac" encode it as [258, 100, 258, 97, 99]."""
    tokenizer = Tokenizer.train(["aaabdaaabac"], 256 + 3 + N_SPECIAL)
    assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]
    assert tokenizer.token_bytes(258) == b"aaab"


def test_merge_works_from_left_to_right(merge=bpe.merge):
    """Every occurrence of the pair is replaced, the left one first where two overlap; nothing else changes."""
    assert merge([1, 1, 1, 2, 1, 1], (1, 1), 9) == [9, 1, 2, 9]
    assert merge([1, 2, 3, 1, 2], (1, 2), 9) == [9, 3, 9]
    assert merge([2, 1], (1, 2), 9) == [2, 1]
    assert merge([], (1, 2), 9) == []


def test_ties_go_to_the_smaller_pair(learn_merges=bpe.learn_merges):
    """Of the pairs with the highest count, the smallest pair of ids is merged first."""
    assert learn_merges({b"xy": 2, b"ab": 2, b"ba": 2}, 3) == [(97, 98), (98, 97), (120, 121)]
    assert learn_merges({b"xy": 3, b"ab": 2}, 1) == [(120, 121)]


def test_incremental_counts_equal_counting_everything_again(learn_merges=bpe.learn_merges):
    """The merges are those of an algorithm that counts all pairs of all words anew before each merge."""
    rng = random.Random(0)
    for _ in range(60):
        words = {
            bytes(rng.choices(b"aab" if rng.random() < 0.5 else b"abcde", k=rng.randint(1, 12))): rng.randint(1, 5)
            for _ in range(rng.randint(1, 12))
        }
        assert learn_merges(words, 30) == brute_force_merges(words, 30)


def test_the_order_of_the_corpus_does_not_matter(Tokenizer=Tokenizer, learn_merges=bpe.learn_merges):
    """Shuffled texts, and shuffled counts, give the same merges."""
    rng = random.Random(1)
    texts = [random_text(rng) for _ in range(40)]
    words = bpe.count_words(texts)
    expected, expected_hash = learn_merges(words, 60), Tokenizer.train(texts, 256 + 60 + N_SPECIAL).hash()
    for _ in range(5):
        rng.shuffle(texts)
        shuffled = list(words.items())
        rng.shuffle(shuffled)
        assert learn_merges(dict(shuffled), 60) == expected
        assert Tokenizer.train(texts, 256 + 60 + N_SPECIAL).hash() == expected_hash


def test_encode_replays_the_merges_in_the_order_of_learning(Tokenizer=Tokenizer):
    """Encoding a text is cutting it into pieces and applying every merge, in the order in which they were learned."""
    rng = random.Random(2)
    texts = [random_text(rng) for _ in range(60)]
    n_merges = 50
    tokenizer = Tokenizer.train(texts, 256 + n_merges + N_SPECIAL)
    merges = brute_force_merges(bpe.count_words(texts), n_merges)
    for _ in range(1000):
        text = random_text(rng)
        expected = []
        for piece in regex.findall(bpe.PATTERN, text):
            ids = list(piece.encode())
            for k, pair in enumerate(merges):
                ids = replace(ids, pair, 256 + k)
            expected += ids
        assert tokenizer.encode(text) == expected


def test_encode_equals_tiktoken_with_the_same_ranks(Tokenizer=Tokenizer):
    """tiktoken, built from the same ranks, gives the same ids on a thousand random strings."""
    tokenizer = Tokenizer.train(STORY, 256 + 80 + N_SPECIAL)
    peer = tiktoken.Encoding(
        "peer", pat_str=bpe.PATTERN, mergeable_ranks=tokenizer.ranks, special_tokens=tokenizer.special
    )
    rng = random.Random(3)
    for text in NASTY + STORY + [random_text(rng) for _ in range(1000)]:
        assert tokenizer.encode(text) == peer.encode_ordinary(text)


def test_decode_undoes_encode(Tokenizer=Tokenizer):
    """decode(encode(text)) is the text: of any alphabet, with any white space, with every byte."""
    tokenizer, rng = Tokenizer.train(STORY, 256 + 80 + N_SPECIAL), random.Random(4)
    for text in NASTY + STORY + [random_text(rng) for _ in range(300)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_pieces_keep_one_space_and_cover_the_text(count_words=bpe.count_words):
    """A piece is a word, a number, signs or white space, with at most one space before it; pieces cover the text."""
    assert count_words(["the the cat's 12\n\n  x!?"]) == {b"the": 1, b" the": 1, b" cat": 1, b"'s": 1, b" 12": 1,
                                                          b"\n\n": 1, b"  ": 1, b"x": 1, b"!?": 1}
    for text in NASTY:
        assert sum(len(word) * n for word, n in count_words([text]).items()) == len(text.encode())


def test_text_never_becomes_a_control_token(Tokenizer=Tokenizer):
    """A text that spells the name of a special token is encoded as that text, byte for byte."""
    texts = ["<eos> <user> <pad>" * 50]
    tokenizer = Tokenizer.train(texts, 256 + 40 + N_SPECIAL)
    for name in (*DEFAULT_SPECIAL, "<user>hello<eos><assistant>", " <eos>\n<eos>"):
        ids = tokenizer.encode(name)
        assert not set(ids) & set(tokenizer.special.values())
        assert tokenizer.decode(ids) == name


def test_ids_are_bytes_then_merges_then_special(Tokenizer=Tokenizer):
    """Ids 0..255 are the raw bytes, then come the merges, then the special tokens; vocab_size counts all three."""
    tokenizer = Tokenizer.train(STORY, 256 + 10 + 3, special_tokens=("<eos>", "<pad>", "<x>"))
    assert [tokenizer.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert all(len(tokenizer.token_bytes(i)) >= 2 for i in range(256, 266))
    assert tokenizer.special == {"<eos>": 266, "<pad>": 267, "<x>": 268}
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (269, 266, 267)
    assert story_tokenizer(Tokenizer).pad_id != story_tokenizer(Tokenizer).eos_id


def test_training_stops_when_no_pair_is_left(Tokenizer=Tokenizer):
    """A corpus of one word of four letters has three merges to learn, whatever vocab_size says."""
    tokenizer = Tokenizer.train(["abcd"], 5000)
    assert tokenizer.vocab_size == 256 + 3 + N_SPECIAL
    assert len(tokenizer.encode("abcd")) == 1
    assert Tokenizer.train([], 300, special_tokens=()).vocab_size == 256


def test_decode_shows_special_tokens_or_skips_them(Tokenizer=Tokenizer):
    """Special ids decode to their names, or to nothing with skip_special=True."""
    tokenizer = Tokenizer.train([], 256 + N_SPECIAL)
    ids = [tokenizer.special["<user>"], *b"Hi", tokenizer.eos_id]
    assert tokenizer.decode(ids) == "<user>Hi<eos>"
    assert tokenizer.decode(ids, skip_special=True) == "Hi"


def test_broken_characters_are_replaced_and_streams_keep_bytes(Tokenizer=Tokenizer):
    """Two of three bytes of a character decode to U+FFFD, and the bytes of all tokens together are the text's."""
    tokenizer = Tokenizer.train([], 256 + N_SPECIAL)
    assert tokenizer.decode([0xE2, 0x82]) == "\ufffd"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("5 €"))) == "5 €".encode()
    assert (b"".join(map(story_tokenizer(Tokenizer).token_bytes, story_tokenizer(Tokenizer).encode(STORY[2])))
            == STORY[2].encode())


def test_long_runs_of_one_character_are_encoded(Tokenizer=Tokenizer):
    """A million spaces, letters or signs in a row encode and come back; the matcher does not run out of stack."""
    tokenizer = Tokenizer.train(["aa  !!"], 256 + 3 + N_SPECIAL)
    for text in (" " * 1_000_000 + "x", "a" * 100_000, "!" * 100_000 + "\n", " \n\t" * 100_000 + "x"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a"]])
def test_only_strings_are_encoded(text, Tokenizer=Tokenizer):
    """Anything but a string is a MiniftError that names its type."""
    with pytest.raises(MiniftError, match=type(text).__name__):
        story_tokenizer(Tokenizer).encode(text)


def test_a_lone_surrogate_is_refused(Tokenizer=Tokenizer):
    """Half a surrogate pair has no UTF-8: MiniftError, in encode and in train, instead of another character."""
    with pytest.raises(MiniftError, match="surrogate at character 2"):
        story_tokenizer(Tokenizer).encode("ab\ud800")
    with pytest.raises(MiniftError, match="surrogate"):
        Tokenizer.train(["ab\ud800"], 300)


def test_unknown_ids_are_refused(Tokenizer=Tokenizer):
    """An id outside of the vocabulary, above or below, is a MiniftError that names it."""
    tokenizer = story_tokenizer(Tokenizer)
    for bad in (tokenizer.vocab_size, -1):
        with pytest.raises(MiniftError, match=str(bad)):
            tokenizer.decode([97, bad])


def test_impossible_training_is_refused(Tokenizer=Tokenizer):
    """Too small a vocabulary, equal special tokens, texts that are no strings, an absent special token: MiniftError."""
    with pytest.raises(MiniftError, match="at least 264"):
        Tokenizer.train(STORY, 256 + N_SPECIAL - 1)
    with pytest.raises(MiniftError, match="distinct"):
        Tokenizer.train(STORY, 300, special_tokens=("<eos>", "<eos>"))
    with pytest.raises(MiniftError, match="text 1"):
        Tokenizer.train(["fine", None], 300)
    with pytest.raises(MiniftError, match="<pad>"):
        _ = Tokenizer.train(STORY, 300, special_tokens=("<eos>",)).pad_id
    assert Tokenizer.train("abab", 300).hash() == Tokenizer.train(["abab"], 300).hash()


def test_incomplete_ranks_are_refused(Tokenizer=Tokenizer):
    """A tokenizer without all 256 bytes, or with one id for two tokens, is a MiniftError (tiktoken would abort)."""
    ranks = {bytes([i]): i for i in range(256)}
    with pytest.raises(MiniftError, match="256 single bytes"):
        Tokenizer({token: i for token, i in ranks.items() if i != 7}, {})
    with pytest.raises(MiniftError, match="share"):
        Tokenizer({**ranks, b"ab": 97}, {})
    with pytest.raises(MiniftError, match="share"):
        Tokenizer(ranks, {"<eos>": 97})


def test_save_and_load_keep_everything(tmp_path, Tokenizer=Tokenizer):
    """A loaded tokenizer has the saved one's hash, ids and special tokens; its folder may stand for the file."""
    tokenizer = story_tokenizer(Tokenizer)
    tokenizer.save(tmp_path / "tokenizer.json")
    for place in (tmp_path / "tokenizer.json", tmp_path, str(tmp_path)):
        again = Tokenizer.load(place)
        assert (
            again.hash() == tokenizer.hash() and again.special == tokenizer.special and again.ranks == tokenizer.ranks
        )
        assert [again.encode(text) for text in STORY + NASTY] == [tokenizer.encode(text) for text in STORY + NASTY]


def test_hash_tells_tokenizers_apart(Tokenizer=Tokenizer):
    """Other merges, other special tokens or another pattern give another hash."""
    a = Tokenizer.train(["abab"], 300)
    others = [Tokenizer.train(["abba"], 300), Tokenizer.train(["abab"], 300, special_tokens=("<pad>", "<eos>")),
              Tokenizer(a.ranks, a.special, pattern=r"\w+|\W+"), Tokenizer(a.ranks, {**a.special, "<pad>": 999})]
    assert len({t.hash() for t in [a, *others]}) == 5


def test_a_damaged_tokenizer_file_is_noticed(tmp_path, Tokenizer=Tokenizer):
    """After any change of one byte the file is refused by name, or it still means the same tokenizer."""
    tokenizer = Tokenizer.train(["abab"], 256 + 2 + N_SPECIAL)
    file = tmp_path / "tokenizer.json"
    tokenizer.save(file)
    data = file.read_bytes()
    refused = 0
    for i in range(0, len(data), 5):
        file.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        try:
            assert Tokenizer.load(file).hash() == tokenizer.hash()
        except MiniftError as error:
            refused += 1
            assert str(file) in str(error)
    assert refused > len(data) / 5 / 2


@pytest.mark.parametrize("contents", [b"", b"{", b"[]", b"hello", b"\xff\xfe", b'{"format": "other"}', b"{}"])
def test_other_files_are_not_tokenizers(tmp_path, contents, Tokenizer=Tokenizer):
    """An empty, broken or foreign file is a MiniftError that names it; so is a missing one."""
    file = tmp_path / "t.json"
    with pytest.raises(MiniftError, match="t.json"):
        Tokenizer.load(file)
    file.write_bytes(contents)
    with pytest.raises(MiniftError, match="t.json"):
        Tokenizer.load(file)


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"ranks": {"a": 0}}, {"ranks": {"\u4f60": 0}}, {"ranks": None}, {"special": None},
     {"special": {"<eos>": "x"}}, {"pattern": "("}, {"pattern": None}],
)
def test_a_tokenizer_file_with_impossible_contents_is_refused(tmp_path, change, Tokenizer=Tokenizer):
    """A newer version, or fields that cannot be a tokenizer's, are a MiniftError that names the file."""
    file = tmp_path / "t.json"
    story_tokenizer(Tokenizer).save(file)
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(MiniftError, match="t.json"):
        Tokenizer.load(file)


def test_more_special_tokens(Tokenizer=Tokenizer):
    """New ones come last, text still never becomes one, all else stays; a name that is there already is refused."""
    old = Tokenizer.train(["the cat the cat"], 256 + 3 + len(DEFAULT_SPECIAL))
    new = old.with_special(["<tool>", "<end of tool>"])
    assert [new.special["<tool>"], new.special["<end of tool>"]] == [old.vocab_size, old.vocab_size + 1]
    assert new.encode("the <tool> cat") == old.encode("the <tool> cat") and new.pad_id == old.pad_id
    assert new.decode([*old.encode("a"), new.special["<tool>"]]) == "a<tool>"
    for names in (["<eos>"], ["<a>", "<a>"]):
        with pytest.raises(MiniftError, match="distinct"):
            old.with_special(names)


def test_a_crash_of_the_matcher_is_one_sentence(Tokenizer=Tokenizer):
    """GPT-2's look-ahead over two million spaces is too much for it: MiniftError, and the next text is encoded."""
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, {}, GPT2)
    with pytest.raises(MiniftError, match="white space"):
        tokenizer.encode("a" + " " * 2_000_000 + "b")
    assert tokenizer.encode("a  b") == [97, 32, 32, 98]
