"""Rows of pretraining text among rows of conversations: a model that learns to talk keeps what it has read.

The caller says which rank it is; nothing here communicates. Rows are counted from the first of the stage, over all
ranks. Row k is text if (k + 1) * share passes a whole number, so that neither the ranks nor the rows of a batch matter.
"""

from collections.abc import Iterator
from typing import Any

import torch

from nanochat.data.batch import Batch
from nanochat.data.finetune import Counts, FinetuneLoader
from nanochat.data.pretrain import PretrainLoader
from nanochat.errors import DataError


def is_text_row(number: int, share: float) -> bool:
    """Whether a row of the stage is text.

    >>> [number for number in range(12) if is_text_row(number, 0.25)]
    [3, 7, 11]
    """
    return int((number + 1) * share) > int(number * share)


def split_cursor(cursor: dict[str, Any] | None) -> tuple[dict[str, Any] | None, dict[str, Any] | None, int]:
    """Cursors of the conversations and of the text, and the row, from what `ReplayLoader.cursor` returned."""
    if cursor is None:
        return None, None, 0
    try:
        return cursor["conversations"], cursor["text"], int(cursor["row"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the data cursor cannot be read: {error!r}", "resume from an earlier checkpoint") from error


class ReplayLoader:
    """Iterates endlessly over Batch(ids, targets), each (rows, context) int64 on the CPU.

    conversations, text: loaders of single rows of a world of one rank, at the places of `split_cursor`; this one closes
    them. share: of the rows, in (0, 1), that are text. row: the number of the next row, over all ranks.
    """

    def __init__(
        self,
        conversations: FinetuneLoader,
        text: PretrainLoader,
        share: float,
        rows: int,
        rank: int = 0,
        world_size: int = 1,
        row: int = 0,
    ) -> None:
        assert 0 < share < 1 and 0 <= rank < world_size and rows > 0, (share, rank, world_size, rows)
        self._conversations, self._text, self._share, self._row = conversations, text, share, row
        self._rows, self._rank, self._world_size = rows, rank, world_size
        self.changed = "; ".join(filter(None, (conversations.changed, text.changed)))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        numbers = range(self._row, self._row + self._rows * self._world_size)
        batches = [next(self._text if is_text_row(number, self._share) else self._conversations) for number in numbers]
        self._row = numbers.stop
        mine = batches[self._rank :: self._world_size]
        return Batch(torch.cat([batch.ids for batch in mine]), torch.cat([batch.targets for batch in mine]))

    @property
    def counts(self) -> Counts:
        """Conversations read, dropped and truncated for the batches yielded so far, over all epochs."""
        return self._conversations.counts

    def cursor(self) -> dict[str, Any]:
        """Where the batch just yielded ends, the same on every rank, as JSON."""
        return {"conversations": self._conversations.cursor(), "text": self._text.cursor(), "row": self._row}

    def close(self) -> None:
        """Stop the threads. The loader yields nothing more."""
        self._conversations.close()
        self._text.close()
