"""Packing: sequences of token ids into rows of one length.

Knows neither files nor tensors. `pack_documents` cuts documents where it must, so that every row is full and no token
is lost; `pack_cropped` throws away the ends that do not fit; `pack_whole` keeps sequences whole and leaves the end of a
row unused.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

Packing = Literal["cut", "crop"]
"""What happens to the end of a document that does not fit its row: it goes on in a later one, or is thrown away."""


class Encoder(Protocol):
    """What the loaders need of a tokenizer."""

    @property
    def bos_id(self) -> int: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...


class _Pool:
    """Numbered lengths, taken oldest first or by size."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)
        self.total = sum(lengths)
        self._by_size = sorted((length, index) for index, length in enumerate(lengths))
        self._used = [False] * len(lengths)
        self._oldest = 0

    def find_oldest(self) -> int | None:
        """The oldest that is left, which stays; None where nothing is."""
        while self._oldest < len(self._used) and self._used[self._oldest]:
            self._oldest += 1
        return self._oldest if self._oldest < len(self._used) else None

    def take_oldest(self) -> int:
        found = self.find_oldest()
        assert found is not None, "nothing is left"
        self._remove(bisect_left(self._by_size, (self.lengths[self._oldest], self._oldest)))
        return self._oldest

    def take_largest(self, limit: int) -> int | None:
        """The largest that is no longer than limit, the oldest of its size; None where all are longer."""
        place = bisect_right(self._by_size, (limit, len(self.lengths)))
        if place == 0:
            return None
        return self._remove(bisect_left(self._by_size, (self._by_size[place - 1][0], -1)))

    def take_longest(self) -> int:
        return self._remove(len(self._by_size) - 1)

    def take_shortest(self) -> int:
        return self._remove(0)

    def put_back(self, index: int, length: int) -> None:
        """Return what is left of a sequence; it keeps its age."""
        self.lengths[index] = length
        self._used[index] = False
        self._oldest = min(self._oldest, index)
        self.total += length
        insort(self._by_size, (length, index))

    def _remove(self, place: int) -> int:
        length, index = self._by_size.pop(place)
        self._used[index] = True
        self.total -= length
        return index


def pack_documents(
    documents: Sequence[np.ndarray], row_tokens: int, bos_id: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Fill rows completely. documents: int32 arrays, bos first. Returns rows (N, row_tokens) int32 and the rest.

    A row starts with the oldest document left and takes the largest ones that fit; the gap that remains takes the
    start of the longest, whose remainder goes to a later row behind a bos of its own. A gap of one token takes a bos.
    The rest (fewer than row_tokens tokens) belongs in front of the next call's documents.

    >>> rows, rest = pack_documents([np.array([0, 1, 2, 3, 4]), np.array([0, 5]), np.array([0, 6])], 4, bos_id=0)
    >>> rows.tolist(), [piece.tolist() for piece in rest]
    ([[0, 1, 2, 3], [0, 4, 0, 5]], [[0, 6]])
    """
    pieces = list(documents)
    pool = _Pool([len(piece) for piece in pieces])
    rows = []
    while pool.total >= row_tokens:
        row, filled = np.full(row_tokens, bos_id, dtype=np.int32), 0
        while filled < row_tokens:
            gap = row_tokens - filled
            index = pool.take_oldest() if filled == 0 else pool.take_largest(gap)
            if index is None:
                if gap == 1:
                    break  # the bos that is already there: a document has ended and another would start
                index = pool.take_longest()
            piece = pieces[index]
            row[filled : filled + len(piece)] = piece[:gap]
            filled += min(gap, len(piece))
            if len(piece) > gap:
                pieces[index] = np.concatenate([np.array([bos_id], dtype=np.int32), piece[gap:]])
                pool.put_back(index, len(pieces[index]))
        rows.append(row)
    rest = []
    while pool.total:
        rest.append(pieces[pool.take_oldest()])
    return np.array(rows, dtype=np.int32).reshape(len(rows), row_tokens), rest


def pack_cropped(
    documents: Sequence[np.ndarray], row_tokens: int, bos_id: int
) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Fill rows completely with the beginnings of documents. documents: int32 arrays, bos first.

    Returns rows (N, row_tokens) int32, the rest, and how many tokens were thrown away. A gap takes the largest document
    that fits; where none does, the shortest, whose end is dropped: the usual best fit with cropping.

    >>> rows, rest, dropped = pack_cropped([np.array([0, 1, 2, 3, 4, 5]), np.array([0, 6]), np.array([0, 7])], 3, 0)
    >>> rows.tolist(), [piece.tolist() for piece in rest], dropped
    ([[0, 6, 0], [0, 7, 0], [0, 1, 2]], [], 3)
    """
    pool = _Pool([len(document) for document in documents])
    rows, dropped = [], 0
    while pool.total >= row_tokens:
        row, filled = np.full(row_tokens, bos_id, dtype=np.int32), 0
        while row_tokens - filled > (1 if filled else 0):  # a gap of one holds the bos that is already there
            gap = row_tokens - filled
            index = pool.take_largest(gap)
            if index is None:
                index = pool.take_shortest()
            document = documents[index][:gap]
            row[filled : filled + len(document)] = document
            filled += len(document)
            dropped += len(documents[index]) - len(document)
        rows.append(row)
    rest = []
    while pool.total:
        rest.append(documents[pool.take_oldest()])
    return np.array(rows, dtype=np.int32).reshape(len(rows), row_tokens), rest, dropped


def pack_whole(lengths: Sequence[int], row_tokens: int, flush: bool = False) -> tuple[list[list[int]], list[int]]:
    """Share out whole sequences among rows. lengths: each 1 to row_tokens. Returns indices row by row, and the rest.

    A row takes the oldest sequences left while they fit, so that none waits long, and then the largest ones that fit.
    The rest is what could not fill another row; flush puts it into rows too.

    >>> pack_whole([5, 4, 9, 3, 2], row_tokens=9)
    ([[0, 1], [2]], [3, 4])
    """
    assert not lengths or 0 < min(lengths) <= max(lengths) <= row_tokens, "a sequence does not fit a row"
    pool = _Pool(lengths)
    rows, rest = [], []
    while pool.total and (flush or pool.total >= row_tokens):
        row, gap = [], row_tokens
        while (oldest := pool.find_oldest()) is not None:
            index = pool.take_oldest() if lengths[oldest] <= gap else pool.take_largest(gap)
            if index is None:
                break
            row.append(index)
            gap -= lengths[index]
        rows.append(row)
    while pool.total:
        rest.append(pool.take_oldest())
    return rows, rest
