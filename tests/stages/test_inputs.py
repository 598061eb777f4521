"""What changes between a kill and a resume, or after the end, is named; a result that would lie is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.config.load import load_settings, read_saved, save_settings
from nanochat.data.shards import write_shards
from nanochat.errors import UsageError
from nanochat.paths import RunPaths, Workspace
from nanochat.report.collect import collect_report
from nanochat.stages.__main__ import main
from nanochat.stages.inputs import (
    Inputs,
    continue_inputs,
    dump_inputs,
    hash_data,
    inputs_path,
    list_settings,
    read_inputs_of_all,
)
from tests.fakes import run_ranks

Start = Callable[..., Path]


def interrupt(run: RunPaths, stage: str = "base", last: int = 15) -> None:
    """Make a finished stage one that was killed after a checkpoint."""
    paths = run.stage(stage)
    paths.result.unlink()
    for step in paths.steps():
        if step > last:
            paths.checkpoint(step).rename(run.root / f"gone_{step}")


def edit_settings(settings: Path, section: str, **values: object) -> None:
    record = json.loads(settings.read_text())
    record["settings"][section] |= values
    settings.write_text(json.dumps(record))


def test_a_stage_that_replays_text_depends_on_it(trained_home: Path) -> None:
    settings = Workspace(trained_home).run("whole").settings
    saved = read_saved(settings)[1]
    kept = {stage: set(hash_data(stage, saved, Workspace(trained_home))) for stage in ("base", "mid", "sft")}
    assert kept == {"base": {"data set 'tiny'"}, "mid": {"data set 'tiny'"}, "sft": set()}
    assert "data.dataset" in list_settings("mid", saved) and "data.dataset" not in list_settings("sft", saved)


def test_settings_that_were_edited_after_steps_were_taken_are_refused(
    start_run: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = start_run(stages=("base",))
    run = RunPaths(settings.parent)
    interrupt(run)
    edit_settings(settings, "base", matrix_lr=0.5)
    assert main(["base", str(settings)]) == 2
    said = capsys.readouterr().err
    assert "settings.json was edited: run 'again' has trained its base with base.matrix_lr = 0.02, not 0.5" in said
    assert "hint:  --set base.matrix_lr=0.02  # puts it back" in said
    assert run.stage("base").steps()[-1] == 15
    report = collect_report(run)
    assert any("settings.json was edited: it says base.matrix_lr = 0.5" in problem for problem in report.problems)
    assert ("base.matrix_lr", 0.5, "edited by hand") in report.settings
    edit_settings(settings, "base", matrix_lr=0.02, eval_every=0)
    assert main(["base", str(settings)]) == 0  # how often it is measured is no part of what is learnt


def test_other_text_of_the_same_name_is_named_and_stands_in_the_result(
    start_run: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = start_run(stages=("base",))
    run = RunPaths(settings.parent)
    interrupt(run)
    write_shards(settings.parents[2] / "data" / "tiny", ["Another text."] * 500, "train")
    assert main(["base", str(settings)]) == 0
    change = "data set 'tiny' is another one from step 15 on"
    assert f"warning: {change}" in capsys.readouterr().err
    assert json.loads(run.stage("base").result.read_text())["data_changes"] == [change]


def test_a_value_that_no_layer_has_stated_is_not_called_a_default(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "runs" / "r")
    settings, origins = load_settings("demo", environ={})
    save_settings(run.settings, "demo", settings, origins, "0")
    assert collect_report(run).problems == () and read_saved(run.settings)[2]["base.grad_clip"] == "default"
    edit_settings(run.settings, "base", grad_clip=7.0)
    assert collect_report(run).problems == (
        "settings.json was edited by hand: where its values come from may not hold",
    )
    assert read_saved(run.settings)[2] == origins | {"base.grad_clip": "settings.json"}


def test_files_of_a_mixture_are_compared_by_what_they_say(tmp_path: Path) -> None:
    workspace, run = Workspace(tmp_path), RunPaths(tmp_path / "runs" / "r")
    mine, code = tmp_path / "mine.jsonl", tmp_path / "mine.py"
    mine.write_text("one line\n")
    code.write_text("class Mine: ...\n")
    told = [f'sft.mixture=["custom:{mine}*2", "letters:10", "{code}:Mine"]']
    settings = load_settings("demo", None, told, {})[0]

    def now() -> Inputs:
        return Inputs(list_settings("sft", settings), hash_data("sft", settings, workspace))

    inputs_path(run, "sft").parent.mkdir(parents=True)
    inputs_path(run, "sft").write_text(dump_inputs(now()))
    assert continue_inputs(run, "sft", now(), 10).changes == []
    mine.write_text("two line\n")
    changed = continue_inputs(run, "sft", now(), 10)
    assert changed.changes == [f"custom:{mine} is another one from step 10 on"]
    inputs_path(run, "sft").write_text(dump_inputs(changed))
    code.write_text("class Mine: pass\n")
    assert continue_inputs(run, "sft", now(), 20).changes == [
        *changed.changes,
        f"{code} is another one from step 20 on",
    ]
    assert continue_inputs(run, "sft", now(), 0).changes == []  # it begins anew


def test_each_stage_depends_on_its_own_settings() -> None:
    settings = load_settings("demo", environ={})[0]
    used = {stage: list_settings(stage, settings) for stage in ("tokenizer", "base", "mid")}
    assert "data.dataset" in used["tokenizer"] and "data.packing" not in used["tokenizer"]
    assert "data.packing" in used["base"] and "mid.mixture" not in used["base"]
    assert "mid.mixture" in used["mid"] and "mid.eval_every" not in used["mid"] and "data.packing" in used["mid"]
    assert not any(key.startswith("eval.") or key == "runtime.device" for keys in used.values() for key in keys)


def test_ranks_that_read_other_files_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings("demo", environ={})[0]

    def read(world) -> Inputs:
        job = type(
            "Job", (), {"settings": settings, "workspace": Workspace(tmp_path / str(world.rank)), "world": world}
        )
        return read_inputs_of_all(job, "base")  # type: ignore[arg-type]

    for rank in range(2):
        write_shards(tmp_path / str(rank) / "data" / "demo", ["the same"], "train")
    assert [type(found) for found in run_ranks(read)] == [Inputs, Inputs]
    write_shards(tmp_path / "1" / "data" / "demo", ["another"], "train")
    errors = run_ranks(read)
    assert all(isinstance(error, UsageError) for error in errors)
    assert errors[0].message == "data set 'demo' is another one for rank 1 than for rank 0"
