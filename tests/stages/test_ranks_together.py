"""Several real processes under the launcher: they train like one, and whatever happens to one of them is survived."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch.distributed as dist

from nanochat.checkpoint.checkpoint import load_checkpoint
from nanochat.files import write_atomically
from nanochat.launch.marks import RankMark
from nanochat.machine import is_running, send_signal
from nanochat.paths import RunPaths
from nanochat.training.metrics import MetricsFile
from tests.patience import wait_until
from tests.stages.processes import Launch, ranks

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo"),
    pytest.mark.skipif(sys.platform != "linux", reason="signals and process ids are checked the way of Linux"),
]
Start = Callable[..., Path]
LONG = {"base": {"num_steps": 100_000, "eval_every": 0}, "checkpoint": {"every": 50}}
FAULT = """
# As the parent's environment says: rank 1 raises in its step 3; and steps from the number in the file ALLOWED on wait
# for a larger number, or for a request to stop.
import os, sys, threading, time
from pathlib import Path
def patch():
    while "nanochat.training.loop" not in sys.modules or not hasattr(sys.modules["nanochat.training.loop"], "train"):
        time.sleep(0.01)
    from nanochat import errors
    from nanochat.training import loop, stop
    take_step, requests, enter = loop._take_step, [], stop.StopRequests.__enter__
    stop.StopRequests.__enter__ = lambda self: requests.append(self) or enter(self)
    def is_held(step):
        return "ALLOWED" in os.environ and step >= int(Path(os.environ["ALLOWED"]).read_text() or 0)
    def fail(training):
        state = training.state
        while is_held(state.step) and not any(each.requested for each in requests):
            time.sleep(0.01)
        if "FAULT" in os.environ and os.environ.get("RANK") == "1" and state.step == 3:
            raise eval(os.environ["FAULT"], dict(vars(errors)))
        return take_step(training)
    loop._take_step = fail
if "FAULT" in os.environ or "ALLOWED" in os.environ:
    threading.Thread(target=patch, daemon=True).start()
