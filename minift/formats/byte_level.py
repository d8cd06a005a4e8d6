"""How the files of byte-level BPE write tokens and merges, and how they become our Tokenizer's ranks and back.

The files follow two conventions (Radford et al. 2019, GPT-2). First, a token is bytes, but a file is text, so each
byte is written as one printable character. Second, a file lists the merges in the order in which they were learned. Our
ranks (bytes of a token -> id, tiktoken's form) have no such list: the next pair to merge is the one whose token has the
lowest id. Both forms give the same ids if the ids follow the order of the merges, and `make_ranks` checks that they do.
Left out: vocabularies in another order, for which the list of merges would have to be kept.
"""

from minift.formats.settings import Unreadable

# These bytes print as themselves; the others are written as U+0100, U+0101, ...
PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTED]
LETTERS = {byte: chr(byte) for byte in PRINTED} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}
BYTES = {letter: byte for byte, letter in LETTERS.items()}


def spell_token(token):
    """The characters that stand for the bytes of a token."""
    return "".join(LETTERS[byte] for byte in token)


def make_ranks(vocab, merges, special, whole_pieces):
    """bytes -> id of all tokens that are not special. Raises Unreadable when the ids do not follow the merges' order.

    vocab: token -> id. merges: pairs of tokens. whole_pieces: a piece of text that is a token is not cut further, so a
    token needs no merge (tokenizer.json: ignore_merges).
    """
    merged = [vocab[left + right] for left, right in merges]
    tokens = {token: i for token, i in vocab.items() if token not in special}
    long = {i for token, i in tokens.items() if len(token) > 1}
    if merged != sorted(merged) or not (whole_pieces or long <= set(merged)):
        raise Unreadable("its ids are not in the order of its merges")
    ranks = {}
    try:
        for token, i in tokens.items():
            ranks[bytes(BYTES[letter] for letter in token)] = i
    except KeyError as error:
        raise Unreadable(f"its vocabulary is not one of bytes (it has {error})") from error
    return ranks


def find_merges(ranks):
    """Yield the merges that ranks imply, as pairs of spelled tokens, in the order of the ids.

    For each token of several bytes: start from its single bytes, and merge as for any text, but only into tokens with
    lower ids. When two parts are left, their merge makes the token. A token that cannot be reached in this way has no
    merge. A tokenizer finds it only where it is a whole piece of text.
    """
    for token, limit in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joined = [left + right for left, right in zip(parts, parts[1:])]
            found = [ranks.get(pair, limit) for pair in joined]
            if min(found) >= limit:
                break
            # If the best pair occurs several times, the first one is merged.
            i = found.index(min(found))
            parts[i:i + 2] = [joined[i]]
        if len(parts) == 2 and all(part in ranks for part in parts):
            yield spell_token(parts[0]), spell_token(parts[1])
