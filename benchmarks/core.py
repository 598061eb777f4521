"""CORE's batched scoring beside the slow, obvious reference of the tests: equal predictions, and how much faster.

    python benchmarks/core.py BUNDLE MODEL [--max-per-task 70] [--device cpu] [--out results/core.json]

BUNDLE: a folder with core.yaml. MODEL: a run (or RUN/base) below $NANOCHAT_HOME, or a checkpoint folder. The reference
(tests/oracle_core.py) takes one option of one example a pass and computes the logits of every token. Both begin at the
bundle's files and end at predictions.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanochat.data.core_bundle import load_bundle, load_items
from nanochat.evals.chat import spread_indices
from nanochat.evals.core import evaluate_core_task
from nanochat.launch.launch import read_environ, resolve_home
from nanochat.paths import Workspace
from nanochat.runtime import name_device
from nanochat.stages.assemble import load_model
from tests.oracle_core import predict_task, read_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("model")
    parser.add_argument("--max-per-task", type=int, default=70)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "core.json")
    options = parser.parse_args()
    path = Workspace(resolve_home(None, read_environ())).resolve_model(options.model)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    model, tokenizer, _ = load_model(path, device, dtype)
    raw = {task["label"]: task for task in read_tasks(options.bundle)}
    bundle = load_bundle(options.bundle)
    rows = []
    for task in bundle.tasks:
        start = time.perf_counter()
        items, _ = load_items(task)
        score, predictions = evaluate_core_task(
            task, items, model, tokenizer, max_examples=options.max_per_task, batch_tokens=options.batch_tokens
        )
        fast_seconds = time.perf_counter() - start
        indices = spread_indices(len(items), options.max_per_task)
        start = time.perf_counter()
        expected = predict_task(options.bundle, raw[task.label], indices, model, tokenizer)
        slow_seconds = time.perf_counter() - start
        if task.kind == "language_modeling":
            expected = {index: {True: 0, False: -1, None: None}[value] for index, value in expected.items()}
        differing = [p.index for p in predictions if p.chosen != expected[p.index]]
        row = {
            "task": task.label,
            "examples": len(indices),
            "differing": differing,
            "accuracy": score.accuracy,
            "truncated": score.truncated,
            "too_long": score.too_long,
            "fast_seconds": round(fast_seconds, 3),
            "reference_seconds": round(slow_seconds, 3),
            "ratio": round(slow_seconds / fast_seconds, 2),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    examples, different = sum(row["examples"] for row in rows), sum(len(row["differing"]) for row in rows)
    fast, slow = (sum(row[key] for row in rows) for key in ("fast_seconds", "reference_seconds"))
    result = {
        "model": {"config": model.config.__dict__, "dtype": options.dtype},
        "device": name_device(device),
        "cpu": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "tasks": len(rows),
        "missing": list(bundle.missing),
        "examples": examples,
        "equal_share": 1 - different / examples,
        "examples_per_second": round(examples / fast, 2),
        "reference_examples_per_second": round(examples / slow, 2),
        "ratio": round(slow / fast, 2),
        "by_task": rows,
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "by_task"}, indent=1))


if __name__ == "__main__":
    main()
