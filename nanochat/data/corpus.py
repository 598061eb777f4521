"""Shards of the hub that lie in a folder become a data set: the last one for validation, the others to train on.

Knows nothing of where they came from but their names and hashes.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nanochat.data.dataset import MANIFEST, TEXT_COLUMN, Manifest, Shard, load_manifest, save_manifest
from nanochat.data.shards import check_column, measure_group, open_shard
from nanochat.errors import DataError


def adopt_shards(directory: Path, hashes: Mapping[str, str], val_name: str) -> Manifest:
    """Write the manifest of shards that are in place. hashes: SHA-256 by file name, known to be right.

    What the manifest knew already is not read again; a manifest that stays the same is not written. Raises DataError
    where a shard is no parquet file with a text column, or where there is none to train on or to validate with.
    """
    before = load_manifest(directory) if (directory / MANIFEST).is_file() else Manifest(())
    known = {(shard.name, shard.sha256): shard for shard in before.shards}
    train = sorted(name for name in hashes if name != val_name)
    if not train or val_name not in hashes:
        raise DataError(
            f"{directory} holds {len(hashes)} shards: one to train on and {val_name} are the least", "--shards 2"
        )
    shards = []
    for name in (*train, val_name):
        split = "val" if name == val_name else "train"
        shard = known.get((name, hashes[name])) or _read_shard(directory / name, hashes[name])
        shards.append(replace(shard, split=split))
    manifest = Manifest(tuple(shards), TEXT_COLUMN)
    if manifest != before:
        save_manifest(directory, manifest)
    return manifest


def _read_shard(path: Path, sha256: str) -> Shard:
    with open_shard(path) as file:
        check_column(file, path, TEXT_COLUMN)
        text_bytes = sum(measure_group(file, index, TEXT_COLUMN) for index in range(file.num_row_groups))
        return Shard(path.name, "train", file.metadata.num_rows, path.stat().st_size, sha256, text_bytes)
