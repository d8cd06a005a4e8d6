"""Tokenizers of other libraries, their files written here by hand: what becomes a Tokenizer, and what is left out."""

import json
import random

import pytest
import regex

from minift.errors import MiniftError
from minift.formats import byte_level, chat_template, export, vocabulary
from minift.text import bpe, chat_format
from minift.text.tokenizer import Tokenizer

PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
CHATML = chat_template.write_template(chat_template.CHATML)


def letters():
    """GPT-2's 256 characters: a byte that prints is itself, the others are U+0100, U+0101, ... in turn."""
    found, n = [], 256
    for byte in range(256):
        found.append(chr(byte) if byte in PRINTED else chr(n))
        n += byte not in PRINTED
    return found


def stored(**changes):
    """A tokenizer.json: the bytes, "th" and "the", and two special tokens."""
    vocab = {letter: i for i, letter in enumerate(letters())} | {"th": 256, "the": 257, "<end>": 258, "<|im_end|>": 259}
    model = {"type": "BPE", "vocab": vocab, "merges": ["t h", "th e"], "ignore_merges": False}
    added = [{"id": 258, "content": "<end>"}, {"id": 259, "content": "<|im_end|>"}]
    return {"added_tokens": added, "normalizer": None, "pre_tokenizer": LEVEL, "model": model} | changes


