"""Batches of pretraining text: row groups to tokens to full rows, ahead of the training in a thread.

The caller says which rank it is; nothing here communicates.

Every rank packs the same rows from the same row groups and takes rows r, r + n, ... of them, so the tokens of a step
and the place where the data stands do not depend on the number of ranks: a run goes on with more or fewer of them, no
document twice and none left out. The price is that each rank tokenizes all the text. The rows of a row group are
shuffled, because packing puts long documents first: unshuffled, a batch would hold one kind of text.

Training is endless, epoch after epoch. Validation is one pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.data.batch import Batch, build_batch
from nanochat.data.packing import Encoder, pack_documents
from nanochat.data.prefetch import Prefetcher
from nanochat.data.shards import RowGroup, Split, list_row_groups, read_row_group
from nanochat.errors import DataError, UsageError

PREFETCHED_BATCHES = 4


@dataclass(frozen=True)
class Place:
    """Where all ranks stand: the next row is `row` of what `carry` and the group at `position` pack into."""

    epoch: int = 0
    position: int = 0
    row: int = 0
    carry: tuple[tuple[int, ...], ...] = ()
    tokens_in_epoch: int = 0


@dataclass
class _Source:
    """What the thread needs; it knows nothing of the loader, which can therefore be garbage-collected."""

    groups: list[RowGroup]
    tokenizer: Encoder
    row_tokens: int
    directory: Path

    def pack(self, place: Place) -> tuple[np.ndarray, list[np.ndarray], int]:
        """Rows (shuffled) and rest of a group behind what was carried over, and the group's number of tokens."""
        texts = [text for text in read_row_group(self.groups[place.position]).to_pylist() if text]
        bos_id = self.tokenizer.bos_id
        documents = [np.array([bos_id, *ids], dtype=np.int32) for ids in self.tokenizer.encode_batch(texts)]
        carried = [np.array(piece, dtype=np.int32) for piece in place.carry]
        rows, rest = pack_documents(carried + documents, self.row_tokens, bos_id)
        rows = np.random.default_rng([place.epoch, place.position]).permutation(rows)
        return rows, rest, sum(map(len, documents))

    def iter_train_rows(self, place: Place) -> Iterator[tuple[np.ndarray, Place]]:
        """Endless rows from a place, each with the place after it."""
        while True:
            rows, rest, num_tokens = self.pack(place)
            for index in range(place.row, len(rows)):
                yield rows[index], replace(place, row=index + 1)
            carry = tuple(tuple(piece.tolist()) for piece in rest)
            seen = place.tokens_in_epoch + num_tokens
            if place.position + 1 < len(self.groups):
                place = Place(place.epoch, place.position + 1, 0, carry, seen)
                continue
            if seen == 0:
                raise DataError(f"the data set {self.directory} holds no text", f"ls {self.directory}")
            place = Place(place.epoch + 1, 0, 0, carry, 0)

    def iter_val_rows(self) -> Iterator[tuple[np.ndarray, int]]:
        """All rows once, each with its number of tokens; the last one is filled up with bos."""
        place = Place()
        for position in range(len(self.groups)):
            rows, rest, _ = self.pack(replace(place, position=position))
            for row in rows:
                yield row, self.row_tokens
            place = Place(carry=tuple(tuple(piece.tolist()) for piece in rest))
        filled = sum(map(len, place.carry))
        if filled > 1:
            row = np.full(self.row_tokens, self.tokenizer.bos_id, dtype=np.int32)
            row[:filled] = np.concatenate(place.carry)
            yield row, filled


