"""Practice of whole presets on one GPU: memory beside the plan, speed of sampling, and a kill with resume.

    python benchmarks/rl_gpu.py --depths 12 20

For each depth: a few steps of base, mid and sft on the demo's text (enough that some sampled answers are right), then
rl with the preset's own batch to its end; the same again, killed with SIGKILL after its first checkpoint and resumed,
whose losses, rewards and answers must be the same bits. `long` is practice of a model that was hardly trained, so that
many answers run to rl.max_new_tokens: what sampling costs at most. Writes results/rl_<device>.json after each depth.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import call, kill_after_save
from nanochat.paths import RunPaths, StagePaths, Workspace
from nanochat.training.metrics import MetricsFile, RolloutFiles

TASK = "spelling"
SETTINGS = {
    "data.dataset": "demo",
    "tokenizer.vocab_size": 4096,
    "tokenizer.train_chars": 2_000_000,
    "runtime.compile": False,  # the stages before rl are short, and rl is never compiled
    "checkpoint.keep": 1,
    "checkpoint.keep_best": False,
    "batch.total_tokens": 65_536,
    "base.eval_every": 0,
    "base.eval_tokens": 524_288,
    "mid.mixture": json.dumps([f"{TASK}:20000"]),
    "mid.eval_every": 0,
    "sft.mixture": json.dumps([f"{TASK}:4000"]),
    "sft.num_steps": 2,
    "sft.eval_every": 0,
    "rl.task": TASK,
    "rl.check_questions": 0,
    "rl.eval_every": 0,
    "rl.eval_questions": 16,
}


def measure(home: Path, depth: int, num_steps: int, trained: dict[str, Any]) -> dict[str, Any]:
    """Everything about one depth.

    trained: settings of the stages before, how long they train.
    """
    changes = trained | {"rl.num_steps": num_steps, "checkpoint.every": num_steps // 2}
    workspace, name = Workspace(home), f"d{depth}"
    start(home, workspace.run(name), depth, changes)
    killed = workspace.run(f"{name}-killed")
    shutil.copytree(workspace.run(name).root, killed.root)
    call(home, ["train", "rl", "--run", name])
    stage, other = workspace.run(name).stage("rl"), killed.stage("rl")
    last = kill_after_save(home, ["train", "rl", "--run", killed.name], other)
    call(home, ["resume", killed.name])
    result = json.loads(stage.result.read_text())
    series = {key: [MetricsFile(paths.metrics).values(key) for paths in (stage, other)] for key in ("loss", "reward")}
    files = [RolloutFiles(paths.root / "rollouts", 1) for paths in (stage, other)]
    answers = [[of_run.read(step) for step in series["reward"][0]] for of_run in files]
    return {
        "depth": depth,
        "num_params": result["num_params"],
        "steps": num_steps,
        **describe(stage),
        "reward": {"first": series["reward"][0][1], "last": series["reward"][0][num_steps]},
        "kill_and_resume": {
            "killed_after_step": last,
            "steps_compared": len(series["loss"][0]),
            "bit_identical": all(a == b for a, b in series.values()),
            "answers_equal": answers[0] == answers[1],
        },
        "long": measure_long(home, depth),
    }


def measure_long(home: Path, depth: int) -> dict[str, Any]:
    """Practice of a model that was hardly trained, so that its answers do not end."""
    run = Workspace(home).run(f"d{depth}-long")
    shortest = {"base.num_steps": 2, "mid.num_steps": 2, "rl.num_steps": 3}
    shutil.copytree(Workspace(home).run(f"d{depth}").tokenizer, run.tokenizer)
    start(home, run, depth, shortest)
    call(home, ["train", "rl", "--run", run.name])
    return describe(run.stage("rl"))


def start(home: Path, run: RunPaths, depth: int, changes: dict[str, Any]) -> None:
    """Train the tokenizer (unless it is there), base, mid and sft of a run."""
    words = ["--preset", f"d{depth}", "--run", run.name]
    words += [word for key, value in (SETTINGS | changes).items() for word in ("--set", f"{key}={value}")]
    if not run.tokenizer.exists():
        call(home, ["tokenize", "train", *words])
    call(home, ["train", "base", *words])
    for stage in ("mid", "sft"):
        call(home, ["train", stage, "--run", run.name])


def describe(stage: StagePaths) -> dict[str, Any]:
    """Memory, speed and lengths of one practice."""
    result = json.loads(stage.result.read_text())
    metrics = MetricsFile(stage.metrics)
    return {
        "planned_gb": round(result["planned_memory_bytes"] / 1e9, 2),
        "peak_gb": round(result["peak_memory_bytes"] / 1e9, 2),
        "answer_tokens": round(statistics.median(metrics.values("answer_tokens").values()), 1),
        "rollout_tokens_per_second": statistics.median(metrics.values("rollout_tokens_per_second").values()),
        "rollout_seconds": statistics.median(metrics.values("rollout_seconds").values()),
        "step_seconds": round(statistics.median(b - a for a, b in pairwise(metrics.values("seconds").values())), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[12, 20])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--base-steps", type=int, default=30)
    parser.add_argument("--mid-steps", type=int, default=60)
    parser.add_argument("--home", type=Path, help="default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    home = options.home or Path(tempfile.mkdtemp(prefix="nanochat-rl-"))
    record: dict[str, Any] = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda, "depths": []}
    path = options.out / f"rl_{device.lower().replace(' ', '_')}.json"
    options.out.mkdir(parents=True, exist_ok=True)
    for depth in options.depths:
        started = time.perf_counter()
        trained = {"base.num_steps": options.base_steps, "mid.num_steps": options.mid_steps}
        record["depths"].append(measure(home, depth, options.steps, trained))
        record["depths"][-1]["whole_seconds"] = round(time.perf_counter() - started, 1)
        path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if options.home is None:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
