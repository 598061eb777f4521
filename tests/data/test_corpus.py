from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.corpus import adopt_shards
from nanochat.data.shards import hash_file, iter_documents, load_manifest, verify_dataset
from nanochat.errors import DataError


def put(folder: Path, name: str, texts: list[str], column: str = "text") -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({column: texts}), folder / name)
    return name, hash_file(folder / name)


def test_hub_shards_become_a_data_set_whose_last_shard_validates(tmp_path: Path) -> None:
    hashes = dict(put(tmp_path, f"shard_0000{index}.parquet", [f"text {index}"] * 3) for index in (0, 1, 9))
    manifest = adopt_shards(tmp_path, hashes, "shard_00009.parquet")
    assert verify_dataset(tmp_path) == manifest
    assert list(iter_documents(tmp_path, "train")) == ["text 0"] * 3 + ["text 1"] * 3
    assert list(iter_documents(tmp_path, "val")) == ["text 9"] * 3


def test_more_shards_come_behind_those_that_are_there(tmp_path: Path) -> None:
    hashes = dict(put(tmp_path, f"shard_0000{index}.parquet", [f"text {index}"]) for index in (0, 9))
    adopt_shards(tmp_path, hashes, "shard_00009.parquet")
    written = (tmp_path / "shards.json").stat().st_mtime_ns
    adopt_shards(tmp_path, hashes, "shard_00009.parquet")
    assert (tmp_path / "shards.json").stat().st_mtime_ns == written
    hashes |= dict([put(tmp_path, "shard_00001.parquet", ["text 1"])])
    adopt_shards(tmp_path, hashes, "shard_00009.parquet")
    assert [shard.name for shard in load_manifest(tmp_path).of("train")] == [
        "shard_00000.parquet",
        "shard_00001.parquet",
    ]


def test_what_cannot_be_read_or_trained_on_is_refused(tmp_path: Path) -> None:
    one = dict([put(tmp_path, "shard_00000.parquet", ["a"])])
    with pytest.raises(DataError, match="one to train on"):
        adopt_shards(tmp_path, one, "shard_00000.parquet")
    wrong = one | dict([put(tmp_path, "shard_00001.parquet", ["a"], column="content")])
    with pytest.raises(DataError, match="has no column 'text'"):
        adopt_shards(tmp_path, wrong, "shard_00000.parquet")
    (tmp_path / "shard_00001.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="is not a readable parquet file"):
        adopt_shards(tmp_path, wrong, "shard_00000.parquet")
    assert not (tmp_path / "shards.json").exists()
