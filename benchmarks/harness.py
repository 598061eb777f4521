"""Multiple choice beside lm-evaluation-harness, given the same prompts: log-likelihoods and predictions.

    pip install lm_eval
    python benchmarks/harness.py BUNDLE MODEL [--tasks arc_easy,piqa] [--max-per-task 100] [--out results/harness.json]

The harness runs its own request, encoding and scoring code over our model, one request a pass; its documents hold our
few-shot prompts and " " + choice. It scores every token after the prompt, CORE those after what all choices share: so
log-likelihoods are compared as differences to those of the first choice, in which the shared tokens cancel. The harness
picks the largest sum and CORE the largest mean: both rules are applied to both sides.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanochat.data.core_bundle import CoreItem, CoreTask, load_bundle, load_items
from nanochat.evals.chat import spread_indices
from nanochat.evals.core import evaluate_core_task
from nanochat.evals.core_prompt import iter_questions, render_prompt
from nanochat.launch.launch import read_environ, resolve_home
from nanochat.paths import Workspace
from nanochat.stages.assemble import load_model

SEED = 42


class NanochatLM(TemplateLM):
    """Our model behind the harness's interface."""

    backend = "causal"

    def __init__(self, model, tokenizer) -> None:
        super().__init__()
        self.model, self.tokenizer, self.counts = model, tokenizer, []

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return [self.tokenizer.bos_id, *self.tokenizer.encode(string)]

    @torch.inference_mode()
    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        results = []
        for _, context, continuation in requests:
            logits = self.model(torch.tensor([(context + continuation)[:-1]]))[0, len(context) - 1 :]
            log_probs = torch.log_softmax(logits, dim=-1)
            targets = torch.tensor(continuation)
            total = log_probs.gather(1, targets[:, None]).double().sum().item()
            self.counts.append(len(continuation))
            results.append((total, bool((logits.argmax(-1) == targets).all())))
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


def compare(task: CoreTask, items: list[CoreItem], limit: int, model, tokenizer) -> dict[str, Any]:
    """Figures of one task. Items that do not fit into the context are left out: the harness does not cut."""
    context = model.config.context
    indices = spread_indices(len(items), limit)
    questions = dict(zip(indices, iter_questions(task, items, indices, tokenizer, context, SEED), strict=True))
    kept = [index for index in indices if questions[index].trees and not questions[index].num_dropped]
    score, predictions = evaluate_core_task(task, items, model, tokenizer, max_examples=limit, seed=SEED)
    ours = {prediction.index: prediction for prediction in predictions}
    documents = [
        {
            "prompt": render_prompt(task, items, index, SEED)[0],
            "choices": [continuation for _, continuation in items[index].options],
            "gold": items[index].gold,
        }
        for index in kept
    ]
    adapter = NanochatLM(model, tokenizer)
    config = {
        "task": f"same_prompts_{task.label}",
        "custom_dataset": lambda **_: datasets.DatasetDict({"test": datasets.Dataset.from_list(documents)}),
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
    }
    found = simple_evaluate(adapter, tasks=[ConfigurableTask(config=config)], bootstrap_iters=0, log_samples=True)
    assert found is not None
    samples = sorted(found["samples"][config["task"]], key=lambda sample: sample["doc_id"])
    counts = iter(adapter.counts)
    gaps, same_sum, same_mean, alike, right_sum, theirs_right = [], 0, 0, 0, 0, 0
    for index, sample in zip(kept, samples, strict=True):
        theirs = [response[0] for response in sample["filtered_resps"]]
        lengths = [next(counts) for _ in theirs]
        (tree,) = questions[index].trees
        sums = [-loss * n for loss, n in zip(ours[index].losses, tree.num_scored, strict=True)]
        gaps += [abs((a - sums[0]) - (b - theirs[0])) for a, b in zip(sums, theirs, strict=True)]
        same_sum += argmax(sums) == argmax(theirs)
        right_sum += argmax(sums) == items[index].gold
        theirs_right += argmax(theirs) == items[index].gold
        if list(tree.num_scored) == lengths:  # no choice begins like all others: the means are of the same tokens
            alike += 1
            same_mean += ours[index].chosen == argmax([total / n for total, n in zip(theirs, lengths, strict=True)])
    return {
        "task": task.label,
        "examples": len(kept),
        "choices": len(gaps),
        "left_out_for_length": len(indices) - len(kept),
        "largest_difference_nats": max(gaps),
        "same_prediction_by_sum": same_sum,
        "accuracy_by_sum": right_sum / len(kept),
        "harness_accuracy": found["results"][config["task"]]["acc,none"],
        "examples_without_a_shared_beginning": alike,
        "same_prediction_by_mean": same_mean,
        "core_accuracy": score.accuracy,
    }


def argmax(values: list[float]) -> int:
    return values.index(max(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("model")
    parser.add_argument("--tasks", default="arc_easy,piqa,copa,openbook_qa")
    parser.add_argument("--max-per-task", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "harness.json")
    options = parser.parse_args()
    path = Workspace(resolve_home(None, read_environ())).resolve_model(options.model)
    model, tokenizer, _ = load_model(path, torch.device("cpu"), torch.float32)
    rows = []
    for task in load_bundle(options.bundle, options.tasks.split(",")).tasks:
        rows.append(compare(task, load_items(task)[0], options.max_per_task, model, tokenizer))
        print(json.dumps(rows[-1]), flush=True)
    result = {"lm_eval": lm_eval.__version__, "torch": torch.__version__, "dtype": "float32", "tasks": rows}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
