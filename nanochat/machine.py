"""This machine: its cores, memory and devices, its processes and how one is started, and which rank this one is.

Standard library only; reads no environment variable. Versions come from the packages' metadata and accelerators from
the driver's own tool, so that a process that must stay quick can ask.
"""

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h
IMPATIENT_SECONDS = 5.0
START = str(Path(__file__).with_name("start.py").absolute())

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""By which torchrun tells a process which rank it is. Schedulers leave some of them in the environment, too."""
LAUNCH_VARIABLES = (
    *RANK_VARIABLES,
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_NAME",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
)
LAUNCH_PREFIXES = ("TORCHELASTIC_", "PET_")
"""The rest of what torchrun gives its processes, and (PET_) what it reads where an option is not given."""


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


@dataclass(frozen=True)
class Rank:
    """Which process of a launch this is, before a World is open. is_managed: torchrun started it."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    is_managed: bool = False


def read_rank(environ: Mapping[str, str]) -> Rank:
    """Which rank torchrun started this process as; alone where its variables are not all there and fit each other.

    What a scheduler or an outer program has left is some of them, or another's.

    >>> read_rank({"RANK": "1", "WORLD_SIZE": "2"})
    Rank(rank=0, local_rank=0, world_size=1, local_world_size=1, is_managed=False)
    """
    if not all(environ.get(name) for name in (*RANK_VARIABLES, "TORCHELASTIC_RUN_ID")):
        return Rank()
    try:
        rank, local_rank, world_size, local_world_size = (int(environ[name]) for name in RANK_VARIABLES[:4])
    except ValueError:
        return Rank()
    if not (0 <= rank < world_size and 0 <= local_rank < local_world_size <= world_size):
        return Rank()
    return Rank(rank, local_rank, world_size, local_world_size, is_managed=True)


def drop_rank_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that is no rank, or of a torchrun that our own options tell everything.

    >>> drop_rank_variables({"RANK": "x", "PET_NNODES": "4", "HOME": "/h"})
    {'HOME': '/h'}
    """
    return {
        name: value
        for name, value in environ.items()
        if name not in LAUNCH_VARIABLES and not name.startswith(LAUNCH_PREFIXES)
    }


PACKAGES = ("nanochat", "torch", "numpy", "pyarrow", "tiktoken", "tokenizers", "safetensors")


def describe_environment() -> dict[str, Any]:
    """Describe this machine for `environment.json`: JSON values only, no names of users or hosts."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "gpus": gpu_names(),
        "packages": {name: version for name in PACKAGES if (version := package_version(name))},
    }


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def memory_bytes() -> int | None:
    """Physical memory, or the container's limit where that is smaller; None where the system does not say."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    limits = [physical]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """Names of NVIDIA accelerators as the driver lists them; empty where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
