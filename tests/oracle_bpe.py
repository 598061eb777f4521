"""A slow and obvious BPE, the oracle of the Rust trainer and of both encoders."""

from collections import Counter
from collections.abc import Iterable

import regex

Pair = tuple[int, int]


def split(text: str, pattern: str) -> list[str]:
    return [match.group() for match in regex.finditer(pattern, text)]


def count_pairs(words: dict[tuple[int, ...], int]) -> Counter[Pair]:
    pairs: Counter[Pair] = Counter()
    for word, count in words.items():
        for pair in zip(word, word[1:], strict=False):
            pairs[pair] += count
    return pairs


def merge(word: tuple[int, ...], pair: Pair, new: int) -> tuple[int, ...]:
    """Replace from left to right: word=(1, 1, 1), pair=(1, 1), new=9 -> (9, 1)"""
    merged: list[int] = []
    index = 0
    while index < len(word):
        if word[index : index + 2] == pair:
            merged.append(new)
            index += 2
        else:
            merged.append(word[index])
            index += 1
    return tuple(merged)


def train(texts: Iterable[str], num_merges: int, pattern: str) -> list[Pair]:
    """The most frequent pair first; among equals the smaller."""
    words: Counter[tuple[int, ...]] = Counter(tuple(piece.encode()) for text in texts for piece in split(text, pattern))
    merges: list[Pair] = []
    while len(merges) < num_merges:
        pairs = count_pairs(words)
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merged: Counter[tuple[int, ...]] = Counter()
        for word, count in words.items():
            merged[merge(word, best, 256 + len(merges))] += count
        words = merged
        merges.append(best)
    return merges


def encode(text: str, merges: list[Pair], pattern: str) -> list[int]:
    """Within each piece apply the merges in the order learnt."""
    ids: list[int] = []
    for piece in split(text, pattern):
        word = tuple(piece.encode())
        for index, pair in enumerate(merges):
            word = merge(word, pair, 256 + index)
        ids.extend(word)
    return ids
