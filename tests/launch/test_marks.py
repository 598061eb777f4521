"""Which process of a launch this is: what is left of another launch means nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.errors import InterruptError
from nanochat.launch.launch import child_environ, run_child
from nanochat.machine import RANK_VARIABLES, Rank, read_rank

TORCHRUN = dict(zip(RANK_VARIABLES, ("3", "1", "4", "2", "127.0.0.1", "29500"), strict=True)) | {
    "TORCHELASTIC_RUN_ID": "none"
}


def test_a_rank_is_what_torchrun_says() -> None:
    assert read_rank(TORCHRUN | {"HOME": "/h"}) == Rank(3, 1, 4, 2, is_managed=True)


@pytest.mark.parametrize("name", TORCHRUN)
def test_with_one_variable_missing_or_empty_there_is_one_process(name: str) -> None:
    assert read_rank({key: value for key, value in TORCHRUN.items() if key != name}) == Rank()
    assert read_rank(TORCHRUN | {name: ""}) == Rank()


@pytest.mark.parametrize(
    "wrong",
    [
        {"RANK": "x"},
        {"RANK": "4"},
        {"RANK": "-1"},
        {"LOCAL_RANK": "2"},
        {"LOCAL_WORLD_SIZE": "0", "LOCAL_RANK": "0"},
        {"LOCAL_WORLD_SIZE": "5"},
        {"WORLD_SIZE": "1e3"},
    ],
)
def test_numbers_that_torchrun_never_writes_mean_one_process(wrong: dict[str, str]) -> None:
    assert read_rank(TORCHRUN | wrong) == Rank()


def test_no_process_of_ours_inherits_the_ranks_of_another_launch() -> None:
    left = TORCHRUN | {"GROUP_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True", "PET_NNODES": "8"}
    kept = {"HOME": "/h", "PYTHONPATH": ":/mine::", "NCCL_DEBUG": "INFO"}
    environ = child_environ(left | kept)
    assert not set(left) & set(environ)
    assert (environ["HOME"], environ["PYTHONPATH"], environ["NCCL_DEBUG"]) == ("/h", "/mine", "INFO")


def test_a_worker_that_does_not_hear_ends_at_the_third_ctrl_c(tmp_path: Path) -> None:
    """Stuck in a library, where Python runs no handler."""
    deaf = "import signal, sys, time; signal.signal(2, signal.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(600)"
    command = [sys.executable, "-c", deaf, str(tmp_path / "here")]
    parent = os.getpid()
    sender = f"""
import os, time
while not os.path.exists({str(tmp_path / "here")!r}):
    time.sleep(0.02)
for _ in range(3):
    os.kill({parent}, {int(signal.SIGINT)})
    time.sleep(0.2)
"""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen([sys.executable, "-c", sender])
    started = time.monotonic()
    try:
        with pytest.raises(InterruptError, match="did not hear Ctrl-C and was killed") as caught:
            run_child(command, resume="nanochat resume mine")
    finally:
        process.wait()
        signal.signal(signal.SIGINT, before)
    assert caught.value.hint == "nanochat resume mine" and time.monotonic() - started < 300


def test_three_ctrl_c_end_a_process_whose_main_thread_hears_nothing() -> None:
    code = """
import signal, time
from nanochat.machine import end_at_third_interrupt
signal.signal(signal.SIGINT, lambda *_: None)
end_at_third_interrupt(grace_seconds=0)
print("ready", flush=True)
while True:
    time.sleep(1)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.stdout.close()
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:  # two that come at once are one
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    process.kill()
    assert process.wait() == 130
