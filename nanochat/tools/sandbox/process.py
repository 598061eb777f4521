"""A closed process as its parent sees it: started, given its code, ended with whatever it left."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nanochat

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from nanochat.tools.sandbox.child import main\n"
    "del sys.path[0]; main()"
)
KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What a Python that is not the system's may need to start. Nothing else is inherited: no token, no home folder."""
MAX_REPORT_BYTES = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Of one program: its own computing time, the time of the whole grading, and its address space."""

    cpu_seconds: int = 5
    wall_seconds: float = 15.0
    memory_bytes: int = 1 << 30


@dataclass(frozen=True)
class Ending:
    """How a process ended. status: its exit status, or the negative number of a signal.

    cpu_seconds: of computing; where bubblewrap hides them, the time that it ran, which is at least as much.
    """

    status: int
    cpu_seconds: float


class ClosedProcess:
    """A child in a session of its own that closes itself before it reads its code.

    pass_fds: descriptors that it inherits. more: arguments of the role. is_late: whether its time was over, so that it
    was killed; waited_seconds: how much of that time it could have run, had others not had the cores. is_cut: whether
    it ran until `end`. Raises OSError if it cannot be started.
    """

    def __init__(
        self,
        role: str,
        wrapper: Sequence[str],
        limits: Limits,
        pass_fds: Sequence[int] = (),
        more: Sequence[int] = (),
    ) -> None:
        parent = 0 if wrapper else os.getpid()  # bubblewrap ends its child itself
        python = getattr(sys, "_base_executable", None) or sys.executable
        numbers = map(str, (parent, limits.cpu_seconds, limits.memory_bytes, *more))
        root = str(Path(nanochat.__file__).parent.parent)
        self._process = subprocess.Popen(
            [*wrapper, python, "-I", "-S", "-B", "-X", "utf8", "-c", BOOT, root, role, *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
            | {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ},
            pass_fds=tuple(pass_fds),
            start_new_session=True,
        )
        self.layers: list[str] = []
        self.is_late, self.waited_seconds, self.is_cut = False, 0.0, False
        self._wrapped = bool(wrapper)
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._ending: Ending | None = None
        self._timer = threading.Timer(limits.wall_seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def hand_over(self, source: dict[str, str]) -> None:
        """Give it its code, once it has said that it is closed; it says nothing where it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self.layers = json.loads(self._process.stdout.readline(MAX_REPORT_BYTES))["layers"]
        except ValueError:
            return
        try:
            with self._process.stdin as pipe:
                pipe.write(json.dumps(source).encode())
        except OSError:
            pass  # it has ended: nobody will report

    def read_report(self) -> dict[str, Any] | None:
        """What it says at its end; None where it ended without a word."""
        assert self._process.stdout is not None
        try:
            return json.loads(self._process.stdout.read(MAX_REPORT_BYTES))
        except ValueError:
            return None

    def kill(self) -> None:
        """Send SIGKILL to it and all of its session; harmless where it has ended."""
        with self._lock:
            if self._ending is None:
                try:
                    os.killpg(self._process.pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass  # it has ended, and macOS says so in this way

    def end(self, grace_seconds: float = 0.0) -> Ending:
        """Kill what is left of it after a while, and say how it ended. Closes its pipes."""
        if self._ending is None:
            deadline = time.monotonic() + grace_seconds
            while not self._has_ended() and time.monotonic() < deadline:
                time.sleep(0.005)
            self.is_cut = not self._has_ended()
            self.kill()
            _, status, usage = os.wait4(self._process.pid, 0)
            with self._lock:  # from here on its number may be another process's
                ran = time.monotonic() - self._started
                spent = ran if self._wrapped else usage.ru_utime + usage.ru_stime
                self._ending = Ending(self._read_status(status), spent)
                self._process.returncode = self._ending.status
            self._timer.cancel()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    try:
                        pipe.close()
                    except OSError:  # what was not written to an ended process
                        pass
        return self._ending

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _read_status(self, status: int) -> int:
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if self._wrapped and code > 128 else code  # bubblewrap says it as a shell does

    def _expire(self) -> None:
        self.is_late, self.waited_seconds = True, read_waited_seconds(self._process.pid)
        self.kill()


def read_waited_seconds(pid: int) -> float:
    """How long a process and its descendants were ready to run and had no core; 0 if the system does not say.

    Source: Linux, Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat".
    """
    folder = Path("/proc", str(pid))
    try:
        waited = int((folder / "schedstat").read_text().split()[1]) / 1e9
        children = (folder / "task" / str(pid) / "children").read_text().split()
    except (OSError, IndexError):  # it has ended, or this is another system
        return 0.0
    return waited + sum(read_waited_seconds(int(child)) for child in children)
