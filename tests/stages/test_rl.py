"""The rl stage: what it writes, refuses and survives, and that a model gets better by it."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint.checkpoint import load_checkpoint
from nanochat.paths import RunPaths
from nanochat.stages.__main__ import main
from nanochat.training.metrics import MetricsFile, RolloutFiles
from tests.conftest import write_settings
from tests.patience import PATIENCE_SECONDS
from tests.stages.processes import Launch, ranks, run_until

Start = Callable[..., Path]
Captured = pytest.CaptureFixture[str]
FILE = Path(__file__).with_name("tasks_to_practise.py")
BEFORE = ("base", "mid", "sft")
SHARES = ("reward", "solved", "zero_variance", "one_answer", "truncated", "with_tool")


def practise(name: str, **changes: object) -> dict[str, dict]:
    return {"rl": {"task": f"{FILE}:{name}", **changes}}


def read_steps(run: RunPaths) -> list[dict]:
    """Records of the steps, without what a clock says."""
    records = [record for record in MetricsFile(run.stage("rl").metrics).read() if "reward" in record]
    return [{k: v for k, v in record.items() if "second" not in k and k not in ("mfu", "eta")} for record in records]


def read_rollouts(run: RunPaths) -> dict[int, list[dict]]:
    files = RolloutFiles(run.stage("rl").root / "rollouts", 1)
    return {step: files.read(step) for step in files.steps()}


@pytest.fixture(scope="module")
def practised(trained_home: Path) -> RunPaths:
    """A run that practised `Even` to its end, in the home of the trained run."""
    settings = write_settings(trained_home, "practised", practise("Even"))
    for name in ("tokenizer", *BEFORE):
        shutil.copytree(trained_home / "runs" / "whole" / name, settings.parent / name)
    assert main(["rl", str(settings)]) == 0
    return RunPaths(settings.parent)


def test_its_records_say_what_was_sampled(practised: RunPaths) -> None:
    steps, rollouts = read_steps(practised), read_rollouts(practised)
    assert [record["step"] for record in steps] == list(rollouts) == [1, 2, 3, 4, 5, 6]
    for record in steps:
        answers = rollouts[record["step"]]
        assert len(answers) == 12 and len({answer["question"] for answer in answers}) == 3
        assert record["reward"] == pytest.approx(sum(answer["reward"] for answer in answers) / 12)
        assert record["truncated"] == pytest.approx(sum(answer["truncated"] for answer in answers) / 12)
        assert record["longest_answer"] == max(answer["tokens"] for answer in answers) <= 8
        assert all(0 <= record[share] <= 1 for share in SHARES)
        for answer in answers:
            assert answer["prompt"] == f"Say train {answer['question']}." and answer["right"] == "ok"
        for question in {answer["question"] for answer in answers}:
            group = [answer for answer in answers if answer["question"] == question]
            assert [answer["sample"] for answer in group] == [0, 1, 2, 3]
            assert sum(answer["advantage"] for answer in group) == pytest.approx(0, abs=1e-5)
    assert 0 < sum(record["reward"] for record in steps) < 6, "by chance, some are right and some are not"
    questions = [answer["question"] for answers in rollouts.values() for answer in answers[::4]]
    assert len(set(questions)) == 18, "no question comes twice in an epoch"


def test_its_result_and_checkpoint_are_those_of_a_stage(practised: RunPaths) -> None:
    result = json.loads(practised.stage("rl").result.read_text())
    scores = MetricsFile(practised.stage("rl").metrics).values("pass_at_1")
    assert list(scores) == [0, 3, 6]
    assert (result["pass_at_1_before"], result["pass_at_1"]) == (scores[0], scores[6])
    assert (result["stage"], result["step"], result["questions"], result["too_long"]) == ("rl", 6, 40, 0)
    checkpoint = load_checkpoint(practised.stage("rl").checkpoint(6))
    assert checkpoint.meta["stage"] == "rl" and checkpoint.meta["source"] == "practised/sft@6"
    sft = load_checkpoint(practised.stage("sft").checkpoint(practised.stage("sft").steps()[-1]))
    assert any(not torch.equal(checkpoint.model[name], sft.model[name]) for name in sft.model)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_it_goes_on_bit_for_bit(start_run: Start, practised: RunPaths, number: int, status: int) -> None:
    settings = start_run("practised", practise("Even") | {"checkpoint": {"every": 2}}, BEFORE)
    ended = run_until(settings, 3, number, "rl")
    assert ended.returncode == status, ended.stderr
    run = RunPaths(settings.parent)
    assert run.stage("rl").steps() == ([2] if status == -9 else [2, 3]) and not run.stage("rl").result.exists()
    assert main(["rl", str(settings)]) == 0
    assert read_steps(run) == read_steps(practised) and read_rollouts(run) == read_rollouts(practised)
    weights = [(r.stage("rl").checkpoint(6) / "model.safetensors").read_bytes() for r in (run, practised)]
    assert weights[0] == weights[1]


def test_a_stop_in_the_middle_of_sampling_waits_for_the_step(start_run: Start, practised: RunPaths) -> None:
    settings = start_run("practised", practise("Even") | {"checkpoint": {"every": 0}}, BEFORE)
    code = f"""
