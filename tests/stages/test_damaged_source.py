"""A finished stage whose newest checkpoint is damaged: what builds on it falls back aloud, and there is a way on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.checkpoint.manifest import UnreadableError
from nanochat.errors import DataError
from nanochat.paths import ModelPath, RunPaths, Workspace
from nanochat.stages.__main__ import main
from nanochat.stages.assemble import build_session, load_newest
from nanochat.stages.export import export_hf
from tests.fakes import run_ranks

Start = Callable[..., Path]


def damage(run: RunPaths, stage: str, step: int | None = None) -> None:
    paths = run.stage(stage)
    weights = paths.checkpoint(step or paths.steps()[-1]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def test_mid_starts_from_the_whole_checkpoint_before(start_run: Start, capsys: pytest.CaptureFixture[str]) -> None:
    settings = start_run(stages=("base",))
    run = RunPaths(settings.parent)
    damage(run, "base")
    assert main(["mid", str(settings)]) == 0
    said = capsys.readouterr().err
    assert "warning: again/base@20 is damaged" in said and "again/base@15 takes its place" in said
    assert "`nanochat resume again` takes the last steps again" in said
    assert json.loads(run.stage("mid").result.read_text())["source"] == "again/base@15"


def test_scores_chats_and_exports_are_those_of_the_whole_one(start_run: Start, tmp_path: Path) -> None:
    settings = start_run(stages=("base", "mid", "sft"))
    run, workspace = RunPaths(settings.parent), Workspace(tmp_path)
    newest = run.stage("sft").steps()[-1]
    shutil.copytree(run.stage("sft").checkpoint(newest), run.stage("sft").checkpoint(newest + 1))
    manifest = run.stage("sft").checkpoint(newest + 1) / "MANIFEST.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"step": newest + 1}))
    damage(run, "sft")
    whole = f"again/sft@{newest}"
    said: list[str] = []
    assert build_session(workspace.resolve_model("again"), "cpu", "float32", say=said.append).name == whole
    assert export_hf(workspace.resolve_model("again"), tmp_path / "out", say=said.append).model == whole
    assert len(said) == 2 and all(f"{whole} takes its place" in line for line in said)
    assert main(["evaluate", str(settings), "--score", "chat"]) == 0
    assert json.loads((run.eval / "sft_letters.json").read_text())["model"] == whole
    assert main(["evaluate", str(settings), "--score", "chat", "--of", f"sft@{newest + 1}"]) == 4  # it was asked for


def test_all_ranks_use_the_checkpoint_that_rank_0_found_whole(start_run: Start, tmp_path: Path) -> None:
    run = RunPaths(start_run(stages=("base",)).parent)
    damage(run, "base")
    path = Workspace(tmp_path).resolve_model("again/base")
    found = run_ranks(lambda world: load_newest(path, lambda text: None, world)[0].step)
    assert found == [15, 15]


def test_what_cannot_be_replaced_is_an_error_that_says_what_to_do(start_run: Start, tmp_path: Path) -> None:
    run = RunPaths(start_run(stages=("base",)).parent)
    workspace = Workspace(tmp_path)
    damage(run, "base")
    with pytest.raises(DataError) as caught:
        load_newest(workspace.resolve_model("again/base@20"), print)
    assert caught.value.hint.startswith("nanochat runs show again")
    for step in run.stage("base").steps()[:-1]:
        damage(run, "base", step)
    with pytest.raises(DataError) as caught:
        load_newest(workspace.resolve_model("again/base"), print)
    assert "step_000020" in caught.value.message and caught.value.hint.startswith("nanochat resume again")
    with pytest.raises(DataError):
        load_newest(ModelPath(run.stage("base").checkpoint(20), None, None, None), print)


def test_a_disk_that_refuses_is_no_damage(start_run: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_run(stages=("base",))

    def refuse(*_: object, **__: object) -> None:
        raise UnreadableError("Input/output error")

    monkeypatch.setattr("nanochat.stages.assemble.load_checkpoint", refuse)
    with pytest.raises(UnreadableError):
        load_newest(Workspace(tmp_path).resolve_model("again"), print)
