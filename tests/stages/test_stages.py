import errno
import fcntl
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint.checkpoint import load_checkpoint
from nanochat.data.dataset import Manifest, load_manifest
from nanochat.errors import DataError
from nanochat.machine import module_command
from nanochat.paths import RunPaths, Workspace
from nanochat.report.collect import collect_report
from nanochat.stages import __main__ as stages_main
from nanochat.stages.__main__ import main
from nanochat.stages.assemble import build_session, load_model, open_tokenizer
from nanochat.stages.lock import find_holder
from nanochat.training.metrics import MetricsFile
from tests.conftest import NUM_THREADS
from tests.patience import wait_until
from tests.stages.processes import run_until

Start = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


def read_losses(run: Path, stage: str = "base") -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in MetricsFile(run / stage / "metrics.jsonl").read() if "loss" in r]


def test_every_stage_leaves_its_files(trained_home: Path) -> None:
    run = Workspace(trained_home).run("whole")
    for stage in ("base", "mid", "sft"):
        paths = run.stage(stage)
        result = json.loads(paths.result.read_text())
        plan = json.loads(paths.plan.read_text())
        assert result["stage"] == stage and result["step"] == plan["num_steps"] == paths.steps()[-1]
        assert math.isfinite(result["loss"]) and result["val_bpb"] > 0 and result["best_val_bpb"] <= result["val_bpb"]
        assert len(read_losses(run.root, stage)) == plan["num_steps"]
        assert all(
            set(json.loads(line)) == {"step", "prompt", "text"} for line in paths.samples.read_text().splitlines()
        )
    assert json.loads((run.tokenizer / "result.json").read_text())["bytes_per_token"] > 1
    assert {path.name for path in run.eval.iterdir()} == {
        "sft_bpb.json",
        "sft_letters.json",
        "sft_arithmetic.json",
        "sft_chatcore.json",
    }


def test_base_learns(trained_home: Path) -> None:
    losses = [loss for _, loss in read_losses(trained_home / "runs" / "whole")]
    assert losses[0] == pytest.approx(math.log(400), rel=1e-3)  # the head starts at zero: uniform
    assert losses[-1] < losses[0] - 0.5


def test_evaluation_during_training_and_afterwards_agree(trained_home: Path) -> None:
    run = Workspace(trained_home).run("whole")
    assert main(["evaluate", str(run.settings), "--of", "base", "--score", "bpb"]) == 0
    after = json.loads((run.eval / "base_bpb.json").read_text())
    (run.eval / "base_bpb.json").unlink()
    assert after["bpb"] == pytest.approx(json.loads(run.stage("base").result.read_text())["val_bpb"], rel=1e-6)


def test_several_models_are_measured_in_one_call(trained_home: Path) -> None:
    run = Workspace(trained_home).run("whole")
    assert main(["evaluate", str(run.settings), "--of", "base,mid", "--score", "bpb"]) == 0
    found = [run.eval / f"{stage}_bpb.json" for stage in ("base", "mid")]
    assert [json.loads(path.read_text())["stage"] for path in found] == ["base", "mid"]
    for path in found:
        path.unlink()


def test_the_tokenizer_of_a_worker_takes_its_share_of_the_cores(
    start_run: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []

    def look(job) -> None:
        seen.append((open_tokenizer(job).num_threads, os.environ["RAYON_NUM_THREADS"]))

    monkeypatch.setitem(stages_main.RUN_STAGE, "base", look)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["base", str(start_run())]) == 0
    assert seen == [(1, "1")]


def test_mid_that_replays_text_names_it(trained_home: Path) -> None:
    run = Workspace(trained_home).run("whole")
    base, mid = (json.loads(run.stage(stage).result.read_text()) for stage in ("base", "mid"))
    assert mid["dataset_hash"] == base["dataset_hash"] and mid["dataset"] == "tiny"
    assert "dataset_hash" not in json.loads(run.stage("sft").result.read_text())


