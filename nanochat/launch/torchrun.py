"""Several processes: the command line of torchrun, and what is done while it runs and after it has ended.

torchrun starts the ranks and starts them again. That the first one's error is what people see, that none is left
behind and that a request to stop reaches them is done here, by the marks that the ranks leave (launch/marks.py).
"""

import contextlib
import fcntl
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from nanochat.errors import InterruptError, StoppedError
from nanochat.launch.cluster import Cluster
from nanochat.launch.marks import (
    RankError,
    RankMark,
    are_all_done,
    clear_marks,
    explain_failure,
    find_failed,
    leave_out_stale,
    log_path,
    read_marks,
)
from nanochat.machine import end_with_parent, is_running, module_command, send_signal

INTERRUPTED = InterruptError.exit_code
LEFTOVER_SECONDS = 8.0  # after a rank has ended badly, for the others to end by themselves
ORPHAN_SECONDS = 60.0  # torchrun itself was killed: for its ranks, which are told by the system, to save
POLL_SECONDS = 0.5
ENVIRON = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
"""A store of its own for every start of the ranks: in a shared one, those that start again find the addresses of the
dead and wait for them for ever (seen with torch 2.15 and gloo). And seconds to save a large model, where it is torchrun
that hears of the stop; its default, the only choice before pytorch#172596, is 30."""
FAILED = re.compile(r"exitcode: -(\d+)\) local_rank: \d+ \(pid: (\d+)\)")
"""How torchrun's log names the signal that ended a rank, and the rank's process."""
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


def torchrun_command(worker: Sequence[str], cluster: Cluster, name: str = "", local_address: str = "") -> list[str]:
    """The command line that starts this node's ranks. worker: `script arguments`. name: of the job, on all nodes.

    >>> torchrun_command(["m.py"], Cluster(gpus=2))[2:]
    ['torch.distributed.run', '--standalone', '--nproc-per-node=2', '--max-restarts=0', 'm.py']
    """
    command = module_command("torch.distributed.run")
    if cluster.nodes == 1:
        command += ["--standalone"]
    else:
        command += [
            f"--nnodes={cluster.nodes}",
            f"--node-rank={cluster.node_rank}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={cluster.rdzv_endpoint}",
            f"--rdzv-id={name}",
            f"--rdzv-conf=is_host={int(cluster.node_rank == 0)}",
            *([f"--local-addr={local_address}"] if local_address else []),
        ]
    return [*command, f"--nproc-per-node={cluster.gpus}", f"--max-restarts={cluster.max_restarts}", *worker]


def name_terminal() -> str:
    """A path by which another process can write where this one's standard error goes; "" where there is none.

    What is redirected into a file is from now on appended to, so that both can write.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        descriptor = sys.stderr.fileno()
        if os.isatty(descriptor):
            return os.ttyname(descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        if os.path.exists(path):
            return path
    return ""


@dataclass
class Launch:
    """One start of a stage's processes. word: that no other launch has, and the marks of its ranks carry.

    started: seconds since 1970. is_stopping: someone has asked it to stop.
    """

    word: str = field(default_factory=lambda: secrets.token_hex(8))
    started: float = field(default_factory=time.time)
    is_stopping: bool = False

    def read_marks(self, folder: Path) -> list[RankMark]:
        """The marks of this launch, other nodes' too."""
        return leave_out_stale(read_marks(folder), self.word, self.started)

    def own_marks(self, folder: Path) -> list[RankMark]:
        """Those of the ranks that this process has started."""
        return [mark for mark in read_marks(folder) if mark.launch == self.word]

    def running_marks(self, folder: Path) -> list[RankMark]:
        """Those of them that have said no last word and live."""
        return [mark for mark in self.own_marks(folder) if mark.status == "running" and is_running(mark.pid)]


