"""The course of a training stage: what base, mid, sft and rl share around the loop.

Resume, plan, compile, saving, events (evaluate, then sample), metrics and the result.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

import nanochat
from nanochat.checkpoint.checkpoint import (
    Checkpoint,
    check_shared,
    latest_good,
    remove_stale,
    save_checkpoint,
)
from nanochat.checkpoint.retention import find_best
from nanochat.config.settings import TrainSettings
from nanochat.errors import DataError, NumericalError, StoppedError, UsageError
from nanochat.evals.bpb import measure_bits
from nanochat.evals.samples import Sample
from nanochat.files import write_atomically
from nanochat.model.accounting import flops_per_token
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.optim import MuonAdamW, build_optimizer
from nanochat.runtime import can_compile, peak_flops
from nanochat.stages.assemble import build_model, check_tokenizer, load_weights
from nanochat.stages.bits import describe_change, describe_computing
from nanochat.stages.display import Display
from nanochat.stages.inputs import (
    continue_inputs,
    dump_inputs,
    inputs_path,
)
from nanochat.stages.job import Job
from nanochat.stages.memory import MemoryWatch
from nanochat.stages.outcome import announce, read_inputs_of_all, write_result
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.training.loop import Batch, Event, Recipe, TrainState, train
from nanochat.training.metrics import MetricsFile
from nanochat.training.tracking import start_tracking


class Source(Protocol):
    """What a stage learns from; it can say where it stands. changed: what is not as it was for a cursor, in words."""

    def cursor(self) -> dict: ...
    def close(self) -> None: ...

    @property
    def changed(self) -> str: ...


class Loader(Source, Protocol):
    """An endless iterator of batches."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...


@dataclass(frozen=True)
class Course:
    """What a stage file decides.

    start: the weights to start from; None: a fresh initialisation. open_loader: the training batches from a
    cursor on. validation: the same batches every time and on every rank. describe_data: facts for the result,
    asked at the end (such as the dropped share).

    What rl does in its own way: begin: told the model before anything is trained or measured, at whatever step. take:
    the micro-batches of a step, instead of num_microbatches from the loader. measure: a record for the metrics, instead
    of the bits per byte of validation. scored_by: the metric that measuring leaves, and that chooses the best
    checkpoint; higher_is_better: how. describe_step: facts for the record of a step that has just been taken. extent:
    what the steps are, in words. uncompiled: why the model is not compiled, in words; "": it is as the settings say.
    group_bytes: of the largest row group of the pretraining text; 0 if none is read.
    """

    stage: str
    settings: TrainSettings
    config: GPTConfig
    tokenizer: Tokenizer
    num_steps: int
    num_microbatches: int
    plan: dict[str, Any]
    start: Callable[[], dict[str, Tensor]] | None
    open_loader: Callable[[dict | None], Source]
    sample: Callable[[GPT], tuple[Sample, ...]]
    validation: Callable[[], Iterable[Batch]] = tuple
    eval_tokens: int = 0
    describe_data: Callable[[], dict[str, Any]] = dict
    source: str = ""
    notes: tuple[str, ...] = field(default=())
    begin: Callable[[GPT, TrainState], None] = lambda model, state: None
    take: Callable[[], Sequence[Batch]] | None = None
    measure: Callable[[GPT], dict[str, Any]] | None = None
    scored_by: str = "val_bpb"
    higher_is_better: bool = False
    describe_step: Callable[[], dict[str, Any]] = dict
    extent: str = ""
    uncompiled: str = ""
    group_bytes: int = 0

    def find_best(self, steps: Sequence[int], metrics: MetricsFile) -> int | None:
        """The best of these steps by what was measured; None where none was."""
        sign = -1 if self.higher_is_better else 1
        return find_best(steps, {step: sign * value for step, value in metrics.values(self.scored_by).items()})


