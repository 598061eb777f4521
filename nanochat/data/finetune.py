"""Batches of conversations: rendered, shuffled every epoch, packed whole into rows, learnt where the assistant speaks.

The caller says which rank it is; nothing here communicates. Every rank packs the same rows and takes rows r, r + n, ...
of them, so that a run goes on with any number of ranks (see pretrain.py).
"""

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from nanochat.conversation import Conversation, hash_conversations
from nanochat.data.batch import Batch, build_batch
from nanochat.data.cursor import name_changes
from nanochat.data.packing import pack_whole
from nanochat.data.prefetch import Prefetcher
from nanochat.errors import DataError, UsageError
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat import render

Overlong = Literal["drop", "truncate", "error"]
OVERLONG: tuple[Overlong, ...] = ("drop", "truncate", "error")

POOL_CONVERSATIONS = 512
"""Conversations that are packed together: enough to fill rows to 98 % and little to redo on resume."""
PLANNED_CONVERSATIONS = 4_096
"""Conversations that the plan measures; more are estimated from these."""
PREFETCHED_BATCHES = 4
VERSION = 3
"""Of cursors."""

Rendered = tuple[np.ndarray, np.ndarray]  # ids (N,) int32 and mask (N,) bool


class Conversations(Protocol):
    """A list of conversations, a task or a mixture of tasks."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Conversation: ...


@dataclass(frozen=True)
class Counts:
    """Conversations read so far, and those among them that were too long for a row."""

    total: int = 0
    dropped: int = 0
    truncated: int = 0


@dataclass(frozen=True)
class EpochSize:
    """One pass over the conversations. tokens: of those that are kept, cut where they are. is_estimate: of a sample."""

    conversations: int
    tokens: int
    rows: int
    too_long: int
    is_estimate: bool


@dataclass(frozen=True)
class Place:
    """Where all ranks stand. The pool is what was carried over, (epoch, index in its order) each, then start:stop."""

    epoch: int = 0
    start: int = 0
    row: int = 0
    carry: tuple[tuple[int, int], ...] = ()
    counts: Counts = Counts()
    """Before this pool."""
    counted: Counts = Counts()
    """With this pool."""


class FinetuneLoader:
    """Iterates endlessly over Batch(ids, targets), each (rows, context) int64 on the CPU; targets are -1 except where
    the assistant produces the token.

    Conversations stand whole in a row, each from its own bos; the end of a row is bos, ignored. One that is longer than
    context + 1 tokens is dropped, truncated at its end or an error, as `overlong` says.

    cursor: what `cursor()` returned after the last batch that was used, on any rank of a world of any size; the next
    rows are the same bit for bit. With other conversations, told by their hash, the epoch goes on at about the same
    share, and `changed` says what is different: pass it on.

    data_hash: of the conversations, if it is known already (`Task.content_hash`).

    Close it (or use `with`) to stop the thread. Raises UsageError where there is no conversation, and DataError from
    the iteration where overlong = "error" meets one or where all are dropped.
    """

    def __init__(
        self,
        conversations: Conversations,
        tokenizer: Tokenizer,
        rows: int,
        context: int,
        seed: int = 42,
        overlong: Overlong = "truncate",
        rank: int = 0,
        world_size: int = 1,
        cursor: dict[str, Any] | None = None,
        prefetched_batches: int = PREFETCHED_BATCHES,
        data_hash: str | None = None,
    ) -> None:
        assert 0 <= rank < world_size and rows > 0 and context > 0, (rank, world_size, rows, context)
        if overlong not in OVERLONG:
            raise UsageError(f"overlong = {overlong!r} is none of {', '.join(OVERLONG)}")
        if len(conversations) == 0:
            raise UsageError("there is no conversation to learn from", "add tasks to the mixture")
        self._source = _Source(conversations, tokenizer, context + 1, seed, overlong)
        self._batch_rows = rows * world_size
        self._identity = {
            "data_hash": data_hash or hash_conversations(conversations[index] for index in range(len(conversations))),
            "conversations": len(conversations),
            "row_tokens": context + 1,
            "seed": seed,
            "overlong": overlong,
        }
        self.changed = ""
        self._place = Place() if cursor is None else self._read_cursor(cursor)
        batches = _iter_batches(self._source, self._place, rows, rank, world_size)
        self._prefetcher: Prefetcher[tuple[Batch, Place]] = Prefetcher(batches, prefetched_batches)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, self._place = next(self._prefetcher)
        return batch

    @property
    def epoch(self) -> int:
        """Complete passes over the conversations before the end of the batch just yielded."""
        return self._place.epoch

    @property
    def counts(self) -> Counts:
        """Conversations read, dropped and truncated for the batches yielded so far, over all epochs."""
        return self._place.counted

    @property
    def num_rows_per_epoch(self) -> int:
        """Rows of one pass, those of all ranks: measured on a sample where there are many conversations."""
        return self.measure_epoch().rows

    def measure_epoch(self) -> EpochSize:
        """The size of one pass, of all ranks. Renders the conversations, or a sample of many: seconds."""
        return _measure_epoch(self._source)

    @property
    def num_batches_per_epoch(self) -> int:
        """Batches of one pass, the same on every rank."""
        return math.ceil(self.num_rows_per_epoch / self._batch_rows)

    def cursor(self) -> dict[str, Any]:
        """Where the batch just yielded ends, the same on every rank, as JSON."""
        place = self._place
        return {
            "version": VERSION,
            **self._identity,
            "epoch": place.epoch,
            "start": place.start,
            "row": place.row,
            "carry": [list(entry) for entry in place.carry],
            "counts": asdict(place.counts),
            "counted": asdict(place.counted),
        }

    def _read_cursor(self, cursor: dict[str, Any]) -> Place:
        try:
            if cursor["version"] == 2:  # before there was a hash
                cursor = cursor | {"overlong": OVERLONG[cursor["overlong"]]}
            elif cursor["version"] != VERSION:
                raise DataError(f"the data cursor has version {cursor['version']}, not {VERSION}")
            changed = name_changes(cursor, self._identity, "the conversations are others")
            num_conversations = int(cursor["conversations"])
            epoch, start, row = (int(cursor[key]) for key in ("epoch", "start", "row"))
            carry = tuple((int(entry[0]), int(entry[1])) for entry in cursor["carry"])
            counts, counted = Counts(**cursor["counts"]), Counts(**cursor["counted"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(
                f"the data cursor cannot be read: {error!r}", "resume from an earlier checkpoint"
            ) from error
        if not changed:
            return Place(epoch, start, row, carry, counts, counted)
        self.changed = changed
        share = start / max(1, num_conversations)
        return Place(epoch, int(min(share, 1.0) * len(self._source.conversations)))

    def close(self) -> None:
        """Stop the thread. The loader yields nothing more."""
        self._prefetcher.close()

    def __enter__(self) -> "FinetuneLoader":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass
class _Source:
    """What the thread needs; it knows nothing of the loader, which can therefore be garbage-collected."""

    conversations: Conversations
    tokenizer: Tokenizer
    row_tokens: int
    seed: int
    overlong: Overlong
    _orders: dict[int, list[int]] = field(default_factory=dict)

    def order(self, epoch: int) -> list[int]:
        """The conversations in the order of an epoch."""
        indices = self._orders.get(epoch)
        if indices is None:
            indices = list(range(len(self.conversations)))
            random.Random(f"finetune/{self.seed}/{epoch}").shuffle(indices)
            self._orders[epoch] = indices
            if len(self._orders) > 2:  # this epoch and what was carried over from the one before
                del self._orders[min(self._orders)]
        return indices

    def render(self, epoch: int, index: int) -> Rendered:
        return render_arrays(self.tokenizer, self.conversations[self.order(epoch)[index]])

    def fit(self, rendered: Rendered) -> Rendered | None:
        """Apply `overlong`; None where the conversation is dropped."""
        ids, mask = rendered
        if len(ids) <= self.row_tokens:
            return rendered
        if self.overlong == "error":
            raise DataError(
                f"a conversation has {len(ids):,} tokens, more than the context of {self.row_tokens - 1:,}",
                "set overlong to truncate or drop, or enlarge model.context",
            )
        return None if self.overlong == "drop" else (ids[: self.row_tokens], mask[: self.row_tokens])

    def pool(self, place: Place) -> tuple[list[tuple[int, int]], list[Rendered], Counts]:
        """The conversations to pack together at a place, where each is, and the counts with them."""
        places = list(place.carry)
        pool = [self.fit(self.render(epoch, index)) for epoch, index in places]
        kept = [rendered for rendered in pool if rendered is not None]
        assert len(kept) == len(places), "a dropped conversation was carried over"
        counts = place.counts
        for index in range(place.start, min(place.start + POOL_CONVERSATIONS, len(self.conversations))):
            rendered = self.render(place.epoch, index)
            fitting = self.fit(rendered)
            counts = Counts(
                counts.total + 1,
                counts.dropped + (fitting is None),
                counts.truncated + (fitting is not None and len(fitting[0]) < len(rendered[0])),
            )
            if fitting is not None:
                places.append((place.epoch, index))
                kept.append(fitting)
        return places, kept, counts

    def fill(self, pieces: Iterable[Rendered]) -> Rendered:
        """A row (T + 1,) of whole conversations and its mask; its end is bos, ignored."""
        row, learnt = np.full(self.row_tokens, self.tokenizer.bos_id, dtype=np.int32), np.zeros(self.row_tokens, bool)
        filled = 0
        for ids, mask in pieces:
            row[filled : filled + len(ids)], learnt[filled : filled + len(ids)] = ids, mask
            filled += len(ids)
        return row, learnt

    def iter_rows_once(self) -> Iterator[Rendered]:
        """The rows of one pass in the order of the conversations; the last ones are as full as they get."""
        waiting: list[Rendered] = []
        for start in range(0, len(self.conversations), POOL_CONVERSATIONS):
            stop = start + POOL_CONVERSATIONS
            for index in range(start, min(stop, len(self.conversations))):
                fitting = self.fit(render_arrays(self.tokenizer, self.conversations[index]))
                if fitting is not None:
                    waiting.append(fitting)
            is_last = stop >= len(self.conversations)
            rows, rest = pack_whole([len(ids) for ids, _ in waiting], self.row_tokens, flush=is_last)
            for row in rows:
                yield self.fill(waiting[index] for index in row)
            waiting = [waiting[index] for index in rest]

    def iter_rows(self, place: Place) -> Iterator[tuple[np.ndarray, np.ndarray, Place]]:
        """Endless rows (T + 1,) and masks (T + 1,) from a place, each with the place after it."""
        while True:
            places, pool, counted = self.pool(place)
            rows, rest = pack_whole([len(ids) for ids, _ in pool], self.row_tokens)
            for number in range(place.row, len(rows)):
                row, learnt = self.fill(pool[index] for index in rows[number])
                yield row, learnt, replace(place, row=number + 1, counted=counted)
            carry = tuple(places[index] for index in rest)
            place = Place(place.epoch, place.start + POOL_CONVERSATIONS, 0, carry, counted, counted)
            if place.start >= len(self.conversations):
                if counted.total == counted.dropped:
                    raise DataError(
                        f"all {counted.total:,} conversations are longer than the context of {self.row_tokens - 1:,}",
                        "set overlong to truncate, or enlarge model.context",
                    )
                place = replace(place, epoch=place.epoch + 1, start=0)


def iter_once(conversations: Conversations, tokenizer: Tokenizer, rows: int, context: int) -> Iterator[Batch]:
    """One pass for validation: every conversation once, in its order, whole or truncated at the end of the context.

    The last batch has as many rows as are left; the rows do not depend on how many a batch has.
    """
    source = _Source(conversations, tokenizer, context + 1, seed=0, overlong="truncate")
    found: list[Rendered] = []
    for row in source.iter_rows_once():
        found.append(row)
        if len(found) == rows:
            yield _stack(found)
            found = []
    if found:
        yield _stack(found)


def render_arrays(tokenizer: Tokenizer, conversation: Conversation) -> Rendered:
    ids, mask = render(tokenizer, conversation)
    return np.array(ids, dtype=np.int32), np.array(mask, dtype=bool)


def _stack(rows: list[Rendered]) -> Batch:
    return build_batch(np.stack([row for row, _ in rows]), np.stack([learnt for _, learnt in rows]))


def _iter_batches(
    source: _Source, start: Place, num_rows: int, rank: int, world_size: int
) -> Iterator[tuple[Batch, Place]]:
    rows: list[Rendered] = []
    for row, learnt, place in source.iter_rows(start):
        rows.append((row, learnt))
        if len(rows) == num_rows * world_size:
            yield _stack(rows[rank::world_size]), place
            rows = []


def _measure_epoch(source: _Source) -> EpochSize:
    """From the lengths of all conversations, or of a fixed sample."""
    num_conversations = len(source.conversations)
    chosen = range(num_conversations)
    if num_conversations > PLANNED_CONVERSATIONS:
        chosen = random.Random(f"plan/{source.seed}").sample(chosen, PLANNED_CONVERSATIONS)
    lengths, too_long = [], 0
    for index in chosen:
        rendered = render_arrays(source.tokenizer, source.conversations[index])
        too_long += len(rendered[0]) > source.row_tokens
        fitting = source.fit(rendered)
        if fitting is not None:
            lengths.append(len(fitting[0]))
    rows, _ = pack_whole(lengths, source.row_tokens, flush=True)
    scale = num_conversations / len(chosen)
    return EpochSize(
        conversations=num_conversations,
        tokens=round(sum(lengths) * scale),
        rows=max(1, math.ceil(len(rows) * scale)),
        too_long=round(too_long * scale),
        is_estimate=len(chosen) < num_conversations,
    )
