"""Tokens a second of decoding with one thread and with all, on a quiet machine and beside one busy process, on a CPU.

    python benchmarks/threads.py [--out benchmarks/results/threads_cpu.json]

Random weights, in the type that a chat chooses here. `spin` is GOMP_SPINCOUNT, which OpenMP reads as it starts, so each
has a process of its own; in it the numbers of threads take turns and the middle one of ROUNDS counts. `chosen` is the
number that the product takes (runtime.threads_for), with the spin of launch/launch.py. `load` is that of the machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from nanochat import runtime
from nanochat.engine.engine import Engine, Request
from nanochat.engine.sampling import SamplingParams
from nanochat.launch.launch import SPIN
from nanochat.model.accounting import count_params
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.runtime import name_device, pick_dtype, use_all_cores

SHAPES = {"demo": (4, 1024), "d6": (6, 8192), "d12": (12, 50304)}  # depth, vocabulary
BATCHES = (1, 4, 16)
CONTEXT, PROMPT = 256, 32
ROUNDS, SECONDS = 3, 0.3  # of each number of threads
DEFAULT = "default"


def build(depth: int, vocab_size: int, dtype: torch.dtype) -> GPT:
    model = GPT(GPTConfig.from_depth(depth, vocab_size, CONTEXT))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.compute_dtype = dtype
    return model.cast_weights()


def decode(model: GPT, num_rows: int) -> float:
    """Tokens a second of an engine whose prompts are read, for about SECONDS."""
    engine = Engine(model, num_rows, CONTEXT)
    vocab_size = model.config.vocab_size
    for row in range(num_rows):
        prompt = [(7 * row + 3 * place) % vocab_size for place in range(PROMPT)]
        engine.add(Request(row, prompt, SamplingParams(temperature=0, max_new_tokens=CONTEXT - PROMPT)))
    engine.step()
    start, tokens = time.perf_counter(), 0
    while engine.num_active and (seconds := time.perf_counter() - start) < SECONDS:
        tokens += len(engine.step())
    seconds = time.perf_counter() - start
    return tokens / seconds


def work(spin: str, busy: bool) -> list[dict]:
    """All shapes and batches with every number of threads, in this process."""
    cores = use_all_cores()
    per_thread, runtime.PRODUCTS_PER_THREAD = runtime.PRODUCTS_PER_THREAD, 1  # here the number of threads is given
    dtype = pick_dtype("auto", torch.device("cpu"))[0]
    rows = []
    for name, (depth, vocab_size) in SHAPES.items():
        model = build(depth, vocab_size, dtype)
        num_weights = count_params(model.config)["total"] - count_params(model.config)["embedding"]
        for num_rows in BATCHES:
            rates: dict[int, list[float]] = {1: [], cores: []}
            for _ in range(ROUNDS):
                for threads, measured in rates.items():
                    torch.set_num_threads(threads)
                    measured.append(decode(model, num_rows))
            rows.append(
                {
                    "shape": name,
                    "batch": num_rows,
                    "spin": spin,
                    "busy_neighbour": busy,
                    "chosen": min(cores, 1 + num_rows * num_weights // per_thread),
                    "tokens_per_second": {
                        str(threads): round(sorted(each)[ROUNDS // 2], 1) for threads, each in rates.items()
                    },
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--worker", nargs=2, metavar=("SPIN", "BUSY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options.worker[0], options.worker[1] == "yes")))
        return
    rows, load = [], round(os.getloadavg()[0], 1)
    for busy in (False, True):
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        try:
            for spin in (DEFAULT, SPIN["GOMP_SPINCOUNT"]):
                environ = dict(os.environ) if spin == DEFAULT else {**os.environ, "GOMP_SPINCOUNT": spin}
                command = [sys.executable, __file__, "--worker", spin, "yes" if busy else "no"]
                rows += json.loads(subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE).stdout)
        finally:
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
    device = torch.device("cpu")
    result = {"benchmark": "threads", "device": name_device(device), "dtype": str(pick_dtype("auto", device)[0])[6:]}
    about = {"torch": torch.__version__, "load": load}
    text = json.dumps(result | about | {"rows": rows}, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
