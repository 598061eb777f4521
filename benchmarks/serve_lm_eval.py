"""`nanochat serve` as an untouched lm-evaluation-harness sees it, beside our own CORE scores of the same questions.

    python -m venv HARNESS && HARNESS/bin/pip install 'lm-eval[api]' transformers
    python benchmarks/serve_lm_eval.py BUNDLE MODEL HARNESS/bin/python [--tasks arc_easy,piqa] [--max-per-task 100]

Exports MODEL for its tokenizer, serves it in the type that `nanochat serve` chooses and in float32, and lets the
harness's `local-completions` score CORE's multiple choice without examples: once with token ids, in batches, and once
with text, several requests at a time. The same questions go through what `nanochat eval core` runs, in this process.
The harness scores every token after the prompt, CORE those after what all choices share: log-likelihoods are compared
as differences to those of the first choice, in which shared tokens cancel. The harness picks the largest sum, CORE the
largest mean: the sums are compared, and CORE's accuracy stands beside.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from nanochat.data.core_bundle import CoreItem, CoreTask, load_bundle, load_items
from nanochat.evals.chat import spread_indices
from nanochat.evals.core import evaluate_core_task
from nanochat.evals.core_prompt import iter_questions, render_prompt
from nanochat.launch.launch import read_environ, resolve_home
from nanochat.model.gpt import GPT
from nanochat.paths import Workspace
from nanochat.runtime import name_device, pick_device, pick_dtype
from nanochat.stages.assemble import load_model
from nanochat.stages.export import export_hf
from nanochat.tokenizer.bpe import Tokenizer

SEED = 42
MODES = {
    "ids": {"tokenized_requests": "True", "add_bos_token": "True", "batch_size": "8"},
    "text": {"tokenized_requests": "False", "add_bos_token": "False", "num_concurrent": "4"},
}
"""How the harness asks. Given text, the server puts the beginning of a document before it, and shows none."""


def choose_items(task: CoreTask, limit: int, tokenizer: Tokenizer, context: int) -> list[CoreItem]:
    """Questions, evenly spread, whose every option leaves room for the one token that the harness lets be generated."""
    items, _ = load_items(task)
    fitting = []
    for item, question in zip(
        items, iter_questions(task, items, range(len(items)), tokenizer, context, SEED), strict=True
    ):
        if question.trees and not question.num_dropped:
            longest = max(len(tree.prefix) + max(map(len, tree.tails)) for tree in question.trees)
            if longest < context:
                fitting.append(item)
    return [fitting[place] for place in spread_indices(len(fitting), limit)]


def write_task(folder: Path, task: CoreTask, items: list[CoreItem]) -> None:
    """A task of the harness with our prompts, over a local file."""
    data = folder / f"{task.label}.jsonl"
    lines = [
        {
            "prompt": render_prompt(task, items, number, SEED)[0],
            "choices": [continuation for _, continuation in item.options],
            "gold": item.gold,
        }
        for number, item in enumerate(items)
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "task": f"local_{task.label}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / f"{task.label}.yaml").write_text(yaml.safe_dump(config))


def run_harness(python: str, url: str, folder: Path, labels: list[str], mode: str, context: int) -> dict[str, Any]:
    """Accuracy and log-likelihoods by task; seconds of the whole command."""
    settings = {"model": "nanochat", "base_url": f"{url}/v1/completions", "tokenizer": str(folder / "hf")}
    settings |= {"tokenizer_backend": "huggingface", "max_length": str(context), "max_retries": "1"} | MODES[mode]
    batch = settings.pop("batch_size", "1")
    command = [python, "-m", "lm_eval", "--model", "local-completions", "--include_path", str(folder)]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in settings.items())]
    command += ["--tasks", ",".join(f"local_{label}" for label in labels), "--batch_size", batch]
    command += ["--log_samples", "--output_path", str(folder / mode)]
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "NO_PROXY": "127.0.0.1"}
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    seconds = time.perf_counter() - started
    (results,) = (folder / mode).rglob("results_*.json")
    accuracy = {key: value["acc,none"] for key, value in json.loads(results.read_text())["results"].items()}
    found: dict[str, Any] = {"seconds": round(seconds, 1)}
    for label in labels:
        (path,) = (folder / mode).rglob(f"samples_local_{label}_*.jsonl")
        samples = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
        sums = [[float(response[0]) for response in sample["filtered_resps"]] for sample in samples]
        found[label] = (accuracy[f"local_{label}"], sums)
    return found


def compare(task: CoreTask, items: list[CoreItem], model: GPT, tokenizer: Tokenizer, harness: dict) -> dict[str, Any]:
    """Our scores of one task beside those of the harness, by mode."""
    score, predictions = evaluate_core_task(task, items, model, tokenizer, seed=SEED)
    questions = list(iter_questions(task, items, range(len(items)), tokenizer, model.config.context, SEED))
    sums = []
    for prediction, question in zip(predictions, questions, strict=True):
        (tree,) = question.trees
        sums.append([-loss * n for loss, n in zip(prediction.losses, tree.num_scored, strict=True)])
    right = sum(argmax(row) == item.gold for row, item in zip(sums, items, strict=True))
    row: dict[str, Any] = {
        "task": task.label,
        "examples": len(items),
        "choices": sum(map(len, sums)),
        "our_accuracy_by_sum": right / len(items),
        "core_accuracy": score.accuracy,
    }
    for mode, found in harness.items():
        accuracy, theirs = found[task.label]
        pairs = list(zip(sums, theirs, strict=True))
        gaps = [abs((a - ours[0]) - (b - other[0])) for ours, other in pairs for a, b in zip(ours, other, strict=True)]
        row[mode] = {
            "harness_accuracy": accuracy,
            "same_prediction": sum(argmax(ours) == argmax(other) for ours, other in pairs),
            "largest_difference_nats": max(gaps),
        }
    return row


@contextmanager
def serving(model: str, home: Path, dtype: torch.dtype) -> Iterator[str]:
    """`nanochat serve` on a free port, in a type that it would perhaps not choose itself."""
    words = [sys.executable, "-c", "import sys; from nanochat.cli.main import main; sys.exit(main())", "serve", model]
    words += ["--port", "0", "--home", str(home), "--dtype", str(dtype).removeprefix("torch.")]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


def argmax(values: list[float]) -> int:
    return values.index(max(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("model")
    parser.add_argument("python", help="of an environment with lm-eval[api] and transformers")
    parser.add_argument("--tasks", default="arc_easy,piqa")
    parser.add_argument("--max-per-task", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "serve_lm_eval.json")
    options = parser.parse_args()
    home = resolve_home(None, read_environ())
    path = Workspace(home).resolve_model(options.model)
    device = pick_device("auto")
    version = [options.python, "-c", "import importlib.metadata as m; print(m.version('lm_eval'))"]
    result = {
        "lm_eval": subprocess.run(version, capture_output=True, text=True, check=True).stdout.strip(),
        "torch": torch.__version__,
        "device": name_device(device),
        "model": str(path),
    }
    for dtype in dict.fromkeys((pick_dtype("auto", device)[0], torch.float32)):
        model, tokenizer, _ = load_model(path, device, dtype)
        context = model.config.context
        tasks = [
            dataclasses.replace(task, num_fewshot=0)
            for task in load_bundle(options.bundle, options.tasks.split(",")).tasks
        ]
        chosen = {task.label: choose_items(task, options.max_per_task, tokenizer, context) for task in tasks}
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            export_hf(path, folder / "hf")
            for task in tasks:
                write_task(folder, task, chosen[task.label])
            with serving(options.model, home, dtype) as url:
                harness = {
                    mode: run_harness(options.python, url, folder, list(chosen), mode, context) for mode in MODES
                }
        result[str(dtype).removeprefix("torch.")] = {
            "harness_seconds": {mode: found["seconds"] for mode, found in harness.items()},
            "tasks": [compare(task, chosen[task.label], model, tokenizer, harness) for task in tasks],
        }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
