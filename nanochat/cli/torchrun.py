"""Several processes: the command line of torchrun, and what is done while it runs and after it has ended.

torchrun starts the ranks and starts them again. That the first one's error is what people see, that none is left
behind and that a request to stop reaches them is done here, by the marks that the ranks leave (ranks.py).
"""

import contextlib
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from nanochat.cli.cluster import Cluster
from nanochat.errors import InterruptError, StoppedError
from nanochat.processes import end_with_parent, send_signal
from nanochat.ranks import RankError, are_all_done, clear_marks, explain_failure, find_failed, log_path, read_marks

INTERRUPTED = InterruptError.exit_code
LEFTOVER_SECONDS = 8.0  # after a rank has ended badly, for the others to end by themselves
POLL_SECONDS = 0.5
ENVIRON = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""A store of its own for every start of the ranks: in a shared one, those that start again find the addresses of the
dead and wait for them for ever (seen with torch 2.15 and gloo)."""
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


def torchrun_command(worker: Sequence[str], cluster: Cluster, name: str = "", local_address: str = "") -> list[str]:
    """The command line that starts this node's ranks. worker: `-m module arguments`. name: of the job, on all nodes.

    >>> torchrun_command(["-m", "m"], Cluster(gpus=2))[1:]
    ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', '--max-restarts=0', '-m', 'm']
    """
    command = [sys.executable, "-m", "torch.distributed.run"]
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


def run_ranks(
    command: Sequence[str],
    environ: Mapping[str, str],
    folder: Path,
    stage: str,
    resume: str,
    say: Callable[[str], None],
    cluster: Cluster,
) -> int:
    """Run torchrun to its end; returns 0, or 130 where a second Ctrl-C left the ranks.

    folder: of the stage's logs, where torchrun's own output goes too. resume: the command that continues. Of several
    nodes the first forgets the marks of an earlier launch and says what rank 0 writes to its log, wherever that one
    is: torchrun numbers the ranks by the addresses of their nodes. Raises the error of the rank that failed first.
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
    ranks = _Ranks(process, folder, followed)
    with ranks.catching_signals():
        code = ranks.wait()
    if followed:
        followed.read()
    if code == INTERRUPTED:
        return code
    error, marks = explain_failure(folder, stage, resume), read_marks(folder)
    if are_all_done(marks):  # torchrun alone was stopped, on its way out
        return 0
    if ranks.is_stopping and not isinstance(error, (StoppedError, InterruptError)) and (error is not None or code):
        if all(mark.phase == "start" for mark in marks):
            error = StoppedError(f"{stage} stopped before its first step; nothing is lost", resume)
    if error is None and code:
        last = _last_line(log, start)
        error = RankError(f"torchrun ended with status {code}: {last or 'it said nothing'}", f"less {log}", 4)
    if error is not None:
        raise error
    return 0


def _prepare_torchrun(parent: int) -> None:
    """In the child. A scheduler may warn every process of the job with SIGUSR1, which would end torchrun."""
    end_with_parent(parent)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class _Ranks:
    """The ranks of this node while torchrun holds them."""

    def __init__(self, process: subprocess.Popen, folder: Path, followed: "_Tail | None") -> None:
        self.process, self.folder, self.followed = process, folder, followed
        self.is_stopping = self.is_left = False
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
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(POLL_SECONDS)
            if self.is_left:
                self._leave()
                return INTERRUPTED
            if self.followed:
                self.followed.read()
            self._end_leftovers()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.is_stopping:
            self.is_stopping, self._stopped_at = True, time.time()
            running = [mark for mark in read_marks(self.folder) if mark.status == "running" and mark.is_here]
            if running and all(mark.phase != "start" for mark in running):
                for mark in running:
                    send_signal(mark.pid, number)
            else:  # some have not come so far that they hear: torchrun ends them all
                self.process.terminate()
        elif number == signal.SIGINT:
            self.is_left = True

    def _leave(self) -> None:
        """Let the ranks say what is lost, then end whatever is left."""
        running = [mark for mark in read_marks(self.folder) if mark.status == "running" and mark.is_here]
        for mark in sorted(running, key=lambda mark: mark.rank):
            send_signal(mark.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
            return
        for mark in running:
            send_signal(mark.pid, signal.SIGKILL)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2)
            return
        self.process.kill()
        self.process.wait()

    def _end_leftovers(self) -> None:
        """Kill ranks of this node that do not end although another one has: a stopped process hears no one.

        Nor does one that should stop and still waits to meet the others.
        """
        marks, now = read_marks(self.folder), time.time()
        self._failed_at = (self._failed_at or now) if find_failed(marks) else None
        is_failing = self._failed_at is not None and now - self._failed_at > LEFTOVER_SECONDS
        is_stuck = self._stopped_at is not None and now - self._stopped_at > LEFTOVER_SECONDS
        for mark in marks:
            if mark.status == "running" and mark.is_here:
                was_there = self._failed_at is not None and mark.started < self._failed_at
                if (is_failing and was_there) or (is_stuck and mark.phase == "start"):
                    send_signal(mark.pid, signal.SIGKILL)


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


def _last_line(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
