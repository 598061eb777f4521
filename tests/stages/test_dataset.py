from pathlib import Path

import pytest

from nanochat.data.shards import load_manifest, verify_dataset
from nanochat.errors import MissingError
from nanochat.paths import Workspace
from nanochat.stages import dataset
from nanochat.stages.display import Display


def test_the_demo_text_is_made_once_with_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "DEMO_CHARS", {"train": 30_000, "val": 3_000})
    display = Display(quiet=True)
    folder = dataset.open_dataset(Workspace(tmp_path), "demo", display)
    manifest = verify_dataset(folder)
    assert manifest.num_rows("train") > manifest.num_rows("val") > 0
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert dataset.open_dataset(Workspace(tmp_path), "demo", display) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert load_manifest(folder).hash == manifest.hash


def test_an_absent_data_set_names_the_command_that_brings_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        dataset.open_dataset(Workspace(tmp_path), "mine", Display(quiet=True))
    assert caught.value.hint == "nanochat download import DIR --name mine"
