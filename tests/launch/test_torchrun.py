"""The launcher of several processes, with a torchrun of the test's own: what it believes, signals and says."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import nanochat.launch.launch as launch_module
from nanochat.errors import CapacityError, NanochatError, StoppedError
from nanochat.launch.cluster import Cluster
from nanochat.launch.launch import launch_stage, run_child
from nanochat.launch.marks import (
    HangLimits,
    RankMark,
    explain_failure,
    explain_hang,
    name_boot,
    new_mark,
    read_marks,
    write_mark,
)
from nanochat.launch.torchrun import Launch, run_ranks
from nanochat.launch.watch import _Heard
from nanochat.machine import is_running
from tests.patience import wait_until

SECOND_NODE = Cluster(gpus=1, nodes=2, node_rank=1, rdzv_endpoint="node0:29500")
START = "import os, signal, subprocess, sys, time; from pathlib import Path; from nanochat.launch.marks import *; "


def play(folder: Path, code: str, cluster: Cluster | None = None, launch: Launch | None = None) -> int:
    """Run a torchrun that does this. It knows `folder`, and `word`, the launch's."""
    launch = launch or Launch()
    names = f"folder, word = Path({str(folder)!r}), {launch.word!r}\n"
    command = [sys.executable, "-c", START + names + code]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    cluster = cluster or Cluster(gpus=1, max_restarts=1)
    return run_ranks(command, environ, folder, "base", "nanochat resume again", lambda text: None, cluster, launch)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("status", ["running", "done", "failed", "stopped"])
def test_the_second_node_believes_no_mark_of_an_earlier_launch(
    tmp_path: Path, stranger: subprocess.Popen, status: str
) -> None:
    """Only node 0 forgets them, perhaps later. The process id of an old mark may be anyone's by now."""
    before = time.time() - 100
    old = replace(new_mark(1, 2, before, "old"), pid=stranger.pid, status=status)
    write_mark(tmp_path, old if status == "running" else replace(old, ended=before))
    write_mark(tmp_path, replace(old, rank=0, host="node0", status="done", ended=before))
    with pytest.raises(NanochatError, match="torchrun ended with status 3: no node 0"):
        play(tmp_path, "print('no node 0'); sys.exit(3)", SECOND_NODE)
    assert is_running(stranger.pid)


def test_a_stop_of_the_second_node_reaches_its_torchrun_whatever_old_marks_say(
    tmp_path: Path, stranger: subprocess.Popen
) -> None:
    write_mark(tmp_path, replace(new_mark(1, 2, time.time() - 100, "old"), pid=stranger.pid, phase="step", step=7))
    with pytest.raises(StoppedError, match="before its first step"):
        play(tmp_path, f"os.kill({os.getpid()}, signal.SIGTERM); time.sleep(600)", SECOND_NODE)
    assert is_running(stranger.pid)


def test_ranks_that_end_without_a_word_are_not_taken_for_done(tmp_path: Path) -> None:
    """On a full disk the last mark may be missing, and status 0 only says that torchrun must not start them again."""
    with pytest.raises(NanochatError, match="its disk full") as caught:
        play(tmp_path, "write_mark(folder, new_mark(0, 1, time.time(), word))")
    assert caught.value.exit_code == CapacityError.exit_code
    assert play(tmp_path, "write_mark(folder, end_mark(new_mark(0, 1, time.time(), word), None, time.time()))") == 0


@pytest.mark.parametrize(("number", "said"), [(6, "was ended by SIGABRT"), (9, "most likely because memory ran out")])
def test_a_crash_is_not_called_a_lack_of_memory(tmp_path: Path, number: int, said: str) -> None:
    code = f"""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
write_mark(folder, replace(new_mark(0, 1, time.time(), word), pid=child.pid, phase="step", step=3))
child.send_signal({number})
child.wait()
print(f"failed (exitcode: -{number}) local_rank: 0 (pid: {{child.pid}}) of binary: python")
sys.exit(1)
"""
    with pytest.raises(NanochatError, match=said):
        play(tmp_path, code)


