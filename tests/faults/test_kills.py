"""A worker that is killed or asked to stop, twenty times each, goes on bit for bit."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.crash import compare_ends, compare_losses, crash, measure
from nanochat.paths import StagePaths
from nanochat.training.metrics import MetricsFile
from tests.faults.conftest import CHANGES, NUM_STEPS
from tests.faults.workers import Fault, Workers
from tests.patience import wait_until

NUM_KILLS = 20
CALLS_PER_SAVE = 45  # counted below: 37 to write one, and those that delete an old one


@pytest.mark.parametrize("kind", ["random", "inside"])
def test_a_killed_run_goes_on_bit_for_bit(
    workers: Workers, new_run: Callable[..., Path], whole: Path, kind: str
) -> None:
    undisturbed = StagePaths(whole)
    start_seconds, step_seconds = measure(workers, ["base", str(whole.parent / "settings.json")], undisturbed)
    span = start_seconds + 2 * CHANGES["checkpoint"]["every"] * step_seconds
    tally = crash(workers, new_run, undisturbed, kind, NUM_KILLS, 1, CALLS_PER_SAVE, span)
    assert tally.kills == tally.resumed == NUM_KILLS


@pytest.mark.parametrize(("number", "num_stops"), [(signal.SIGTERM, 20), (signal.SIGINT, 5)])
def test_a_run_that_is_asked_to_stop_saves_everything(
    workers: Workers, new_run: Callable[..., Path], whole: Path, number: int, num_stops: int
) -> None:
    chance = random.Random(number)
    num_runs = stops = 0
    while stops < num_stops:  # a run that a slow machine lets come to its end is compared, and another one is begun
        num_runs += 1
        settings = new_run(f"stopped-{int(number)}-{num_runs}", every=0)
        stage = StagePaths(settings.parent / "base")
        while True:
            before = max(stage.steps(), default=0)
            pid = workers.start(["base", str(settings)])
            if stops < num_stops:
                wait_for_step(MetricsFile(stage.metrics), before + 1)
                time.sleep(chance.uniform(0.0, 0.005))
                os.kill(pid, number)
            ended = workers.wait()
            compare_losses(stage, StagePaths(whole))
            if ended.status == 0:
                break
            assert ended.status == 75, ended.said
            assert "everything is saved" in ended.said and f"nanochat resume {settings.parent.name}" in ended.said
            last = max(MetricsFile(stage.metrics).values("loss"))
            assert stage.steps()[-1] == last > before, "no step is taken twice"
            stops += 1
        compare_ends(stage, StagePaths(whole))


def wait_for_step(metrics: MetricsFile, step: int) -> None:
    wait_until(lambda: max(metrics.values("loss"), default=0) >= step)


def test_the_calls_of_a_save_are_all_seen(workers: Workers, new_run: Callable[..., Path]) -> None:
    settings = new_run("counted", every=NUM_STEPS)
    ended = workers.run(["base", str(settings)], Fault("/checkpoints", 0))
    assert ended.status == 0, ended.said
    assert 20 < ended.calls <= CALLS_PER_SAVE