def run_course(job: Job, course: Course, display: Display) -> dict[str, Any]:
    """Train a stage from where it stands to its end; returns the result that it wrote last.

    Collective: every rank calls this.
    """
    world, paths, settings = job.world, job.run.stage(course.stage), course.settings
    memory = MemoryWatch(job, course.config, course.group_bytes)
    check_shared(paths, world)
    if world.is_main:
        remove_stale(paths)
    world.barrier()
    model, optimizer, state, computed_by = _open_state(job, course, display)
    now = read_inputs_of_all(job, course.stage)
    inputs = world.ask_main(lambda: continue_inputs(job.run, course.stage, now, state.step))
    for change in inputs.changes:
        display.say(f"warning: {change}; the result says so")
    metrics, samples = MetricsFile(paths.metrics), MetricsFile(paths.samples)
    if world.is_main:
        metrics.truncate(state.step)
        samples.truncate(state.step)
        write_atomically(paths.plan, json.dumps(course.plan, indent=1))
        write_atomically(inputs_path(job.run, course.stage), dump_inputs(inputs))
        paths.result.unlink(missing_ok=True)
    world.barrier()
    state.best = world.ask_main(lambda: min(metrics.values("val_bpb").values(), default=None))
    course.begin(model, state)
    loader = course.open_loader(state.cursor)
    if loader.changed:
        display.say(f"{loader.changed}: training continues at about the same place of its epoch, not exactly there")
    loss, compiled = compile_loss(job, model, display, course.uncompiled)
    computing = describe_computing(world, job.dtype, course.plan["device_batch_size"], compiled().startswith("yes"))
    change = describe_change(computed_by, computing, job.resume_command)
    if change and state.step < course.num_steps:
        display.say(change)
    announce(job, course, state, compiled(), display)
    token_bytes = torch.tensor(course.tokenizer.token_bytes, dtype=torch.int64, device=world.device)

    def microbatches() -> Sequence[Batch]:
        if course.take is not None:
            return course.take()
        assert isinstance(loader, Iterator)
        return list(islice(loader, course.num_microbatches))

    def save(state: TrainState) -> None:
        if world.ask_main(lambda: state.step in paths.steps()):
            return
        meta = {
            "stage": course.stage,
            "step": state.step,
            "config": course.config.to_dict(),
            "tokenizer_hash": course.tokenizer.hash,
            "nanochat_version": nanochat.__version__,
            "source": course.source,
            "computed_by": computing,
        }
        state.cursor = loader.cursor()
        best = None
        if world.is_main:
            metrics.sync()
            best = course.find_best(paths.steps(), metrics)
        rule = job.settings.checkpoint
        save_checkpoint(
            paths,
            state.step,
            model.state_dict() if world.is_main else {},
            optimizer.named_state(),
            state.to_dict(),
            meta,
            rule.keep,
            world,
            keep_every=rule.keep_every,
            best=best if rule.keep_best else None,
        )

    def is_scored(step: int) -> bool:
        """Whether rank 0's record has the step's score: one answer, for only together can it be measured."""
        return bool(world.largest(int(world.is_main and metrics.value_at(step, course.scored_by) is not None)))

    def evaluate(state: TrainState) -> None:
        if is_scored(state.step):
            return
        model.eval()
        if course.measure is not None:
            record = course.measure(model)
            if world.is_main:
                metrics.append({"step": state.step, **record})
            world.barrier()
            return
        bits = measure_bits(model, course.validation(), token_bytes, course.eval_tokens, world)
        if bits.num_bytes == 0:
            display.say(f"step {state.step}: there is no validation text, so no bits per byte")
            return
        state.best = bits.bpb if state.best is None else min(state.best, bits.bpb)
        if world.is_main:
            metrics.append({"step": state.step, "val_bpb": bits.bpb, "eval_tokens": bits.num_tokens})
        display.say(f"step {state.step}: validation {bits.bpb:.4f} bits per byte on {bits.num_tokens:,} tokens")
        world.barrier()

    def write_samples(state: TrainState) -> None:
        if not world.is_main or any(record["step"] == state.step for record in samples.read()):
            return
        model.eval()
        for sample in course.sample(model.cast_weights()):
            samples.append({"step": state.step, **sample.to_dict()})
            display.say(f"step {state.step}: {sample.prompt!r} -> {sample.text!r}")

    def log(record: dict) -> None:
        record |= course.describe_step()
        if world.is_main:
            metrics.append(record)
            tracking.check(display.say)
            display.show_step(course.stage, record, course.num_steps)
        memory.say_once(display)

    recipe = Recipe(
        name=course.stage,
        model=model,
        optimizer=optimizer,
        microbatches=microbatches,
        loss=loss,
        num_steps=course.num_steps,
        warmup=settings.warmup,
        warmdown=settings.warmdown,
        grad_clip=settings.grad_clip,
        save=save,
        resume_hint=job.resume_command,
        save_every=job.settings.checkpoint.every_steps,
        save_seconds=job.settings.checkpoint.every_seconds,
        progress=job.progress,
        deterministic=job.is_deterministic,
        events=(
            Event("evaluate", settings.eval_every, evaluate),
            Event("sample", settings.sample_every, write_samples),
        ),
        log_every=job.settings.runtime.log_every,
        flops_per_token=float(flops_per_token(course.config)) if course.take is None else None,
        peak_flops=peak_flops(world.device, job.dtype),
    )
    if state.step == 0 and course.measure is not None:
        evaluate(state)
    if state.step >= course.num_steps:
        display.say(f"{course.stage} already has its {course.num_steps} steps")
    tracking = start_tracking(job.settings.runtime.track if world.is_main else None, paths, display.say)
    try:
        state = train(recipe, state, world, log, job.stop)
    except (NumericalError, StoppedError):  # every rank's at once: the others would not wait for rank 0
        tracking.close(display.say)
        world.barrier()
        raise
    finally:
        loader.close()
        display.finish()
        tracking.close(display.say)
    return write_result(job, course, state, metrics, compiled(), memory.close(display), inputs.changes)