def test_ranks_whose_torchrun_was_killed_may_save_before_anyone_judges_them(tmp_path: Path) -> None:
    rank = """
mark = new_mark(0, 1, time.time(), word)
write_mark(folder, replace(mark, phase="step", step=3))
time.sleep(2)
write_mark(folder, end_mark(mark, StoppedError("base stopped at step 3"), time.time()))
"""
    launch = Launch()
    names = f"from nanochat.errors import StoppedError; folder, word = Path({str(tmp_path)!r}), {launch.word!r}"
    code = f"""
subprocess.Popen([sys.executable, "-c", {START + names + rank!r}])
while not read_marks(folder):
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with pytest.raises(StoppedError, match="stopped at step 3"):
        play(tmp_path, code, launch=launch)
    assert not launch.running_marks(tmp_path)


def test_a_stop_that_comes_when_a_stage_is_done_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker ends with 0, and the next stage must not begin."""
    deaf = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.kill(os.getppid(), 15); time.sleep(0.5)"
    monkeypatch.setattr(launch_module, "stage_command", lambda *_: [sys.executable, "-c", deaf])
    start: Callable = lambda **more: launch_stage("base", tmp_path / "runs" / "again" / "settings.json", **more)  # noqa: E731
    assert start() == 0
    with pytest.raises(StoppedError, match="base is done; stopped before mid") as caught:
        start(following="mid")
    assert caught.value.hint == "nanochat run --run again"
    launch = Launch()
    assert run_child([sys.executable, "-c", "pass"], launch=launch) == 0 and not launch.is_stopping


def test_a_rank_is_silent_by_the_clock_of_the_one_that_listens() -> None:
    """The beats of a machine whose clock is an hour behind are beats; one that stays the same is none."""
    limits, heard = HangLimits(60, 600), _Heard()
    own = RankMark(0, 2, 1, "a", beat=5000.0)
    for second in range(100):
        behind = RankMark(1, 2, 1, "b", beat=5000.0 - 3600 + second)
        assert explain_hang([behind], own, heard.listen([behind], second), 0, limits) == ""
    quiet = heard.listen([behind], 99 + 61)
    assert "rank 1 (process 1 on b) has given no sign of life for 61 s" in explain_hang([behind], own, quiet, 0, limits)


def test_a_mark_is_written_in_place_where_no_new_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = new_mark(0, 1, time.time(), "word")

    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", fail)
        assert not write_mark(tmp_path, mark) and read_marks(tmp_path) == []
    assert write_mark(tmp_path, replace(mark, message="x" * 500))
    monkeypatch.setattr(Path, "write_text", fail)
    assert write_mark(tmp_path, replace(mark, status="stopped"))
    assert [(read.status, read.message) for read in read_marks(tmp_path)] == [("stopped", "")]


def test_a_process_id_means_something_on_one_start_of_one_machine_only() -> None:
    mark = new_mark(0, 1, time.time())
    assert mark.is_here and not replace(mark, boot="another").is_here and not replace(mark, host="b").is_here
    assert name_boot() or sys.platform != "linux"
    assert signal.SIGKILL == 9  # the numbers above


@pytest.mark.parametrize(
    ("error", "status"), [("LostError('all is damaged')", 0), ("DataError('cut off')", 4), ("UsageError('no')", 0)]
)
def test_only_what_may_end_better_is_started_again(tmp_path: Path, error: str, status: int) -> None:
    """torchrun starts ranks again that end with another status than 0."""
    code = (
        "from nanochat.errors import *; from nanochat.launch.watch import RankWatch; from pathlib import Path\n"
        f"with RankWatch(Path({str(tmp_path)!r}), 0, 1, True):\n    raise {error}\n"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environ, check=False).returncode == status
    assert read_marks(tmp_path)[0].is_final == (status == 0)


def test_what_is_limited_ends_with_the_one_who_started_it(tmp_path: Path) -> None:
    """Its session is its own: only the wish to end with the parent reaches it."""
    code = f"""
import sys, os
from pathlib import Path
from nanochat.launch.launch import run_limited
sleeper = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
run_limited([sys.executable, "-c", sleeper, {str(tmp_path / "pid")!r}], os.environ, Path({str(tmp_path / "log")!r}), 60)
"""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environ)
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text() != "")
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(child))


def test_of_killed_ranks_the_one_that_the_launcher_did_not_end_is_named(tmp_path: Path) -> None:
    """It sends SIGTERM to the others, and names in its log whom it has seen end, not always all."""
    ended = [subprocess.Popen([sys.executable, "-c", ""]) for _ in range(2)]
    for process in ended:
        process.wait()
    first, second = (process.pid for process in ended)
    marks = [replace(new_mark(rank, 2, time.time(), "w"), pid=process.pid) for rank, process in enumerate(ended)]
    for signals in ({second: signal.SIGKILL}, {first: signal.SIGTERM, second: signal.SIGKILL}):
        error = explain_failure(tmp_path, marks, "base", "again", signals)
        assert isinstance(error, CapacityError) and error.message.startswith("rank 1 of 2"), error
    assert "rank 0 of 2" in str(explain_failure(tmp_path, marks, "base", "again", {}))
