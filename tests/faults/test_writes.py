"""A write that fails, whichever it is, costs no checkpoint, is a sentence with an exit code, and the run goes on."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.crash import compare_ends
from nanochat.checkpoint.checkpoint import latest_good, remove_stale
from nanochat.errors import CapacityError, DataError, NanochatError
from nanochat.files import name_error
from nanochat.paths import StagePaths
from tests.faults.saving import save
from tests.faults.workers import KILL, LASTING, Fault, Workers

SAVE = "tests.faults.saving:save"


@pytest.mark.parametrize(
    ("error", "status"),
    [(errno.ENOSPC + LASTING, 5), (errno.EIO, 4), (KILL, -9)],
    ids=["full", "failing once", "killed"],
)
def test_every_write_of_a_save_may_fail(workers: Workers, tmp_path: Path, error: int, status: int) -> None:
    stage = StagePaths(tmp_path / "run" / "base")
    assert workers.run([str(stage.root), "10"], function=SAVE).status == 0
    shutil.copytree(stage.checkpoints, tmp_path / "before")
    num_calls = workers.run([str(stage.root), "20"], Fault("/checkpoints", 0), SAVE).calls
    assert num_calls > 15
    survived = 0
    for k in range(1, num_calls + 1):
        shutil.rmtree(stage.checkpoints)
        shutil.copytree(tmp_path / "before", stage.checkpoints)
        ended = workers.run([str(stage.root), "20"], Fault("/checkpoints", k, error), SAVE)
        if ended.status == 0:  # what failed was the deletion of the old checkpoint, after the new one was there
            survived += 1
            assert stage.steps()[-1] == 20
        else:
            assert ended.status == status, f"call {k}: {ended.said}"
            assert status < 0 or ("error: " in ended.said and "nanochat resume" in ended.said)
            assert "Traceback" not in ended.said
        remove_stale(stage)
        found = latest_good(stage, pytest.fail)
        assert found is not None and found[0] in (10, 20), f"call {k}"
        assert found[1].state == {"step": found[0]} and found[1].model["a"][0, 0].item() == found[0]
        assert {path.name for path in stage.checkpoints.iterdir()} <= {"step_000010", "step_000020"}, f"call {k}"
        assert save([str(stage.root), "30"]) == 0 and stage.steps() == [30]
    assert survived <= 12, "only deletions may fail unnoticed"


def test_a_run_goes_on_bit_for_bit_after_failed_saves(
    workers: Workers, new_run: Callable[..., Path], whole: Path
) -> None:
    settings = new_run("failing", every=10)
    stage = StagePaths(settings.parent / "base")
    for k, (error, status) in enumerate([(errno.ENOSPC + LASTING, 5), (errno.EIO, 4)] * 5):
        before = stage.steps()
        ended = workers.run(["base", str(settings)], Fault("/checkpoints/", 1 + 5 * k, error))
        assert ended.status == status, ended.said
        assert "error: " in ended.said and "hint: " in ended.said and "Traceback" not in ended.said
        assert set(before) <= set(stage.steps()), "no checkpoint is lost"
    assert workers.run(["base", str(settings)]).status == 0
    compare_ends(stage, StagePaths(whole))


def test_a_failing_write_of_a_record_is_a_sentence(workers: Workers, new_run: Callable[..., Path], whole: Path) -> None:
    settings = new_run("recording")
    stage = StagePaths(settings.parent / "base")
    for part in (".lock", "plan.json", "metrics.jsonl", "samples.jsonl", "result.json"):
        for k, (error, status) in enumerate([(errno.ENOSPC + LASTING, 5), (errno.EIO, 4)] * 2):
            before = stage.steps()
            ended = workers.run(["base", str(settings)], Fault(part, 1 + k // 2 * 7, error))
            assert ended.status in (0, status) if k > 1 else ended.status == status, f"{part} {k}: {ended.said}"
            assert ended.status == 0 or ("error: " in ended.said and "hint: " in ended.said)
            assert "Traceback" not in ended.said
            assert not before or max(stage.steps()) >= max(before), "no checkpoint is lost"
    assert workers.run(["base", str(settings)]).status == 0
    compare_ends(stage, StagePaths(whole))


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, CapacityError), (errno.EDQUOT, CapacityError), (errno.EIO, DataError), (errno.EROFS, DataError)],
)
def test_an_error_of_the_system_is_named(tmp_path: Path, number: int, kind: type[NanochatError]) -> None:
    named = name_error(OSError(number, os.strerror(number)), tmp_path)
    assert type(named) is kind and os.strerror(number) in named.message and named.hint


@pytest.mark.parametrize(("error", "status"), [(errno.ENOSPC + LASTING, 5), (errno.EIO, 4)])
def test_settings_that_cannot_be_written_are_a_sentence(
    workers: Workers, tmp_path: Path, error: int, status: int
) -> None:
    path = tmp_path / "runs" / "demo" / "settings.json"
    arguments = ["tokenize", "train", "--preset", "demo", "--home", str(tmp_path)]
    for k, _ in enumerate(("open", "write", "rename"), start=1):
        ended = workers.run(arguments, Fault("settings.json", k, error), "nanochat.cli.main:main")
        assert ended.status == status, ended.said
        assert "error: " in ended.said and "hint: " in ended.said and "Traceback" not in ended.said
        assert not path.exists()
        if error < LASTING:  # on a disk that fails for good, even the name cannot be taken away
            assert list(path.parent.iterdir()) == []
