"""Processes of this machine: how one of ours is started, whether one lives, and the wish to end with one's parent.

Standard library only.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
IMPATIENT_SECONDS = 5.0
START = str(Path(__file__).with_name("start.py").absolute())


def usable_cores() -> int:
    """Cores that this process may use: affinity and a container's cpuset make them fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this environment, whatever lies where it is typed (start.py).

    >>> module_command("torch.distributed.run", "--standalone")[2:]
    ['torch.distributed.run', '--standalone']
    """
    return [sys.executable, START, module, *arguments]


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie has ended, though its parent has not noticed."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def end_with_parent(parent: int | None = None) -> None:
    """Ask Linux for SIGTERM when the parent dies, so that work whose launcher was killed saves and stops.

    parent: its id where it may have died before this call (between fork and exec): then this process ends at once.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if parent is not None and os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)


def end_at_third_interrupt(grace_seconds: float = 5.0) -> None:
    """From now on three Ctrl-C within `IMPATIENT_SECONDS` end this process, whatever its main thread is stuck in.

    Python runs its handlers between two instructions of the main thread, which a call into a driver or a network
    library never reaches; a thread that reads the numbers of the signals does. grace_seconds: for an orderly end.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        came: list[float] = []
        while numbers := os.read(reader, 64):
            came = [*came, *(time.monotonic() for number in numbers if number == signal.SIGINT)][-3:]
            if len(came) == 3 and came[-1] - came[0] < IMPATIENT_SECONDS:
                time.sleep(grace_seconds)
                os._exit(128 + signal.SIGINT)

    threading.Thread(target=listen, daemon=True).start()


def send_signal(pid: int, number: int) -> bool:
    """Send a signal; False where the process is gone."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
