"""What the bits of a loss depend on, beside data and settings of the model: the machine and how it shares the work.

A checkpoint keeps it (`meta["computed_by"]`), so that a run which continues in another way says so.
"""

from collections.abc import Mapping
from typing import Any

import torch

from nanochat.runtime import World, name_device


def describe_computing(
    world: World, dtype: torch.dtype, device_batch_size: int, is_compiled: bool
) -> dict[str, str | int | bool]:
    """By what a step is computed, in plain values. threads: of each process, and only on a CPU, where they count."""
    is_cpu = world.device.type == "cpu"
    return {
        "device": "cpu" if is_cpu else name_device(world.device),
        "processes": world.world_size,
        **({"threads": torch.get_num_threads()} if is_cpu else {}),
        "dtype": str(dtype).removeprefix("torch."),
        "device_batch_size": device_batch_size,
        "compiled": is_compiled,
        "torch": torch.__version__,
    }


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any], resume_command: str) -> str:
    """A sentence about what differs; "" if nothing does, or if the checkpoint is older than this record.

    >>> now = {"device": "cpu", "processes": 1, "threads": 1}
    >>> print(describe_change({"device": "cpu", "processes": 1, "threads": 2}, now, "nanochat resume"))
    the losses from here on differ by rounding from those of an uninterrupted run: threads was 2, now 1
    OMP_NUM_THREADS=2 nanochat resume  # computes as before
    >>> describe_change({"device": "cpu", "processes": 2, "threads": 1}, now, "nanochat resume").splitlines()[1:]
    []
    """
    changed = sorted(key for key in now.keys() | before.keys() if before.get(key) != now.get(key)) if before else []
    if not changed:
        return ""
    differences = ", ".join(f"{key} was {before.get(key, 'unknown')}, now {now.get(key, 'unknown')}" for key in changed)
    said = f"the losses from here on differ by rounding from those of an uninterrupted run: {differences}"
    if changed == ["threads"] and now["processes"] == 1:
        said += f"\nOMP_NUM_THREADS={before['threads']} {resume_command}  # computes as before"
    return said
