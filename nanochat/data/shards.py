"""Pretraining text on disk: parquet shards with one text column and a manifest of their hashes.

Knows neither tokens nor ranks. A folder is a data set exactly where it has a manifest, which is written last.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat.errors import CapacityError, DataError, MissingError
from nanochat.manifest import hash_file

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

MANIFEST = "shards.json"
VERSION = 1
TEXT_COLUMN = "text"
SHARD_BYTES = 256_000_000
"""Text of one shard: the size of the fineweb-edu shards."""
GROUP_DOCUMENTS = 1_000
"""Documents of a row group, the unit that a rank reads: about a million tokens of web text."""
GROUP_BYTES = 16_000_000
"""Text of a row group where documents are long; a single longer document is a group of its own."""

Progress = Callable[[int, int], None]
"""progress(done, total) in bytes; total may grow."""


@dataclass(frozen=True)
class Shard:
    """A parquet file of the data set. bytes: of the file."""

    name: str
    split: Split
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a data set consists of, in reading order."""

    shards: tuple[Shard, ...]
    column: str = TEXT_COLUMN

    def of(self, split: Split) -> tuple[Shard, ...]:
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_rows(self, split: Split) -> int:
        return sum(shard.rows for shard in self.of(split))

    @property
    def hash(self) -> str:
        """SHA-256 over the contents in reading order: two data sets with one hash give the same training."""
        return self._hash(self.shards)

    def hash_of(self, split: Split) -> str:
        """SHA-256 over the contents of one split in reading order."""
        return self._hash(self.of(split))

    @staticmethod
    def _hash(shards: tuple[Shard, ...]) -> str:
        lines = [f"{shard.split} {shard.sha256}\n" for shard in shards]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class RowGroup:
    """One row group of one shard. num_bytes: of its texts, as parquet counts them before it compresses."""

    path: Path
    index: int
    column: str
    num_rows: int
    num_bytes: int


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest of a data set; the shards themselves are not touched.

    Raises MissingError where the folder is no data set and DataError where the manifest cannot be read.
    """
    path = directory / MANIFEST
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(f"there is no data set in {directory} (no {MANIFEST})", _again(directory)) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", _again(directory)) from error
    try:
        if value["version"] != VERSION:
            raise DataError(f"{path} has version {value['version']}, not {VERSION}", _again(directory))
        shards = tuple(Shard(**shard) for shard in value["shards"])
        if any(shard.split not in SPLITS or Path(shard.name).name != shard.name for shard in shards):
            raise ValueError("a shard's split or name is wrong")
        return Manifest(shards, str(value["column"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a manifest of shards: {error}", _again(directory)) from error


def save_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest atomically: from here on the folder is this data set."""
    value = {"version": VERSION, "column": manifest.column, "shards": [asdict(shard) for shard in manifest.shards]}
    with _replace(directory / MANIFEST) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def describe_shard(path: Path, split: Split) -> Shard:
    """Hash a parquet file that is already in place, for a manifest. Raises DataError where it is not parquet."""
    return Shard(path.name, split, open_shard(path).metadata.num_rows, path.stat().st_size, hash_file(path))


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


def replace_manifest(directory: Path, manifest: Manifest) -> None:
    """Make the folder this data set, then delete the shards that it no longer names."""
    save_manifest(directory, manifest)
    named = {shard.name for shard in manifest.shards}
    for path in directory.glob("shard_*.parquet"):
        if path.name not in named:
            path.unlink()


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
        with _replace(path) as temporary:
            schema = pa.schema([pa.field(TEXT_COLUMN, pa.string())])
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                while group is not None and (size == 0 or size + group[1] <= shard_bytes):
                    texts, text_bytes = group
                    writer.write_table(
                        pa.table([pa.array(texts, pa.string())], schema=schema), row_group_size=len(texts)
                    )
                    rows, size = rows + len(texts), size + max(1, text_bytes)
                    group = next(groups, None)
        shards.append(Shard(path.name, split, rows, path.stat().st_size, hash_file(path)))
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
            raise DataError(f"{path} is missing", _again(directory))
        if path.stat().st_size != shard.bytes:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, not {shard.bytes:,}", _again(directory))
        if hash_file(path) != shard.sha256:
            raise DataError(f"{path} is corrupt: its SHA-256 is not that of the manifest", _again(directory))
        file = open_shard(path)
        check_column(file, path, manifest.column)
        if file.metadata.num_rows != shard.rows:
            raise DataError(f"{path} has {file.metadata.num_rows:,} documents, not {shard.rows:,}", _again(directory))
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
        raise MissingError(f"the data set {directory} has no {split} shard", _again(directory))
    groups = []
    for shard in manifest.of(split):
        path = directory / shard.name
        file = open_shard(path)
        check_column(file, path, manifest.column)
        if (size := path.stat().st_size) != shard.bytes:
            raise DataError(f"{path} has {size:,} bytes, {MANIFEST} says {shard.bytes:,}", _again(directory))
        place = file.schema_arrow.get_field_index(manifest.column)
        for index in range(file.num_row_groups):
            about = file.metadata.row_group(index)
            if about.num_rows:
                num_bytes = about.column(place).total_uncompressed_size
                groups.append(RowGroup(path, index, manifest.column, about.num_rows, num_bytes))
    if not groups:
        raise DataError(f"the data set {directory} has no {split} documents", _again(directory))
    return groups


def read_row_group(group: RowGroup) -> pa.ChunkedArray:
    """The texts of a row group; a missing text is null. Raises DataError where the file is damaged."""
    try:
        with pq.ParquetFile(group.path) as file:
            return file.read_row_group(group.index, columns=[group.column]).column(0)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot read row group {group.index} of {group.path}: {error}", _again(group.path.parent)
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
        raise DataError(f"{path} is missing", _again(path.parent)) from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}", _again(path.parent)) from error


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


@contextmanager
def _replace(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes path, durably, where the block ends well, and vanishes where it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        if hasattr(os, "O_DIRECTORY"):  # the rename itself lives in the folder; Windows has no handle for that
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(
                f"the disk of {path.parent} is full", "free some space and run the command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _again(directory: Path) -> str:
    if (directory / "source.json").is_file():  # it was downloaded
        return "nanochat download verify --repair"
    return f"nanochat download import FOLDER --name {directory.name}"