class PretrainLoader:
    """Iterates over Batch(ids, targets), each (rows, context) int64 on the CPU.

    `train` is endless and resumes at a cursor; `val` is one pass in the same order every time, of at most max_tokens
    targets over all ranks, and every rank gets the same number of batches (filled up with ignored targets).

    cursor: what `cursor()` returned after the last batch that was used, on any rank of a world of any size. With the
    same data, tokenizer and context the next rows are the same bit for bit. With other data the loader starts at about
    the same share of the epoch, and `resumed_exactly` is False: say so.

    Close it (or use `with`) to stop the thread. Raises MissingError and DataError as `list_row_groups` does; errors of
    the thread are raised by the iteration.
    """

    def __init__(
        self,
        directory: Path,
        split: Split,
        tokenizer: Encoder,
        rows: int,
        context: int,
        rank: int = 0,
        world_size: int = 1,
        cursor: dict[str, Any] | None = None,
        max_tokens: int | None = None,
        prefetched_batches: int = PREFETCHED_BATCHES,
    ) -> None:
        assert 0 <= rank < world_size and rows > 0 and context > 0, (rank, world_size, rows, context)
        groups = list_row_groups(directory, split)
        self._identity = {"groups": len(groups), "row_tokens": context + 1}
        self.resumed_exactly = True
        self.num_row_groups = len(groups)
        self._place = Place()
        source = _Source(groups, tokenizer, context + 1, directory)
        if split == "val":
            if cursor is not None:
                raise UsageError("validation has no cursor: it is one pass from the start")
            batches = _iter_val_batches(source, rows, rank, world_size, max_tokens)
        else:
            if cursor is not None:
                self._place = self._read_cursor(cursor)
            batches = _iter_train_batches(source, self._place, rows, rank, world_size)
        self._prefetcher: Prefetcher[tuple[Batch, Place]] = Prefetcher(batches, prefetched_batches)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, self._place = next(self._prefetcher)
        return batch

    @property
    def epoch(self) -> int:
        """Complete passes over the text before the end of the batch just yielded."""
        return self._place.epoch

    @property
    def dropped_share(self) -> float:
        """Share of the tokens that never reach a row: none, since documents are cut and what is left is carried on."""
        return 0.0

    def cursor(self) -> dict[str, Any]:
        """Where the batch just yielded ends, the same on every rank, as JSON."""
        place = self._place
        return {
            "version": 2,
            **self._identity,
            "epoch": place.epoch,
            "position": place.position,
            "row": place.row,
            "carry": [list(piece) for piece in place.carry],
            "tokens_in_epoch": place.tokens_in_epoch,
        }

    def _read_cursor(self, cursor: dict[str, Any]) -> Place:
        try:
            if cursor["version"] != 2:
                raise DataError(f"the data cursor has version {cursor['version']}, not 2")
            saved = {key: int(cursor[key]) for key in self._identity}
            numbers = [int(cursor[key]) for key in ("epoch", "position", "row", "tokens_in_epoch")]
            carry = tuple(tuple(int(token) for token in piece) for piece in cursor["carry"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the data cursor cannot be read: {error!r}", "resume from an earlier checkpoint"
            ) from error
        epoch, position, row, tokens_in_epoch = numbers
        if saved == self._identity and 0 <= position < self.num_row_groups:
            return Place(epoch, position, row, carry, tokens_in_epoch)
        self.resumed_exactly = False
        share = position / max(1, saved["groups"])
        return Place(epoch, min(int(share * self.num_row_groups), self.num_row_groups - 1))

    def close(self) -> None:
        """Stop the thread. The loader yields nothing more."""
        self._prefetcher.close()

    def __enter__(self) -> "PretrainLoader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _iter_train_batches(
    source: _Source, start: Place, num_rows: int, rank: int, world_size: int
) -> Iterator[tuple[Batch, Place]]:
    rows = []
    for row, place in source.iter_train_rows(start):
        rows.append(row)
        if len(rows) == num_rows * world_size:
            yield build_batch(np.stack(rows[rank::world_size])), place
            rows = []


def _iter_val_batches(
    source: _Source, num_rows: int, rank: int, world_size: int, max_tokens: int | None
) -> Iterator[tuple[Batch, Place]]:
    """All ranks see the rows of a round of num_rows * world_size; row i goes to rank i % world_size."""
    round_rows: list[tuple[np.ndarray, int]] = []
    empty = np.full(source.row_tokens, source.tokenizer.bos_id, dtype=np.int32)
    left = max_tokens

    def build() -> Batch:
        mine = (round_rows + [(empty, 0)] * (num_rows * world_size - len(round_rows)))[rank::world_size]
        lengths = np.array([length for _, length in mine])
        return build_batch(np.stack([row for row, _ in mine]), np.arange(source.row_tokens) < lengths[:, None])

    for row, length in source.iter_val_rows():
        if left is not None:
            length = min(length, left + 1)  # a row of n tokens has n - 1 targets
            if length <= 1:
                break
            left -= length - 1
        round_rows.append((row, length))
        if len(round_rows) == num_rows * world_size:
            yield build(), Place()
            round_rows = []
    if round_rows:
        yield build(), Place()
