"""How much memory a device has, how much of it this process takes, and which errors say that there is no more."""

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device. free: what this process may still take, its own cache included. own: what it uses now.

    others: what is neither free nor its own; on a GPU with the driver's part of this process (about 0.5 GB).
    """

    total: int
    free: int
    own: int

    @property
    def others(self) -> int:
        return max(0, self.total - self.free - self.own)


def read_memory(device: torch.device) -> DeviceMemory:
    """What a device has now: the driver's figures for CUDA, else those of the system or of its container's limit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        used, held = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        return DeviceMemory(total, free + held - used, used)
    total, free = _read_system_memory()
    for limit, used in _read_container_memory():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return DeviceMemory(total, free, _resident_bytes())


def start_memory(device: torch.device) -> int:
    """Begin to watch the peak; give the result to `peak_memory_bytes`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak starts again from here
    return _resident_bytes()


def peak_memory_bytes(device: torch.device, start: int = 0) -> int:
    """Most memory since `start_memory`: of tensors on CUDA; elsewhere by how much the process has grown at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
    return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - start)


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in the words of Python, torch's allocators or CUDA's libraries."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        phrase in text
        for phrase in ("not enough memory", "can't allocate memory", "out of memory", "cublas_status_alloc_failed")
    )


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):  # not Linux: the peak so far
        return peak_memory_bytes(torch.device("cpu"))


def _read_system_memory() -> tuple[int, int]:
    """Total and available bytes; half counts as available where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        sizes = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
        return sizes["MemTotal"], sizes["MemAvailable"]
    except (OSError, KeyError, IndexError, ValueError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total // 2


def _read_container_memory(root: Path = Path("/sys/fs/cgroup")) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of every control group above this process that has a limit (cgroup v2, then v1)."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    places = [(folder, "memory.max", "memory.current") for folder in (root / own, *(root / own).parents)]
    places.append((root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"))
    for folder, limit, used in places:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cache = int(stat.get("inactive_file", 0))  # files that the system gives up for us
            yield int((folder / limit).read_text()), max(0, int((folder / used).read_text()) - cache)
