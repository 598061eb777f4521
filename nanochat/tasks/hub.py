"""Rows of a hub data set: parquet files under `folder/<repo>/`, in the order of their names. Downloads nothing.

Parquet is read row group by row group, which is slow in any other order than the file's. So each file is written once
more beside itself in Arrow's format and mapped into memory: any row costs the same, and processes share the pages.
"""

import hashlib
import os
import re
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from nanochat.download.sources import HubSource
from nanochat.errors import DataError, MissingError
from nanochat.files import hash_file
from nanochat.tasks.task import Split, Task

DOWNLOAD = "nanochat download tasks"
REPAIR = "nanochat download verify --repair"
BATCH_ROWS = 4_096
"""Rows that are decoded together while a file is rewritten: tens of megabytes of conversations."""
NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


class HubRows(Sequence[dict[str, Any]]):
    """The rows of one split as dictionaries of the columns asked for; none of their values is null.

    A file may nest its columns in one struct column, as MMLU's auxiliary_train does.

    Raises MissingError where files are not there, and DataError where one is damaged or lacks a column.
    """

    def __init__(self, folder: Path | None, source: HubSource, split: Split, columns: Sequence[str]) -> None:
        self.paths = find_files(folder, source, split)
        self.columns = tuple(columns)
        tables = [load_rows(path, self.columns) for path in self.paths]
        self._batches = [(path, batch) for path, table in zip(self.paths, tables, strict=True) for batch in table]
        self._ends = list(accumulate(batch.num_rows for _, batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        path, batch = self._batches[number]
        place = index - (self._ends[number] - batch.num_rows)
        row = {name: batch.column(name)[place].as_py() for name in self.columns}
        for name, value in row.items():
            if value is None:
                raise DataError(f"row {index} of {path.parent} has no {name!r}", REPAIR)
        return row


class HubTask(Task):
    """A task whose examples are rows of a hub data set."""

    columns: tuple[str, ...]

    def __init__(self, name: str, source: HubSource, split: Split, folder: Path | None) -> None:
        self.name = name
        self.rows = HubRows(folder, source, split, self.columns)

    def num_examples(self) -> int:
        return len(self.rows)

    def source_hash(self) -> str:
        files = [f"{path.name} {hash_file(path)}" for path in self.rows.paths]
        return hashlib.sha256("\n".join([self.name, *files]).encode()).hexdigest()

    @abstractmethod
    def read_row(self, row: dict[str, Any]) -> Any:
        """What a row means. Raises ValueError, TypeError or LookupError for one that means nothing."""

    def read(self, index: int) -> Any:
        """What row `index` means. Raises DataError where it means nothing."""
        try:
            return self.read_row(self.rows[index])
        except (ValueError, TypeError, LookupError) as error:
            raise DataError(f"{self.name}: row {index} of {self.rows.paths[0].parent}: {error}", REPAIR) from error


def find_files(folder: Path | None, source: HubSource, split: Split) -> list[Path]:
    """The files of a split by name. Raises MissingError where there is none, or not all of those that are numbered."""
    pattern = source.pattern(split)
    if folder is None:
        raise MissingError(f"{source.repo} is a downloaded data set, and no folder of such was named", DOWNLOAD)
    paths = sorted((folder / source.repo).glob(pattern))
    if not paths:
        raise MissingError(f"there is no {pattern} of {source.repo} in {folder}", DOWNLOAD)
    numbered = [match for match in (NUMBERED.search(path.name) for path in paths) if match]
    if numbered:
        have, expected = {int(match[1]) for match in numbered}, max(int(match[2]) for match in numbered)
        if lacking := sorted(set(range(expected)) - have):
            shown = ", ".join(f"{number:05d}" for number in lacking[:5])
            raise MissingError(
                f"{len(lacking)} of the {expected} files {pattern} of {source.repo} are not in {folder}: {shown}",
                DOWNLOAD,
            )
    return paths


def load_rows(path: Path, columns: Sequence[str]) -> list[Any]:
    """The Arrow batches of a parquet file: mapped, or in memory where the folder cannot be written to.

    Raises DataError where the file is damaged or lacks a column.
    """
    import pyarrow as pa

    try:
        stat = path.stat()
        identity = f"{stat.st_size} {stat.st_mtime_ns} {' '.join(columns)}".encode()
        cache = path.with_name(f".{path.name}.arrow")
        if (found := _open_cache(cache, identity)) is not None:
            return found
        schema, batches = _read_parquet(path, columns)
        marked = schema.with_metadata({b"nanochat": identity})
        temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
        try:
            with pa.ipc.new_file(str(temporary), marked) as writer:
                for batch in batches:
                    writer.write_batch(batch.cast(marked) if batch.schema != marked else batch)
            temporary.replace(cache)
        except OSError:  # read-only or full: the same rows, only not shared; a parquet file that fails, fails again
            return list(_read_parquet(path, columns)[1])
        finally:
            _remove(temporary)
        found = _open_cache(cache, identity)
        return list(_read_parquet(path, columns)[1]) if found is None else found
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", REPAIR) from error


def _open_cache(cache: Path, identity: bytes) -> list[Any] | None:
    """The mapped batches; None where the file is absent, damaged or of another parquet file."""
    import pyarrow as pa

    try:
        reader = pa.ipc.open_file(pa.memory_map(str(cache)))
        if (reader.schema.metadata or {}).get(b"nanochat") != identity:
            return None
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
    except (OSError, pa.ArrowException):
        return None


def _read_parquet(path: Path, columns: Sequence[str]) -> tuple[Any, Any]:
    """The schema of the columns and an iterator over their batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    nested = None
    if len(schema) == 1 and pa.types.is_struct(schema.field(0).type) and schema.field(0).name not in columns:
        nested = schema.field(0).name
        schema = pa.schema(list(schema.field(0).type))
    if lacking := [name for name in columns if name not in schema.names]:
        raise DataError(
            f"{path} has no column {', '.join(map(repr, lacking))}; it has {', '.join(schema.names)}", REPAIR
        )
    chosen = pa.schema([schema.field(name) for name in columns])

    def iter_batches() -> Any:
        for batch in file.iter_batches(BATCH_ROWS, columns=None if nested else list(columns)):
            flat = pa.RecordBatch.from_struct_array(batch.column(0)) if nested else batch
            yield pa.RecordBatch.from_arrays([flat.column(name) for name in columns], schema=chosen)

    return chosen, iter_batches()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        pass
