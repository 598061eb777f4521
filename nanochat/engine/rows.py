"""What the rows of a cache hold, so that a prompt whose beginning some row holds need not be read from its start.

The first rows belong to running requests; the others remember what finished ones left, the next turn of a conversation
among it. Knows neither models nor sampling.
"""

from collections.abc import Sequence

from nanochat.engine.kv_cache import KVCache

MIN_REUSED_TOKENS = 16
"""A shared beginning shorter than this is computed again, unless it is the whole prompt: a copy would save nothing."""


class Rows:
    """The ids whose keys each row of a cache holds."""

    def __init__(self, cache: KVCache, num_rows: int) -> None:
        self._cache = cache
        self._contents: list[list[int]] = [[] for _ in range(num_rows)]
        self._left: list[int] = [0] * num_rows  # when a request left a row, as a count of departures
        self._departures = 0

    def claim(self, row: int, prompt: Sequence[int], reuse: bool = True) -> int:
        """Give a request the first row that is free; returns how many tokens of its prompt the row holds already.

        All but the last token of a prompt can be shared. reuse: False gives an empty row.
        """
        num_rows, wanted = len(self._contents), prompt[:-1]
        shared = [_common_length(contents, wanted) if reuse else 0 for contents in self._contents]
        source = max(range(num_rows), key=lambda r: (shared[r], r == row))
        num_held = shared[source]
        if num_held < min(MIN_REUSED_TOKENS, len(wanted)):
            source, num_held = row, 0
        oldest = min(range(row, num_rows), key=lambda r: (bool(self._contents[r]), self._left[r]))
        goes_on = len(self._contents[source]) <= 2 * num_held  # and has not only a greeting in common
        if source >= row and num_held and (goes_on or source == oldest):
            self.exchange(source, row)
        else:  # what this row remembers may be wanted more than the oldest memory
            self._copy(row, oldest)
            self._cache.copy_row(source, row, num_held)
        self._contents[row] = list(prompt[:num_held])
        return num_held

    def extend(self, row: int, ids: Sequence[int]) -> None:
        """Note that the keys of these ids have been added to a row."""
        self._contents[row].extend(ids)

    def leave(self, row: int) -> None:
        """Note that a row's request has ended; what it holds is remembered."""
        self._departures += 1
        self._left[row] = self._departures

    def exchange(self, first: int, second: int) -> None:
        """Let two rows change places."""
        if first != second:
            longest = max(len(self._contents[first]), len(self._contents[second]))
            self._cache.exchange_rows(first, second, longest)
            contents, left = self._contents, self._left
            contents[first], contents[second] = contents[second], contents[first]
            left[first], left[second] = left[second], left[first]

    def _copy(self, source: int, target: int) -> None:
        if source != target:
            self._cache.copy_row(source, target, len(self._contents[source]))
            self._contents[target], self._left[target] = self._contents[source], self._left[source]


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """[1, 2, 3], [1, 2, 4, 5] -> 2"""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
