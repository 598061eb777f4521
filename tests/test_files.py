"""Writes on a disk that syncs nothing: they go on, whoever writes; on one that fails they do not."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nanochat
from nanochat.checkpoint.tensors import write_tensors
from nanochat.data.shards import write_shards
from nanochat.doctor.machine import check_home
from nanochat.errors import NanochatError
from nanochat.files import describe_unsynced, new_folder, sync_folder, write_atomically
from nanochat.training.metrics import MetricsFile


@pytest.fixture
def refuse_sync(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def refuse(number: int) -> None:
        def fail(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fail)

    return refuse


def write_folder(folder: Path) -> None:
    with new_folder(folder / "new") as temporary:
        (temporary / "a").write_text("text")


def write_metrics(folder: Path) -> None:
    metrics = MetricsFile(folder / "metrics.jsonl")
    metrics.append({"step": 1})
    metrics.sync()


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: write_atomically(folder / "a.json", "{}"),
    "folder": write_folder,
    "metrics": write_metrics,
    "tensors": lambda folder: write_tensors(folder / "a.safetensors", {"a": torch.zeros(2)}),
    "shards": lambda folder: write_shards(folder, ["text"], "train"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_what_cannot_be_synced_is_written_all_the_same(
    refuse_sync: Callable[[int], None], tmp_path: Path, name: str, number: int
) -> None:
    refuse_sync(number)
    WRITERS[name](tmp_path)
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("name", WRITERS)
def test_a_sync_that_fails_is_no_success(refuse_sync: Callable[[int], None], tmp_path: Path, name: str) -> None:
    refuse_sync(errno.EIO)
    with pytest.raises((OSError, NanochatError)):
        WRITERS[name](tmp_path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EISDIR])
def test_a_folder_that_cannot_even_be_opened_is_not_synced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    assert not sync_folder(tmp_path)


def test_doctor_finds_a_disk_that_syncs_nothing(refuse_sync: Callable[[int], None], tmp_path: Path) -> None:
    assert describe_unsynced(tmp_path) == "" and check_home(tmp_path).status == "ok"
    refuse_sync(errno.EINVAL)
    finding = check_home(tmp_path / "home")
    assert finding.status == "warn" and "a power cut may lose the newest file" in finding.message
    assert describe_unsynced(tmp_path / "absent") == ""


def test_nothing_else_in_the_package_syncs() -> None:
    package = Path(nanochat.__file__).parent
    users = {path.name for path in package.rglob("*.py") if re.search(r"\bfsync\(", path.read_text(encoding="utf-8"))}
    assert users == {"files.py"}
