"""Evaluation of a trained model: bits per byte, CORE and chat tasks, as JSON in the run's eval folder."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch

from nanochat.config.settings import EvalSettings
from nanochat.data.core_bundle import AGAIN, has_bundle
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
from nanochat.stages.base import iter_validation
from nanochat.stages.dataset import open_dataset
from nanochat.stages.display import Display
from nanochat.stages.evaluate_core import score_core
from nanochat.stages.job import Job
from nanochat.stages.scores import IDENTITY, Subject, find_score, identify, load_subject, save_score, score_path
from nanochat.tasks.catalog import RUN_CODE, build_task, check_names
from nanochat.tasks.guarded import GuardedTask
from nanochat.tasks.task import Task
from nanochat.tools.sandbox.probe import check_isolation, measure_isolation

T = TypeVar("T")

SCORES = ("bpb", "core", "chat")
AUTO_TOKENS = 16_384
"""Tokens of a batch where batch.device_batch_size is auto."""
CHAT_STAGES = ("mid", "sft", "rl")
"""Stages whose model knows the form of a conversation."""


def run_evaluate(
    job: Job,
    display: Display,
    of: str | None = None,
    score: str = "all",
    keep_finished: bool = False,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Score the furthest model of the run, or the one of stage `of` ("sft", "sft@650"); returns name -> value.

    score: "bpb", "core", "chat", several with commas, or "all" that suit the model and are at hand. keep_finished:
    take over what an interrupted evaluation has measured of the same model, data and settings. log_samples: also
    write every prediction of CORE. Collective: every rank calls this.
    """
    subject = load_subject(job, display.say, of)
    stage = subject.path.stage
    wanted = SCORES if score == "all" else tuple(score.split(","))
    display.say(f"evaluating {subject.path} on {job.world.device}, {str(job.dtype).removeprefix('torch.')}")
    if score == "chat" and stage not in CHAT_STAGES:
        raise UsageError(
            f"{subject.path} has not seen conversations: chat tasks need a mid or sft model", "nanochat eval bpb"
        )
    if score == "chat" and not job.settings.eval.tasks:
        raise UsageError("eval.tasks is empty: there is no chat task to score", "--set eval.tasks='[\"letters\"]'")
    values: dict[str, Any] = {}
    if "bpb" in wanted:
        values["bpb"] = _score_bpb(job, subject, display)
    has_core = job.world.all_gather(has_bundle(job.workspace.core))[0]  # one answer, though disks may differ
    if "core" in wanted and score == "all" and not has_core:
        display.say(f"CORE is skipped: its bundle is not in {job.workspace.core}. Run `{AGAIN}`")
    elif "core" in wanted:
        values |= score_core(job, subject, display, keep_finished, log_samples)
    if "chat" in wanted and stage in CHAT_STAGES:
        values |= _score_chat(job, subject, display, keep_finished)
    return values


