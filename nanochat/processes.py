"""Processes of this machine: how one of ours is started, whether one lives, and the wish to end with one's parent.

Standard library only.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
START = str(Path(__file__).with_name("start.py").absolute())


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


def send_signal(pid: int, number: int) -> bool:
    """Send a signal; False where the process is gone."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
