"""What reinforcement learning adds to a model that was fine-tuned too little: the score before and after, by seed.

    python benchmarks/rl.py [--seeds 3] [--steps 150] [--out results/rl.json]

Each seed trains a small model of its own on the CPU (base, then conversations of arithmetic, far fewer than it needs),
scores it on test questions that stand in no training, lets it practise, and scores it again. `sampled` is the share of
right answers at temperature 1, which is what the gradient raises; `greedy` that of the most likely answers.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

from nanochat.config.settings import Settings
from nanochat.data.shards import Manifest, replace_manifest, write_shard_files
from nanochat.machine import cpu_name, usable_cores
from nanochat.paths import Workspace
from nanochat.stages.__main__ import main as run_stage
from nanochat.tasks.demo import generate_documents
from nanochat.training.metrics import MetricsFile

TASK = "arithmetic"
QUESTIONS = 400
SAMPLES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--mid-steps", type=int, default=40)
    parser.add_argument("--lr-scale", type=float, default=0.3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rl.json")
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory(prefix="nanochat-rl-") as home:
            rows.append(
                measure(Path(home), seed, options.steps, SAMPLES, QUESTIONS, options.mid_steps, options.lr_scale)
            )
        print(json.dumps(rows[-1]), flush=True)
    gains = {kind: [row[kind][1] - row[kind][0] for row in rows] for kind in ("greedy", "sampled")}
    result = {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "task": TASK,
        "test_questions": QUESTIONS,
        "steps": options.steps,
        "seeds": rows,
        "mean_gain": {kind: round(sum(values) / len(values), 4) for kind, values in gains.items()},
        "smallest_gain": {kind: round(min(values), 4) for kind, values in gains.items()},
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({"mean_gain": result["mean_gain"], "smallest_gain": result["smallest_gain"]}))


def measure(home: Path, seed: int, steps: int, samples: int, questions: int, mid_steps: int, lr_scale: float) -> dict:
    """Train a model of a seed in a home of its own and let it practise; returns its shares of right answers.

    samples: answers to each of 16 questions a step. questions: of the test, 8 answers to each.
    """
    workspace = Workspace(home)
    folder = workspace.dataset("demo")
    folder.mkdir(parents=True)
    shards = []
    for split, num_chars in (("train", 2_000_000), ("val", 50_000)):
        shards += write_shard_files(folder, generate_documents(num_chars, split=split), split, group_documents=500)
    replace_manifest(folder, Manifest(tuple(shards)))
    settings = workspace.run("rl").settings
    settings.parent.mkdir(parents=True)
    wish = Settings.model_validate(
        {
            "model": {"depth": 2, "context": 96},
            "tokenizer": {"vocab_size": 1024, "train_chars": 1_000_000},
            "data": {"dataset": "demo"},
            "batch": {"total_tokens": 3072, "device_batch_size": 32},
            "base": {"num_steps": 40, "eval_every": 0, "eval_tokens": 10_000},
            "mid": {"mixture": [f"{TASK}:3000"], "num_steps": mid_steps, "eval_every": 0},
            "sft": {"mixture": [f"{TASK}:500"], "num_steps": 10, "eval_every": 0},
            "rl": {
                "task": TASK,
                "num_steps": steps,
                "samples_per_question": samples,
                "max_new_tokens": 40,
                "lr_scale": lr_scale,
                "eval_every": 0,
                "eval_questions": questions,
            },
            "eval": {"tasks": [TASK], "max_examples": questions, "max_new_tokens": 40, "batch_size": 100},
            "runtime": {"device": "cpu", "dtype": "float32", "compile": False, "seed": seed},
        }
    )
    settings.write_text(json.dumps({"preset": "benchmark", "settings": wish.model_dump()}))
    run_all(["tokenizer", "base", "mid", "sft"], settings)
    before = score(workspace, settings, "sft")
    started = time.perf_counter()
    run_all(["rl"], settings)
    seconds = time.perf_counter() - started
    after = score(workspace, settings, "rl")
    metrics = MetricsFile(workspace.run("rl").stage("rl").metrics)
    sampled, best, errors = (metrics.values(f"pass_at_{key}") for key in ("1", "8", "1_stderr"))
    return {
        "seed": seed,
        "greedy": [before, after],
        "greedy_stderr": [round(math.sqrt(p * (1 - p) / questions), 4) for p in (before, after)],
        "sampled": [round(sampled[step], 4) for step in (0, steps)],
        "sampled_stderr": [round(errors[step], 4) for step in (0, steps)],
        "pass_at_8": [round(best[step], 4) for step in (0, steps)],
        "rl_seconds": round(seconds, 1),
    }


def run_all(stages: list[str], settings: Path) -> None:
    for stage in stages:
        if run_stage([stage, str(settings), "--quiet"]):
            raise SystemExit(f"{stage} failed")


def score(workspace: Workspace, settings: Path, stage: str) -> float:
    """Greedy accuracy on the test questions."""
    if run_stage(["evaluate", str(settings), "--of", stage, "--score", "chat", "--quiet"]):
        raise SystemExit("evaluate failed")
    return json.loads((workspace.run("rl").eval / f"{stage}_{TASK}.json").read_text())["accuracy"]


if __name__ == "__main__":
    main()