def test_a_result_names_the_text_that_was_opened(start_run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may have taken its place by the end."""
    seen: list[Path] = []

    def look(folder: Path) -> Manifest:
        seen.append(folder)
        return load_manifest(folder) if len(seen) == 1 else Manifest(())

    for stage in ("tokenizer", "base", "mid"):
        seen.clear()
        settings, name = start_run(f"opened-{stage}", stages=("base",)), stage if stage != "mid" else "finetune"
        shutil.rmtree(settings.parent / stage, ignore_errors=True)
        monkeypatch.setattr(f"nanochat.stages.{name}.load_manifest", look)
        assert main([stage, str(settings)]) == 0
        result = json.loads((settings.parent / stage / "result.json").read_text())
        assert result["dataset_hash"] == load_manifest(seen[0]).hash


def test_cropped_rows_are_those_of_training_and_of_every_bits_per_byte(
    trained_home: Path, start_run: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = start_run(changes={"data": {"packing": "crop"}})
    assert main(["base", str(settings)]) == 0
    assert "bits per byte are those of cropped rows" in "".join(capsys.readouterr())
    assert main(["evaluate", str(settings), "--of", "base", "--score", "bpb"]) == 0
    run = RunPaths(settings.parent)
    result, whole = (
        json.loads(r.stage("base").result.read_text()) for r in (run, Workspace(trained_home).run("whole"))
    )
    assert (result["packing"], whole["packing"]) == ("crop", "cut")
    assert result["dropped_share"] > whole["dropped_share"] == 0
    after = json.loads((run.eval / "base_bpb-crop.json").read_text())
    assert after["packing"] == "crop" and after["bpb"] == pytest.approx(result["val_bpb"], rel=1e-6)
    assert after["num_bytes"] > 0 and result["val_bpb"] != whole["val_bpb"]
    assert main(["evaluate", str(settings), "--of", "base", "--score", "bpb", "--set", "data.packing=cut"]) == 0
    assert {score.name for score in collect_report(run).scores} == {"bpb", "bpb-crop"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_worker_whose_launcher_was_killed_saves_and_stops(start_run: Start) -> None:
    settings = start_run(changes={"base": {"num_steps": 100_000}})
    worker = module_command("nanochat.stages", "base", str(settings))
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import subprocess; p = subprocess.Popen({worker}); print(p.pid, flush=True); p.wait()",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    metrics = settings.parent / "base" / "metrics.jsonl"
    wait_until(lambda: metrics.is_file() and metrics.stat().st_size > 0)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())
    steps = RunPaths(settings.parent).stage("base").steps()
    assert steps and steps[-1] >= MetricsFile(metrics).read()[-1]["step"]


def test_a_disk_that_syncs_no_folder_stops_nothing_and_is_said_once(
    start_run: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    settings = start_run()
    shutil.rmtree(settings.parent / "tokenizer")
    assert main(["tokenizer", str(settings)]) == 0
    assert capsys.readouterr().err.count("a power cut may lose the newest file") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_resume_continues_bit_for_bit(trained_home: Path, start_run: Start, number: int, status: int) -> None:
    settings = start_run()
    ended = run_until(settings, 12, number)
    assert ended.returncode == status, ended.stderr
    if status == 75:
        assert "hint:  nanochat resume again" in ended.stderr
    assert not (settings.parent / "base" / "result.json").exists()
    assert main(["base", str(settings)]) == 0
    whole = trained_home / "runs" / "whole"
    assert read_losses(settings.parent) == read_losses(whole)
    values = [MetricsFile(run / "base" / "metrics.jsonl") for run in (settings.parent, whole)]
    assert [m.value_at(10, "val_bpb") for m in values[:1]] == [m.value_at(10, "val_bpb") for m in values[1:]]
    weights = [
        (run / "base/checkpoints/step_000020/model.safetensors").read_bytes() for run in (settings.parent, whole)
    ]
    assert weights[0] == weights[1]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    trained_home: Path, start_run: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = start_run(stages=("base",))
    newest = settings.parent / "base" / "checkpoints" / "step_000020" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert main(["base", str(settings)]) == 0
    said = capsys.readouterr().err
    assert "step_000020 is bad" in said and "continuing base from step 15" in said
    assert read_losses(settings.parent) == read_losses(trained_home / "runs" / "whole")


@pytest.mark.parametrize("threads", [1, NUM_THREADS])
def test_another_number_of_threads_is_said_once_and_the_same_number_is_not(
    trained_home: Path, start_run: Start, capsys: Captured, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    settings = start_run(stages=("base",))
    base = RunPaths(settings.parent).stage("base")
    for step in (15, 20):
        shutil.rmtree(base.checkpoint(step))
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    is_said = []
    for step in (20, 15):
        assert main(["base", str(settings), "--resume", "nanochat resume again"]) == 0
        said = capsys.readouterr().err
        is_said.append(f"uninterrupted run: threads was {NUM_THREADS}, now {threads}" in said)
        assert is_said[-1] == (f"OMP_NUM_THREADS={NUM_THREADS} nanochat resume again  # computes as before" in said)
        assert load_checkpoint(base.checkpoint(step)).meta["computed_by"]["threads"] == threads
        shutil.rmtree(base.checkpoint(20))
    assert is_said == [threads != NUM_THREADS, False]


@pytest.mark.parametrize("stage", ["base", "mid", "sft"])
def test_a_checkpoint_of_every_stage_knows_what_computed_it(trained_home: Path, stage: str) -> None:
    paths = Workspace(trained_home).run("whole").stage(stage)
    computed_by = load_checkpoint(paths.checkpoint(paths.steps()[-1])).meta["computed_by"]
    assert (computed_by["threads"], computed_by["processes"], computed_by["dtype"]) == (NUM_THREADS, 1, "float32")
    assert computed_by["torch"] == torch.__version__ and computed_by["device_batch_size"] > 0


def test_a_finished_stage_is_left_as_it_is(trained_home: Path, start_run: Start) -> None:
    settings = start_run(stages=("base",))
    before = (settings.parent / "base" / "metrics.jsonl").read_text()
    assert main(["base", str(settings)]) == 0
    assert (settings.parent / "base" / "metrics.jsonl").read_text() == before


def test_two_processes_cannot_write_one_run(start_run: Start, capsys: pytest.CaptureFixture[str]) -> None:
    settings = start_run()
    lock = RunPaths(settings.parent).lock
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711\n")
        file.flush()
        assert main(["base", str(settings)]) == 2
        assert find_holder(RunPaths(settings.parent)) == "4711"
    assert find_holder(RunPaths(settings.parent)) == ""
    assert "in use by process 4711" in capsys.readouterr().err
    assert not (settings.parent / "base").exists()


def test_a_disk_without_locks_is_not_called_in_use(
    start_run: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    assert main(["base", str(start_run())]) == 4
    said = capsys.readouterr().err
    assert "cannot be locked" in said and "No locks available" in said and "in use" not in said


@pytest.mark.parametrize(
    ("stage", "changes", "status", "sentence"),
    [
        ("base", {"data": {"dataset": "absent"}}, 3, "nanochat download import DIR --name absent"),
        ("tokenizer", {"data": {"dataset": "absent"}}, 3, "nanochat download import DIR --name absent"),
        ("mid", {}, 3, "nanochat train base --run again"),
        ("evaluate", {}, 3, "no checkpoint"),
        ("base", {"batch": {"total_tokens": 500}}, 2, "total_tokens"),
        ("base", {"model": {"depth": 2, "n_kv_head": 3}}, 2, "n_kv_head"),
    ],
)
def test_what_is_wrong_is_a_sentence_and_an_exit_code(
    start_run: Start, capsys: pytest.CaptureFixture[str], stage: str, changes: dict, status: int, sentence: str
) -> None:
    assert main([stage, str(start_run(changes=changes))]) == status
    said = capsys.readouterr().err
    assert "error: " in said and "hint: " in said and sentence in said


def test_another_tokenizer_or_model_is_refused(start_run: Start, capsys: pytest.CaptureFixture[str]) -> None:
    settings = start_run(changes={"model": {"depth": 2}}, stages=("base",))
    assert main(["base", str(settings)]) == 2
    assert "n_layer was 1, now 2" in capsys.readouterr().err
    other = start_run("other", {"tokenizer": {"vocab_size": 300}}, stages=("base",))
    shutil.rmtree(other.parent / "tokenizer")
    assert main(["tokenizer", str(other)]) == 0
    assert main(["mid", str(other)]) == 4
    assert "was trained with tokenizer" in capsys.readouterr().err
    model_path = Workspace(other.parents[2]).resolve_model("other/base")
    with pytest.raises(DataError, match="was trained with tokenizer"):
        load_model(model_path, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_for_inference_has_weights_in_the_compute_type_and_the_same_bits(
    trained_home: Path, dtype: torch.dtype
) -> None:
    path = Workspace(trained_home).resolve_model("whole/sft")
    loaded, _, _ = load_model(path, torch.device("cpu"), dtype)
    assert {weight.dtype for weight in loaded.parameters()} == {dtype}
    exact, _, _ = load_model(path, torch.device("cpu"), torch.float32)
    exact.compute_dtype = dtype  # casts its weights for every token
    ids = torch.arange(60).view(2, 30) * 5
    with torch.no_grad():
        assert torch.equal(loaded(ids), exact(ids))


def test_missing_settings_and_a_wrong_key_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs" / "a" / "settings.json"
    assert main(["base", str(path)]) == 3
    path.parent.mkdir(parents=True)
    path.write_text('{"settings": {"model": {"dpeth": 3}}}')
    assert main(["base", str(path)]) == 2
    path.write_text("{")
    assert main(["base", str(path)]) == 4
    assert "model.dpeth" in capsys.readouterr().err


def test_a_session_answers_with_the_trained_model(trained_home: Path) -> None:
    session = build_session(Workspace(trained_home).resolve_model("whole"), "cpu", "float32")
    pieces = list(session.send("How many r are in strawberry?"))
    assert session.name == "whole/sft@" + str(Workspace(trained_home).run("whole").stage("sft").steps()[-1])
    assert all(piece.text for piece in pieces)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_evaluation_says_how_to_start_it_again(
    trained_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr("nanochat.stages.evaluate.measure_bits", lambda *_arguments: os.kill(os.getpid(), number))
    settings = trained_home / "runs" / "whole" / "settings.json"
    assert main(["evaluate", str(settings), "--of", "base", "--resume", "nanochat eval all whole"]) == 130
    error, hint = capsys.readouterr().err.strip().splitlines()[-2:]
    assert error == "error: evaluate was interrupted; what it had finished is kept"
    assert hint == "hint:  nanochat eval all whole"


def test_sft_says_before_its_first_step_what_it_will_learn(
    trained_home: Path, start_run: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"sft": {"mixture": ["arithmetic:12", "stories:3"], "epochs": 2.0}}
    settings = start_run(changes=changes, stages=("base", "mid"))
    assert main(["sft", str(settings)]) == 0
    said = capsys.readouterr().err
    size = json.loads((settings.parent / "sft" / "plan.json").read_text())["mixture"]
    before = said[: said.index("sft 1/")]
    assert f"15 conversations with {size['tokens']:,} tokens fill {size['rows']} rows of 64" in before
    assert "go through them 2." in before and size["too_long"] >= 3
    assert f"{size['too_long']} of them are longer than the context of 64: truncated" in before