def write(folder, tokenizer, settings=None):
    """The folder, with tokenizer_config.json when settings are given."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_bytes_merges_and_ids(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """Letters stand for bytes, merges make tokens, special tokens are no text; merges may be strings or pairs."""
    tokenizer = stored()
    for merges in (["t h", "th e"], [["t", "h"], ["th", "e"]]):
        tokenizer["model"]["merges"] = merges
        ours = read_tokenizer(write(tmp_path, tokenizer, {"eos_token": "<end>"}), {})
        assert ours.encode("the th\n") == [257, 32, 256, 10]
        assert ours.ranks[b"the"] == 257 and ours.ranks[b"\x00"] == 0 and ours.ranks[b"\xff"] == 255
        assert ours.special == {"<end>": 258, "<|im_end|>": 259} and ours.kind == "bpe"
        assert (ours.eos_id, ours.pad_id, ours.vocab_size) == (258, 259, 260)


@pytest.mark.parametrize("settings, config, eos_id", [
    ({"eos_token": "<end>"}, {"eos_token_id": 259}, 258), ({"eos_token": {"content": "<end>"}}, {}, 258),
    ({}, {"eos_token_id": 258}, 258), (None, {"eos_token_id": [259, 258]}, 259),
    ({"eos_token": "<gone>"}, {"eos_token_id": 259}, 259)])
def test_the_end_token(tmp_path, settings, config, eos_id, read_tokenizer=vocabulary.read_tokenizer):
    """tokenizer_config.json names it, as a string or an object; otherwise config.json has its id, or several."""
    assert read_tokenizer(write(tmp_path, stored(), settings), config).eos_id == eos_id


def test_without_an_end_token(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """A tokenizer whose end is unknown, or an ordinary token, is left out with a warning."""
    for config in ({}, {"eos_token_id": 5}):
        with pytest.warns(UserWarning, match=f"{tmp_path.name}.*end token .* special"):
            assert read_tokenizer(write(tmp_path, stored()), config) is None


@pytest.mark.parametrize("settings, pad_id", [
    ({"pad_token": "<|im_end|>"}, 259), ({"pad_token": "<pad>"}, 260), ({"pad_token": "<end>"}, 260), ({}, 260)])
def test_the_pad_token(tmp_path, settings, pad_id, read_tokenizer=vocabulary.read_tokenizer):
    """It is the one of tokenizer_config.json, unless that is the end; then one with "pad" in its name is best."""
    tokenizer = stored()
    tokenizer["added_tokens"].append({"id": 260, "content": "<pad>"})
    tokenizer["model"]["vocab"]["<pad>"] = 260
    ours = read_tokenizer(write(tmp_path, tokenizer, {"eos_token": "<end>", **settings}), {})
    assert ours.pad_id == pad_id != ours.eos_id == 258
    assert ours.roles == {role: i for role, i in (("<pad>", pad_id), ("<eos>", 258)) if ours.special.get(role) != i}


def test_a_pad_when_the_end_is_all_there_is(choose_pad=vocabulary.choose_pad):
    """With no other special token an ordinary id is the pad, never the end itself; of several the smallest is taken."""
    assert choose_pad({7: "<end>"}, 7) == 0 and choose_pad({0: "<end>"}, 0) == 1
    assert choose_pad({3: "x", 7: "<end>", 5: "y"}, 7) == 3 and choose_pad({3: "x", 7: "<end>", 5: "my_pad"}, 7) == 5


def test_the_format_of_chats(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """From tokenizer_config.json, from a list of named templates, or from its own file; its end token is the end."""
    plain = chat_format.plain_format("<end>")
    for template, expected, eos_id in (
        (None, plain, 258), (CHATML, chat_template.CHATML, 259),
        ([{"name": "tool", "template": "x"}, {"name": "default", "template": CHATML}], chat_template.CHATML, 259),
        ([{"name": "tool", "template": CHATML}], plain, 258), ("something else", None, 258)):
        settings = {"eos_token": "<end>", "chat_template": template}
        ours = read_tokenizer(write(tmp_path, stored(), settings), {})
        assert ours.chat == expected and ours.eos_id == eos_id != ours.pad_id
    (tmp_path / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    assert read_tokenizer(tmp_path, {}).chat == chat_template.CHATML


def test_a_template_may_write_the_begin_token(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """{{ bos_token }} in a template is the name that tokenizer_config.json gives."""
    template = chat_template.write_template(chat_template.LLAMA3).replace('"<|begin_of_text|>"', "bos_token")
    assert "bos_token" in template
    begin = "<|begin_of_text|>"
    for bos, expected in ((begin, chat_template.LLAMA3), ({"content": begin}, chat_template.LLAMA3), ("<other>", None)):
        settings = {"eos_token": "<end>", "bos_token": bos, "chat_template": template}
        assert read_tokenizer(write(tmp_path, stored(), settings), {}).chat == expected
    settings = {"eos_token": "<end>", "chat_template": "{{ bos_token }}" + CHATML}
    assert read_tokenizer(write(tmp_path, stored(), settings), {}).chat == chat_template.CHATML      # it has no name


# ---- how text is cut ----


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


DIGITS = {"type": "Digits", "individual_digits": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\d+|\D"}, "behavior": "Isolated"}
UNCUT = LEVEL | {"use_regex": False}


@pytest.mark.parametrize("pattern, pieces", [
    (vocabulary.GPT2, "I|'ll| see| 1234|  | dogs|?!|\n|\n|x|_| y|'|LL|  "),
    (vocabulary.DIGITS, "I|'ll| see| |1|2|3|4|  | dogs|?!|\n|\n|x|_| y|'|LL|  "),
    (vocabulary.LLAMA3, "I|'ll| see| |123|4|  | dogs|?!\n\n|x|_| y|'LL|  ")])
def test_the_three_expressions(pattern, pieces):
    """Words with the space before them, contractions, numbers whole, by digit or by three digits, signs, space."""
    assert regex.findall(pattern, pieces.replace("|", "")) == pieces.split("|")


@pytest.mark.parametrize("step, pattern", [
    (LEVEL, vocabulary.GPT2), (LEVEL | {"use_regex": True}, vocabulary.GPT2), (sequence(LEVEL), vocabulary.GPT2),
    (sequence(DIGITS, LEVEL), vocabulary.DIGITS), (sequence(SPLIT, UNCUT), r"\d+|\D"),
    (sequence(SPLIT | {"invert": False}, UNCUT), r"\d+|\D")])
def test_ways_of_cutting(step, pattern, find_pattern=vocabulary.find_pattern):
    """The step for bytes cuts by GPT-2's expression unless it says no; digits or another expression may come before."""
    assert find_pattern(step) == pattern


