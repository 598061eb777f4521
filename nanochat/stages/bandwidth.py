"""The worker of `nanochat doctor --distributed`: does a sum over the ranks come out right, and how fast.

`nanochat.stages.bandwidth FOLDER DEVICE` under torchrun. Each rank leaves `rank_<n>.json` in FOLDER and keeps
it up to date, so that a rank that hangs is known by how far it came.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from nanochat.files import write_atomically
from nanochat.machine import end_with_parent, read_rank
from nanochat.runtime import World, open_world, pick_device, read_environ

SIZES = {"cpu": (1 << 20, 64 << 20), "cuda": (1 << 20, 64 << 20, 512 << 20)}
"""Bytes of one all-reduce: latency, a layer's gradients, a model's."""
REPEATS = {"cpu": 5, "cuda": 20}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and leave the report; what goes wrong stands in the report too."""
    folder, device = sys.argv[1:] if arguments is None else arguments
    rank = read_rank(read_environ())
    path = Path(folder) / f"rank_{rank.rank}.json"
    report: dict = {"rank": rank.rank, "pid": os.getpid(), "state": "started"}
    write_atomically(path, json.dumps(report))
    try:
        world = open_world(pick_device(device), rank)
        write_atomically(path, json.dumps(report := report | {"state": "joined"}))
        report["sums"] = [measure_sum(world, size) for size in SIZES[world.device.type]]
        write_atomically(path, json.dumps(report | {"state": "done"}))
        world.close()
    except Exception as error:  # the boundary of this process: the report is how it speaks
        lines = str(error).strip().splitlines() or [""]
        message = f"{type(error).__name__}: {lines[0][:300]}"
        write_atomically(path, json.dumps(report | {"state": "failed", "error": message, "time": time.time()}))
        return 1
    return 0


def measure_sum(world: World, num_bytes: int) -> dict:
    """Sum float32 tensors of this size over the ranks; returns size, whether it came out right, and seconds of one.

    Collective: every rank calls this.
    """
    tensor = torch.full((num_bytes // 4,), float(world.rank + 1), device=world.device)
    expected = world.world_size * (world.world_size + 1) / 2
    right = bool((world.all_reduce_sum(tensor) == expected).all())
    tensor.zero_()  # sums of sums would overflow
    world.all_reduce_sum(tensor)
    _synchronize(world)
    world.barrier()
    repeats = REPEATS[world.device.type]
    started = time.perf_counter()
    for _ in range(repeats):
        world.all_reduce_sum(tensor)
    _synchronize(world)
    return {"bytes": num_bytes, "right": right, "seconds": (time.perf_counter() - started) / repeats}


def _synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
