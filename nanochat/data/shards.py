"""Pretraining text on disk: parquet shards with one text column and a manifest of their hashes.

Knows neither tokens nor ranks. A folder is a data set exactly where it has a manifest, which is written last.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.data.dataset import (
    MANIFEST,
    TEXT_COLUMN,
    Manifest,
    Shard,
    Split,
    load_manifest,
    order_again,
    replace_file,
    replace_manifest,
)
from nanochat.errors import DataError, MissingError
from nanochat.files import hash_file

SHARD_BYTES = 256_000_000
"""Text of one shard: the size of the fineweb-edu shards."""
GROUP_DOCUMENTS = 1_000
"""Documents of a row group, the unit that a rank reads: about a million tokens of web text."""
GROUP_BYTES = 16_000_000
"""Text of a row group where documents are long; a single longer document is a group of its own."""

Progress = Callable[[int, int], None]
"""progress(done, total) in bytes; total may grow."""


@dataclass(frozen=True)
class RowGroup:
    """One row group of one shard. num_bytes: of its texts, as parquet counts them before it compresses."""

    path: Path
    index: int
    column: str
    num_rows: int
    num_bytes: int


def write_shards(
    directory: Path,
    documents: Iterable[str],
    split: Split,
    *,
    shard_bytes: int = SHARD_BYTES,
    group_documents: int = GROUP_DOCUMENTS,
) -> Manifest:
    """Write documents, in order, as a split of a data set, in place of what the split held; return the manifest.

    The folder is made where needed. Until the manifest is replaced, at the end, the old data set stays whole.
    Empty documents are written as they come.
    """
    directory.mkdir(parents=True, exist_ok=True)
    old = load_manifest(directory) if (directory / MANIFEST).is_file() else Manifest(())
    new = write_shard_files(directory, documents, split, shard_bytes=shard_bytes, group_documents=group_documents)
    manifest = Manifest(tuple(shard for shard in old.shards if shard.split != split) + tuple(new), TEXT_COLUMN)
    replace_manifest(directory, manifest)
    return manifest


def write_shard_files(
    directory: Path,
    documents: Iterable[str],
    split: Split,
    *,
    shard_bytes: int = SHARD_BYTES,
    group_documents: int = GROUP_DOCUMENTS,
) -> list[Shard]:
    """Write shards after those that are in the folder, each atomically, without touching the manifest."""
    taken = [re.fullmatch(r"shard_(\d+)\.parquet", path.name) for path in directory.glob("shard_*.parquet")]
    number = max((int(match[1]) for match in taken if match), default=-1) + 1
    groups = _iter_groups(documents, group_documents)
    group = next(groups, None)
    shards = []
    while group is not None:
        path, rows, size = directory / f"shard_{number:05d}.parquet", 0, 0
        with replace_file(path) as temporary:
            schema = pa.schema([pa.field(TEXT_COLUMN, pa.string())])
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                while group is not None and (size == 0 or size + group[1] <= shard_bytes):
                    texts, text_bytes = group
                    writer.write_table(
                        pa.table([pa.array(texts, pa.string())], schema=schema), row_group_size=len(texts)
                    )
                    rows, size = rows + len(texts), size + max(1, text_bytes)
                    group = next(groups, None)
        shards.append(Shard(path.name, split, rows, path.stat().st_size, hash_file(path), size))
        number += 1
    return shards


def verify_dataset(directory: Path, progress: Progress | None = None) -> Manifest:
    """Compare every shard with the manifest: size, SHA-256, number of documents, column.

    Raises DataError that names the first shard that differs.
    """
    manifest = load_manifest(directory)
    total, done = sum(shard.bytes for shard in manifest.shards), 0
    for shard in manifest.shards:
        path = directory / shard.name
        if not path.is_file():
            raise DataError(f"{path} is missing", order_again(directory))
        if path.stat().st_size != shard.bytes:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, not {shard.bytes:,}", order_again(directory))
        try:
            is_same = hash_file(path) == shard.sha256
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}", order_again(directory)) from error
        if not is_same:
            raise DataError(f"{path} is corrupt: its SHA-256 is not that of the manifest", order_again(directory))
        file = open_shard(path)
        check_column(file, path, manifest.column)
        if file.metadata.num_rows != shard.rows:
            raise DataError(
                f"{path} has {file.metadata.num_rows:,} documents, not {shard.rows:,}", order_again(directory)
            )
        done += shard.bytes
        if progress:
            progress(done, total)
    return manifest


def list_row_groups(directory: Path, split: Split) -> list[RowGroup]:
    """The split's row groups in reading order; empty ones are left out.

    Raises MissingError where the split has no shard and DataError where a shard is missing or unreadable.
    """
    manifest = load_manifest(directory)
    if not manifest.of(split):
        raise MissingError(f"the data set {directory} has no {split} shard", order_again(directory))
    groups = []
    for shard in manifest.of(split):
        path = directory / shard.name
        file = open_shard(path)
        check_column(file, path, manifest.column)
        if (size := path.stat().st_size) != shard.bytes:
            raise DataError(f"{path} has {size:,} bytes, {MANIFEST} says {shard.bytes:,}", order_again(directory))
        for index in range(file.num_row_groups):
            num_rows, num_bytes = file.metadata.row_group(index).num_rows, measure_group(file, index, manifest.column)
            if num_rows:
                groups.append(RowGroup(path, index, manifest.column, num_rows, num_bytes))
    if not groups:
        raise DataError(f"the data set {directory} has no {split} documents", order_again(directory))
    return groups


def measure_largest_group(directory: Path) -> int:
    """Bytes of the texts of the largest training row group. Raises as `list_row_groups` does."""
    return max(group.num_bytes for group in list_row_groups(directory, "train"))


def measure_text(directory: Path, split: Split) -> int:
    """Bytes of the split's texts, about. Raises as `list_row_groups` does."""
    known = load_manifest(directory).text_bytes(split)
    return known or sum(group.num_bytes for group in list_row_groups(directory, split))


