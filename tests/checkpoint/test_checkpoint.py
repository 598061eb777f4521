import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint.checkpoint import latest_good, load_checkpoint, remove_stale, save_checkpoint
from nanochat.checkpoint.manifest import verify_checkpoint
from nanochat.errors import CapacityError, DataError, MissingError
from nanochat.paths import StagePaths
from nanochat.runtime import World


def save(stage: StagePaths, step: int, keep: int = 2) -> Path:
    model = {"a": torch.full((3, 2), float(step)), "b": torch.arange(4)}
    return save_checkpoint(stage, step, model, {"a.momentum": torch.ones(3, 2)}, {"step": step}, {"config": {}}, keep)


@pytest.fixture
def stage(tmp_path: Path) -> StagePaths:
    return StagePaths(tmp_path / "run" / "base")


def test_what_is_saved_is_loaded(stage: StagePaths) -> None:
    checkpoint = load_checkpoint(save(stage, 5))
    assert checkpoint.state == {"step": 5} and checkpoint.meta == {"config": {}}
    assert torch.equal(checkpoint.model["a"], torch.full((3, 2), 5.0)) and checkpoint.model["b"].dtype == torch.int64
    assert torch.equal(checkpoint.optimizer[0]["a.momentum"], torch.ones(3, 2))
    assert load_checkpoint(stage.checkpoint(5), with_optimizer=False).optimizer == []


def test_the_newest_are_kept_and_nothing_else(stage: StagePaths) -> None:
    for step in (1, 2, 3, 10):
        save(stage, step, keep=2)
    assert stage.steps() == [3, 10]
    assert sorted(path.name for path in stage.checkpoints.iterdir()) == ["step_000003", "step_000010"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "state.json", "optim_rank000_of_001.safetensors", "MANIFEST.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_damage_is_found_and_the_file_is_named(stage: StagePaths, name: str, damage: str) -> None:
    path = save(stage, 1) / name
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0x80
        path.write_bytes(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        verify_checkpoint(stage.checkpoint(1))
    with pytest.raises(DataError):
        load_checkpoint(stage.checkpoint(1))


def test_a_bad_checkpoint_is_set_aside_and_the_one_before_is_used(stage: StagePaths) -> None:
    save(stage, 1)
    (save(stage, 2) / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    found = latest_good(stage, said.append)
    assert found is not None and found[0] == 1
    assert "step_000002" in said[0] and "model.safetensors" in said[0]
    assert stage.steps() == [1] and (stage.checkpoints / "corrupt_step_000002").is_dir()


def test_only_bad_checkpoints_are_an_error_and_none_is_none(stage: StagePaths) -> None:
    assert latest_good(stage, print) is None
    (save(stage, 2) / "MANIFEST.json").unlink()
    with pytest.raises(DataError, match="none of the 1"):
        latest_good(stage, lambda text: None)


def test_a_missing_folder_is_a_missing_error(stage: StagePaths) -> None:
    with pytest.raises(MissingError):
        load_checkpoint(stage.checkpoint(7))


def test_leftovers_of_an_interrupted_save_are_removed_and_never_taken_for_a_checkpoint(stage: StagePaths) -> None:
    save(stage, 1)
    shutil.copytree(stage.checkpoint(1), stage.checkpoints / "tmp_step_000002")
    assert stage.steps() == [1]
    assert remove_stale(stage) == 1 and remove_stale(stage) == 0
    assert [path.name for path in stage.checkpoints.iterdir()] == ["step_000001"]


def test_too_little_space_is_said_before_anything_is_written(
    stage: StagePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(stage, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(CapacityError, match="free"):
        save(stage, 2)
    assert [path.name for path in stage.checkpoints.iterdir()] == ["step_000001"]


def test_a_world_of_another_size_reads_the_file_of_every_rank(stage: StagePaths) -> None:
    folder = save(stage, 1)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    entry = manifest["files"].pop("optim_rank000_of_001.safetensors")
    for rank in range(2):
        name = f"optim_rank00{rank}_of_002.safetensors"
        shutil.copy(folder / "optim_rank000_of_001.safetensors", folder / name)
        manifest["files"][name] = entry
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    sizes = {world: len(load_checkpoint(folder, world=World(0, 0, world)).optimizer) for world in (1, 2, 3)}
    assert sizes == {1: 2, 2: 1, 3: 2}
    (folder / "optim_rank001_of_002.safetensors").unlink()
    assert len(load_checkpoint(folder, world=World(0, 0, 2)).optimizer) == 1
    with pytest.raises(DataError, match="optim_rank001_of_002"):
        load_checkpoint(folder)