@pytest.mark.parametrize("step, says", [
    (LEVEL | {"add_prefix_space": True}, "add_prefix_space"), ({"type": "ByteLevel"}, "add_prefix_space"),
    (UNCUT, "steps"), (sequence(DIGITS, UNCUT), "steps"),
    (sequence(DIGITS | {"individual_digits": False}, LEVEL), "steps"),
    (sequence(DIGITS, DIGITS, LEVEL), "steps"), (sequence(SPLIT, LEVEL), "steps"), (sequence(LEVEL, DIGITS), "type"),
    (sequence(SPLIT, SPLIT, UNCUT), "steps"), (sequence(SPLIT | {"invert": True}, UNCUT), "invert"),
    (sequence(SPLIT | {"behavior": "Removed"}, UNCUT), "behavior"), (sequence(SPLIT | {"type": "Cut"}, UNCUT), "Cut"),
    (sequence(SPLIT | {"pattern": {"String": "x"}}, UNCUT), "steps"), ({"type": "Whitespace"}, "Whitespace")])
def test_other_ways_of_cutting(step, says, tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """They are not guessed at: there is no tokenizer, and a warning that names the step."""
    with pytest.warns(UserWarning, match=f"{tmp_path.name}.*without its tokenizer.*pre_tokenizer.*{says}"):
        assert read_tokenizer(write(tmp_path, stored(pre_tokenizer=step), {"eos_token": "<end>"}), {}) is None


# ---- the model ----


@pytest.mark.parametrize("change, says", [
    ({"type": "Unigram"}, "Unigram"), ({"byte_fallback": True}, "byte_fallback"), ({"dropout": 0.1}, "dropout"),
    ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"), ({"merges": ["th e", "t h"]}, "order"),
    ({"merges": ["t h"]}, "order")])
def test_other_models(change, says, tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """Another model, merges in another order than the ids, a token without a merge: a warning that names it."""
    tokenizer = stored()
    tokenizer["model"] |= change
    with pytest.warns(UserWarning, match=says):
        assert read_tokenizer(write(tmp_path, tokenizer, {"eos_token": "<end>"}), {}) is None
    with pytest.warns(UserWarning, match="normalizer .*NFC"):
        assert read_tokenizer(write(tmp_path, stored(normalizer={"type": "NFC"}), {"eos_token": "<end>"}), {}) is None


def test_settings_that_change_nothing(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """Other spellings of "switched off"; with ignore_merges a token needs no merge, since it is found as a whole."""
    tokenizer = stored()
    tokenizer["model"] |= {"byte_fallback": False, "dropout": None, "end_of_word_suffix": "", "merges": ["t h"],
                           "ignore_merges": True}
    assert read_tokenizer(write(tmp_path, tokenizer, {"eos_token": "<end>"}), {}).encode("the") == [257]


def test_a_vocabulary_that_is_not_one_of_bytes(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """A character beyond the 256 letters: a warning that shows it. Fewer letters: those bytes have no id."""
    tokenizer = stored()
    tokenizer["model"]["vocab"]["日"] = 260
    with pytest.warns(UserWarning, match="one of bytes.*日"):
        assert read_tokenizer(write(tmp_path, tokenizer, {"eos_token": "<end>"}), {}) is None
    tokenizer = stored()
    del tokenizer["model"]["vocab"]["!"]
    ours = read_tokenizer(write(tmp_path, tokenizer, {"eos_token": "<end>"}), {})
    assert ours.kind == "bpe-lossy" and ours.encode("the!") == [257]


@pytest.mark.parametrize("damage", [
    lambda tokenizer: tokenizer.pop("model"), lambda tokenizer: tokenizer.pop("pre_tokenizer"),
    lambda tokenizer: tokenizer["model"].update(merges=["t h", "th x"]),
    lambda tokenizer: tokenizer["model"].update(merges=["t h", "t h e"]), lambda tokenizer: tokenizer.update(model=[1]),
    lambda tokenizer: tokenizer["model"]["vocab"].update(the=256)])
def test_damaged_files(damage, tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """A MiniftError, no warning."""
    tokenizer = stored()
    damage(tokenizer)
    with pytest.raises(MiniftError, match="is damaged"):
        read_tokenizer(write(tmp_path, tokenizer, {"eos_token": "<end>"}), {})


def test_no_special_tokens(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """added_tokens may be missing or null: such a tokenizer has no end token, and is left out with a warning."""
    for added in ({}, {"added_tokens": None}):
        tokenizer = {key: value for key, value in stored().items() if key != "added_tokens"} | added
        with pytest.warns(UserWarning, match="without its tokenizer"):
            assert read_tokenizer(write(tmp_path, tokenizer), {"eos_token_id": 258}) is None


@pytest.mark.filterwarnings("error")
def test_no_tokenizer_at_all(tmp_path, read_tokenizer=vocabulary.read_tokenizer,
                             read_gguf_tokenizer=vocabulary.read_gguf_tokenizer):
    """None, and no warning."""
    assert read_tokenizer(tmp_path, {}) is None and read_gguf_tokenizer({}, "x.gguf") is None


# ---- ranks and merges ----


def test_the_letters_of_bytes(spell_token=byte_level.spell_token):
    """The 256 characters are GPT-2's."""
    assert [spell_token(bytes([byte])) for byte in range(256)] == letters()


def test_merges_are_those_that_were_learned(find_merges=byte_level.find_merges, make_ranks=byte_level.make_ranks):
    """From the ranks alone come the merges of the training, in their order; and from them the ranks again."""
    rng = random.Random(0)
    for _ in range(5):
        words = ["".join(rng.choices("aabcdé", k=rng.randint(2, 9))) for _ in range(60)]
        ranks = Tokenizer.train([" ".join(words)], 256 + 50 + 1, ["<eos>"]).ranks
        tokens = [bytes([byte]) for byte in range(256)]
        learned = []
        for left, right in bpe.learn_merges(bpe.count_words([" ".join(words)]), 50):
            learned.append((byte_level.spell_token(tokens[left]), byte_level.spell_token(tokens[right])))
            tokens.append(tokens[left] + tokens[right])
        merges = list(find_merges(ranks))
        assert merges == learned and len(merges) == 50
        vocab = {byte_level.spell_token(token): i for token, i in ranks.items()} | {"<eos>": 306}
        assert make_ranks(vocab, merges, {"<eos>": 306}, False) == ranks


def test_a_token_that_no_merge_makes(find_merges=byte_level.find_merges):
    """A token whose parts are no tokens, or whose merges come after it, has no merge in the list."""
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"abc": 3, b"ab": 4, b"ax": 5, b"abca": 6, b"d": 7, b"dbc": 8, b"dbca": 9}
    assert list(find_merges(ranks)) == [("a", "b"), ("abc", "a")]


# ---- a .gguf file's metadata ----


def metadata(**changes):
    tokens = [*letters(), "th", "the", "<end>", "<|im_end|>", "odd"]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * 258 + [3, 4, 5], "tokenizer.ggml.merges": ["t h", "th e"],
            "tokenizer.ggml.eos_token_id": 258, "llama.block_count": 3} | changes


@pytest.mark.parametrize("way, pattern", [
    ("gpt-2", vocabulary.GPT2), ("smollm", vocabulary.DIGITS), ("llama-bpe", vocabulary.LLAMA3)])
def test_a_tokenizer_from_metadata(way, pattern, read_gguf_tokenizer=vocabulary.read_gguf_tokenizer):
    """Control and added tokens are special, unused ones are left out; the way of cutting has llama.cpp's name."""
    ours = read_gguf_tokenizer(metadata(**{"tokenizer.ggml.pre": way}), "x.gguf")
    assert ours.encode("the th") == [257, 32, 256] and ours.pattern == pattern
    assert ours.special == {"<end>": 258, "<|im_end|>": 259} and ours.vocab_size == 260
    assert (ours.eos_id, ours.pad_id) == (258, 259) and ours.chat == chat_format.plain_format("<end>")


def test_roles_and_chats_from_metadata(read_gguf_tokenizer=vocabulary.read_gguf_tokenizer):
    """The pad and the template are the file's; {{ bos_token }} is its begin token; a pattern of our own is taken."""
    ours = read_gguf_tokenizer(metadata(**{"tokenizer.ggml.padding_token_id": 7}), "x.gguf")
    assert ours.pad_id == 7
    ours = read_gguf_tokenizer(metadata(**{"tokenizer.chat_template": CHATML}), "x.gguf")
    assert ours.chat == chat_template.CHATML and ours.eos_id == 259 and ours.pad_id == 258
    template = chat_template.write_template(chat_template.CHATML).replace('"<|im_end|>"', "bos_token")
    without = metadata(**{"tokenizer.chat_template": "{{ bos_token }}" + CHATML})
    assert read_gguf_tokenizer(without, "x.gguf").chat == chat_template.CHATML             # it has no name
    for bos_id, expected in ((259, chat_template.CHATML), (258, None), (None, None)):
        fields = metadata(**{"tokenizer.chat_template": template, "tokenizer.ggml.bos_token_id": bos_id})
        assert read_gguf_tokenizer(fields, "x.gguf").chat == expected
    fields = metadata(**{"minift.pattern": r"\d|\D+", "tokenizer.ggml.merges": ["t h"]})
    ours = read_gguf_tokenizer(fields, "x.gguf")            # ours are found whole: no merge is needed
    assert ours.pattern == r"\d|\D+" and ours.encode("the") == [257]


@pytest.mark.parametrize("change, says", [
    ({"tokenizer.ggml.model": "llama"}, "llama"), ({"tokenizer.ggml.pre": "qwen2"}, "qwen2"),
    ({"tokenizer.ggml.merges": ["t h"]}, "order"), ({"tokenizer.ggml.eos_token_id": 5}, "end token")])
def test_other_metadata(change, says, read_gguf_tokenizer=vocabulary.read_gguf_tokenizer):
    """It is left out with a warning that names it; what does not fit together is damage."""
    with pytest.warns(UserWarning, match=f"x.gguf.*{says}"):
        assert read_gguf_tokenizer(metadata(**change), "x.gguf") is None
    with pytest.raises(MiniftError, match="x.gguf is damaged"):
        read_gguf_tokenizer(metadata(**{"tokenizer.ggml.merges": ["q q"]}), "x.gguf")


def test_tokens_without_a_merge_are_llamas(read_gguf_tokenizer=vocabulary.read_gguf_tokenizer):
    """Llama 3 finds whole pieces without merges, GPT-2 does not."""
    fields = metadata(**{"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.merges": ["t h"]})
    assert read_gguf_tokenizer(fields, "x.gguf").encode("the") == [257]


# ---- WordPiece ----

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "Ray", "é", "e"]
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}


def wordpiece(lower=True, **changes):
    model = {"type": "WordPiece", "vocab": {piece: i for i, piece in enumerate(PIECES)}}
    return {"normalizer": BERT | {"lowercase": lower}, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": model} | changes


def test_wordpiece(tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """Pieces go on with ##; capitals and accents count only without lowercase; from vocab.txt it is the same."""
    for lower, ids in ((True, [5, 6, 1, 9]), (False, [5, 6, 7, 8])):
        (tmp_path / "tokenizer.json").write_text(json.dumps(wordpiece(lower)), encoding="utf-8")
        ours = read_tokenizer(tmp_path, {})
        assert ours.encode("playing Ray é") == ids and ours.chat is None
        assert ours.special == {"[PAD]": 0, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
        assert [ours.special_id(role) for role in ("<pad>", "<eos>", "<cls>", "<sep>", "<mask>")] == [0, 3, 2, 3, 4]
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}), encoding="utf-8")
        for newline in ("\n", "\r\n"):
            (tmp_path / "vocab.txt").write_bytes((newline.join(PIECES) + newline).encode("utf-8"))
            assert read_tokenizer(tmp_path, {}).hash() == ours.hash()
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_tokenizer(tmp_path, {}).kind == "wordpiece"                  # BERT's default


@pytest.mark.parametrize("change, says", [
    ({"normalizer": None}, "normalizer has type None"), ({"normalizer": BERT | {"clean_text": False}}, "clean_text"),
    ({"normalizer": BERT | {"handle_chinese_chars": False}}, "handle_chinese_chars"),
    ({"normalizer": BERT | {"lowercase": True, "strip_accents": False}}, "strip_accents"),
    ({"normalizer": BERT | {"lowercase": False, "strip_accents": True}}, "strip_accents"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace")])
def test_other_wordpieces(change, says, tmp_path, read_tokenizer=vocabulary.read_tokenizer):
    """Other cleaning or cutting is left out with a warning that names it."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(wordpiece(**change)), encoding="utf-8")
    with pytest.warns(UserWarning, match=says):
        assert read_tokenizer(tmp_path, {}) is None


# ---- and back ----


def test_an_exported_tokenizer_is_read_back(tmp_path, tokenizer_json=export.tokenizer_json):
    """What tokenizer.json says of a BPE or a WordPiece tokenizer gives the same ids, and the same special tokens."""
    ours = Tokenizer.train(["the other thing, then this 123"] * 3, 256 + 20 + 8)
    pieces = wordpiece()["model"]["vocab"]
    for tokenizer, text in ((ours, "the thing\n 99"), (vocabulary.make_wordpiece(pieces, True), "playing é"),
                            (vocabulary.make_wordpiece(pieces, False), "playing Ray É")):
        folder = write(tmp_path, tokenizer_json(tokenizer))
        again = vocabulary.read_tokenizer(folder, {"eos_token_id": tokenizer.eos_id})
        assert again.encode(text) == tokenizer.encode(text)
        assert (again.ranks, again.special, again.kind) == (tokenizer.ranks, tokenizer.special, tokenizer.kind)


def test_roles_are_exported(tokenizer_config=export.tokenizer_config):
    """Each role has the name of its token; only WordPiece has an unknown token; a chat format has its template."""
    config = type("Config", (), {"context_length": 77})
    ours = Tokenizer.train(["abab"], 256 + 2 + 8)
    found = tokenizer_config(ours, config)
    assert {key: value for key, value in found.items() if key.endswith("_token")} == {
        "pad_token": "<pad>", "eos_token": "<eos>", "cls_token": "<cls>", "sep_token": "<sep>", "mask_token": "<mask>"}
    assert chat_template.recognise(found["chat_template"]) == chat_format.MINIFT and found["model_max_length"] == 77
    theirs = tokenizer_config(vocabulary.make_wordpiece(wordpiece()["model"]["vocab"], True), config)
    assert {key: value for key, value in theirs.items() if key.endswith("_token")} == {
        "pad_token": "[PAD]", "eos_token": "[SEP]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
        "unk_token": "[UNK]"}
    assert "chat_template" not in theirs
    bare = Tokenizer({bytes([byte]): byte for byte in range(256)}, {"</s>": 256}, roles={"<pad>": 0, "<eos>": 256})
    assert {key for key in tokenizer_config(bare, config) if key.endswith("_token")} == {"eos_token"}