def read_row_group(group: RowGroup) -> pa.ChunkedArray:
    """The texts of a row group; a missing text is null. Raises DataError where the file is damaged."""
    try:
        with pq.ParquetFile(group.path) as file:
            return file.read_row_group(group.index, columns=[group.column]).column(0)
    except FileNotFoundError as error:
        said = f"{group.path} is not there any more: the data set was replaced while it was read"
        raise DataError(said, "the same command again reads the one that is there now") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot read row group {group.index} of {group.path}: {error}", order_again(group.path.parent)
        ) from error


def iter_text_arrays(directory: Path, split: Split) -> Iterator[pa.Array]:
    """The split's texts as Arrow arrays, a row group at a time: what the tokenizer's trainer reads without copying."""
    for group in list_row_groups(directory, split):
        yield from read_row_group(group).chunks


def iter_documents(directory: Path, split: Split) -> Iterator[str]:
    """The split's texts in reading order, without the empty ones."""
    for array in iter_text_arrays(directory, split):
        for text in array.to_pylist():
            if text:
                yield text


def measure_group(file: pq.ParquetFile, index: int, column: str) -> int:
    """Bytes of a row group's texts, about: as parquet counts them before it compresses."""
    group = file.metadata.row_group(index)
    columns = (group.column(place) for place in range(group.num_columns))
    return sum(about.total_uncompressed_size for about in columns if about.path_in_schema == column)


def check_column(file: pq.ParquetFile, path: Path, column: str) -> None:
    """Raise DataError, with the columns that there are, unless the file has this column of text."""
    schema = file.schema_arrow
    have = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if column not in schema.names:
        raise DataError(f"{path} has no column {column!r}; its columns are {have}", "choose one with --column")
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError(
            f"column {column!r} of {path} holds {kind}, not text; its columns are {have}", "choose one with --column"
        )


def open_shard(path: Path) -> pq.ParquetFile:
    """Raises DataError where the file is missing or no parquet."""
    try:
        return pq.ParquetFile(path, memory_map=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing", order_again(path.parent)) from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}", order_again(path.parent)) from error


def _iter_groups(documents: Iterable[str], group_documents: int) -> Iterator[tuple[list[str], int]]:
    texts: list[str] = []
    size = 0
    for text in documents:
        text_bytes = len(text.encode())
        if texts and (len(texts) == group_documents or size + text_bytes > GROUP_BYTES):
            yield texts, size
            texts, size = [], 0
        texts.append(text)
        size += text_bytes
    if texts:
        yield texts, size
