"""Evaluation of a trained model: bits per byte and chat tasks, as JSON in the run's eval folder."""

import json
import re
from typing import Any

import torch

import nanochat
from nanochat.data.shards import load_manifest
from nanochat.disk import write_atomically
from nanochat.errors import UsageError
from nanochat.evals.bpb import measure_bits
from nanochat.evals.chat import Score, average_centred, evaluate_chat
from nanochat.model.gpt import GPT
from nanochat.paths import ModelPath
from nanochat.stages.assemble import load_model
from nanochat.stages.base import iter_validation
from nanochat.stages.dataset import find_dataset
from nanochat.stages.display import Display
from nanochat.stages.job import Job
from nanochat.tasks.catalog import build_task
from nanochat.tokenizer.bpe import Tokenizer

AUTO_TOKENS = 16_384
"""Tokens of a batch where batch.device_batch_size is auto."""
CHAT_STAGES = ("mid", "sft", "rl")
"""Stages whose model knows the form of a conversation."""


def run_evaluate(job: Job, display: Display, of: str | None = None, score: str = "all") -> dict[str, Any]:
    """Score the furthest model of the run, or the one of stage `of` ("sft", "sft@650"); returns name -> value.

    score: "bpb", "chat" or "all" that suit the model. Collective: every rank calls this.
    """
    name = f"{job.run.name}/{of}" if of else job.run.name
    model_path = job.world.ask_main(lambda: job.workspace.resolve_model(name))
    assert model_path.stage is not None
    model, tokenizer, meta = load_model(model_path, job.world.device, job.dtype, job.settings.tokenizer.kind)
    display.say(f"evaluating {model_path} on {job.world.device}, {str(job.dtype).removeprefix('torch.')}")
    if score == "chat" and model_path.stage not in CHAT_STAGES:
        raise UsageError(
            f"{model_path} has not seen conversations: chat tasks need a mid or sft model", "nanochat eval bpb"
        )
    if score == "chat" and not job.settings.eval.tasks:
        raise UsageError("eval.tasks is empty: there is no chat task to score", "--set eval.tasks='[\"letters\"]'")
    about = {
        "stage": model_path.stage,
        "step": model_path.step,
        "model": str(model_path),
        "tokenizer_hash": meta["tokenizer_hash"],
        "nanochat_version": nanochat.__version__,
        "dtype": str(job.dtype).removeprefix("torch."),
        "settings": job.settings.eval.model_dump(),
    }
    values: dict[str, Any] = {}
    if score in ("all", "bpb"):
        values["bpb"] = _score_bpb(job, model_path, model, tokenizer, about, display)
    if score in ("all", "chat") and model_path.stage in CHAT_STAGES:
        values |= _score_chat(job, model_path, model, tokenizer, about, display)
    return values


def _score_bpb(
    job: Job, model_path: ModelPath, model: GPT, tokenizer: Tokenizer, about: dict[str, Any], display: Display
) -> float:
    folder = find_dataset(job.workspace, job.settings.data.dataset)
    num_tokens = job.settings.base.eval_tokens
    rows = job.settings.batch.device_batch_size
    if rows == "auto":  # any number gives the same score, and without gradients this many fit wherever the model does
        rows = max(1, AUTO_TOKENS // model.config.context)
    batches = iter_validation(folder, tokenizer, rows, model.config.context)
    token_bytes = torch.tensor(tokenizer.token_bytes, dtype=torch.int64, device=job.world.device)
    bits = measure_bits(model, batches, token_bytes, num_tokens, job.world)
    text = f"{bits.num_tokens:,} tokens of the pretraining text {job.settings.data.dataset}"
    display.say(f"bpb {bits.bpb:.4f} bits per byte on {text}")
    data = {"dataset": job.settings.data.dataset, "dataset_hash": load_manifest(folder).hash}
    record = {
        "name": "bpb",
        "bpb": bits.bpb,
        "num_bytes": bits.num_bytes,
        "num_tokens": bits.num_tokens,
        **data,
        **about,
    }
    _save(job, model_path, "bpb", record)
    return bits.bpb


def _score_chat(
    job: Job, model_path: ModelPath, model: GPT, tokenizer: Tokenizer, about: dict[str, Any], display: Display
) -> dict[str, float | None]:
    wish = job.settings.eval
    scores: list[Score] = []
    for name in wish.tasks:
        score = evaluate_chat(
            build_task(name, "test", folder=job.workspace.tasks),
            model,
            tokenizer,
            max_examples=wish.max_examples,
            batch_size=wish.batch_size,
            max_new_tokens=wish.max_new_tokens,
            world=job.world,
            progress=lambda done, total, name=name: display.advance(name, done, total, "answers"),
        )
        display.finish()
        scores.append(score)
        _save(job, model_path, score.name, _to_json(score) | about)
        if score.accuracy is None:
            display.say(f"{score.name}: not graded, {score.ungraded} answers written")
        else:
            tools = f", {score.with_tool} with a tool" if score.with_tool else ""
            display.say(
                f"{score.name} {100 * score.accuracy:.1f}% of {score.total} (+- {100 * (score.stderr or 0):.1f}){tools}"
            )
    values = {score.name: score.accuracy for score in scores}
    mean = average_centred(scores)
    if mean is not None:
        display.say(f"mean of the centred accuracies {mean:.4f} over {', '.join(values)}")
        _save(job, model_path, "mean", {"name": "centred mean", "value": mean, "tasks": list(values), **about})
        values["mean"] = mean
    return values


def _to_json(score: Score) -> dict[str, Any]:
    values = score.to_dict()
    return values | {"centred": score.centred}


def _save(job: Job, model_path: ModelPath, name: str, record: dict[str, Any]) -> None:
    if job.world.is_main:
        plain = re.sub(r"[^A-Za-z0-9.-]+", "-", name)
        write_atomically(job.run.eval / f"{model_path.stage}_{plain}.json", json.dumps(record, indent=1))
