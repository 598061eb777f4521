"""`run` and `resume` together: what began is continued, and what was wrong leaves nothing behind."""

import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.config.load import read_saved
from nanochat.data.shards import write_shards
from nanochat.errors import CapacityError, StoppedError
from nanochat.launch.launch import stopping_before
from nanochat.paths import RunPaths, Workspace
from nanochat.stages.inputs import Inputs, dump_inputs, hash_data, inputs_path, list_settings
from nanochat.stages.lock import lock_run
from tests.cli.conftest import RUN, Outcome, make_run

Call = Callable[..., Outcome]


def test_resume_continues_the_pipeline_that_run_began(nanochat: Call, launched, home: Path) -> None:
    launched.codes["mid"] = 75
    assert nanochat("run", "--preset", "demo").code == 75
    launched.codes.clear()
    outcome = nanochat("resume")
    assert outcome.code == 0, outcome.err
    assert "resuming the pipeline" in outcome.err and "nanochat chat demo" in outcome.err
    assert [stage for stage, _ in launched.calls] == [*RUN[:3], "mid", *RUN[3:]]
    assert (home / "runs/demo/report.md").is_file()
    assert "no stage of run 'demo' was interrupted" in nanochat("resume", "demo").err


def test_a_stage_that_was_begun_alone_is_resumed_alone(nanochat: Call, launched, home: Path) -> None:
    make_run(home, "r", ("tokenizer", "base"), "mid")
    assert nanochat("resume", "r").code == 0
    assert [stage for stage, _ in launched.calls] == ["mid"]


def test_resume_prefers_a_newer_pipeline_that_stopped_between_two_stages(nanochat: Call, launched, home: Path) -> None:
    make_run(home, "old", ("tokenizer", "base"), "mid")
    run = make_run(home, "new", ("tokenizer", "base"))
    run.pipeline.write_text("{}")
    assert nanochat("resume", "--dry-run").out.splitlines()[0].split("nanochat.stages ")[1].startswith("mid")
    assert nanochat("resume").code == 0
    assert [stage for stage, _ in launched.calls] == RUN[2:]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_between_two_stages_stops_with_the_command_that_continues(
    nanochat: Call, launched, home: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import nanochat.cli.run as run_module

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)]
    describe = run_module.describe_result

    def interrupt(stage: str, result: dict) -> str:
        os.kill(os.getpid(), number)
        return describe(stage, result)

    make_run(home, "demo", ("tokenizer", "base"))
    monkeypatch.setattr(run_module, "describe_result", interrupt)
    outcome = nanochat("run", "--run", "demo")
    assert outcome.code == 75
    assert outcome.err.splitlines()[-2:] == [
        "error: stopped before mid; everything is saved",
        "hint:  nanochat run --run demo",
    ]
    assert not launched.calls
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)]
    assert before == after
    monkeypatch.undo()


def test_nohup_stays_nohup_between_stages() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_before(lambda: "mid", "nanochat run --run r"):
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(StoppedError):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_failed_device_does_not_stay_in_the_run(nanochat: Call, launched, home: Path, monkeypatch) -> None:
    run = make_run(home, "r", ("tokenizer",))
    before = run.settings.read_bytes()
    monkeypatch.setattr("nanochat.cli.train.GPU_DEVICES", ())
    outcome = nanochat("train", "base", "--run", "r", "--device", "cuda")
    assert outcome.code == 2 and "no GPU that PyTorch could use" in outcome.err
    assert outcome.err.splitlines()[-1] == "hint:  nanochat train base --run r --device cpu"
    assert run.settings.read_bytes() == before
    monkeypatch.setattr("nanochat.cli.train.GPU_DEVICES", ("/",))  # a GPU, and a PyTorch that cannot use it
    launched.codes["base"] = 2
    outcome = nanochat("train", "base", "--run", "r", "--device", "cuda")
    assert outcome.code == 2 and "run r: its settings are as they were" in outcome.err
    assert run.settings.read_bytes() == before
    launched.codes["tokenizer"] = 2
    assert nanochat("run", "--preset", "demo", "--run", "new", "--device", "cuda").code == 2
    assert [path.name for path in (home / "runs" / "new").glob("*")] == []
    launched.codes["base"] = 75  # it has begun, and what it was told holds
    assert nanochat("train", "base", "--run", "r", "--device", "cuda").code == 75
    assert read_saved(run.settings)[1].runtime.device == "cuda"


