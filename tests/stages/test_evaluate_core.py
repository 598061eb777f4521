"""CORE as a stage: its files, its limits, and an evaluation that is killed and goes on."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist

from nanochat.data.core_bundle import CORE_TASKS, load_bundle, load_items
from nanochat.paths import RunPaths
from nanochat.stages.__main__ import main
from nanochat.stages.scores import hash_code
from tests.core_bundle import write_bundle
from tests.patience import PATIENCE_SECONDS

Start = Callable[..., Path]
LABELS = ("copa", "arc_easy", "winograd", "lambada_openai")
CORE = ("--of", "base", "--score", "core")

# Ends itself with a signal in the middle of the n-th task, after its first pass.
ENDING = """
import os, sys
from nanochat.stages import evaluate as stage
name = "evaluate_chat" if "chat" in sys.argv else "evaluate_core_task"
score, started = getattr(stage, name), []
def score_and_end(task, *args, progress, **values):
    started.append(task)
    def advance(done, total):
        progress(done, total)
        if len(started) == int(sys.argv[1]):
            os.kill(os.getpid(), int(sys.argv[2]))
    return score(task, *args, progress=advance, **values)
setattr(stage, name, score_and_end)
from nanochat.stages.__main__ import main
sys.exit(main(["evaluate", *sys.argv[3:]]))
"""


@pytest.fixture
def evaluated(start_run: Start, tmp_path: Path) -> RunPaths:
    """A run with a base and an sft model, in a home that has a small bundle."""
    settings = start_run("again", stages=("base", "sft"))
    write_bundle(tmp_path / "core", LABELS)
    return RunPaths(settings.parent)


def read_core(run: RunPaths, stage: str = "base") -> dict:
    return json.loads((run.eval / f"{stage}_core.json").read_text())


def test_core_leaves_its_mean_its_tasks_and_what_is_needed_to_repeat_it(
    evaluated: RunPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(evaluated.settings), *CORE]) == 0
    said = capsys.readouterr().err
    assert "without 18 of the CORE tasks, so the mean is not CORE: hellaswag_zeroshot (not in core.yaml)" in said
    assert "centred mean of 4 of the 22 CORE tasks" in said and "cut to the newest tokens" in said
    record = read_core(evaluated)
    assert not record["is_core"] and set(record["missing"]) == set(CORE_TASKS) - set(LABELS)
    assert [task["label"] for task in record["core_tasks"]] == list(LABELS)
    assert record["value"] == pytest.approx(sum(task["centred"] for task in record["core_tasks"]) / 4)
    manifest = json.loads((evaluated.stage("base").checkpoint(20) / "MANIFEST.json").read_text())
    assert record["model_sha256"] == manifest["files"]["model.safetensors"]["sha256"]
    assert (record["stage"], record["step"], record["seed"]) == ("base", 20, 42)
    assert record["code_sha256"] == hash_code() and record["settings"]["max_per_task"] is None
    for task in record["core_tasks"]:
        path = tmp_path / f"core/eval_data/all/{task['label']}.jsonl"
        assert task["data_sha256"] == load_items_hash(tmp_path, task["label"]) and path.is_file()
        assert json.loads((evaluated.eval / "core" / f"base_{task['label']}.json").read_text()) == task
    assert not list((evaluated.eval / "core").glob("*.jsonl"))


def load_items_hash(home: Path, label: str) -> str:
    return load_items(next(task for task in load_bundle(home / "core").tasks if task.label == label))[1]


def test_every_prediction_can_be_logged(evaluated: RunPaths) -> None:
    assert main(["evaluate", str(evaluated.settings), *CORE, "--log-samples"]) == 0
    for task in read_core(evaluated)["core_tasks"]:
        path = evaluated.eval / "core" / f"base_{task['label']}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["index"] for line in lines] == list(range(12))
        assert sum(line["correct"] for line in lines) == task["correct"]
        assert all(line["prompt"] and len(line["options"]) >= 1 for line in lines)
        for line in lines:
            if task["kind"] != "language_modeling" and line["chosen"] is not None:
                assert line["losses"][line["chosen"]] == min(line["losses"])
    assert main(["evaluate", str(evaluated.settings), *CORE]) == 0
    assert len(list((evaluated.eval / "core").glob("*.jsonl"))) == len(read_core(evaluated)["core_tasks"])
    assert main(["evaluate", str(evaluated.settings), *CORE, "--set", "runtime.seed=7"]) == 0  # other predictions
    assert not list((evaluated.eval / "core").glob("*.jsonl"))


def test_one_question_a_task_and_some_tasks(evaluated: RunPaths) -> None:
    some = ("--set", "eval.max_per_task=1", "--set", "eval.core_tasks=copa,winograd")
    assert main(["evaluate", str(evaluated.settings), *CORE, *some]) == 0
    record = read_core(evaluated)
    assert [(task["label"], task["total"]) for task in record["core_tasks"]] == [("copa", 1), ("winograd", 1)]
    assert record["missing"]["arc_easy"] == "not asked for"


@pytest.mark.parametrize(("place", "number", "code"), [(1, signal.SIGKILL, -9), (3, signal.SIGKILL, -9), (3, 15, 130)])
def test_a_killed_evaluation_goes_on_and_equals_the_uninterrupted_one(
    evaluated: RunPaths, capsys: pytest.CaptureFixture[str], place: int, number: int, code: int
) -> None:
    words = [str(evaluated.settings), *CORE, "--log-samples"]
    assert main(["evaluate", *words]) == 0
    whole = {path: path.read_bytes() for path in evaluated.eval.rglob("*") if path.is_file()}
    shutil.rmtree(evaluated.eval)
    evaluate_until(place, number, code, words)
    assert len(list((evaluated.eval / "core").glob("*.json"))) == place - 1
    capsys.readouterr()
    assert main(["evaluate", *words, "--keep-finished"]) == 0
    assert capsys.readouterr().err.count("as measured before") == place - 1
    assert {path: path.read_bytes() for path in evaluated.eval.rglob("*") if path.is_file()} == whole


def evaluate_until(place: int, number: int, code: int, words: list[str]) -> None:
    """Evaluate in a process that ends itself in its task number `place`."""
    command = [sys.executable, "-c", ENDING, str(place), str(int(number)), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ended.returncode == code, ended.stderr


@pytest.mark.parametrize(
    "changes",
    [("--set", "eval.max_per_task=5"), ("--set", "runtime.seed=7"), ("--of", "sft"), ("--log-samples",)],
)
def test_what_was_measured_otherwise_is_measured_again(
    evaluated: RunPaths, capsys: pytest.CaptureFixture[str], changes: tuple[str, ...]
) -> None:
    assert main(["evaluate", str(evaluated.settings), *CORE]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(evaluated.settings), *CORE, "--keep-finished", *changes]) == 0
    assert "as measured before" not in capsys.readouterr().err


def test_changed_questions_and_damaged_scores_are_measured_again(
    evaluated: RunPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(evaluated.settings), *CORE]) == 0
    path = tmp_path / "core/eval_data/all/copa.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    (evaluated.eval / "core" / "base_arc_easy.json").write_text("[1")
    (evaluated.eval / "core" / "base_winograd.json").write_text("[1]")
    capsys.readouterr()
    assert main(["evaluate", str(evaluated.settings), *CORE, "--keep-finished"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "as measured before" in line]
    assert [line.split()[0] for line in said] == ["lambada_openai"]
    assert read_core(evaluated)["core_tasks"][0]["total"] == 11


def test_a_score_that_cannot_be_written_is_a_sentence(evaluated: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated.eval.mkdir()
    (evaluated.eval / "core").write_text("in the way")
    assert main(["evaluate", str(evaluated.settings), *CORE]) == 4
    assert "eval/core cannot be written" in capsys.readouterr().err


def test_without_a_bundle_all_says_so_and_core_alone_is_missing(
    start_run: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = start_run(stages=("base",))
    assert main(["evaluate", str(settings), "--of", "base"]) == 0
    assert "Run `nanochat download core`" in capsys.readouterr().err
    assert main(["evaluate", str(settings), *CORE]) == 3
    assert "hint:  nanochat download core" in capsys.readouterr().err


def test_all_scores_of_a_chat_model_include_core(evaluated: RunPaths) -> None:
    assert main(["evaluate", str(evaluated.settings)]) == 0
    names = {path.name for path in evaluated.eval.glob("*.json")}
    assert {"sft_bpb.json", "sft_core.json", "sft_letters.json", "sft_arithmetic.json", "sft_chatcore.json"} == names


def test_a_killed_chat_evaluation_goes_on_and_equals_the_uninterrupted_one(
    evaluated: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(evaluated.settings), "--score", "chat", "--set", "eval.answers_each=2", "--set", "eval.temperature=1"]
    assert main(["evaluate", *words]) == 0
    whole = {path: path.read_bytes() for path in evaluated.eval.glob("*.json")}
    shutil.rmtree(evaluated.eval)
    evaluate_until(2, signal.SIGKILL, -9, words)
    assert [path.name for path in evaluated.eval.iterdir()] == ["sft_letters-x2.json"]
    capsys.readouterr()
    assert main(["evaluate", *words, "--keep-finished"]) == 0
    assert capsys.readouterr().err.count("as measured before") == 1
    assert {path: path.read_bytes() for path in evaluated.eval.glob("*.json")} == whole
    letters = json.loads((evaluated.eval / "sft_letters-x2.json").read_text())
    assert letters["answers_each"] == 2 and set(letters["pass_at"]) == {"1", "2"}
    assert len(letters["data_sha256"]) == len(letters["model_sha256"]) == 64


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_ranks_score_like_one(evaluated: RunPaths) -> None:
    found = []
    for number in ("1", "2"):
        words = ["eval", "core", "again/base", "--max-per-task", "9", "--log-samples", "--device", "cpu"]
        words += ["--gpus", number, "--home", str(evaluated.root.parents[1])]
        command = [sys.executable, "-m", "nanochat.cli.main", *words]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
        assert ended.returncode == 0, ended.stderr
        assert "centred mean of 4 of the 22 CORE tasks" in ended.stdout
        scores = {path.name: json.loads(path.read_text()) for path in evaluated.eval.rglob("*.json")}
        found.append((scores, {path.name: read_choices(path) for path in evaluated.eval.rglob("*.jsonl")}))
        shutil.rmtree(evaluated.eval)
    assert found[0] == found[1] and len(found[0][0]) == 5 and len(found[0][1]) == 4


def read_choices(path: Path) -> list[tuple]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["index"], line["chosen"], line["num_dropped"]) for line in lines]
