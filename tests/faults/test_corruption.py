"""Whatever happens to a file of a checkpoint is noticed, and the checkpoint before is used."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from nanochat.checkpoint.checkpoint import find_best, latest_good, load_checkpoint, save_checkpoint, select_expired
from nanochat.checkpoint.manifest import MANIFEST, UnreadableError
from nanochat.checkpoint.tensors import write_tensors
from nanochat.errors import CapacityError, DataError
from nanochat.files import write_atomically
from nanochat.paths import StagePaths
from nanochat.runtime import World
from nanochat.stages.__main__ import main
from nanochat.training.metrics import MetricsFile

FILES = (
    "model.safetensors",
    "optim_rank000_of_002.safetensors",
    "optim_rank001_of_002.safetensors",
    "state.json",
    "MANIFEST.json",
)
DAMAGES = ("empty", "one byte less", "half", "first bit", "middle bit", "last bit", "gone", "swapped", "folder")


def fill(stage: StagePaths, *steps: int) -> None:
    """Checkpoints of two ranks, every file of which differs from step to step."""
    for step in steps:
        save_checkpoint(
            stage,
            step,
            {"a": torch.full((30, 2), float(step))},
            {"a.momentum": torch.full((15, 2), -float(step))},
            {"step": step},
            {"stage": stage.root.name},
            keep=len(steps),
        )
        folder = stage.checkpoint(step)
        alone = folder / "optim_rank000_of_001.safetensors"
        manifest = json.loads((folder / MANIFEST).read_text())
        del manifest["files"][alone.name]
        for rank in range(2):
            name = f"optim_rank00{rank}_of_002.safetensors"
            manifest["files"][name] = write_tensors(folder / name, {"a.momentum": torch.full((15, 2), step + rank / 2)})
        alone.unlink()
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def damage(folder: Path, name: str, kind: str, other: Path) -> None:
    """Do something to a file. other: a checkpoint of another step."""
    path = folder / name
    content = bytearray(path.read_bytes())
    if kind == "gone":
        path.unlink()
    elif kind == "swapped":
        shutil.copy(other / name, path)
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind.endswith("bit"):
        content[{"first bit": 0, "middle bit": len(content) // 2, "last bit": -1}[kind]] ^= 0x10
        path.write_bytes(content)
    else:
        path.write_bytes(content[: {"empty": 0, "one byte less": len(content) - 1, "half": len(content) // 2}[kind]])


@pytest.fixture
def stage(tmp_path: Path) -> StagePaths:
    return StagePaths(tmp_path / "run" / "base")


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_noticed_and_the_checkpoint_before_is_used(stage: StagePaths, name: str, kind: str) -> None:
    fill(stage, 10, 15, 20)
    if name == MANIFEST and kind in ("one byte less", "last bit"):  # that is its final newline
        content = (stage.checkpoint(20) / name).read_text().rstrip()
        (stage.checkpoint(20) / name).write_text(content)
    damage(stage.checkpoint(20), name, kind, stage.checkpoint(15))
    said: list[str] = []
    found = latest_good(stage, said.append)
    assert found is not None and found[0] == 15
    assert found[1].state == {"step": 15} and torch.equal(found[1].model["a"], torch.full((30, 2), 15.0))
    assert [tensors["a.momentum"][0, 0].item() for tensors in found[1].optimizer] == [15.0, 15.5]
    assert len(said) == 1 and "step_000020 is bad" in said[0]
    assert name in said[0] or (name, kind) == (MANIFEST, "middle bit"), "a wrong hash accuses the file that it is of"
    assert stage.steps() == [10, 15] and (stage.checkpoints / "corrupt_step_000020").is_dir()


def test_a_flipped_bit_in_any_byte_of_a_manifest_is_noticed(stage: StagePaths) -> None:
    fill(stage, 15, 20)
    path = stage.checkpoint(20) / MANIFEST
    whole = path.read_bytes().rstrip()  # the final newline carries nothing; to flip it is an error or harmless
    silent = []
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        try:
            load_checkpoint(stage.checkpoint(20))
            silent.append(content)
        except DataError:
            pass
    # The name of the stage is all that a checkpoint alone cannot know: a resume does.
    assert len(silent) <= len("base")
    for content in silent:
        path.write_bytes(content)
        found = latest_good(stage, lambda text: None)
        assert found is not None and found[0] == 15
        (stage.checkpoints / "corrupt_step_000020").rename(stage.checkpoint(20))


def test_a_whole_folder_of_another_step_or_stage_is_noticed(stage: StagePaths) -> None:
    fill(stage, 10, 15)
    shutil.copytree(stage.checkpoint(15), stage.checkpoint(20))
    other = StagePaths(stage.root.parent / "mid")
    fill(other, 25)
    shutil.copytree(other.checkpoint(25), stage.checkpoint(25))
    said: list[str] = []
    found = latest_good(stage, said.append)
    assert found is not None and found[0] == 15
    assert "of mid, not of base" in said[0] and "that of step 15" in said[1]
    copy = stage.root / "my_model"
    shutil.copytree(stage.checkpoint(15), copy)
    assert load_checkpoint(copy).state == {"step": 15}, "a copy may have any name"


def test_a_file_in_the_place_of_a_checkpoint_is_set_aside(stage: StagePaths) -> None:
    fill(stage, 10)
    stage.checkpoint(20).write_text("not a folder")
    found = latest_good(stage, lambda text: None)
    assert found is not None and found[0] == 10 and (stage.checkpoints / "corrupt_step_000020").is_file()


def test_files_that_the_manifest_does_not_list_change_nothing(stage: StagePaths) -> None:
    fill(stage, 10)
    (stage.checkpoint(10) / "optim_rank002_of_002.safetensors").write_text("of somebody else")
    found = latest_good(stage, lambda text: None)
    assert found is not None and found[0] == 10 and len(found[1].optimizer) == 2


def test_a_checkpoint_of_the_first_format_is_still_read(stage: StagePaths) -> None:
    fill(stage, 10)
    path = stage.checkpoint(10) / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["stage"]
    path.write_text(json.dumps(manifest | {"version": 1}))
    assert load_checkpoint(stage.checkpoint(10)).state == {"step": 10}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_not_called_damaged(stage: StagePaths) -> None:
    fill(stage, 10, 20)
    (stage.checkpoint(20) / "model.safetensors").chmod(0)
    with pytest.raises(UnreadableError):
        latest_good(stage, pytest.fail)
    assert stage.steps() == [10, 20]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that fails with EIO, on Linux")
@pytest.mark.parametrize("what", ["MANIFEST.json", "model.safetensors", "state.json", ".", ".."])
def test_what_the_system_cannot_read_now_is_not_set_aside(stage: StagePaths, what: str) -> None:
    """The first byte of the own memory is an input/output error; a link to itself, a path that nobody can follow."""
    fill(stage, 10, 20)
    path = (stage.checkpoint(20) / what).resolve()
    kept = path.with_name("kept")
    path.rename(kept)
    path.symlink_to("/proc/self/mem" if what == MANIFEST else path)
    with pytest.raises(UnreadableError, match="cannot be read now") as caught:
        latest_good(stage, pytest.fail)
    assert caught.value.exit_code == 4 and not caught.value.is_final and "nanochat resume" in caught.value.hint
    path.unlink()
    kept.rename(path)
    found = latest_good(stage, pytest.fail)
    assert found is not None and found[0] == 20


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.safetensors", "middle bit"),
        ("optim_rank000_of_001.safetensors", "half"),
        ("state.json", "swapped"),
        ("MANIFEST.json", "gone"),
    ],
)
def test_training_goes_on_bit_for_bit_from_the_checkpoint_before(
    trained_home: Path, start_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    settings = start_run(stages=("base",))
    stage = StagePaths(settings.parent / "base")
    damage(stage.checkpoint(20), name, kind, stage.checkpoint(15))
    assert main(["base", str(settings)]) == 0
    said = capsys.readouterr().err
    assert "step_000020 is bad" in said and name in said and "continuing base from step 15" in said
    whole = StagePaths(trained_home / "runs" / "whole" / "base")
    assert MetricsFile(stage.metrics).values("loss") == MetricsFile(whole.metrics).values("loss")
    for file in ("model.safetensors", "optim_rank000_of_001.safetensors"):
        assert (stage.checkpoint(20) / file).read_bytes() == (whole.checkpoint(20) / file).read_bytes()


def test_only_bad_checkpoints_are_an_error_once_and_then_a_new_start(
    trained_home: Path, start_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = start_run(stages=("base",))
    stage = StagePaths(settings.parent / "base")
    for step in stage.steps():
        damage(stage.checkpoint(step), "state.json", "half", stage.checkpoint(step))
    assert main(["base", str(settings)]) == 4
    said = capsys.readouterr().err
    assert "none of the 3 checkpoints" in said and "nanochat train base --run again  # starts base again" in said
    assert not stage.result.exists(), "the stage is no longer done: the command of the hint would do nothing"
    assert main(["base", str(settings)]) == 0
    assert "no checkpoint of base is intact (3 set aside as corrupt_*): starting from step 0" in capsys.readouterr().err
    whole = MetricsFile(trained_home / "runs" / "whole" / "base" / "metrics.jsonl")
    assert MetricsFile(stage.metrics).values("loss") == whole.values("loss")


def test_the_files_are_those_of_the_library(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "turned": torch.randn(4, 3).T,
        "ids": torch.arange(5),
    }
    entry = write_tensors(tmp_path / "x", tensors)
    content = (tmp_path / "x").read_bytes()
    assert content == save({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert entry["bytes"] == len(content)


@pytest.mark.parametrize(
    ("keep", "keep_every", "best", "kept"),
    [
        (1, 0, None, [60]),
        (2, 0, 10, [10, 50, 60]),
        (1, 0, 60, [60]),
        (2, 20, 30, [20, 30, 40, 50, 60]),
        (9, 0, None, [10, 20, 30, 40, 50, 60]),
        (1, 7, 99, [60]),
    ],
)
def test_what_the_rule_keeps(keep: int, keep_every: int, best: int | None, kept: list[int]) -> None:
    steps = [10, 20, 30, 40, 50, 60]
    assert [step for step in steps if step not in select_expired(steps, keep, keep_every, best)] == kept


def test_the_best_is_one_that_is_there() -> None:
    assert find_best([20, 30], {10: 1.0, 20: 3.0, 30: 2.0}) == 30
    assert find_best([20, 30], {10: 1.0}) is None


def test_the_best_and_every_nth_checkpoint_outlive_the_newest(
    trained_home: Path, start_run: Callable[..., Path]
) -> None:
    settings = start_run(
        changes={"checkpoint": {"every": 2, "keep": 1, "keep_every": 8}, "base": {"eval_every": 2, "num_steps": 12}}
    )
    stage = StagePaths(settings.parent / "base")
    assert main(["base", str(settings)]) == 0
    record = MetricsFile(stage.metrics)
    record.append({"step": 4, "val_bpb": 0.01})  # as if step 4 had been the best
    steps = set(stage.steps())
    assert {8, 12} <= steps and json.loads(stage.result.read_text())["best_checkpoint"] in steps
    best_before_last = find_best([2, 4, 6, 8, 10], {s: v for s, v in record.values("val_bpb").items() if s != 4})
    assert steps == {8, 12, best_before_last} or steps == {8, 12, best_before_last, 10}


def test_a_full_disk_loses_old_checkpoints_first_and_never_the_newest(
    stage: StagePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(stage, 10, 15, 20)
    room = {"free": 0}

    def usage(path: Path) -> object:
        free = room["free"] + 2**22 * (3 - len(stage.steps()))
        return type("Usage", (), {"free": free})()

    monkeypatch.setattr(shutil, "disk_usage", usage)
    arguments = ({"a": torch.zeros(3)}, {"a.momentum": torch.zeros(3)}, {}, {})
    with pytest.raises(CapacityError, match="needs 17 MB"):  # the two older ones go, which is not enough
        save_checkpoint(stage, 25, *arguments, keep=1, world=World())
    assert stage.steps() == [20] and latest_good(stage, pytest.fail) is not None
    room["free"] = 2**24
    save_checkpoint(stage, 25, *arguments, keep=1)
    assert stage.steps() == [25]


def test_an_atomic_write_that_fails_keeps_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    (tmp_path / f".{path.name}.{os.getpid()}").mkdir()  # in the way of the temporary file
    with pytest.raises((DataError, OSError)):
        write_atomically(path, "new")
    assert path.read_text() == "old\n"
