"""What a data set consists of: the manifest of its shards.

Knows neither parquet nor tokens, so that a plan reads it at once. A folder is a data set exactly if it has a manifest,
which is written last.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from nanochat.errors import DataError, MissingError
from nanochat.files import disk_errors, sync_file, sync_folder

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

MANIFEST = "shards.json"
VERSION = 1
TEXT_COLUMN = "text"
REPEATED = 1.05
"""Epochs from which on text repeats: what is known of them beforehand is about so exact."""


@dataclass(frozen=True)
class Shard:
    """A parquet file of the data set. bytes: of the file. text_bytes: of its texts, about; 0: not known."""

    name: str
    split: Split
    rows: int
    bytes: int
    sha256: str
    text_bytes: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a data set consists of, in reading order."""

    shards: tuple[Shard, ...]
    column: str = TEXT_COLUMN

    def of(self, split: Split) -> tuple[Shard, ...]:
        return tuple(shard for shard in self.shards if shard.split == split)

    def num_rows(self, split: Split) -> int:
        return sum(shard.rows for shard in self.of(split))

    def text_bytes(self, split: Split) -> int | None:
        """Bytes of the split's texts, about; None if they are not known of every shard."""
        sizes = [shard.text_bytes for shard in self.of(split)]
        return sum(sizes) if all(sizes) else None

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


def load_manifest(directory: Path) -> Manifest:
    """Read the manifest of a data set; the shards themselves are not touched.

    Raises MissingError where the folder is no data set and DataError where the manifest cannot be read.
    """
    path = directory / MANIFEST
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingError(f"there is no data set in {directory} (no {MANIFEST})", order_again(directory)) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", order_again(directory)) from error
    try:
        if value["version"] != VERSION:
            raise DataError(f"{path} has version {value['version']}, not {VERSION}", order_again(directory))
        shards = tuple(Shard(**shard) for shard in value["shards"])
        if any(shard.split not in SPLITS or Path(shard.name).name != shard.name for shard in shards):
            raise ValueError("a shard's split or name is wrong")
        return Manifest(shards, str(value["column"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is not a manifest of shards: {error}", order_again(directory)) from error


def save_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest atomically: from here on the folder is this data set."""
    value = {"version": VERSION, "column": manifest.column, "shards": [asdict(shard) for shard in manifest.shards]}
    with replace_file(directory / MANIFEST) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def replace_manifest(directory: Path, manifest: Manifest) -> None:
    """Make the folder this data set, then delete the shards that it no longer names."""
    save_manifest(directory, manifest)
    named = {shard.name for shard in manifest.shards}
    for path in directory.glob("shard_*.parquet"):
        if path.name not in named:
            path.unlink()


def describe_repeats(epochs: float) -> str:
    """A sentence for text that training goes through more than once, else "".

    >>> describe_repeats(14.21), describe_repeats(1.04)
    ('the text repeats: training goes through it about 14.2 times', '')
    """
    if epochs <= REPEATED:
        return ""
    return f"the text repeats: training goes through it about {epochs:,.{epochs < 100:d}f} times"


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes path, durably, where the block ends well, and vanishes where it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path.parent):
        try:
            yield temporary
            with temporary.open("rb+") as file:
                sync_file(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def order_again(directory: Path) -> str:
    if (directory / "source.json").is_file():  # it was downloaded
        return "nanochat download verify --repair"
    return f"nanochat download import FOLDER --name {directory.name}"
