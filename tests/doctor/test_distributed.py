import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanochat.doctor.distributed import choose_processes, judge_all_reduce, read_reports
from nanochat.errors import UsageError
from nanochat.launch import launch
from nanochat.launch.launch import run_limited
from nanochat.stages.bandwidth import main
from tests.patience import wait_until

AGAIN = "nanochat doctor --distributed"


def report(rank: int, state: str = "done", **more: Any) -> dict[str, Any]:
    sums = [{"bytes": 1 << 20, "right": True, "seconds": 0.001}, {"bytes": 64 << 20, "right": True, "seconds": 0.01}]
    return {"rank": rank, "pid": 1, "state": state, "sums": sums, **more}


def judge(reports: list[dict], num: int = 2, device: str = "cpu", code: int | None = 0):
    return judge_all_reduce(reports, num, device, code, 120.0, AGAIN)


@pytest.mark.parametrize(
    ("gpus", "device", "found", "chosen"),
    [
        ("all", "auto", 0, (2, "cpu")),
        ("all", "auto", 1, (2, "cpu")),
        ("all", "auto", 8, (8, "cuda")),
        ("all", "cuda", 2, (2, "cuda")),
        ("3", "auto", 8, (3, "cuda")),
        ("3", "auto", 0, (3, "cpu")),
        ("4", "cpu", 2, (4, "cpu")),
    ],
)
def test_the_gpus_take_part_else_two_processes(gpus: str, device: str, found: int, chosen: tuple[int, str]) -> None:
    assert choose_processes(gpus, device, found) == chosen


@pytest.mark.parametrize(
    ("gpus", "device", "found"),
    [("1", "auto", 8), ("0", "cpu", 0), ("many", "auto", 8), ("9", "auto", 8), ("2", "auto", 1), ("2", "cuda", 0)]
    + [("all", "cuda", 1), ("all", "tpu", 8)],
)
def test_devices_that_are_not_there_are_refused(gpus: str, device: str, found: int) -> None:
    with pytest.raises(UsageError) as caught:
        choose_processes(gpus, device, found)
    assert caught.value.hint


def test_bus_bandwidth_is_that_of_the_slowest_rank() -> None:
    slow = report(1)
    slow["sums"] = [slow["sums"][0], slow["sums"][1] | {"seconds": 0.02}]
    small, large = judge([report(0), slow])
    assert small.status == large.status == "ok" and large.name == "all-reduce 64 MiB"
    assert large.values["bus_bytes_per_second"] == (64 << 20) / 0.02  # 2 (n - 1) / n is 1 for two
    assert "3.36 GB/s" in large.message and "gloo" in large.message


def test_a_slow_bus_between_gpus_is_a_warning() -> None:
    small, large = judge([report(0), report(1)], device="cuda")
    assert small.status == large.status == "ok" and "NCCL" in large.message
    slow = [report(rank) for rank in (0, 1)]
    slow[0]["sums"][1]["seconds"] = 0.1
    small, large = judge(slow, device="cuda")
    assert small.status == "ok" and large.status == "warn" and "nvidia-smi topo -m" in large.fix


def test_a_wrong_sum_is_a_failure_that_names_the_rank() -> None:
    wrong = report(1)
    wrong["sums"] = [wrong["sums"][0], wrong["sums"][1] | {"right": False}]
    small, large = judge([report(0), wrong], device="cuda")
    assert small.status == "ok" and large.status == "fail"
    assert "rank 1" in large.message and f"NCCL_P2P_DISABLE=1 {AGAIN}" in large.fix


@pytest.mark.parametrize(
    ("states", "code", "message"),
    [
        ({}, 1, "rank 0, 1, 2 did not start (exit code 1)"),
        ({0: "started", 1: "started"}, None, "rank 2 did not start within 120 s"),
        ({0: "joined", 1: "started", 2: "joined"}, None, "rank 1 did not reach the others within 120 s"),
        ({0: "done", 1: "done", 2: "joined"}, None, "rank 2 did not finish a sum within 120 s"),
        ({0: "done", 1: "done", 2: "done"}, None, "rank 0, 1, 2 did not leave within 120 s"),
        ({0: "joined", 1: "joined", 2: "joined"}, -11, "did not finish a sum (exit code -11)"),
    ],
)
def test_the_rank_that_does_not_answer_is_named(states: dict[int, str], code: int | None, message: str) -> None:
    (finding,) = judge([report(rank, state) for rank, state in states.items()], 3, "cpu", code)
    assert finding.status == "fail" and message in finding.message and AGAIN in finding.fix


def test_the_first_error_is_shown() -> None:
    late, first = (
        {"state": "failed", "error": text, "time": at} for text, at in (("reset by peer", 2.0), ("no GPU", 1.0))
    )
    (finding,) = judge([report(0, **late), report(1, **first)], code=1)
    assert finding.status == "fail" and "rank 1: no GPU" in finding.message


def test_what_goes_wrong_in_a_worker_stands_in_its_report(tmp_path: Path) -> None:
    assert main([str(tmp_path), "tpu"]) == 1
    (tmp_path / "rank_1.json").write_text("{")  # cut short
    (found,) = read_reports(tmp_path)
    assert found["state"] == "failed" and "'tpu' is none of" in found["error"]


def test_a_command_that_hangs_is_ended_with_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""
    log = tmp_path / "log"

    class Impatient(subprocess.Popen):
        """Its time is over as soon as it has said something."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout == 1.0:
                wait_until(lambda: log.read_text().endswith("\n"))
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait(timeout)

    monkeypatch.setattr(launch.subprocess, "Popen", Impatient)
    assert run_limited([sys.executable, "-c", code], {}, log, 1.0) is None
    pid = int(log.read_text())
    wait_until(lambda: is_gone(pid))


def is_gone(pid: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_that_ends_gives_its_code_and_its_words(tmp_path: Path, code: int) -> None:
    program = f"print('hello'); raise SystemExit({code})"
    assert run_limited([sys.executable, "-c", program], {}, tmp_path / "log", 60.0) == code
    assert (tmp_path / "log").read_text() == "hello\n"
