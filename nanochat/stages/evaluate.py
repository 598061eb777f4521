"""Evaluation of a trained model: bits per byte, CORE and chat tasks, as JSON in the run's eval folder."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from nanochat.config.settings import EvalSettings
from nanochat.data.batch import Batch
from nanochat.data.core_bundle import AGAIN, CoreItem, CoreTask, has_bundle, load_bundle, load_items
from nanochat.data.shards import load_manifest
from nanochat.errors import UsageError
from nanochat.evals.bpb import measure_bits
from nanochat.evals.chat import (
    Score,
    average_centred,
    estimate_mean_error,
    evaluate_chat,
    hash_examples,
    read_score,
)
from nanochat.evals.core import CoreScore, Prediction, TaskScore, evaluate_core_task
from nanochat.evals.core_prompt import render_prompt
from nanochat.files import disk_errors, write_atomically
from nanochat.stages.base import iter_validation
from nanochat.stages.dataset import open_dataset
from nanochat.stages.job import Job
from nanochat.stages.scores import IDENTITY, Subject, find_score, identify, load_subject, save_score, score_path
from nanochat.tasks.catalog import RUN_CODE, build_task, check_names
from nanochat.tasks.guarded import GuardedTask
from nanochat.tasks.task import Task
from nanochat.tools.sandbox.probe import check_isolation, measure_isolation

SCORES = ("bpb", "core", "chat")
AUTO_TOKENS = 16_384
"""Tokens of a batch where batch.device_batch_size is auto."""
CHAT_STAGES = ("mid", "sft", "rl")
"""Stages whose model knows the form of a conversation."""
CORE_FOLDER = "core"
"""Where the files of single CORE tasks lie, below the run's eval folder."""