def _score_bpb(job: Job, subject: Subject, display: Display) -> float:
    folder = open_dataset(job.workspace, job.settings.data.dataset, display, job.world)
    num_tokens, model, tokenizer = job.settings.base.eval_tokens, subject.model, subject.tokenizer
    rows = job.settings.batch.device_batch_size
    if rows == "auto":  # any number gives the same score, and without gradients this many fit wherever the model does
        rows = max(1, AUTO_TOKENS // model.config.context)
    packing = job.settings.data.packing
    data = {"dataset": job.settings.data.dataset, "dataset_hash": load_manifest(folder).hash, "packing": packing}
    batches = iter_validation(folder, tokenizer, rows, model.config.context, packing)
    token_bytes = torch.tensor(tokenizer.token_bytes, dtype=torch.int64, device=job.world.device)
    bits = measure_bits(model, _tell(job, "bpb", batches), token_bytes, num_tokens, job.world)
    name = "bpb" if packing == "cut" else f"bpb-{packing}"  # another measure of the same model, beside the first
    text = f"{bits.num_tokens:,} tokens of the pretraining text {job.settings.data.dataset}"
    display.say(f"{name} {bits.bpb:.4f} bits per byte on {text}")
    record = {
        "name": name,
        "bpb": bits.bpb,
        "num_bytes": bits.num_bytes,
        "num_tokens": bits.num_tokens,
        **data,
        **subject.about,
    }
    save_score(job, score_path(job, subject, name), record, {"eval_tokens": num_tokens, "packing": packing})
    return bits.bpb


def _tell(job: Job, name: str, batches: Iterable[T]) -> Iterator[T]:
    """Hand batches on and say so to the watch over the ranks."""
    for number, batch in enumerate(batches):
        job.progress(number, name)
        yield batch


def _score_chat(job: Job, subject: Subject, display: Display, keep_finished: bool) -> dict[str, float | None]:
    folder, weak = job.workspace.tasks, job.settings.eval.allow_weak_isolation
    names = dict.fromkeys(job.settings.eval.tasks)  # one that stands twice is measured once
    tasks = {name: build_task(name, "test", folder=folder, allow_weak_isolation=weak) for name in names}
    check_names(tasks)
    scores = [_score_task(job, subject, display, name, task, keep_finished) for name, task in tasks.items()]
    values: dict[str, float | None] = {score.name: score.accuracy for score in scores}
    mean, error = average_centred(scores), estimate_mean_error(scores)
    if mean is not None:
        display.say(f"ChatCORE {mean:.4f} (+- {error or 0:.4f}), the centred mean of {', '.join(values)}")
        name = name_sampled("ChatCORE", job.settings.eval.answers_each)
        extent = {"tasks": list(values), "num_questions": sum(score.total for score in scores)}
        record = {"name": name, "value": mean, "stderr": error, **extent, **subject.about}
        measured = {"tasks": list(values), **list_measured(job.settings.eval)}
        save_score(job, score_path(job, subject, name.lower()), record, measured)
        values["ChatCORE"] = mean
    return values


def _score_task(job: Job, subject: Subject, display: Display, name: str, task: Task, keep_finished: bool) -> Score:
    wish = job.settings.eval
    isolation = _find_isolation(job) if name in RUN_CODE else None
    digest = hash_examples(task, wish.max_examples)
    what = list_measured(wish) | ({"isolation": isolation} if isolation else {})
    code = {"task_sha256": task.hash_code()} if isinstance(task, GuardedTask) else {}
    identity = identify(subject, task=task.name, data_sha256=digest, **what, **code)
    path = score_path(job, subject, name_sampled(task.name, wish.answers_each))
    found = find_score(job, path, identity) if keep_finished else None
    if found:
        score = replace(read_score(found), name=task.name)
        display.say(f"{describe_score(score)}, as measured before")
        return score

    def advance(done: int, total: int) -> None:
        job.progress(done, task.name)
        display.advance(task.name, done, total, "answers")

    score = evaluate_chat(
        task,
        subject.model,
        subject.tokenizer,
        max_examples=wish.max_examples,
        batch_size=wish.batch_size,
        max_new_tokens=wish.max_new_tokens,
        answers_each=wish.answers_each,
        temperature=wish.temperature,
        seed=job.settings.runtime.seed,
        world=job.world,
        progress=advance,
    )
    display.finish()
    derived = {"centred": score.centred, "data_sha256": digest, **code}
    if isolation:
        derived["isolation"] = isolation
        display.say(f"{name}: what the model wrote ran in {isolation['level']} isolation")
    if score.ungraded and score.total:
        display.say(f"warning: {score.ungraded} answers to {name} got no verdict, for the machine failed, not they")
    else:  # a score that lacks verdicts is measured again by --resume
        derived[IDENTITY] = identity
    named = {"name": name_sampled(score.name, wish.answers_each), "task": name}
    save_score(job, path, score.to_dict() | named | derived | subject.about, what)
    display.say(describe_score(score))
    return score


def list_measured(wish: EvalSettings) -> dict[str, Any]:
    """The settings that the score of a chat task depends on."""
    return {key: getattr(wish, key) for key in ("max_examples", "max_new_tokens", "answers_each", "temperature")}


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