def _open_state(job: Job, course: Course, display: Display) -> tuple[GPT, MuonAdamW, TrainState, dict[str, Any]]:
    """The model, the optimizer and the state of the newest good checkpoint and what computed it, or fresh ones."""
    world, paths, settings = job.world, job.run.stage(course.stage), course.settings
    try:
        found = latest_good(paths, display.say, world=world)
    except DataError:  # nothing is left of what the result speaks of: the stage is to be trained again
        if world.is_main:
            paths.result.unlink(missing_ok=True)
        raise
    model = build_model(course.config, world.device, job.dtype)
    state = TrainState()
    if found is not None:
        _check_same(job, course, found[1])
        load_weights(model, found[1].model, f"{job.run.name}/{course.stage}@{found[0]}")
        display.say(f"continuing {course.stage} from step {found[0]}")
    elif course.start is not None:
        load_weights(model, course.start(), course.source)
    else:
        model.init_weights(job.settings.runtime.seed)
    optimizer = build_optimizer(
        model,
        matrix_lr=settings.matrix_lr * settings.lr_scale,
        embedding_lr=settings.embedding_lr * settings.lr_scale,
        head_lr=settings.head_lr * settings.lr_scale,
        weight_decay=settings.weight_decay,
        rank=world.rank,
        world_size=world.world_size,
        dtype=job.dtype,  # who asks for float32 gets it in Muon too: only then do ranks repeat a loss to 1e-6
    )
    torch.manual_seed(job.settings.runtime.seed)
    if found is not None:
        optimizer.load_named_state(found[1].optimizer)
        state = TrainState.from_dict(found[1].state)
    return model, optimizer, state, found[1].meta.get("computed_by", {}) if found is not None else {}


def _check_same(job: Job, course: Course, checkpoint: Checkpoint) -> None:
    name = f"{job.run.name}/{course.stage}"
    check_tokenizer(checkpoint.meta, course.tokenizer, name)
    before, now = checkpoint.meta.get("config") or {}, course.config.to_dict()
    changed = sorted(key for key in now if before.get(key) != now[key])
    if changed:
        differences = ", ".join(f"{key} was {before.get(key)}, now {now[key]}" for key in changed)
        raise UsageError(
            f"{name} cannot continue with another model: {differences}", "train in a new run with --run NAME"
        )


def compile_loss(
    job: Job, model: GPT, display: Display, refusal: str = ""
) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[], str]]:
    """The loss to train with, and what says in a phrase whether it is compiled, which its first call may change.

    refusal: why it must not be.
    """
    if refusal:
        return model.loss, lambda: f"no ({refusal})"
    if not job.settings.runtime.compile:
        return model.loss, lambda: "no (runtime.compile = false)"
    possible, reason = can_compile()
    if not possible:
        return model.loss, lambda: f"no ({reason})"
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    compiled = model.compile_loss()
    failure = ""

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        nonlocal failure
        if not failure:
            try:
                return compiled(ids, targets)
            except (TorchDynamoException, InductorError) as error:
                if job.stop is not None and job.stop.requested:  # a request to stop that came while it compiled
                    job.stop.leave()
                failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                display.say(f"torch.compile failed, going on without it: {failure}")
        return model.loss(ids, targets)

    def describe() -> str:
        return f"no (it failed: {failure})" if failure else f"yes (with {reason}; the first step takes longer)"

    return loss, describe