def run_evaluate(
    job: Job,
    of: str | None = None,
    score: str = "all",
    keep_finished: bool = False,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Score the furthest model of the run, or the one of stage `of` ("sft", "sft@650"); returns name -> value.

    score: "bpb", "core", "chat", several with commas, or "all" that suit the model and are ready. keep_finished: take
    over what an interrupted evaluation has measured of the same model, data and settings. log_samples: also write
    every prediction of CORE. Collective: every rank calls this.
    """
    subject = load_subject(job, of)
    stage = subject.path.stage
    wanted = SCORES if score == "all" else tuple(score.split(","))
    job.say(f"evaluating {subject.path} on {job.world.device}, {job.dtype_name}")
    if score == "chat" and stage not in CHAT_STAGES:
        raise UsageError(
            f"{subject.path} has not seen conversations: chat tasks need a mid or sft model", "nanochat eval bpb"
        )
    if score == "chat" and not job.settings.eval.tasks:
        raise UsageError("eval.tasks is empty: there is no chat task to score", "--set eval.tasks='[\"letters\"]'")
    values: dict[str, Any] = {}
    if "bpb" in wanted:
        values["bpb"] = _score_bpb(job, subject)
    has_core = job.world.all_gather(has_bundle(job.workspace.core))[0]  # one answer, though disks may differ
    if "core" in wanted and score == "all" and not has_core:
        job.say(f"CORE is skipped: its bundle is not in {job.workspace.core}. Run `{AGAIN}`")
    elif "core" in wanted:
        values |= _score_core(job, subject, keep_finished, log_samples)
    if "chat" in wanted and stage in CHAT_STAGES:
        values |= _score_chat(job, subject, keep_finished)
    return values


def _score_bpb(job: Job, subject: Subject) -> float:
    data, num_tokens = job.settings.data, job.settings.base.eval_tokens
    model, tokenizer = subject.model, subject.tokenizer
    folder = open_dataset(job.workspace, data.dataset, job.say, job.world)
    rows = job.settings.batch.device_batch_size
    if rows == "auto":  # any number gives the same score, and without gradients this many fit wherever the model does
        rows = max(1, AUTO_TOKENS // model.config.context)

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(iter_validation(folder, tokenizer, rows, model.config.context, data.packing)):
            job.progress(number, "bpb")
            yield batch

    token_bytes = torch.tensor(tokenizer.token_bytes, dtype=torch.int64, device=job.world.device)
    bits = measure_bits(model, batches(), token_bytes, num_tokens, job.world)
    name = "bpb" if data.packing == "cut" else f"bpb-{data.packing}"  # another measure of the model, beside the first
    text = f"{bits.num_tokens:,} tokens of the pretraining text {data.dataset}"
    job.say(f"{name} {bits.bpb:.4f} bits per byte on {text}")
    record = {
        "name": name,
        "bpb": bits.bpb,
        "num_bytes": bits.num_bytes,
        "num_tokens": bits.num_tokens,
        "dataset": data.dataset,
        "dataset_hash": load_manifest(folder).hash,
        "packing": data.packing,
        **subject.about,
    }
    save_score(job, score_path(job, subject, name), record, {"eval_tokens": num_tokens, "packing": data.packing})
    return bits.bpb


def _score_chat(job: Job, subject: Subject, keep_finished: bool) -> dict[str, float | None]:
    folder, weak = job.workspace.tasks, job.settings.eval.allow_weak_isolation
    names = dict.fromkeys(job.settings.eval.tasks)  # one that stands twice is measured once
    tasks = {name: build_task(name, "test", folder=folder, allow_weak_isolation=weak) for name in names}
    check_names(tasks)
    scores = [_score_chat_task(job, subject, name, task, keep_finished) for name, task in tasks.items()]
    values: dict[str, float | None] = {score.name: score.accuracy for score in scores}
    mean, error = average_centred(scores), estimate_mean_error(scores)
    if mean is not None:
        job.say(f"ChatCORE {mean:.4f} (+- {error or 0:.4f}), the centred mean of {', '.join(values)}")
        name = name_sampled("ChatCORE", job.settings.eval.answers_each)
        extent = {"tasks": list(values), "num_questions": sum(score.total for score in scores)}
        record = {"name": name, "value": mean, "stderr": error, **extent, **subject.about}
        measured = {"tasks": list(values), **list_measured(job.settings.eval)}
        save_score(job, score_path(job, subject, name.lower()), record, measured)
        values["ChatCORE"] = mean
    return values


def _score_chat_task(job: Job, subject: Subject, name: str, task: Task, keep_finished: bool) -> Score:
    options = job.settings.eval
    isolation = _find_isolation(job) if name in RUN_CODE else None
    digest = hash_examples(task, options.max_examples)
    what = list_measured(options) | ({"isolation": isolation} if isolation else {})
    code = {"task_sha256": task.hash_code()} if isinstance(task, GuardedTask) else {}
    identity = identify(subject, task=task.name, data_sha256=digest, **what, **code)
    path = score_path(job, subject, name_sampled(task.name, options.answers_each))
    found = find_score(job, path, identity) if keep_finished else None
    if found:
        score = replace(read_score(found), name=task.name)
        job.say(f"{describe_score(score)}, as measured before")
        return score
    score = evaluate_chat(
        task,
        subject.model,
        subject.tokenizer,
        **list_measured(options),
        batch_size=options.batch_size,
        seed=job.settings.runtime.seed,
        world=job.world,
        progress=lambda done, total: job.advance(task.name, done, total, "answers"),
    )
    job.display.finish()
    derived = {"centred": score.centred, "data_sha256": digest, **code}
    if isolation:
        derived["isolation"] = isolation
        job.say(f"{name}: what the model wrote ran in {isolation['level']} isolation")
    if score.ungraded and score.total:
        job.say(f"warning: {score.ungraded} answers to {name} got no verdict, for the machine failed, not they")
    else:  # a score that lacks verdicts is measured again by --resume
        derived[IDENTITY] = identity
    named = {"name": name_sampled(score.name, options.answers_each), "task": name}
    save_score(job, path, score.to_dict() | named | derived | subject.about, what)
    job.say(describe_score(score))
    return score


def list_measured(options: EvalSettings) -> dict[str, Any]:
    """The settings that the score of a chat task depends on, as `evaluate_chat` takes them."""
    return options.model_dump(include={"max_examples", "max_new_tokens", "answers_each", "temperature"})


def name_sampled(name: str, answers_each: int) -> str:
    """Several sampled answers are another score than the most likely one, and neither replaces the other.

    >>> name_sampled("letters", 1), name_sampled("letters", 8)
    ('letters', 'letters x8')
    """
    return name if answers_each == 1 else f"{name} x{answers_each}"


def _find_isolation(job: Job) -> dict[str, Any]:
    """The weakest of all ranks. Raises UsageError below the strong level, unless that is allowed. Collective."""
    found = min(job.world.all_gather(measure_isolation()), key=lambda isolation: isolation.rank)
    check_isolation(found, job.settings.eval.allow_weak_isolation)
    return {"level": found.level, "layers": list(found.layers), "gaps": list(found.gaps)}


def describe_score(score: Score) -> str:
    """`letters 95.7% of 300 (+- 1.2), 300 with a tool`"""
    if score.accuracy is None:
        return f"{score.name}: not graded, {score.ungraded} answers written"
    parts = [f"{score.name} {100 * score.accuracy:.1f}% of {score.total} (+- {100 * (score.stderr or 0):.1f})"]
    if score.with_tool:
        parts.append(f"{score.with_tool} with a tool")
    if score.too_long:
        parts.append(f"{score.too_long} too long, counted as wrong")
    if score.ungraded:
        parts.append(f"{score.ungraded} without a verdict")
    parts += [f"pass@{k} {100 * value:.1f}%" for k, value in score.pass_at[1:]]
    return ", ".join(parts)


def _score_core(job: Job, subject: Subject, keep_finished: bool, log_samples: bool) -> dict[str, float]:
    """The tasks of the bundle that are there, or those of eval.core_tasks."""
    options = job.settings.eval
    bundle = load_bundle(job.workspace.core, options.core_tasks)
    if bundle.missing:
        reasons = ", ".join(f"{label} ({why})" for label, why in bundle.missing.items())
        job.say(f"without {len(bundle.missing)} of the CORE tasks, so the mean is not CORE: {reasons}")
    records = [_score_core_task(job, subject, task, keep_finished, log_samples) for task in bundle.tasks]
    score = CoreScore(tuple(map(_read_task_score, records)))
    limit = f", at most {options.max_per_task:,} questions a task" if options.max_per_task else ""
    job.say(f"{score.name} {score.value:.4f} (+- {score.stderr:.4f}){limit}")
    record = {
        "name": score.name,
        "value": score.value,
        "stderr": score.stderr,
        "is_core": score.is_core,
        "missing": bundle.missing,
        "core_tasks": records,
        **subject.about,
    }
    measured = {"core_tasks": options.core_tasks, "max_per_task": options.max_per_task}
    save_score(job, score_path(job, subject, "core"), record, measured)
    return {score.name: score.value}


def _score_core_task(
    job: Job, subject: Subject, task: CoreTask, keep_finished: bool, log_samples: bool
) -> dict[str, Any]:
    """The record of a task, which is written, with its predictions if asked for, as soon as it is finished."""
    items, digest = load_items(task)
    limit, seed = job.settings.eval.max_per_task, job.settings.runtime.seed
    told = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(task).items()}
    del told["path"]
    identity = identify(subject, task=told, data_sha256=digest, max_per_task=limit)
    some = f" of {limit}" if limit else ""  # of some questions: kept apart from that of all
    path = score_path(job, subject, f"{task.label}{some}", CORE_FOLDER)
    samples = path.with_suffix(".jsonl")
    known = find_score(job, path, identity)
    record = known if keep_finished else None
    if record and (not log_samples or all(job.world.all_gather(samples.is_file() or not job.world.is_main))):
        job.say(f"{task.label} {_describe_task_score(_read_task_score(record))}, as measured before")
        return record
    score, predictions = evaluate_core_task(
        task,
        items,
        subject.model,
        subject.tokenizer,
        max_examples=limit,
        seed=seed,
        batch_tokens=job.settings.eval.batch_size * subject.model.config.context,
        world=job.world,
        progress=lambda done, total: job.advance(task.label, done, total, "questions"),
    )
    job.display.finish()
    job.say(f"{task.label} {_describe_task_score(score)}")
    record = score.to_dict() | {"data_sha256": digest, IDENTITY: identity}
    if job.world.is_main:
        with disk_errors(path.parent):
            path.unlink(missing_ok=True)  # before its samples change: they always belong to it
            if log_samples or not known:
                samples.unlink(missing_ok=True)
        if log_samples:
            write_atomically(samples, "\n".join(_iter_samples(task, items, predictions, seed)))
        write_atomically(path, json.dumps(record, indent=1))
    return record


def _iter_samples(
    task: CoreTask, items: Sequence[CoreItem], predictions: Sequence[Prediction], seed: int
) -> Iterator[str]:
    """A JSON line for each prediction: the prompt in full, the options and what the model made of them."""
    for prediction in predictions:
        item = items[prediction.index]
        prompt, _ = render_prompt(task, items, prediction.index, seed)
        line = {"task": task.label, **asdict(prediction), "gold": item.gold, "prompt": prompt, "options": item.options}
        yield json.dumps(line)


def _read_task_score(record: dict[str, Any]) -> TaskScore:
    names = TaskScore.__dataclass_fields__
    return TaskScore(**{key: value for key, value in record.items() if key in names})


def _describe_task_score(score: TaskScore) -> str:
    parts = [
        f"{100 * score.accuracy:.1f}% of {score.total:,} (+- {100 * score.stderr:.1f}), centred {score.centred:.3f}"
    ]
    if score.truncated:
        parts.append(f"{score.truncated:,} prompts cut to the newest tokens")
    if score.too_long:
        parts.append(f"{score.too_long:,} too long, counted as wrong")
    return ", ".join(parts)
