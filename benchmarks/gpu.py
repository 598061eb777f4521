"""Base training of whole presets on one GPU: batch, memory, speed, and a kill with resume that must repeat each loss.

    python benchmarks/gpu.py FOLDER_OF_TEXT --depths 12 20

For each depth: `nanochat train base` with `device_batch_size = "auto"` to its end; the same again, killed with SIGKILL
after its first checkpoint and resumed, whose losses must be bit-identical; and once more with
`runtime.deterministic = false`, for what that costs. The text is read again and again: the speed is measured, not what
the model learns. Writes results/gpu_<device>.json after each depth.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from nanochat.paths import StagePaths, Workspace
from nanochat.training.metrics import MetricsFile

NANOCHAT = [sys.executable, "-c", "import sys; from nanochat.cli.main import main; sys.exit(main())"]
WARM_UP = 3  # steps that are not counted: kernels compile and the allocator finds its sizes
SHORT = ["base.eval_tokens=524288", "checkpoint.keep=1", "checkpoint.keep_best=false", "runtime.compile=true"]


def call(home: Path, words: list[str]) -> None:
    """Run our own command line; its lines go to standard error."""
    print("$ nanochat", *words, file=sys.stderr, flush=True)
    subprocess.run([*NANOCHAT, *words, "--home", str(home)], check=True, stdout=sys.stderr)


def train_words(name: str, depth: int, num_steps: int, overrides: list[str]) -> list[str]:
    """The command of a run of this many steps, with a checkpoint in the middle."""
    settings = [
        "batch.device_batch_size=auto",
        "data.dataset=text",
        f"base.num_steps={num_steps}",
        f"checkpoint.every={num_steps // 2}",
        *SHORT,
        *overrides,
    ]
    words = ["train", "base", "--preset", f"d{depth}", "--run", name]
    return words + [word for setting in settings for word in ("--set", setting)]


def kill_after_save(home: Path, words: list[str], stage: StagePaths) -> int:
    """Start a run and SIGKILL all of it two steps after its first checkpoint; returns the last step it had taken."""
    print("$ nanochat", *words, "(to be killed)", file=sys.stderr, flush=True)
    process = subprocess.Popen([*NANOCHAT, *words, "--home", str(home)], stdout=sys.stderr, start_new_session=True)
    steps: list[int] = []
    while process.poll() is None:
        steps = list(MetricsFile(stage.metrics).values("loss"))
        saved = stage.steps()
        if saved and steps and steps[-1] >= saved[0] + 2:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.05)
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"the run to be killed ended by itself, exit {process.returncode}")
    return steps[-1]


def rate(stage: StagePaths, key: str) -> float | None:
    """The median of a metric over the steps after the warm-up; None where it was not measured."""
    values = list(MetricsFile(stage.metrics).values(key).values())[WARM_UP:]
    return round(statistics.median(values), 4) if values else None


def share_tokenizer(home: Path, name: str, other: str) -> None:
    """Give a run that does not exist yet the tokenizer of another: training one for each would only take time."""
    shutil.copytree(Workspace(home).run(other).tokenizer, Workspace(home).run(name).tokenizer)


def measure(home: Path, depth: int, num_steps: int) -> dict[str, Any]:
    """Everything about one depth that is measured with the defaults."""
    name = f"d{depth}"
    stage, killed = (Workspace(home).run(run).stage("base") for run in (name, f"{name}-killed"))
    started = time.perf_counter()
    call(home, train_words(name, depth, num_steps, []))
    seconds = time.perf_counter() - started
    result = json.loads(stage.result.read_text())
    batch = json.loads((stage.root / "batch.json").read_text())
    share_tokenizer(home, f"{name}-killed", name)
    last = kill_after_save(home, train_words(f"{name}-killed", depth, num_steps, []), killed)
    call(home, ["resume", f"{name}-killed"])
    losses, again = (MetricsFile(paths.metrics).values("loss") for paths in (stage, killed))
    record = {
        "depth": depth,
        "num_params": result["num_params"],
        "steps": num_steps,
        "whole_seconds": round(seconds, 1),
        "rows": batch["rows"],
        "probes": batch["num_probes"],
        "probe_peak_gb": round((batch["peak_bytes"] or 0) / 1e9, 2),
        "planned_gb": round(result["planned_memory_bytes"] / 1e9, 2),
        "peak_gb": round(result["peak_memory_bytes"] / 1e9, 2),
        "device_gb": round(batch["total_bytes"] / 1e9, 2),
        "tokens_per_second": rate(stage, "tokens_per_second"),
        "mfu": rate(stage, "mfu"),
        "loss": {"first": losses[1], "last": losses[num_steps]},
        "kill_and_resume": {
            "killed_after_step": last,
            "steps_compared": len(losses),
            "largest_difference": max(abs(losses[step] - again[step]) for step in losses),
            "bit_identical": losses == again,
        },
    }
    return record


def measure_free(home: Path, depth: int, num_steps: int) -> dict[str, Any]:
    """The run of `measure` with whatever kernels are fastest."""
    stage, free = (Workspace(home).run(run).stage("base") for run in (f"d{depth}", f"d{depth}-free"))
    share_tokenizer(home, f"d{depth}-free", f"d{depth}")
    call(home, train_words(f"d{depth}-free", depth, num_steps, ["runtime.deterministic=false"]))
    losses, others = (MetricsFile(paths.metrics).values("loss") for paths in (stage, free))
    return {
        "tokens_per_second": rate(free, "tokens_per_second"),
        "mfu": rate(free, "mfu"),
        "largest_difference": max(abs(losses[step] - others[step]) for step in losses),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("text", type=Path, help="a folder of text that `nanochat download import` takes")
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 20])
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 10], help="one number for each depth")
    parser.add_argument("--home", type=Path, help="default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here")
    device = torch.cuda.get_device_name()
    home = options.home or Path(tempfile.mkdtemp(prefix="nanochat-gpu-"))
    call(home, ["download", "import", str(options.text), "--name", "text"])
    record: dict[str, Any] = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda, "depths": []}
    first = f"d{options.depths[0]}"
    call(home, ["tokenize", "train", "--preset", first, "--run", first, "--set", "data.dataset=text"])
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu_{device.lower().replace(' ', '_')}.json"
    sizes = list(zip(options.depths, options.steps, strict=True))
    for depth, num_steps in sizes:
        if f"d{depth}" != first:
            share_tokenizer(home, f"d{depth}", first)
        record["depths"].append(measure(home, depth, num_steps))
        path.write_text(json.dumps(record, indent=1) + "\n")
    for (depth, num_steps), of_depth in zip(sizes, record["depths"], strict=True):
        of_depth["not_deterministic"] = measure_free(home, depth, num_steps)
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if options.home is None:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