def run_ranks(
    command: Sequence[str],
    environ: Mapping[str, str],
    folder: Path,
    stage: str,
    resume: str,
    say: Callable[[str], None],
    cluster: Cluster,
    launch: Launch,
) -> int:
    """Run torchrun to its end; returns 0, or 130 where a second Ctrl-C left the ranks.

    folder: of the stage's logs, where torchrun's own output goes too. resume: the command that continues. launch: the
    worker's command names its word. Of several nodes the first forgets the marks of an earlier launch and says what
    rank 0 writes to its log, wherever that one is: torchrun numbers the ranks by the addresses of their nodes. Raises
    the error of the rank that failed first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if cluster.node_rank == 0:
        clear_marks(folder)
    log = folder / ("torchrun.log" if cluster.nodes == 1 else f"torchrun_{cluster.node_rank:03d}.log")
    followed = _Tail(log_path(folder, 0), say) if cluster.nodes > 1 and cluster.node_rank == 0 else None
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            command,
            env={**environ, **ENVIRON},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C reaches this process alone, which tells the ranks
            preexec_fn=partial(_prepare_torchrun, os.getpid()),
        )
    ranks = _Ranks(process, folder, followed, launch)
    with ranks.catching_signals():
        code = ranks.wait()
    if followed:
        followed.read()
    if code == INTERRUPTED:
        return code
    marks, own = launch.read_marks(folder), launch.own_marks(folder)
    if are_all_done(marks):  # torchrun alone was stopped, on its way out
        return 0
    if not code and sum(mark.status != "running" for mark in own) < cluster.gpus:  # all ended with status 0
        raise RankError(
            f"{stage} ended, but not every rank could say so in {folder}: is its disk full?", f"df -h {folder}", 5
        )
    said = _read_from(log, start)
    error = explain_failure(folder, marks, stage, resume, {int(pid): int(n) for n, pid in FAILED.findall(said)})
    if launch.is_stopping and not isinstance(error, (StoppedError, InterruptError)) and (error is not None or code):
        if all(mark.phase == "start" for mark in own):
            error = StoppedError(f"{stage} stopped before its first step; nothing is lost", resume)
    if error is None and code:
        last = said.strip().splitlines()[-1:] or ["it said nothing"]
        error = RankError(f"torchrun ended with status {code}: {last[0].strip()}", f"less {log}", 4)
    if error is not None:
        raise error
    return 0


def _prepare_torchrun(parent: int) -> None:
    """In the child. A scheduler may warn every process of the job with SIGUSR1, which would end torchrun."""
    end_with_parent(parent)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class _Ranks:
    """The ranks of this node while torchrun holds them."""

    def __init__(self, process: subprocess.Popen, folder: Path, followed: "_Tail | None", launch: Launch) -> None:
        self.process, self.folder, self.followed, self.launch = process, folder, followed, launch
        self.is_left = False
        self._failed_at: float | None = None
        self._stopped_at: float | None = None

    @contextlib.contextmanager
    def catching_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
        numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self) -> int:
        """torchrun's exit code, or 130 where the ranks were left."""
        ended = None
        while not self._is_over(POLL_SECONDS):
            if self.is_left:
                self._leave()
                return INTERRUPTED
            if self.followed:
                self.followed.read()
            self._end_leftovers()
            if self.process.poll() is not None:  # and ranks live: torchrun was killed
                ended = ended or time.monotonic()
                if time.monotonic() - ended > ORPHAN_SECONDS:
                    _signal(self.launch.running_marks(self.folder), signal.SIGKILL)
        return self.process.returncode

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.launch.is_stopping:
            self.launch.is_stopping, self._stopped_at = True, time.time()
            running = self.launch.running_marks(self.folder)
            if running and all(mark.phase != "start" for mark in running):
                _signal(running, number)
            else:  # some have not come so far that they hear: torchrun ends them all
                self.process.terminate()
        elif number == signal.SIGINT:
            self.is_left = True

    def _leave(self) -> None:
        """Let the ranks say what is lost, then end whatever is left."""
        running = self.launch.running_marks(self.folder)
        _signal(running, signal.SIGINT)
        if not self._is_over(2):
            _signal(running, signal.SIGKILL)
            self.process.terminate()
        if not self._is_over(2):
            self.process.kill()
            self.process.wait()

    def _is_over(self, seconds: float) -> bool:
        """Wait for torchrun and the ranks of this node; False where they do not end in time."""
        end = time.monotonic() + seconds
        while self.process.poll() is None or self.launch.running_marks(self.folder):
            if time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS / 10)
        return True

    def _end_leftovers(self) -> None:
        """Kill ranks of this node that do not end although another one has: a stopped process hears no one.

        Nor does one that should stop and still waits to meet the others.
        """
        now = time.time()
        self._failed_at = (self._failed_at or now) if find_failed(self.launch.read_marks(self.folder)) else None
        is_failing = self._failed_at is not None and now - self._failed_at > LEFTOVER_SECONDS
        is_stuck = self._stopped_at is not None and now - self._stopped_at > LEFTOVER_SECONDS
        for mark in self.launch.running_marks(self.folder):
            was_there = self._failed_at is not None and mark.started < self._failed_at
            if (is_failing and was_there) or (is_stuck and mark.phase == "start"):
                send_signal(mark.pid, signal.SIGKILL)


def _signal(marks: Sequence[RankMark], number: int) -> None:
    for mark in marks:
        send_signal(mark.pid, number)


class _Tail:
    """Says the lines that are added to a file, from now on."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self._place = path.stat().st_size if path.exists() else 0

    def read(self) -> None:
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(self._place)
            whole = file.read().rpartition(b"\n")[0]
            if whole:
                self._place += len(whole) + 1
                for line in whole.decode(errors="replace").split("\n"):
                    self.say(line)


def _read_from(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")