def test_resume_needs_no_room_for_what_the_stage_has_already(nanochat: Call, launched, home: Path, monkeypatch) -> None:
    run = make_run(home, "r", ("tokenizer",), "base")
    with (run.stage("base").checkpoint(10) / "model.safetensors").open("wb") as file:
        file.truncate(60_000_000)  # about as much as two checkpoints of the demo
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(total=10**9, free=30_000_000))
        assert nanochat("train", "base", "--run", "r", "--set", "model.depth=4").code == 0
    other = make_run(home, "other", ("tokenizer",))
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(total=10**9, free=30_000_000))
    outcome = nanochat("train", "base", "--run", other.name)
    assert outcome.code == CapacityError.exit_code and "checkpoints do not fit" in outcome.err
    assert "hint:  nanochat runs ls  # `nanochat runs rm RUN` makes room" in outcome.err, "it cannot lie elsewhere"


def test_a_copy_is_the_newest_run_and_runs_are_listed_by_the_time_that_is_shown(nanochat: Call, home: Path) -> None:
    for age, name in ((300, "a"), (200, "b")):
        run = make_run(home, name, ("tokenizer", "base"))
        for path in (run.root, *run.root.rglob("*")):
            os.utime(path, (path.stat().st_mtime - age, path.stat().st_mtime - age))
    assert nanochat("runs", "copy", "a", "zz").code == 0
    assert "run zz, the newest" in nanochat("train", "mid", "--dry-run").err
    (home / "runs" / "a" / "report.md").write_text("")  # a report is nothing that a run has learnt
    rows = [line.split() for line in nanochat("runs", "ls").out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["a", "b", "zz"]
    assert [row[-2:] for row in rows] == sorted(row[-2:] for row in rows)


def test_a_half_copy_is_no_run(nanochat: Call, home: Path) -> None:
    make_run(home, "a", ("tokenizer",))
    (home / "runs" / "a").rename(home / "runs" / ".a.4711")
    assert "there is no run" in nanochat("runs", "ls").err


def test_runs_are_removed_together_or_not_at_all(nanochat: Call, home: Path) -> None:
    import fcntl

    for name in ("a", "long"):
        make_run(home, name, ("tokenizer",))
    with (home / "runs/long/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        outcome = nanochat("runs", "rm", "a", "long", "-y")
        assert outcome.code == 2 and "run 'long' is in use" in outcome.err
        assert (home / "runs/a/settings.json").is_file()
    outcome = nanochat("runs", "rm", "a", "none", "-y")
    assert outcome.code == 3 and (home / "runs/a/settings.json").is_file()
    outcome = nanochat("runs", "rm", "a", "long")
    assert outcome.code == 2 and outcome.err.splitlines()[-1] == "hint:  nanochat runs rm a long -y"
    assert nanochat("runs", "rm", "a", "long", "a", "-y").code == 0 and not list((home / "runs").iterdir())


def test_a_run_with_a_folder_that_may_not_be_written_is_kept_whole(
    nanochat: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(home, "a", ("tokenizer", "base"))
    access, closed = os.access, run.stage("base").root
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed and access(path, mode))
    before = sorted(run.root.rglob("*"))
    outcome = nanochat("runs", "rm", "a", "-y")
    assert outcome.code == 4 and f"{closed} may not be written" in outcome.err
    assert outcome.err.splitlines()[-1] == f"hint:  chmod -R u+w {run.root}"
    assert {*before} <= {*run.root.rglob("*")}


def test_of_a_linked_run_only_the_link_is_removed(nanochat: Call, home: Path, tmp_path: Path) -> None:
    make_run(home, "big", ("tokenizer",)).root.rename(tmp_path / "elsewhere")
    (home / "runs/big").symlink_to(tmp_path / "elsewhere")
    outcome = nanochat("runs", "rm", "big", "-y")
    assert outcome.code == 0 and f"a link whose files stay in {tmp_path / 'elsewhere'}" in outcome.err
    assert not (home / "runs/big").is_symlink() and (tmp_path / "elsewhere/settings.json").is_file()


def test_nothing_is_removed_if_one_folder_cannot_be(nanochat: Call, home: Path, monkeypatch) -> None:
    for name in ("a", "b"):
        make_run(home, name)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name == "b":
            raise OSError(16, "Device or resource busy", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    outcome = nanochat("runs", "rm", "a", "b", "-y")
    assert outcome.code == 4 and "busy" in outcome.err
    assert sorted(path.name for path in (home / "runs").iterdir()) == ["a", "b"]


def test_the_last_steps_of_a_finished_stage_that_are_damaged_are_taken_again(
    nanochat: Call, launched, home: Path
) -> None:
    run = make_run(home, "r", ("tokenizer", "base", "mid"))
    assert "nothing to do" in nanochat("train", "base", "--run", "r").err and not launched.calls
    assert "no stage of run 'r' was interrupted" in nanochat("resume", "r").err
    (run.stage("base").checkpoint(20) / "model.safetensors").write_text("{")
    outcome = nanochat("resume", "r")
    assert outcome.code == 0, outcome.err
    assert "resuming base of run r" in outcome.err and "has 1 bytes, the manifest says 2" in outcome.err
    assert [stage for stage, _ in launched.calls] == ["base"]
    (run.stage("base").checkpoint(20) / "MANIFEST.json").unlink()
    assert nanochat("train", "base", "--run", "r").code == 0
    assert [stage for stage, _ in launched.calls] == ["base", "base"]


def test_a_stage_whose_checkpoints_were_deleted_is_done_all_the_same(nanochat: Call, launched, home: Path) -> None:
    run = make_run(home, "r", ("tokenizer", "base", "mid"))
    (run.stage("base").checkpoint(20)).rename(home / "elsewhere")
    assert "nothing to do" in nanochat("train", "base", "--run", "r").err and not launched.calls


def write_inputs(home: Path, run: RunPaths, *stages: str) -> None:
    settings = read_saved(run.settings)[1]
    for stage in stages:
        found = Inputs(list_settings(stage, settings), hash_data(stage, settings, Workspace(home)))
        inputs_path(run, stage).write_text(dump_inputs(found))


def test_settings_edited_by_hand_are_refused_with_the_options_that_put_them_back(
    nanochat: Call, launched, home: Path
) -> None:
    run = make_run(home, "r", ("tokenizer", "base"), "mid")
    write_inputs(home, run, "tokenizer", "base")
    record = json.loads(run.settings.read_text())
    before = record["settings"]["base"]["matrix_lr"]
    record["settings"]["base"]["matrix_lr"] = 0.5
    run.settings.write_text(json.dumps(record))
    for words in (("train", "mid", "--run", "r"), ("resume", "r"), ("run", "--run", "r"), ("eval", "bpb", "r/base")):
        outcome = nanochat(*words)
        assert outcome.code == 2, outcome.err
        assert f"was edited: run 'r' has trained its base with base.matrix_lr = {before}, not 0.5" in outcome.err
        assert f"nanochat {' '.join(words)} --set base.matrix_lr={before}" in outcome.err
    assert not launched.calls
    assert nanochat("train", "mid", "--run", "r", "--set", f"base.matrix_lr={before}").code == 0
    assert read_saved(run.settings)[1].base.matrix_lr == before


def test_settings_of_a_run_that_is_at_work_stay_as_they_are(nanochat: Call, launched, home: Path) -> None:
    run = make_run(home, "r", ("tokenizer", "base"))
    before = run.settings.read_bytes()
    with lock_run(run):
        outcome = nanochat("run", "--run", "r", "--set", "sft.epochs=3")
        assert outcome.code == 2 and f"run 'r' is in use by process {os.getpid()}" in outcome.err
    assert run.settings.read_bytes() == before and not launched.calls


def test_data_that_changed_after_the_end_is_said(nanochat: Call, launched, home: Path) -> None:
    mine = home.parent / "mine.jsonl"
    mine.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    told = f'sft.mixture=["custom:{mine}"]'
    run = make_run(home, "r", ("tokenizer", "base", "mid", "sft"), "", told, "rl.task=none")
    write_shards(home / "data" / "demo", ["one"], "train")
    write_inputs(home, run, "tokenizer", "base", "mid", "sft")
    assert "changed" not in nanochat("train", "sft", "--run", "r").err
    mine.write_text(mine.read_text().replace('"b"', '"c"'))
    outcome = nanochat("train", "sft", "--run", "r")
    assert f"warning: custom:{mine} has changed since sft was trained" in outcome.err and "nothing to do" in outcome.err
    assert "`nanochat runs copy r r-2 --until mid && nanochat run --run r-2` trains on what it is now" in outcome.err
    write_shards(home / "data" / "demo", ["two"], "train")
    outcome = nanochat("run", "--run", "r")
    assert outcome.code == 0, outcome.err
    for stage in ("tokenizer", "base"):
        assert f"warning: data set 'demo' has changed since {stage} was trained" in outcome.err
    again = next(line for line in outcome.err.splitlines() if "tokenizer was trained" in line).split("`")[1]
    assert nanochat(*shlex.split(again)[1:], "--dry-run").code == 0
    assert (
        again.startswith("nanochat run --run r-2 --preset demo") and f"--set 'sft.mixture=[\"custom:{mine}\"]'" in again
    )
    assert "--set rl.task=none" in again and again.count("--set") == 2
