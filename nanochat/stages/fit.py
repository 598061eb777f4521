"""What fits into memory: the rows of a device that `batch.device_batch_size = "auto"` means; what to do if it ran out.

On CUDA by trial: forward and backward of a model like the one to train, with the loss that training uses, beside as
much memory as the optimizer will hold; the model itself does not exist yet and cannot be disturbed. The first trial is
what the estimate says. Elsewhere by the estimate alone: a system that runs out of memory kills instead of raising.
"""

import contextlib
import gc
import json
import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch

from nanochat.config.device_batch import Stage, choose_rows, divide_batch, lower_rows, plan_total_tokens
from nanochat.config.load import is_chosen, read_saved
from nanochat.config.memory import MARGIN, list_rows
from nanochat.config.plan import plan_model
from nanochat.device_memory import is_memory_error, peak_memory_bytes, read_memory
from nanochat.errors import CapacityError, NanochatError
from nanochat.files import write_atomically
from nanochat.model.config import GPTConfig
from nanochat.paths import TRAIN_STAGES, StagePaths
from nanochat.runtime import World, deterministic_kernels, name_device
from nanochat.stages.assemble import build_model
from nanochat.stages.computing import compile_loss, describe_circumstances, plan_step, suggest_gpus, suggest_smaller
from nanochat.stages.job import Job
from nanochat.text import format_size

MAX_PROBES = 6
CPU_TOKENS = 4_096  # of a forward pass; demo on two cores: 12,300 tokens/s at 2,048, 13,000 at 4,096, 8,192 and 16,384
CPU_SHARE = 0.5  # of the available memory; the estimate knows neither the text nor what else runs here
SURE_SHARE = 0.75  # of the memory that more rows are planned to need: what they will need at least


@dataclass(frozen=True)
class Fit:
    """The answer. conditions: what it holds for. peak_bytes: of the trial that fitted; None if none was made."""

    rows: int
    num_probes: int
    peak_bytes: int | None
    total_bytes: int
    conditions: dict[str, Any]


def fit_batch(job: Job, stage: Stage, config: GPTConfig) -> Job:
    """The job of a stage with a number of rows that divides its step; says how it was found, or that it was kept.

    Collective: every rank calls this. Raises UsageError if no number of rows divides the step, and
    CapacityError where not even one row fits.
    """
    if job.settings.batch.device_batch_size != "auto":
        rows, said = divide_rows(job, stage, config.context)
        if said:
            job.say(said)
        return job.with_settings("batch", device_batch_size=rows)
    world, paths = job.world, job.run.stage(stage)
    total_tokens, name = plan_total_tokens(job.settings, stage)
    divide_batch(name, total_tokens, 1, config.context, world.world_size)  # raises if no number of rows does
    conditions = {
        "world_size": world.world_size,
        "device": name_device(world.device),
        "model": config.to_dict(),
        "total_tokens": total_tokens,
        "dtype": job.dtype_name,
        "compile": job.settings.runtime.compile,
        "deterministic": job.is_deterministic,
        "torch": torch.__version__,
    }
    kept = read_fit(paths) if world.is_main else None  # other nodes may not see this disk
    rows = world.largest(kept.rows if kept is not None and kept.conditions == conditions else 0)
    if rows:
        job.say(f"device_batch_size = auto: {rows} rows of {config.context:,} tokens, as found before")
        return job.with_settings("batch", device_batch_size=rows)
    fit = _find_fit(job, config, total_tokens, conditions)
    if world.is_main:
        write_atomically(paths.root / "batch.json", json.dumps(asdict(fit), indent=1))
    return job.with_settings("batch", device_batch_size=fit.rows)


def divide_rows(job: Job, stage: Stage, context: int) -> tuple[int | Literal["auto"], str]:
    """The rows of the settings, or fewer if nobody chose them and they do not divide the step, which is then said."""
    origins = read_saved(job.run.settings)[2]
    chosen = is_chosen(origins, "batch.device_batch_size")
    settings, said = lower_rows(job.settings, stage, job.world.world_size, chosen, context)
    return settings.batch.device_batch_size, said


