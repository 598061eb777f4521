"""CORE of a trained model: each task's score and, where asked for, its predictions are written as it is finished."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanochat.data.core_bundle import CoreItem, CoreTask, load_bundle, load_items
from nanochat.evals.core import CoreScore, Prediction, TaskScore, evaluate_core_task
from nanochat.evals.core_prompt import render_prompt
from nanochat.files import disk_errors, write_atomically
from nanochat.stages.display import Display
from nanochat.stages.job import Job
from nanochat.stages.scores import IDENTITY, Subject, find_score, identify, save_score, score_path, write_record

FOLDER = "core"
"""Where the tasks' own files lie, below the run's eval folder."""


def score_core(
    job: Job, subject: Subject, display: Display, keep_finished: bool = False, log_samples: bool = False
) -> dict[str, float]:
    """Score the tasks of the bundle that are at hand, or those of eval.core_tasks; returns name -> value.

    Collective: every rank calls this.
    """
    wish = job.settings.eval
    bundle = load_bundle(job.workspace.core, wish.core_tasks)
    if bundle.missing:
        reasons = ", ".join(f"{label} ({why})" for label, why in bundle.missing.items())
        display.say(f"without {len(bundle.missing)} of the CORE tasks, so the mean is not CORE: {reasons}")
    records = [_score_task(job, subject, display, task, keep_finished, log_samples) for task in bundle.tasks]
    score = CoreScore(tuple(_read_score(record) for record in records))
    limit = f", at most {wish.max_per_task:,} questions a task" if wish.max_per_task else ""
    display.say(f"{score.name} {score.value:.4f} (+- {score.stderr:.4f}){limit}")
    record = {
        "name": score.name,
        "value": score.value,
        "stderr": score.stderr,
        "is_core": score.is_core,
        "missing": bundle.missing,
        "core_tasks": records,
        **subject.about,
    }
    measured = {"core_tasks": wish.core_tasks, "max_per_task": wish.max_per_task}
    save_score(job, score_path(job, subject, "core"), record, measured)
    return {score.name: score.value}


def _score_task(
    job: Job, subject: Subject, display: Display, task: CoreTask, keep_finished: bool, log_samples: bool
) -> dict[str, Any]:
    items, digest = load_items(task)
    limit, seed = job.settings.eval.max_per_task, job.settings.runtime.seed
    told = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(task).items()}
    del told["path"]
    identity = identify(subject, task=told, data_sha256=digest, max_per_task=limit)
    some = f" of {limit}" if limit else ""  # of some questions: kept apart from that of all
    path = score_path(job, subject, f"{task.label}{some}", FOLDER)
    samples = path.with_suffix(".jsonl")
    known = find_score(job, path, identity)
    record = known if keep_finished else None
    if record and (not log_samples or all(job.world.all_gather(samples.is_file() or not job.world.is_main))):
        display.say(f"{task.label} {_describe(_read_score(record))}, as measured before")
        return record

    def advance(done: int, total: int) -> None:
        job.progress(done, task.label)
        display.advance(task.label, done, total, "questions")

    score, predictions = evaluate_core_task(
        task,
        items,
        subject.model,
        subject.tokenizer,
        max_examples=limit,
        seed=seed,
        batch_tokens=job.settings.eval.batch_size * subject.model.config.context,
        world=job.world,
        progress=advance,
    )
    display.finish()
    display.say(f"{task.label} {_describe(score)}")
    record = score.to_dict() | {"data_sha256": digest, IDENTITY: identity}
    if job.world.is_main:
        with disk_errors(path.parent):
            path.unlink(missing_ok=True)  # before its samples change: they always belong to it
            if log_samples or not known:
                samples.unlink(missing_ok=True)
        if log_samples:
            write_atomically(samples, "\n".join(iter_samples(task, items, predictions, seed)))
    write_record(job, path, record)
    return record


def iter_samples(task: CoreTask, items: Sequence[CoreItem], predictions: Sequence[Prediction], seed: int):
    """A JSON line for each prediction: the prompt in full, the options and what the model made of them."""
    for prediction in predictions:
        item = items[prediction.index]
        prompt, _ = render_prompt(task, items, prediction.index, seed)
        line = {"task": task.label, **asdict(prediction), "gold": item.gold, "prompt": prompt, "options": item.options}
        yield json.dumps(line)


def _read_score(record: dict[str, Any]) -> TaskScore:
    names = TaskScore.__dataclass_fields__
    return TaskScore(**{key: value for key, value in record.items() if key in names})


def _describe(score: TaskScore) -> str:
    parts = [
        f"{100 * score.accuracy:.1f}% of {score.total:,} (+- {100 * score.stderr:.1f}), centred {score.centred:.3f}"
    ]
    if score.truncated:
        parts.append(f"{score.truncated:,} prompts cut to the newest tokens")
    if score.too_long:
        parts.append(f"{score.too_long:,} too long, counted as wrong")
    return ", ".join(parts)
