"""Rows of hub files by number. Knows where a file lies (sources.py) and nothing of what is in a row.

A shuffled mixture asks for rows in any order, which parquet cannot give without decoding a whole row group each time.
So each file is written once more beside itself as uncompressed Arrow (`.NAME.arrow`) and mapped: all processes of a
machine share its pages. Where the folder cannot be written, or its disk is full, the rows are held in memory instead.
"""

import contextlib
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.errors import DataError, MissingError
from nanochat.sources import TASK_SOURCES

BATCH_ROWS = 4_096
ORIGIN = b"nanochat.origin"


class HubRows:
    """Rows of one split of a task's files, as dictionaries with the named columns.

    folder: where hub repositories lie (`workspace.tasks`). Raises MissingError where no file is there, DataError where
    one cannot be read or lacks a column.
    """

    def __init__(self, task: str, split: str, columns: Sequence[str], folder: Path | None) -> None:
        source = TASK_SOURCES[task]
        pattern = source.pattern(split)
        paths = sorted((folder / source.repo).glob(pattern)) if folder is not None else []
        if not paths:
            raise MissingError(
                f"{source.repo}/{pattern} is not downloaded{f' to {folder}' if folder else ''}",
                f"nanochat download tasks {task}",
            )
        self._tables = [_load_table(path, columns, task) for path in paths]
        self._ends = list(accumulate(table.num_rows for table in self._tables))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self._ends, index)
        start = self._ends[place - 1] if place else 0
        return self._tables[place].slice(index - start, 1).to_pylist()[0]


def _load_table(path: Path, columns: Sequence[str], task: str) -> pa.Table:
    hint = f"nanochat download verify --repair  # or remove it, then: nanochat download tasks {task}"
    try:
        found = path.stat()
        origin = f"{found.st_size} {found.st_mtime_ns} {' '.join(columns)}".encode()
        mapped = path.with_name(f".{path.name}.arrow")
        with contextlib.suppress(OSError, pa.ArrowInvalid):
            table = _map_table(mapped)
            if (table.schema.metadata or {}).get(ORIGIN) == origin:
                return table
        with contextlib.suppress(OSError):
            _write_table(path, mapped, columns, origin)
            return _map_table(mapped)
        return pa.Table.from_batches(list(_iter_batches(pq.ParquetFile(path), columns)))
    except KeyError as error:
        raise DataError(f"{path} has no column {error}", hint) from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}", hint) from error


def _map_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _write_table(path: Path, mapped: Path, columns: Sequence[str], origin: bytes) -> None:
    temporary = mapped.with_name(f"{mapped.name}.{os.getpid()}")
    try:
        with pq.ParquetFile(path) as file:
            writer = None
            with temporary.open("wb") as sink:
                for batch in _iter_batches(file, columns):
                    writer = writer or pa.ipc.new_file(sink, batch.schema.with_metadata({ORIGIN: origin}))
                    writer.write_batch(batch.replace_schema_metadata({ORIGIN: origin}))
                if writer is None:
                    raise pa.ArrowInvalid("it has no rows")
                writer.close()
        temporary.replace(mapped)  # two processes may write it at once: both write the same
    finally:
        temporary.unlink(missing_ok=True)


def _iter_batches(file: pq.ParquetFile, columns: Sequence[str]):
    """Batches of the named columns; a file whose one column is a struct (MMLU's training split) has its fields."""
    for batch in file.iter_batches(BATCH_ROWS):
        if batch.num_columns == 1 and pa.types.is_struct(batch.schema.field(0).type):
            batch = pa.RecordBatch.from_struct_array(batch.column(0))
        for name in columns:
            if name not in batch.schema.names:
                raise KeyError(name)
        yield batch.select(list(columns))
