import time
from pathlib import Path

import pytest

from nanochat.data.shards import load_manifest, verify_dataset, write_shards
from nanochat.errors import CapacityError, MissingError
from nanochat.paths import Workspace
from nanochat.stages import dataset
from nanochat.stages.display import Display
from tests.fakes import run_ranks


def test_the_demo_text_is_made_once_with_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "DEMO_CHARS", {"train": 30_000, "val": 3_000})
    display = Display(quiet=True)
    folder = dataset.open_dataset(Workspace(tmp_path), "demo", display.say)
    manifest = verify_dataset(folder)
    assert manifest.num_rows("train") > manifest.num_rows("val") > 0
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert dataset.open_dataset(Workspace(tmp_path), "demo", display.say) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert load_manifest(folder).hash == manifest.hash


def test_an_absent_data_set_names_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        dataset.open_dataset(Workspace(tmp_path), "mine", Display(quiet=True).say)
    assert caught.value.hint == "nanochat download import DIR --name mine"


def test_the_others_wait_for_the_text_that_rank_0_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def make_slowly(folder: Path) -> None:
        time.sleep(0.3)  # the other rank has looked by then, if it does not wait
        made.append(folder)
        write_shards(folder, ["one", "two"], "train")

    monkeypatch.setattr(dataset, "make_demo", make_slowly)
    workspace, display = Workspace(tmp_path), Display(quiet=True)
    folders = run_ranks(lambda world: dataset.open_dataset(workspace, "demo", display.say, world))
    assert folders == [workspace.dataset("demo")] * 2 and len(made) == 1
    errors = run_ranks(lambda world: dataset.open_dataset(workspace, "absent", display.say, world))
    assert [type(error) for error in errors] == [MissingError] * 2


def test_a_disk_that_fails_rank_0_ends_the_others_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset, "write_shard_files", fail)
    errors = run_ranks(lambda world: dataset.open_dataset(Workspace(tmp_path), "demo", Display(quiet=True).say, world))
    assert [type(error) for error in errors] == [CapacityError] * 2
