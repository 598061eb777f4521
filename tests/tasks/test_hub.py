import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.download.sources import TASK_SOURCES, HubSource
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.tasks import hub
from nanochat.tasks.catalog import HUB, build_mixture, build_task
from nanochat.tasks.hub import HubRows

SOURCE = HubSource("some/set", {"train": "main/train-*.parquet"})


def write(path: Path, columns: dict[str, list[Any]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def write_parts(folder: Path, num_files: int = 2, rows: int = 50) -> list[Path]:
    return [
        write(
            folder / "some/set/main" / f"train-{part:05d}-of-{num_files:05d}.parquet",
            {"a": [f"{part}/{row}" for row in range(rows)], "b": list(range(rows)), "unused": [None] * rows},
            row_group_size=7,
        )
        for part in range(num_files)
    ]


def test_rows_are_those_of_all_files_in_order_and_any_order_of_indices_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "BATCH_ROWS", 8)
    write_parts(tmp_path)
    rows = HubRows(tmp_path, SOURCE, "train", ("b", "a"))
    expected = [{"b": row, "a": f"{part}/{row}"} for part in range(2) for row in range(50)]
    assert list(rows) == expected
    assert [rows[index] for index in range(99, -1, -3)] == expected[::-3]
    with pytest.raises(IndexError):
        rows[100]


def test_the_second_opening_maps_what_the_first_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path)
    first = list(HubRows(tmp_path, SOURCE, "train", ("a",)))
    assert len(list(tmp_path.rglob(".*.arrow"))) == 2 and not list(tmp_path.rglob("*.arrow.*"))
    monkeypatch.setattr(hub, "_read_parquet", lambda *_: pytest.fail("parquet was read again"))
    assert list(HubRows(tmp_path, SOURCE, "train", ("a",))) == first


def test_another_parquet_file_and_a_damaged_copy_are_noticed(tmp_path: Path) -> None:
    (path,) = write_parts(tmp_path, 1)
    list(HubRows(tmp_path, SOURCE, "train", ("a",)))
    (cache,) = tmp_path.rglob(".*.arrow")
    cache.write_bytes(cache.read_bytes()[:-40])
    assert HubRows(tmp_path, SOURCE, "train", ("a",))[3] == {"a": "0/3"}
    write(path, {"a": ["new"], "b": [1]})
    assert list(HubRows(tmp_path, SOURCE, "train", ("a",))) == [{"a": "new"}]
    assert list(HubRows(tmp_path, SOURCE, "train", ("b",))) == [{"b": 1}]


def test_a_folder_that_cannot_be_written_to_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parts(tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_file", refuse)
    assert HubRows(tmp_path, SOURCE, "train", ("a",))[51] == {"a": "1/1"}
    assert not list(tmp_path.rglob("*.arrow*"))


def test_columns_nested_in_one_struct_are_found(tmp_path: Path) -> None:
    write(
        tmp_path / "some/set/main/train-00000-of-00001.parquet",
        {"train": [{"a": f"x{row}", "b": row} for row in range(20)]},
        row_group_size=6,
    )
    assert HubRows(tmp_path, SOURCE, "train", ("b", "a"))[13] == {"b": 13, "a": "x13"}


def test_what_is_missing_is_said_with_the_command_that_brings_it(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with pytest.raises(MissingError) as error:
            HubRows(folder, SOURCE, "train", ("a",))
        assert error.value.hint == "nanochat download tasks"
    write_parts(tmp_path, 3)[1].unlink()
    with pytest.raises(MissingError, match="1 of the 3 files .*: 00001"):
        HubRows(tmp_path, SOURCE, "train", ("a",))
    with pytest.raises(UsageError, match="no 'test' split"):
        HubRows(tmp_path, SOURCE, "test", ("a",))


@pytest.mark.parametrize("keep", [0, 100, -9])
def test_a_damaged_file_is_named(tmp_path: Path, keep: int) -> None:
    (path,) = write_parts(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="train-00000-of-00001.parquet cannot be read") as error:
        HubRows(tmp_path, SOURCE, "train", ("a",))
    assert error.value.hint == "nanochat download verify --repair"


def test_damage_in_the_middle_of_a_file_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "some/set/main/train-00000-of-00001.parquet", {"a": [os.urandom(20).hex() for _ in range(2_000)]}
    )
    data = bytearray(path.read_bytes())
    data[4:3_000] = b"\xff" * 2_996
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read"):
        HubRows(tmp_path, SOURCE, "train", ("a",))


def test_a_column_that_is_not_there_and_a_null_are_said(tmp_path: Path) -> None:
    write_parts(tmp_path)
    with pytest.raises(DataError, match="no column 'c', 'd'; it has a, b, unused"):
        HubRows(tmp_path, SOURCE, "train", ("a", "c", "d"))
    with pytest.raises(DataError, match="row 3 of .* has no 'unused'"):
        HubRows(tmp_path, SOURCE, "train", ("unused",))[3]


@pytest.mark.parametrize("name", list(HUB))
def test_each_task_of_the_hub_says_how_to_get_it(tmp_path: Path, name: str) -> None:
    assert name in TASK_SOURCES
    with pytest.raises(MissingError) as error:
        build_task(name, "test", folder=tmp_path)
    assert error.value.hint == "nanochat download tasks"
    if "train" in TASK_SOURCES[name].files:
        with pytest.raises(MissingError):
            build_mixture(["letters:3", f"{name}:5"], folder=tmp_path)
    else:
        with pytest.raises(UsageError, match="no 'train' split"):
            build_mixture(["letters:3", f"{name}:5"], folder=tmp_path)


def test_the_hash_of_a_task_is_that_of_its_files(tmp_path: Path) -> None:
    def write_rows(words: list[str]) -> str:
        messages = [[{"role": "user", "content": word}, {"role": "assistant", "content": word}] for word in words]
        source = TASK_SOURCES["smoltalk"]
        name = source.pattern("train").replace("*", "00000-of-00001")
        write(tmp_path / source.repo / name, {"messages": messages})
        return build_task("smoltalk", folder=tmp_path).content_hash()

    first = write_rows(["a", "b", "c"])
    part = build_task("smoltalk", "train", 2, folder=tmp_path).content_hash()
    assert first != part and first != write_rows(["a", "b", "d"]) and first == write_rows(["a", "b", "c"])
