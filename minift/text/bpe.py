"""Byte-pair encoding: join the most frequent pair of neighbours into a new token, again and again.

Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", algorithm 1; on bytes, and cut into
pieces first, as in GPT-2 (Radford et al. 2019, section 2.2). The plain algorithm is a loop:

    every piece is a list of bytes
    repeat: count all pairs of neighbours in all pieces
            take the most frequent pair; of equally frequent pairs the smallest
            replace it by a new token in every piece, and remember the pair

Counting everything again for each merge is slow. But a merge changes only the pieces that hold the pair, so
learn_merges keeps three things up to date: the counts, an index from each pair to its pieces, and a heap that has the
most frequent pair on top. Left out: dropout of merges, and applying them, which tiktoken does faster (tokenizer.py).
"""

import heapq
from collections import Counter, defaultdict
from itertools import pairwise

import regex

from minift.errors import MiniftError

# GPT-2's pieces: a word, a number or a run of signs, each with the one space before it. No merge crosses their borders.
# Unlike GPT-2's, this pattern needs no look-ahead for white space, so a long run of it cannot exhaust the matcher.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+| +|[^\S ]+"


def count_words(texts):
    """Cut the texts into pieces by PATTERN and count them: piece (bytes) -> how often. Merging needs only this."""
    counts, cut = Counter(), regex.compile(PATTERN)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise MiniftError(
                f"text {i} to train the tokenizer on is a {type(text).__name__}, not a string")
        counts.update(cut.findall(text))
    return {utf8(word): n for word, n in counts.items()}


def learn_merges(words, n_merges):
    """The first n_merges pairs of ids, in the order of merging (the k-th pair becomes id 256 + k).

    words: bytes -> count. Stops early when no pair is left.
    """
    # 1. Count all pairs once. where: pair -> the pieces that hold it.
    pieces = [list(word) for word in words]
    counts = list(words.values())
    pair_count, where = Counter(), defaultdict(set)
    for index, piece in enumerate(pieces):
        for pair in pairwise(piece):
            pair_count[pair] += counts[index]
            where[pair].add(index)
    # Python's heap has the smallest entry on top: the largest count, and of equal counts the smallest pair.
    heap = [(-n, pair) for pair, n in pair_count.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < n_merges:
        # 2. Take the best pair. An entry whose count has changed since is out of date: a newer entry exists.
        negative_count, best = heapq.heappop(heap)
        if -negative_count != pair_count[best] or negative_count == 0:
            continue
        # 3. Merge it in the pieces that hold it, and correct the counts of the pairs around it.
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
        # 4. Put the new counts on the heap.
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
    """The UTF-8 bytes of a text; MiniftError for a lone surrogate (half a character), which has none."""
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MiniftError(
            f"the text has a lone surrogate at character {error.start}; it is no character, remove it: "
            f"{text[max(0, error.start - 20):error.start + 20]!r}") from error