import os, signal, sys
from nanochat.evals import rollouts
answer, calls = rollouts._answer, 0
def stop_in_the_middle(*arguments):
    global calls
    calls += 1
    if calls == 5:  # the check, pass@k, two steps, then this one
        os.kill(os.getpid(), signal.SIGTERM)
    return answer(*arguments)
rollouts._answer = stop_in_the_middle
from nanochat.stages.__main__ import main
sys.exit(main(["rl", {str(settings)!r}]))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ended.returncode == 75, ended.stderr
    run = RunPaths(settings.parent)
    assert run.stage("rl").steps() == [3] and list(read_rollouts(run)) == [1, 2, 3]
    assert main(["rl", str(settings)]) == 0
    assert read_steps(run) == read_steps(practised)


def test_two_processes_practise_like_one(start_run: Start, practised: RunPaths) -> None:
    settings = start_run("practised", practise("Even"), BEFORE)
    launch = Launch(settings, *ranks(2), stage="rl")
    assert launch.wait() == 0, launch.text
    alone, together = read_steps(practised), read_steps(launch.run)
    assert read_rollouts(launch.run) == read_rollouts(practised)
    for key in ("loss", "reward", "grad_norm"):
        assert [r[key] for r in together] == pytest.approx([r[key] for r in alone], abs=1e-5), key


def test_without_any_success_nothing_is_trained(start_run: Start, capsys: Captured) -> None:
    settings = start_run(changes=practise("Never"), stages=BEFORE)
    assert main(["rl", str(settings)]) == 7
    said = capsys.readouterr().err
    assert "0 of 128 answers to 32 questions of" in said and "without a success there is nothing to learn from" in said
    assert "hint:  nanochat eval chat again/sft" in said and "rl.check_questions=0" in said
    stage = RunPaths(settings.parent).stage("rl")
    assert stage.steps() == [] and not stage.result.exists() and read_rollouts(RunPaths(settings.parent)) == {}


def test_steps_without_a_signal_change_no_weight(start_run: Start, capsys: Captured) -> None:
    settings = start_run(changes=practise("Always"), stages=BEFORE)
    assert main(["rl", str(settings)]) == 0
    said = capsys.readouterr().err
    assert "the model knows all of it" in said and "6 of 6 steps had no gradient and changed nothing" in said
    assert "warning: steps 1 to 3: the answers to each question were all right or all wrong (100% right)" in said
    run = RunPaths(settings.parent)
    steps = read_steps(run)
    assert [record["loss"] for record in steps] == [None] * 6
    assert [record["zero_variance"] for record in steps] == [1.0] * 6
    assert json.loads(run.stage("rl").result.read_text())["without_signal"] == 6
    sft = load_checkpoint(run.stage("sft").checkpoint(run.stage("sft").steps()[-1])).model
    rl = load_checkpoint(run.stage("rl").checkpoint(6)).model
    assert all(torch.equal(rl[name], sft[name]) for name in sft)


def test_answers_that_are_cut_are_warned_about(start_run: Start, capsys: Captured) -> None:
    settings = start_run(changes=practise("Even", max_new_tokens=1, num_steps=3), stages=BEFORE)
    assert main(["rl", str(settings)]) == 0
    assert "were cut at 1 tokens: --set rl.max_new_tokens=2" in capsys.readouterr().err, read_steps(
        RunPaths(settings.parent)
    )


def test_only_the_newest_rollouts_are_kept(start_run: Start) -> None:
    settings = start_run(changes=practise("Even", keep_rollouts=2, eval_every=0), stages=BEFORE)
    assert main(["rl", str(settings)]) == 0
    assert list(read_rollouts(RunPaths(settings.parent))) == [5, 6]
    off = start_run("off", practise("Even", keep_rollouts=0, eval_every=0, num_steps=1), BEFORE)
    assert main(["rl", str(off)]) == 0
    assert not (off.parent / "rl" / "rollouts").exists()


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({}, 2, "rl.task is unset"),
        ({"task": "arithmatic"}, 2, "did you mean 'arithmetic'"),
        ({"task": "arithmetic*2"}, 2, "--set rl.task=arithmetic --set rl.epochs=2"),
        ({"task": "arithmetic", "max_new_tokens": 64}, 2, "leaves no room for a question: the context is 64"),
        ({"task": "gsm8k"}, 3, "nanochat download tasks"),
        ({"task": "stories"}, 2, "is not graded: no answer gets a reward"),
        ({"task": f"{FILE}:Ungraded"}, 2, "is not graded: no answer gets a reward"),
        ({"task": f"{FILE}:Wrong"}, 2, "grades its own right answer 'ok' as wrong"),
        ({"task": f"{FILE}:Long"}, 4, "none of the 40 questions"),
    ],
)
def test_what_cannot_be_practised_is_a_sentence(
    start_run: Start, capsys: Captured, changes: dict, code: int, said: str
) -> None:
    settings = start_run(changes={"rl": changes}, stages=BEFORE)
    assert main(["rl", str(settings)]) == code
    shown = capsys.readouterr().err
    assert said in shown and "hint:" in shown and "Traceback" not in shown
    assert not (settings.parent / "rl" / "checkpoints").exists()


def test_it_needs_a_finished_sft(start_run: Start, capsys: Captured) -> None:
    settings = start_run(changes=practise("Even"), stages=("base", "mid"))
    assert main(["rl", str(settings)]) == 3
    assert "nanochat train sft" in capsys.readouterr().err
