"""Batches of pretraining text: row groups to tokens to full rows, ahead of the training in a thread.

The caller says which rank it is; nothing here communicates.

Every rank packs the same rows from the same row groups and takes rows r, r + n, ... of them, so the tokens of a step
and the place where the data stands do not depend on the number of ranks: a run goes on with more or fewer of them, no
document twice and none left out. The price is that each rank tokenizes all the text. The rows of a row group are
shuffled, because packing puts long documents first: unshuffled, a batch would hold one kind of text.

Documents of many rows would fill step after step with few of them, and a run that ends before its first epoch does
would see few documents whole instead of all in part. Where documents are long, a stretch of row groups is therefore
gone through in laps, each of which takes other rows of every group; what a group packs into is kept until then.

Training is endless, epoch after epoch. Validation is one pass.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.data.batch import Batch, build_batch
from nanochat.data.cursor import name_changes
from nanochat.data.packing import Encoder, Packing, pack_cropped, pack_documents
from nanochat.data.prefetch import Prefetcher
from nanochat.data.shards import RowGroup, Split, list_row_groups, load_manifest, read_row_group
from nanochat.errors import DataError, UsageError

VERSION = 3
"""Of cursors."""
PREFETCHED_BATCHES = 4
LAPS = 16
"""Where documents are long: docs/decisions.md says what that is worth."""
LONG_ROWS = 1.5
"""Rows that documents fill on average from which on they are long."""
STRETCH_BYTES = 128_000_000
"""Text whose rows are kept: 64 MB of them in each process."""
TOKEN_BYTES = 4
"""Of text, roughly: enough to tell how many rows a document fills."""

Pieces = tuple[tuple[int, ...], ...]
"""Tokens that did not fill a row."""


def count_laps(groups: Sequence[RowGroup], row_tokens: int) -> int:
    """In how many laps the row groups are gone through.

    >>> web, books = RowGroup(Path(), 0, "text", 1_000, 5_000_000), RowGroup(Path(), 0, "text", 1_000, 90_000_000)
    >>> count_laps([web], 2_049), count_laps([books], 2_049), count_laps([web], 513)
    (1, 16, 16)
    """
    mean_bytes = sum(group.num_bytes for group in groups) / sum(group.num_rows for group in groups)
    return LAPS if mean_bytes / TOKEN_BYTES / row_tokens >= LONG_ROWS else 1


def split_stretches(groups: Sequence[RowGroup]) -> list[range]:
    """Positions of groups that follow each other, in stretches of at most STRETCH_BYTES, of one group at least.

    >>> group = RowGroup(Path(), 0, "text", 1_000, STRETCH_BYTES // 3)
    >>> split_stretches([group] * 7)
    [range(0, 3), range(3, 6), range(6, 7)]
    """
    starts, num_bytes = [0], 0
    for position, group in enumerate(groups):
        if num_bytes + group.num_bytes > STRETCH_BYTES and position > starts[-1]:
            starts.append(position)
            num_bytes = 0
        num_bytes += group.num_bytes
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(groups)], strict=True)]


@dataclass(frozen=True)
class Place:
    """Where all ranks stand: the next row is `row` of this lap's share of what the group at `position` packs into.

    carry: tokens that the groups before it left over; opening: those that its stretch began with, as each lap of it
    does. tokens: of all groups that were gone through before in this epoch.
    """

    epoch: int = 0
    lap: int = 0
    position: int = 0
    row: int = 0
    carry: Pieces = ()
    opening: Pieces = ()
    tokens: int = 0


@dataclass(frozen=True)
class _Packed:
    """What a group packs into behind what was carried over: rows (shuffled) and the rest. tokens: of the group."""

    rows: np.ndarray
    rest: Pieces
    tokens: int


class _Source:
    """What the thread needs; it knows nothing of the loader, which can therefore be garbage-collected."""

    def __init__(
        self, groups: Sequence[RowGroup], tokenizer: Encoder, row_tokens: int, directory: Path, packing: Packing
    ) -> None:
        self.groups, self.tokenizer, self.row_tokens, self.directory = groups, tokenizer, row_tokens, directory
        self.packing: Packing = packing
        self.num_laps = 1
        self.num_tokens = self.num_dropped = 0  # of all that was packed in this process
        self.stretches = split_stretches(groups)
        self._kept: dict[int, _Packed] = {}

    def pack(self, place: Place) -> _Packed:
        """Pack the group at a place, or look up what it packed into in an earlier lap."""
        if self.num_laps == 1:
            return self._pack(place)
        stretch = self.find_stretch(place.position)
        self._kept = {position: packed for position, packed in self._kept.items() if position in stretch}
        if place.lap == 0:  # of another epoch, perhaps
            self._kept.pop(place.position, None)
        if place.position not in self._kept:
            self._kept[place.position] = self._pack(place)
        return self._kept[place.position]

    def _pack(self, place: Place) -> _Packed:
        texts = [text for text in read_row_group(self.groups[place.position]).to_pylist() if text]
        bos_id = self.tokenizer.bos_id
        documents = [np.array([bos_id, *ids], dtype=np.int32) for ids in self.tokenizer.encode_batch(texts)]
        carried = [np.array(piece, dtype=np.int32) for piece in place.carry]
        num_tokens = sum(map(len, documents))
        if self.packing == "crop":
            rows, rest, dropped = pack_cropped(carried + documents, self.row_tokens, bos_id)
            self.num_dropped += dropped
        else:
            rows, rest = pack_documents(carried + documents, self.row_tokens, bos_id)
        self.num_tokens += num_tokens
        rows = np.random.default_rng([place.epoch, place.position]).permutation(rows)
        if rows.size:
            rows = rows.astype(np.min_scalar_type(rows.max()))  # two bytes are enough for most vocabularies
        return _Packed(rows, tuple(tuple(piece.tolist()) for piece in rest), num_tokens)

    def iter_train_rows(self, place: Place) -> Iterator[tuple[np.ndarray, Place]]:
        """Endless rows from a place, each with the place after it."""
        with ThreadPoolExecutor(1, "pack") as worker:  # the next group is packed while this one's rows are used
            ahead = worker.submit(self.pack, place)
            while True:
                packed = ahead.result()
                rows, following = packed.rows[place.lap :: self.num_laps], self.follow(place, packed)
                middle = max(place.row, len(rows) // 2)  # not at once: the first step needs the cores
                for index in range(place.row, len(rows)):
                    if index == middle:
                        ahead = worker.submit(self.pack, following)
                    yield rows[index], replace(place, row=index + 1)
                if place.row >= len(rows):
                    ahead = worker.submit(self.pack, following)
                place = following

    def follow(self, place: Place, packed: _Packed) -> Place:
        """The place after the last row of a group. Raises DataError after an epoch without any text."""
        stretch, tokens = self.find_stretch(place.position), place.tokens + packed.tokens
        if place.position + 1 in stretch:
            return replace(place, position=place.position + 1, row=0, carry=packed.rest, tokens=tokens)
        if place.lap + 1 < self.num_laps:
            again = {"lap": place.lap + 1, "position": stretch.start, "carry": place.opening}
            return replace(place, row=0, tokens=tokens, **again)
        if stretch.stop < len(self.groups):
            return Place(place.epoch, 0, stretch.stop, 0, packed.rest, packed.rest, tokens)
        if tokens == 0:
            raise DataError(f"the data set {self.directory} holds no text", f"ls {self.directory}")
        return Place(place.epoch + 1, carry=packed.rest, opening=packed.rest)

    def find_stretch(self, position: int) -> range:
        return next(stretch for stretch in self.stretches if position in stretch)

    def measure_share(self, place: Place) -> float:
        """The share of its epoch that lies before a place, about."""
        stretch = self.find_stretch(place.position)
        laps = place.lap + (place.position - stretch.start) / len(stretch)
        return (stretch.start + len(stretch) * laps / self.num_laps) / len(self.groups)

    def find_share(self, epoch: int, share: float) -> Place:
        """The place before which this share of an epoch lies, about."""
        group = min(max(0.0, share), 1.0) * len(self.groups)
        stretch = self.find_stretch(min(int(group), len(self.groups) - 1))
        laps = (group - stretch.start) / len(stretch) * self.num_laps
        lap = min(int(laps), self.num_laps - 1)
        return Place(epoch, lap, min(stretch.start + int((laps - lap) * len(stretch)), stretch.stop - 1))

    def iter_val_rows(self) -> Iterator[tuple[np.ndarray, int]]:
        """All rows once, each with its number of tokens; the last one is filled up with bos."""
        place = Place()
        for position in range(len(self.groups)):
            packed = self.pack(replace(place, position=position))
            for row in packed.rows:
                yield row, self.row_tokens
            place = Place(carry=packed.rest)
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
    same data, tokenizer and context the next rows are the same bit for bit. With other data, told by its hash, the
    loader starts at about the same share of the epoch, and `changed` says what is different: pass it on.

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
        packing: Packing = "cut",
    ) -> None:
        assert 0 <= rank < world_size and rows > 0 and context > 0, (rank, world_size, rows, context)
        groups = list_row_groups(directory, split)
        self._identity = {
            "data_hash": load_manifest(directory).hash_of(split),
            "groups": len(groups),
            "row_tokens": context + 1,
            "packing": packing,
        }
        self.changed = ""
        self.num_row_groups = len(groups)
        self._place = Place()
        self._source = _Source(groups, tokenizer, context + 1, directory, packing)
        if split == "val":
            if cursor is not None:
                raise UsageError("validation has no cursor: it is one pass from the start")
            batches = _iter_val_batches(self._source, rows, rank, world_size, max_tokens)
        else:
            self._source.num_laps = count_laps(groups, context + 1) if packing == "cut" else 1
            if cursor is not None:
                self._place = self._read_cursor(cursor)
            batches = _iter_train_batches(self._source, self._place, rows, rank, world_size)
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
        """Share of the tokens read so far that never reach a row: none where documents are cut."""
        return self._source.num_dropped / max(1, self._source.num_tokens)

    def cursor(self) -> dict[str, Any]:
        """Where the batch just yielded ends, the same on every rank, as JSON."""
        place = self._place
        return {
            "version": VERSION,
            **self._identity,
            "num_laps": self._source.num_laps,
            "share": round(self._source.measure_share(place), 6),
            "epoch": place.epoch,
            "lap": place.lap,
            "position": place.position,
            "row": place.row,
            "carry": [list(piece) for piece in place.carry],
            "opening": [list(piece) for piece in place.opening],
            "tokens": place.tokens,
        }

    def _read_cursor(self, cursor: dict[str, Any]) -> Place:
        try:
            if cursor["version"] == 2:  # before there were laps
                share = int(cursor["position"]) / max(1, int(cursor["groups"]))
                added = {"num_laps": 1, "lap": 0, "opening": [], "tokens": cursor["tokens_in_epoch"], "share": share}
                cursor = cursor | added
            elif cursor["version"] != VERSION:
                raise DataError(f"the data cursor has version {cursor['version']}, not {VERSION}")
            changed = name_changes({"packing": "cut"} | cursor, self._identity, "the training text is another one")
            numbers = {key: int(cursor[key]) for key in ("epoch", "lap", "position", "row", "tokens")}
            place = Place(**numbers, carry=_read_pieces(cursor["carry"]), opening=_read_pieces(cursor["opening"]))
            num_laps, share = int(cursor["num_laps"]), float(cursor["share"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"the data cursor cannot be read: {error!r}", "resume from an earlier checkpoint"
            ) from error
        if not changed and 0 <= place.position < self.num_row_groups and 0 <= place.lap < num_laps:
            self._source.num_laps = num_laps
            return place
        self.changed = changed or "the place lies outside of the text"
        return self._source.find_share(place.epoch, share)

    def close(self) -> None:
        """Stop the thread. The loader yields nothing more."""
        self._prefetcher.close()

    def __enter__(self) -> "PretrainLoader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _read_pieces(value: Any) -> Pieces:
    return tuple(tuple(int(token) for token in piece) for piece in value)


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
