"""Model names resolve to one checkpoint folder, and a wrong name says what there is."""

import os
from pathlib import Path

import pytest

from nanochat.errors import MissingError, UsageError
from nanochat.paths import Workspace


def make_run(
    workspace: Workspace, name: str, stages: dict[str, list[int]], done: tuple[str, ...] = (), age: float = 0
) -> None:
    run = workspace.run(name)
    run.root.mkdir(parents=True)
    run.settings.write_text("{}")
    for stage, steps in stages.items():
        for step in steps:
            run.stage(stage).checkpoint(step).mkdir(parents=True)
        if stage in done:
            run.stage(stage).result.write_text("{}")
    for path in [run.settings, *(run.stage(stage).result for stage in done)]:
        os.utime(path, (1_000_000 - age, 1_000_000 - age))


def test_without_a_name_the_newest_completed_run_s_furthest_stage_is_taken(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    make_run(workspace, "old", {"base": [10], "sft": [20]}, done=("base", "sft"), age=100)
    make_run(workspace, "new", {"base": [10], "mid": [5, 30]}, done=("base", "mid"))
    assert str(workspace.resolve_model()) == "new/mid@30"


def test_an_interrupted_run_comes_after_every_completed_one(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    make_run(workspace, "complete", {"base": [10]}, done=("base",), age=100)
    make_run(workspace, "interrupted", {"base": [5]})
    assert str(workspace.resolve_model()) == "complete/base@10"


def test_an_interrupted_run_is_taken_where_nothing_is_completed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    make_run(workspace, "interrupted", {"base": [5]})
    assert str(workspace.resolve_model()) == "interrupted/base@5"


@pytest.mark.parametrize(
    ("name", "resolved"), [("r", "r/sft@7"), ("r/base", "r/base@20"), ("r/base@10", "r/base@10"), ("r/sft", "r/sft@7")]
)
def test_run_stage_and_step_are_names_of_a_model(tmp_path: Path, name: str, resolved: str) -> None:
    workspace = Workspace(tmp_path)
    make_run(workspace, "r", {"base": [10, 20], "sft": [7]})
    assert str(workspace.resolve_model(name)) == resolved


def test_a_checkpoint_folder_is_a_model_name(tmp_path: Path) -> None:
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "MANIFEST.json").write_text("{}")
    assert Workspace(tmp_path / "home").resolve_model(str(tmp_path / "copied")).checkpoint == tmp_path / "copied"


@pytest.mark.parametrize(
    ("name", "error", "fragment"),
    [
        (None, MissingError, "no trained model"),
        ("absent", MissingError, "no run 'absent'"),
        ("r/base@11", MissingError, "no step 11, only 10, 20"),
        ("r/mid", MissingError, "no checkpoint of stage 'mid'"),
        ("r/medium", UsageError, "stage 'medium' is none of"),
        ("../r", UsageError, "is not"),
        ("r/base@x", UsageError, "is not RUN"),
    ],
)
def test_a_name_that_leads_nowhere_says_why(tmp_path: Path, name: str | None, error: type, fragment: str) -> None:
    workspace = Workspace(tmp_path)
    if name is not None:
        make_run(workspace, "r", {"base": [10, 20]})
    with pytest.raises(error, match=fragment) as caught:
        workspace.resolve_model(name)
    assert caught.value.hint.startswith("nanochat ")
