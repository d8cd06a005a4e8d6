"""Byte-pair encoding: join the most frequent pair of neighbours into a new token, again and again.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1; on bytes, and cut into
pieces first, as in GPT-2 (Radford et al. 2019, section 2.2). Left out: dropout of merges, and applying them, which
tiktoken does faster (tokenizer.py).
"""

import heapq
from collections import Counter, defaultdict
from itertools import pairwise

import regex

from minift.errors import MiniftError

# GPT-2's pieces: a word, a number or a run of signs, each with the one space before it; merges never cross them. Unlike
# GPT-2's, white space needs no look-ahead, so that a long run of it cannot exhaust the stack of the matcher.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+| +|[^\S ]+"


def count_words(texts):
    """Cut the texts into pieces by PATTERN and count them: piece (bytes) -> how often. Merging needs no more."""
    counts, cut = Counter(), regex.compile(PATTERN)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise MiniftError(
                f"text {i} to train the tokenizer on is a {type(text).__name__}, not a string")
        counts.update(cut.findall(text))
    return {utf8(word): n for word, n in counts.items()}


def learn_merges(words, n_merges):
    """The first n_merges pairs of ids, in the order of merging (the k-th pair becomes id 256 + k).

    words: bytes -> count. Only words that hold the merged pair change, so only their pairs are counted again: `where`
    finds the words, and `heap` the best pair; an entry of the heap whose count is out of date is thrown away when met.
    """
    pieces = [list(word) for word in words]
    counts = list(words.values())
    pair_count, where = Counter(), defaultdict(set)
    for index, piece in enumerate(pieces):
        for pair in pairwise(piece):
            pair_count[pair] += counts[index]
            where[pair].add(index)
    heap = [(-n, pair) for pair, n in pair_count.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < n_merges:
        negative_count, best = heapq.heappop(heap)
        if -negative_count != pair_count[best] or negative_count == 0:
            continue
        changed = set()
        for index in where.pop(best):
            old, new = pieces[index], merge(pieces[index], best, 256 + len(merges))
            for pair in pairwise(old):
                pair_count[pair] -= counts[index]
                changed.add(pair)
            for pair in pairwise(new):
                pair_count[pair] += counts[index]
                where[pair].add(index)
                changed.add(pair)
            pieces[index] = new
        merges.append(best)
        for pair in changed:
            heapq.heappush(heap, (-pair_count[pair], pair))
    return merges


def merge(ids, pair, new_id):
    """Replace every occurrence of the pair, from left to right: merge([1, 1, 1, 2], (1, 1), 9) -> [9, 1, 2]."""
    merged, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def utf8(text):
    """The UTF-8 bytes of a text; MiniftError for a lone surrogate, which is half a character and has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MiniftError(
            f"the text has a lone surrogate at character {error.start}; it is no character, remove it: "
            f"{text[max(0, error.start - 20):error.start + 20]!r}") from error