"""


@pytest.fixture
def start_run(start_run: Start) -> Start:
    """Runs whose later stages, which are checked before the first, have room for four processes."""
    return lambda run="again", changes=None: start_run(run, {"sft": {"total_tokens": 512}} | (changes or {}))


def add_fault(folder: Path) -> dict[str, str]:
    """Write FAULT where Python looks for it; returns the environment that does."""
    (folder / "fault").mkdir()
    (folder / "fault" / "sitecustomize.py").write_text(FAULT)
    return {"PYTHONPATH": str(folder / "fault")}


def read_losses(run: RunPaths) -> list[float]:
    records = [record for record in MetricsFile(run.stage("base").metrics).read() if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


def are_gone(marks: Sequence[RankMark]) -> bool:
    return not any(is_running(mark.pid) for mark in marks)


def test_two_processes_train_like_one_and_a_run_moves_between_worlds(
    trained_home: Path, start_run: Start, tmp_path: Path
) -> None:
    """1 -> 2 -> 4 -> 1 processes, each ended by SIGTERM: the losses, the optimizer and the place in the data of one."""
    settings = start_run()
    allowed = tmp_path / "allowed"
    held = add_fault(tmp_path) | {"ALLOWED": str(allowed)}  # else a busy machine asks too late
    for world_size, until in ((1, 4), (2, 9), (4, 14)):
        rows = ("--set", f"batch.device_batch_size={min(4, 8 // world_size)}")
        allowed.write_text(str(until))
        launch = Launch(settings, *ranks(world_size, *rows), environ=held)
        launch.wait_for_step(until)
        launch.process.send_signal(signal.SIGTERM)
        assert launch.wait() == 75, launch.text
        resume = "nanochat resume again" + (f" --gpus {world_size}" if world_size > 1 else "")
        assert launch.text.rstrip().endswith(f"hint:  {resume}")
        if world_size > 1:
            assert f"processes was {world_size // 2}, now {world_size}" in launch.text
    launch = Launch(settings, *ranks(1, "--set", "batch.device_batch_size=4"))
    assert launch.wait() == 0, launch.text
    whole = RunPaths(trained_home / "runs" / "whole")
    assert read_losses(launch.run) == pytest.approx(read_losses(whole), abs=1e-6)
    moved, straight = (load_checkpoint(run.stage("base").checkpoint(20)) for run in (launch.run, whole))
    assert moved.state["cursor"] == straight.state["cursor"] and moved.state["tokens"] == straight.state["tokens"]
    assert moved.optimizer[0].keys() == straight.optimizer[0].keys()
    for name, value in straight.optimizer[0].items():
        assert (moved.optimizer[0][name] - value).abs().max() <= 1e-3 * value.abs().max() + 1e-7, name


def test_the_error_of_one_rank_comes_last_and_ends_all(start_run: Start, tmp_path: Path) -> None:
    settings = start_run(changes=LONG)
    environ = add_fault(tmp_path) | {"FAULT": "CapacityError('rank 1 has no room', 'nanochat runs ls')"}
    launch = Launch(settings, *ranks(2, "--max-restarts", "2"), environ=environ)
    launch.wait_for(lambda: any(mark.status == "failed" and mark.rank == 1 for mark in launch.marks))
    failed = next(mark for mark in launch.marks if mark.rank == 1)  # rank 0 may have lost its peer by now
    assert launch.wait() == 5
    assert launch.text.splitlines()[-2:] == ["error: rank 1 of 2: rank 1 has no room", "hint:  nanochat runs ls"]
    assert are_gone(launch.marks)
    assert failed.started == next(mark.started for mark in launch.marks if mark.rank == 1)  # not started again


def test_a_bug_on_one_rank_is_named_with_its_log(start_run: Start, tmp_path: Path) -> None:
    environ = add_fault(tmp_path) | {"FAULT": "AssertionError('it cannot be')"}
    launch = Launch(start_run(changes=LONG), *ranks(2), environ=environ)
    assert launch.wait() == 1
    error, hint = launch.text.splitlines()[-2:]
    assert error == "error: rank 1 of 2: AssertionError: it cannot be"
    log = Path(hint.removeprefix("hint:  less "))
    assert log == launch.run.logs("base") / "rank_001.log" and "Traceback" in log.read_text()


def test_a_stopped_rank_is_named(start_run: Start) -> None:
    settings = start_run(changes=LONG | {"runtime": {"hang_seconds": 8}})
    launch = Launch(settings, *ranks(2))
    launch.wait_for_step(3)
    stopped = launch.marks[1]
    os.kill(stopped.pid, signal.SIGSTOP)
    assert launch.wait() == 4
    error = launch.text.splitlines()[-2]
    assert f"rank 1 (process {stopped.pid} on " in error and "no sign of life" in error
    assert are_gone(launch.marks)


def test_killed_ranks_under_max_restarts(start_run: Start, tmp_path: Path) -> None:
    """Each kill ends a rank at another moment; torchrun starts all of them again from the newest checkpoint."""
    num_kills = 8  # benchmarks/crash.py has 200
    settings = start_run(changes={"base": {"num_steps": 60, "eval_every": 0}, "checkpoint": {"every": 2}})
    allowed, held = tmp_path / "allowed", add_fault(tmp_path)
    allowed.write_text("0")
    held["ALLOWED"] = str(allowed)  # else a busy machine kills too late
    launch = Launch(settings, *ranks(2, "--max-restarts", str(num_kills)), environ=held)
    killed: set[int] = set()
    while len(killed) < num_kills:
        rank = len(killed) % 2
        launch.wait_for(lambda rank=rank: any(m.rank == rank and m.pid not in killed for m in launch.marks))
        mark = next(m for m in launch.marks if m.rank == rank)
        first = launch.step
        write_atomically(allowed, str(2 * len(killed) + 3))
        if len(killed) % 3:  # in the middle of training; else while the ranks start
            launch.wait_for(lambda mark=mark, first=first: launch.step != first or not is_running(mark.pid))
        if mark.pid not in killed and send_signal(mark.pid, signal.SIGKILL):
            killed.add(mark.pid)
    write_atomically(allowed, "60")
    assert launch.wait() == 0, launch.text
    assert "a rank failed, and all were started again (restart 1)" in launch.text
    alone = start_run("alone", changes={"base": {"num_steps": 60, "eval_every": 0}, "checkpoint": {"every": 0}})
    other = Launch(alone, *ranks(2))
    assert other.wait() == 0, other.text
    assert read_losses(launch.run) == read_losses(other.run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_request_to_stop_reaches_all_ranks(start_run: Start, number: int) -> None:
    launch = Launch(start_run(changes=LONG), *ranks(2))
    launch.wait_for_step(3)
    if number == signal.SIGUSR1:  # some schedulers tell every process
        for pid in {Path(f"/proc/{mark.pid}/stat").read_text().rpartition(")")[2].split()[1] for mark in launch.marks}:
            os.kill(int(pid), number)
    launch.process.send_signal(number)
    assert launch.wait() == 75
    saved = launch.run.stage("base").steps()[-1]
    assert saved == launch.step and f"stopped after step {saved}" in launch.text.splitlines()[-2]
    assert are_gone(launch.marks)


def test_a_second_interrupt_says_what_is_lost_and_leaves(start_run: Start) -> None:
    launch = Launch(start_run(changes=LONG), *ranks(2))
    launch.wait_for_step(2)
    for mark in launch.marks:
        os.kill(mark.pid, signal.SIGSTOP)  # so that the first request cannot be followed at once
    launch.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    launch.process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    for mark in launch.marks:
        os.kill(mark.pid, signal.SIGCONT)
    assert launch.wait() in (75, 130)
    assert are_gone(launch.marks)


def test_ranks_whose_launcher_was_killed_save_and_stop(start_run: Start) -> None:
    launch = Launch(start_run(changes=LONG), *ranks(2))
    launch.wait_for_step(3)
    launch.process.kill()
    launch.process.wait()
    wait_until(lambda: are_gone(launch.marks))
    assert launch.run.stage("base").steps()[-1] == launch.step


def test_two_agents_that_meet_at_an_address_train_like_one(trained_home: Path, start_run: Start) -> None:
    """Two nodes on one machine: each its own launcher, torchrun and process."""
    settings = start_run()
    nodes = ("--nodes", "2", "--rdzv-endpoint", f"127.0.0.1:{find_free_port()}")
    launches = [Launch(settings, *ranks(1, *nodes, "--node-rank", str(node))) for node in (0, 1)]
    assert [launch.wait() for launch in launches] == [0, 0], [launch.text for launch in launches]
    assert ["base 20/20 (100%)" in launch.text for launch in launches] == [True, False], "node 0 shows how far it is"
    whole = RunPaths(trained_home / "runs" / "whole")
    assert read_losses(launches[0].run) == pytest.approx(read_losses(whole), abs=1e-6)
    assert json.loads(launches[0].run.stage("base").result.read_text())["world_size"] == 2


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and iproute2")
def test_two_network_namespaces_train_like_one(trained_home: Path, start_run: Start) -> None:
    """Two nodes with a network of their own each, joined by a virtual cable."""
    names = [f"nanochat{os.getpid()}n{node}" for node in (0, 1)]

    def ip(*words: str) -> int:
        return subprocess.run(["ip", *words], capture_output=True).returncode

    if ip("netns", "add", names[0]):
        pytest.skip("this system refuses network namespaces")
    try:
        assert ip("netns", "add", names[1]) == 0
        wires = [f"nc{os.getpid() % 100000}w{node}" for node in (0, 1)]
        assert ip("link", "add", wires[0], "type", "veth", "peer", "name", wires[1]) == 0
        for node, (name, wire) in enumerate(zip(names, wires, strict=True)):
            assert ip("link", "set", wire, "netns", name) == 0
            assert ip("-n", name, "addr", "add", f"10.213.0.{node + 1}/24", "dev", wire) == 0
            assert ip("-n", name, "link", "set", wire, "up") == 0 and ip("-n", name, "link", "set", "lo", "up") == 0
        settings = start_run()
        launches = []
        for node, name in enumerate(names):
            words = ranks(1, "--nodes", "2", "--node-rank", str(node), "--rdzv-endpoint", "10.213.0.1:29500")
            launches.append(Launch(settings, *words, prefix=("ip", "netns", "exec", name)))
        assert [launch.wait() for launch in launches] == [0, 0], [launch.text for launch in launches]
        whole = RunPaths(trained_home / "runs" / "whole")
        assert read_losses(launches[0].run) == pytest.approx(read_losses(whole), abs=1e-6)
    finally:
        for name in names:
            ip("netns", "del", name)


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
