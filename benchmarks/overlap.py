"""A training step of several processes whose collectives run beside the computing, and one that waits for each.

    python benchmarks/overlap.py --ranks 2 --depth 6 --out benchmarks/results/overlap_cpu.json

Both are our step (forward, backward of two micro-batches, clip, update); `blocking` waits inside every collective, as
the optimizer did before it overlapped. They take turns, so that a busy machine slows both alike. The share of waiting
is the time inside `wait()`: on a GPU it is 0, because there only the stream waits, and the ratio of the steps counts.
gloo on a CPU unless there are as many GPUs as ranks.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from nanochat.machine import Rank
from nanochat.model import sharding
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.optim import MuonAdamW, build_optimizer
from nanochat.runtime import name_device, open_world, pick_device, use_all_cores

COLLECTIVES = ("reduce_scatter_tensor", "all_gather_into_tensor")


class TimedWork:
    """A work whose waits are counted in seconds."""

    waited = 0.0

    def __init__(self, work: Any) -> None:
        self.work = work
        self.is_completed = work.is_completed

    def wait(self) -> None:
        started = time.perf_counter()
        self.work.wait()
        TimedWork.waited += time.perf_counter() - started


class Switch:
    """Stands before a collective; blocking: wait inside the call."""

    blocking = False

    def __init__(self, collective: Callable[..., Any]) -> None:
        self.collective = collective

    def __call__(self, *tensors: torch.Tensor, async_op: bool) -> TimedWork:
        work = TimedWork(self.collective(*tensors, async_op=async_op))
        if Switch.blocking:
            work.wait()
        return work


def take_step(model: GPT, optimizer: MuonAdamW, ids: torch.Tensor) -> None:
    batches = ids.chunk(2)
    for index, rows in enumerate(batches):
        loss = model.loss(rows[:, :-1], rows[:, 1:]) / ids.numel()
        with optimizer.reducing(last=index == len(batches) - 1):
            loss.backward()
    optimizer.reduce_gradients()
    norm = optimizer.grad_norm().item()
    if norm > 1.0:
        optimizer.scale_gradients(1.0 / norm)
    optimizer.step()
    model.zero_grad(set_to_none=True)


def measure_rank(rank: int, args: argparse.Namespace, out: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.ranks)}  # PyTorch reads them itself
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": args.port}
    own = Rank(rank, rank, args.ranks, args.ranks, is_managed=True)
    world = open_world(pick_device("cuda" if torch.cuda.device_count() >= args.ranks else "cpu"), own)
    use_all_cores(own)
    if args.bucket_bytes:
        sharding.BUCKET_BYTES = args.bucket_bytes
    for name in COLLECTIVES:
        setattr(dist, name, Switch(getattr(dist, name)))
    config = GPTConfig.from_depth(args.depth, args.vocab, args.context)
    model = GPT(config).to(world.device)
    model.init_weights(0)
    model.compute_dtype = torch.bfloat16 if world.device.type == "cuda" else torch.float32
    optimizer = build_optimizer(model, 0.02, 0.2, 0.004, 0.0, rank, args.ranks)
    ids = torch.randint(args.vocab, (2 * args.rows, args.context + 1), device=world.device)
    seconds: dict[str, list[float]] = {"overlapped": [], "blocking": []}
    waited: dict[str, list[float]] = {"overlapped": [], "blocking": []}
    for step in range(args.steps + 2):
        for name in sorted(seconds, reverse=step % 2 == 0):
            Switch.blocking, TimedWork.waited = name == "blocking", 0.0
            world.barrier()
            started = time.perf_counter()
            take_step(model, optimizer, ids)
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
            if step >= 2:  # the first steps allocate
                seconds[name].append(time.perf_counter() - started)
                waited[name].append(TimedWork.waited / seconds[name][-1])
    if world.is_main:
        pairs = [one / other for one, other in zip(seconds["overlapped"], seconds["blocking"], strict=True)]
        result = {
            "benchmark": "overlap",
            "device": name_device(world.device),
            "backend": dist.get_backend(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "ranks": args.ranks,
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 1),
            "config": config.to_dict(),
            "tokens_per_step": args.ranks * 2 * args.rows * args.context,
            "bucket_bytes": sharding.BUCKET_BYTES,
            "steps": args.steps,
            "variants": {
                name: {
                    "median_seconds": round(statistics.median(times), 4),
                    "best_seconds": round(min(times), 4),
                    "share_waiting": round(statistics.median(waited[name]), 4),
                }
                for name, times in seconds.items()
            },
            "overlapped_over_blocking": {
                "median_of_pairs": round(statistics.median(pairs), 3),
                "quartiles_of_pairs": [round(value, 3) for value in statistics.quantiles(pairs, n=4)[::2]],
                "best": round(min(seconds["overlapped"]) / min(seconds["blocking"]), 3),
            },
        }
        Path(out).write_text(json.dumps(result, indent=1), encoding="utf-8")
    world.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("ranks", 2), ("depth", 6), ("context", 256), ("rows", 1), ("vocab", 8192), ("steps", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--bucket-bytes", type=int)
    parser.add_argument("--port", default="29517")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.json")
        mp.spawn(measure_rank, (args, str(path)), nprocs=args.ranks)  # type: ignore[attr-defined]
        text = path.read_text(encoding="utf-8")
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
