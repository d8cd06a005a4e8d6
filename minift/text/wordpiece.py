"""WordPiece, the tokens of BERT: text is cleaned and cut into words, and each word into the longest known pieces.

Devlin et al. 2018, "BERT", and its code's basic cleaning (Wu et al. 2016, section 4.1, for the pieces). A word that
cannot be built from pieces is one [UNK]. Unlike BPE, it loses capitals and accents, so text comes back only roughly.
Left out: training a vocabulary.

A token is kept as the bytes that it stands for: b" play" begins a word, b"ing" (in vocab.txt: ##ing) continues one.
"""

import unicodedata

import regex

# The longest word, in characters; a longer one is unknown.
LONGEST_WORD = 100
UNKNOWN = b" [UNK]"
# Control characters, which are removed.
DROPPED = regex.compile(r"(?![\t\n\r])[\p{Cc}\p{Cf}\p{Co}\uFFFD]")
# Each ideograph is a word of its own, and so is each sign.
IDEOGRAPH = regex.compile(
    r"[\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U0002A6DF\U0002A700-\U0002CEAF"
    r"\U0002F800-\U0002FA1F]")
SIGN = r"\p{P}$+<=>^`|~"
WORD = regex.compile(rf"[{SIGN}]|[^\s{SIGN}]+")


def token_bytes(token):
    """A line of vocab.txt as the bytes it stands for."""
    return token[2:].encode() if token.startswith("##") and len(token) > 2 else b" " + token.encode()


def words(text, lower):
    """The words and signs of a text; lower: without capitals and accents, as the "uncased" models read."""
    text = IDEOGRAPH.sub(r" \g<0> ", DROPPED.sub("", text))
    if lower:
        text = regex.sub(r"\p{Mn}", "", unicodedata.normalize("NFD", text))
        # Character by character: in a whole word, lower() changes a final sigma in another way.
        text = "".join(character.lower() for character in text)
    return WORD.findall(text)


def encode(text, ranks, lower):
    """The ids of a text. ranks: bytes of a token -> id."""
    ids = []
    for word in words(text, lower):
        ids += pieces(word, ranks)
    return ids


def pieces(word, ranks):
    """Ids of the longest pieces, from left to right; [UNK] alone when they do not spell the whole word."""
    # The first piece of a word begins with a space.
    ids, start, space = [], 0, " "
    while start < len(word) <= LONGEST_WORD:
        for end in range(len(word), start, -1):
            piece = space + word[start:end]
            found = ranks.get(piece.encode())
            if found is not None:
                break
        else:
            return [ranks[UNKNOWN]]
        ids.append(found)
        start, space = end, ""
    return ids or [ranks[UNKNOWN]]