def can_try(device: torch.device) -> bool:
    """Whether running out of this device's memory raises, so that a trial costs nothing."""
    return device.type == "cuda"


def read_fit(paths: StagePaths) -> Fit | None:
    """What was found for a stage before; None if nothing was or it cannot be read."""
    try:
        return Fit(**json.loads((paths.root / "batch.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _find_fit(job: Job, config: GPTConfig, total_tokens: int, conditions: dict[str, Any]) -> Fit:
    world, context = job.world, config.context
    candidates = list_rows(total_tokens, context, world.world_size)
    world.barrier()  # the first collective: what NCCL takes for itself is taken now
    memory = read_memory(world.device)
    if not can_try(world.device):
        # Never more than CPU_TOKENS: beyond them a CPU is no faster, only later with the first line.
        free = world.smallest(memory.free // world.local_world_size)
        few = [rows for rows in candidates if rows * context <= CPU_TOKENS] or candidates[:1]
        rows = choose_rows(few, config, world.world_size, CPU_SHARE * free, **describe_circumstances(job))
        rows = world.smallest(rows)  # what the estimate rests on, such as bf16, may differ from machine to machine
        planned = plan_step(job, config, rows).total
        job.say(
            f"device_batch_size = auto: {rows} rows of {context:,} tokens "
            f"({format_size(planned)} planned, {format_size(free)} available; at most {CPU_TOKENS:,} tokens at once, "
            f"more are no faster on {world.device.type})"
        )
        return Fit(rows, 0, None, memory.total, conditions)
    limit = memory.free - math.ceil(MARGIN * memory.total)
    guess = choose_rows(candidates, config, world.world_size, world.smallest(limit), **describe_circumstances(job))
    guess = world.smallest(guess)
    job.say(f"device_batch_size = auto: trying how many rows of {context:,} tokens fit, {guess} first")
    with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):
        probe = _Probe(job, config, total_tokens)
        rows, num_probes, peak = find_rows(
            candidates, guess, probe, lambda rows: plan_step(job, config, rows).total, limit, world
        )
        probe.close()
    if rows is None or peak is None:
        needed = plan_step(job, config, candidates[0])
        raise CapacityError(
            f"not even {candidates[0]} row of {context:,} tokens fits: {format_size(needed.total)} are planned, "
            f"{format_size(memory.free)} of {format_size(memory.total)} are free on {name_device(world.device)}",
            suggest_smaller(job, context),
        )
    job.say(
        f"device_batch_size = auto: {rows} rows of {context:,} tokens fit "
        f"(peak {format_size(peak)} of {format_size(memory.total)}, {num_probes} probe{'s' if num_probes > 1 else ''})"
    )
    return Fit(rows, num_probes, peak, memory.total, conditions)


def find_rows(
    candidates: list[int],
    guess: int,
    measure: Callable[[int], int | None],
    planned: Callable[[int], int],
    limit_bytes: int,
    world: World,
) -> tuple[int | None, int, int | None]:
    """The last of the candidates, fewest rows first, that fits on every rank; the number of trials; its largest peak.

    measure: the peak of a trial in bytes, None if memory ran out; it communicates with nobody. limit_bytes: of this
    rank. Starts at guess and asks its neighbours, but no further than that MAX_PROBES trials settle the rest, so the
    answer is exact for up to 2 ** MAX_PROBES - 1 candidates (of more, evenly spaced ones are tried). No trial is made
    if a smaller one fitted and what more rows are planned to need cannot fit.
    Collective: every rank calls this, with the same candidates, guess and plan.
    """
    candidates = candidates[:: math.ceil(len(candidates) / (2**MAX_PROBES - 1))]
    low, high = -1, len(candidates)  # the last that is known to fit, the first that is known not to
    wanted = max((i for i, rows in enumerate(candidates) if rows <= guess), default=0)
    num_probes, peak = 0, None
    while high - low > 1:
        reach = 2 ** (MAX_PROBES - num_probes - 1)
        index = min(max(wanted, high - reach, low + 1), low + reach, high - 1)
        if peak is not None:
            more = planned(candidates[index]) - planned(candidates[low])
            if world.largest(int(peak + SURE_SHARE * more > limit_bytes)):
                high = wanted = index
                wanted -= 1
                continue
        mine = measure(candidates[index])
        num_probes += 1
        if world.smallest(int(mine is not None and mine <= limit_bytes)):
            low, peak, wanted = index, world.largest(mine or 0), index + 1
        else:
            high, wanted = index, index - 1
    return (candidates[low] if low >= 0 else None), num_probes, peak


class _Probe:
    """Trial steps of a model of this shape. Its weights are zeros: what a step holds does not depend on them."""

    def __init__(self, job: Job, config: GPTConfig, total_tokens: int) -> None:
        self.job, self.config, self.total_tokens = job, config, total_tokens
        self.device = job.world.device
        self.model = build_model(config, self.device, job.dtype).train()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
        states = plan_step(job, config, 1).optimizer
        self.optimizer = torch.zeros(states, dtype=torch.uint8, device=self.device)

    def __call__(self, rows: int) -> int | None:
        """Peak bytes that the allocator holds during a step of this many rows; None if memory ran out."""
        self.job.progress(0, f"trying {rows} rows")
        self._clear()
        torch.cuda.reset_peak_memory_stats(self.device)
        fitted = True
        try:
            with deterministic_kernels(self.job.is_deterministic):
                self._step(rows)
            torch.cuda.synchronize(self.device)
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
            fitted = False
        peak = torch.cuda.max_memory_reserved(self.device)
        self._clear()  # outside of the handler, which keeps the frames of what failed alive
        return peak if fitted else None

    def _step(self, rows: int) -> None:
        loss, _ = compile_loss(self.job, self.model)
        tokens = rows * self.config.context
        ids = torch.zeros(rows, self.config.context, dtype=torch.int64, device=self.device)
        # The second micro-batch runs beside the gradients of the first, where a step has two.
        for _ in range(min(2, self.total_tokens // (tokens * self.job.world.world_size))):
            (loss(ids, ids) / tokens).backward()

    def _clear(self) -> None:
        self.model.zero_grad(set_to_none=True)
        torch.compiler.reset()  # the shape before counts towards the compiler's limit of shapes
        gc.collect()
        torch.cuda.empty_cache()

    def close(self) -> None:
        """Give all memory back."""
        self._clear()
        del self.model, self.optimizer
        gc.collect()
        torch.cuda.empty_cache()


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
    if stage not in TRAIN_STAGES:
        return CapacityError(f"out of memory in {stage}: {_describe_device(job)}", _suggest_other(job, stage))
    name, config = cast(Stage, stage), plan_model(job.settings)
    rows, _ = divide_rows(job, name, config.context)
    if rows == "auto":
        found = read_fit(job.run.stage(name))
        rows = found.rows if found else 1  # not found yet: the bare model did not fit
    plan = plan_step(job, config, rows)
    sizes = ", ".join(f"{part} {format_size(size)}" for part, size in plan.parts.items())
    parts = [_describe_device(job), f"planned: {format_size(plan.total)} = {sizes}"]
    if rows == 1:
        parts.append("one row is the least: it takes a shorter context, a smaller depth or a larger device")
    what = f"{rows} row{'s' if rows > 1 else ''} of {config.context:,} tokens, depth {config.n_layer}"
    hint = _suggest(job, name, rows, config.context)
    return CapacityError(f"out of memory in {stage} ({what}); {'; '.join(parts)}", hint)


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


def _suggest(job: Job, stage: Stage, rows: int, context: int) -> str:
    """Fewer rows, the same step; if there are none, a new run with less context."""
    total_tokens, _ = plan_total_tokens(job.settings, stage)
    fewer = [n for n in list_rows(total_tokens, context, job.world.world_size) if n < rows]
    if not fewer:
        return suggest_smaller(job, context)
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
