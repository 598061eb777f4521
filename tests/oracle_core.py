"""CORE the slow, obvious way: one option of one example a pass, logits of every token, from the bundle's files.

Shares no code with nanochat.evals.core and reads core.yaml by hand.
"""

import json
import random
import re
from pathlib import Path

import torch


def read_tasks(folder: Path) -> list[dict]:
    """The entries of core.yaml as flat dictionaries."""
    tasks: list[dict] = []
    for line in (folder / "core.yaml").read_text().splitlines():
        if line.strip() == "-":
            tasks.append({})
        elif match := re.fullmatch(r"[\s-]+(\w+): (.*)", line):
            if line.lstrip().startswith("-"):
                tasks.append({})
            value = match[2].strip()
            tasks[-1][match[1]] = json.loads(value) if value[:1] in '["0123456789' else value
    return tasks


def predict_task(folder: Path, task: dict, indices: list[int], model, tokenizer, seed: int = 42) -> dict[int, object]:
    """What the model answers to each example: the number of an option, or whether the continuation was produced."""
    lines = (folder / "eval_data" / task["dataset_uri"]).read_text(encoding="utf-8").split("\n")
    examples = [json.loads(line) for line in lines if line.strip()]
    return {index: predict(examples, index, task, model, tokenizer, seed) for index in indices}


def predict(examples: list[dict], index: int, task: dict, model, tokenizer, seed: int) -> object:
    kind, delimiter = task["icl_task_type"], task.get("continuation_delimiter", " ")
    prompt = ""
    others = [number for number in range(len(examples)) if number != index]
    wanted = min(task["num_fewshot"][0], len(others))
    for number in random.Random(f"core/{seed}/{task['label']}/{index}").sample(others, wanted):
        prompt += solve(examples[number], kind, delimiter) + "\n"
    example = examples[index]
    if kind == "language_modeling":
        context = prompt + example["context"].strip() + delimiter.rstrip()
        whole = prompt + example["context"].strip() + delimiter + example["continuation"].strip()
        before, ids = encode(tokenizer, context), encode(tokenizer, whole)
        start = 0
        while start < min(len(before), len(ids) - 1) and before[start] == ids[start]:
            start += 1
        return produces(model, ids, start)
    if kind == "multiple_choice":
        texts = [prompt + example["query"].strip() + delimiter + choice.strip() for choice in example["choices"]]
        rows = [encode(tokenizer, text) for text in texts]
        start = 0
        while start < min(map(len, rows)) - 1 and all(row[start] == rows[0][start] for row in rows):
            start += 1
        starts = [start for _ in rows]
    else:
        end = delimiter + example["continuation"].strip()
        rows = [encode(tokenizer, prompt + context.strip() + end) for context in example["context_options"]]
        shared = 1
        while shared < min(map(len, rows)) - 1 and all(row[-1 - shared] == rows[0][-1 - shared] for row in rows):
            shared += 1
        starts = [len(row) - shared for row in rows]
    too_many = max(map(len, rows)) - 1 - model.config.context
    if any(len(row) - start > model.config.context for row, start in zip(rows, starts, strict=True)):
        return None
    losses = []
    for row, start in zip(rows, starts, strict=True):
        cut = max(0, too_many)
        if any(row[: cut + 1] != other[: cut + 1] for other in rows):  # they would not begin alike after the cut
            cut = max(0, len(row) - 1 - model.config.context)
        losses.append(mean_loss(model, row[cut:], start - cut))
    return losses.index(min(losses))


def solve(example: dict, kind: str, delimiter: str) -> str:
    if kind == "language_modeling":
        return example["context"].strip() + delimiter + example["continuation"].strip()
    if kind == "multiple_choice":
        return example["query"].strip() + delimiter + example["choices"][example["gold"]].strip()
    return example["context_options"][example["gold"]].strip() + delimiter + example["continuation"].strip()


def encode(tokenizer, text: str) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(text)]


@torch.inference_mode()
def mean_loss(model, ids: list[int], start: int) -> float:
    """Mean negative log-likelihood of ids[start:]."""
    device = next(model.parameters()).device
    logits = model(torch.tensor([ids[:-1]], device=device))[0]
    log_probs = torch.log_softmax(logits, dim=-1)
    nll = [-log_probs[place - 1, ids[place]].item() for place in range(start, len(ids))]
    return sum(nll) / len(nll)


@torch.inference_mode()
def produces(model, ids: list[int], start: int) -> bool | None:
    """Whether greedy decoding of ids[:start] writes ids[start:]; None where the context has no room for them."""
    context = model.config.context
    if len(ids) - start > context:
        return None
    cut = max(0, len(ids) - 1 - context)
    device = next(model.parameters()).device
    best = model(torch.tensor([ids[cut:-1]], device=device))[0].argmax(dim=-1).tolist()
    return all(best[place - cut - 1] == ids[place] for place in range(start, len(ids)))
