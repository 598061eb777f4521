from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data import shards
from nanochat.data.shards import (
    iter_documents,
    iter_text_arrays,
    list_row_groups,
    load_manifest,
    read_row_group,
    verify_dataset,
    write_shards,
)
from nanochat.errors import CapacityError, DataError, MissingError

TEXTS = [f"document {index} \u00e4\n" * (index % 5 + 1) for index in range(257)]


def test_documents_come_back_in_order_over_shards_and_row_groups(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, TEXTS, "train", shard_bytes=2_000, group_documents=10)
    assert list(iter_documents(tmp_path, "train")) == TEXTS
    assert len(manifest.of("train")) > 2 and manifest.num_rows("train") == len(TEXTS)
    assert len(list_row_groups(tmp_path, "train")) == 26
    assert sum(len(array) for array in iter_text_arrays(tmp_path, "train")) == len(TEXTS)
    assert load_manifest(tmp_path) == manifest == verify_dataset(tmp_path)


def test_a_split_is_replaced_and_the_other_kept(tmp_path: Path) -> None:
    write_shards(tmp_path, ["v"], "val")
    write_shards(tmp_path, ["old"], "train")
    write_shards(tmp_path, ["new"], "train")
    assert list(iter_documents(tmp_path, "train")) == ["new"]
    assert list(iter_documents(tmp_path, "val")) == ["v"]
    assert len(list(tmp_path.iterdir())) == 3  # two shards and the manifest: no leftovers


def test_the_same_documents_have_the_same_hash(tmp_path: Path) -> None:
    one = write_shards(tmp_path / "one", TEXTS, "train").hash
    assert one == write_shards(tmp_path / "two", TEXTS, "train").hash
    assert one != write_shards(tmp_path / "three", TEXTS[1:], "train").hash


def test_a_failing_source_leaves_the_old_data_set_whole(tmp_path: Path) -> None:
    write_shards(tmp_path, ["old"], "train")

    def documents():
        yield from TEXTS
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write_shards(tmp_path, documents(), "train", shard_bytes=2_000)
    assert list(iter_documents(tmp_path, "train")) == ["old"]
    verify_dataset(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(CapacityError, match="full"):
        write_shards(tmp_path, ["text"], "train")
    assert not list(tmp_path.iterdir())


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"), [(flip_byte, "corrupt"), (cut_short, "bytes, not"), (Path.unlink, "missing")]
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage, said: str) -> None:
    write_shards(tmp_path, TEXTS, "train")
    damage(tmp_path / "shard_00000.parquet")
    with pytest.raises(DataError, match=f"shard_00000.parquet.*{said}"):
        verify_dataset(tmp_path)


def test_a_folder_without_a_manifest_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no data set") as error:
        load_manifest(tmp_path)
    assert error.value.hint.startswith("nanochat download import")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"version": 2}',
        '{"version": 1, "column": "text", "shards": [{"name": "../x"}]}',
        '{"version": 1, "column": "text", "shards": '
        '[{"name": "../x", "split": "train", "rows": 1, "bytes": 1, "sha256": ""}]}',
    ],
)
def test_a_broken_manifest_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "shards.json").write_text(text)
    with pytest.raises(DataError, match="shards.json"):
        load_manifest(tmp_path)


def test_a_missing_split_is_said(tmp_path: Path) -> None:
    write_shards(tmp_path, ["text"], "train")
    with pytest.raises(MissingError, match="no val shard"):
        list_row_groups(tmp_path, "val")


def test_a_shard_without_the_column_lists_its_columns(tmp_path: Path) -> None:
    write_shards(tmp_path, ["text"], "train")
    pq.write_table(pa.table({"body": ["a"], "score": [1]}), tmp_path / "shard_00000.parquet")
    with pytest.raises(DataError, match=r"no column 'text'.*body \(string\), score \(int64\)"):
        list_row_groups(tmp_path, "train")


def test_a_shard_that_was_replaced_while_it_was_read_is_no_damage(tmp_path: Path) -> None:
    write_shards(tmp_path, TEXTS, "train", shard_bytes=2_000, group_documents=10)
    group = list_row_groups(tmp_path, "train")[-1]
    group.path.unlink()
    with pytest.raises(DataError, match="not there any more: the data set was replaced") as caught:
        read_row_group(group)
    assert "import" not in caught.value.hint and "same command again" in caught.value.hint


def test_a_row_group_holds_no_more_than_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "GROUP_BYTES", 100)
    write_shards(tmp_path, ["x" * 60, "y" * 60, "z" * 500], "train")
    assert [group.num_rows for group in list_row_groups(tmp_path, "train")] == [1, 1, 1]
