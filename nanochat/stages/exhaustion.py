"""Memory that ran out, as a sentence: what was done, what the device has, what used it, and what mends it."""

import contextlib
import shlex
from collections.abc import Iterator
from typing import Literal

from nanochat.config.device_batch import plan_total_tokens
from nanochat.config.memory import list_rows
from nanochat.config.plan import plan_model
from nanochat.device_memory import is_memory_error, peak_memory_bytes, read_memory
from nanochat.errors import CapacityError, NanochatError
from nanochat.model.config import GPTConfig
from nanochat.runtime import name_device
from nanochat.stages.fit import divide_rows, read_fit
from nanochat.stages.job import Job
from nanochat.stages.memory import plan_step, suggest_gpus, suggest_smaller
from nanochat.text import format_size


@contextlib.contextmanager
def memory_errors(job: Job, stage: str) -> Iterator[None]:
    """Turn exhausted memory into a CapacityError with what used it and a command to paste."""
    try:
        yield
    except NanochatError:
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise _explain(job, stage) from error


def _explain(job: Job, stage: str) -> CapacityError:
    parts = [_describe_device(job)]
    if stage not in ("base", "mid", "sft", "rl"):
        return CapacityError(f"out of memory in {stage}: {parts[0]}", _suggest_other(job, stage))
    config = plan_model(job.settings)
    rows = _find_rows(job, stage, config.context)
    what = f"{rows} row{'s' if rows > 1 else ''} of {config.context:,} tokens, depth {config.n_layer}"
    plan = plan_step(job, config, rows)
    parts.append(
        f"planned: {format_size(plan.total)} = "
        + ", ".join(f"{name} {format_size(size)}" for name, size in plan.parts.items())
    )
    if rows == 1:
        parts.append("one row is the least: it takes a shorter context, a smaller depth or a larger device")
    return CapacityError(f"out of memory in {stage} ({what}); {'; '.join(parts)}", _suggest(job, stage, rows, config))


def _describe_device(job: Job) -> str:
    device = job.world.device
    memory = read_memory(device)
    text = f"{name_device(device)} has {format_size(memory.total)}"
    if device.type == "cuda":
        return (
            f"{text}: this process held up to {format_size(peak_memory_bytes(device))}, "
            f"others and the driver hold {format_size(memory.others)}"
        )
    return f"{text}: this process holds {format_size(memory.own)}, {format_size(memory.free)} are free"


def _find_rows(job: Job, stage: Literal["base", "mid", "sft", "rl"], context: int) -> int:
    """Rows that the stage trains with; 1 where `auto` has not found them yet: then the bare model did not fit."""
    rows, _ = divide_rows(job, stage, context)
    if rows != "auto":
        return rows
    found = read_fit(job.run.stage(stage))
    return found.rows if found is not None else 1


def _suggest(job: Job, stage: Literal["base", "mid", "sft", "rl"], rows: int, config: GPTConfig) -> str:
    """Fewer rows, the same step; where there are none, a new run with less context."""
    total_tokens, _ = plan_total_tokens(job.settings, stage)
    candidates = list_rows(total_tokens, config.context, job.world.world_size)
    fewer = [n for n in candidates if n < rows]
    if not fewer:
        return suggest_smaller(job, config.context)
    fewer_rows = f"--set batch.device_batch_size={fewer[-1]}"
    if job.run.stage(stage).steps():
        return f"{job.resume_command} {fewer_rows}"
    return shlex.join(["nanochat", "train", stage, "--run", job.run.name, *suggest_gpus(job), *fewer_rows.split()])


def _suggest_other(job: Job, stage: str) -> str:
    if stage == "tokenizer":
        chars = max(1, job.settings.tokenizer.train_chars // 4)
        return f"nanochat tokenize train --run {job.run.name} --set tokenizer.train_chars={chars}"
    rows = job.settings.batch.device_batch_size
    fewer = max(1, rows // 2) if rows != "auto" else 1
    return shlex.join(
        ["nanochat", "eval", "all", job.run.name, "--resume", *suggest_gpus(job)]
        + ["--set", f"eval.batch_size={max(1, job.settings.eval.batch_size // 2)}"]
        + ["--set", f"batch.device_batch_size={fewer}"]
    )
