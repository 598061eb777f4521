"""What mid and sft share: packed conversations with masked targets, from the model of the stage before."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import nanochat
from nanochat.config.plan import StartedFinetunePlan, plan_finetune, sketch_finetune
from nanochat.config.settings import FinetuneSettings
from nanochat.data.batch import Batch
from nanochat.data.finetune import PREFETCHED_BATCHES, Conversations, EpochSize, FinetuneLoader, iter_once
from nanochat.data.prefetch import Prefetcher
from nanochat.data.pretrain import PretrainLoader
from nanochat.data.replay import ReplayLoader, split_cursor
from nanochat.data.shards import load_manifest, measure_largest_group
from nanochat.errors import MissingError
from nanochat.evals.samples import sample_answers
from nanochat.paths import ModelPath
from nanochat.stages.assemble import check_tokenizer, load_newest, open_tokenizer, read_config
from nanochat.stages.course import Course, Loader, run_course
from nanochat.stages.dataset import open_dataset
from nanochat.stages.display import Display
from nanochat.stages.fit import fit_batch
from nanochat.stages.job import Job
from nanochat.tasks.catalog import build_mixture, list_untested
from nanochat.tokenizer.bpe import Tokenizer

OVERLONG_SAID = {"drop": "dropped", "truncate": "truncated", "error": "an error"}


def run_finetune(
    job: Job, stage: Literal["mid", "sft"], before: str, settings: FinetuneSettings, display: Display
) -> dict[str, Any]:
    """Train a stage on its mixture, starting from the last model of the stage before; returns the result.

    Collective: every rank calls this. Raises MissingError where the stage before is not done.
    """
    world = job.world
    source, checkpoint = load_newest(world.ask_main(lambda: find_source(job, before)), display.say, world)
    tokenizer = open_tokenizer(job)
    check_tokenizer(checkpoint.meta, tokenizer, str(source))
    config = read_config(checkpoint.meta, str(source))
    conversations = build_mixture(settings.mixture, "train", job.settings.runtime.seed, folder=job.workspace.tasks)
    examples = build_mixture(settings.mixture, "test", job.settings.runtime.seed, folder=job.workspace.tasks)
    for note in (*conversations.notes(), *describe_untested(settings.mixture, job)):
        display.say(note)
    data_hash = conversations.content_hash()
    job = fit_batch(job, stage, config, display)
    plan = sketch_finetune(job.settings, stage, world.world_size, config)
    rows, text = plan.device_batch_size, job.settings.data
    folder = open_dataset(job.workspace, text.dataset, display, world) if settings.replay else None
    replayed = {"dataset": text.dataset, "dataset_hash": load_manifest(folder).hash} if folder else {}

    def open_conversations(rows: int, rank: int, world_size: int, cursor: dict | None) -> FinetuneLoader:
        return FinetuneLoader(
            conversations,
            tokenizer,
            rows,
            config.context,
            seed=job.settings.runtime.seed,
            overlong=settings.overlong,
            rank=rank,
            world_size=world_size,
            cursor=cursor,
            data_hash=data_hash,
        )

    with open_conversations(rows, 0, 1, None) as probe:
        epoch = probe.measure_epoch()
    plan = plan_finetune(job.settings, stage, world.world_size, epoch.rows, config)
    display.say(describe_epoch(epoch, plan, settings.overlong, settings.replay))
    loaders: list[FinetuneLoader | ReplayLoader] = []

    def open_training(cursor: dict | None) -> Loader:
        if folder is None:
            loaders.append(open_conversations(rows, world.rank, world.world_size, cursor))
        else:
            talks, place, row = split_cursor(cursor)
            loaders.append(
                ReplayLoader(
                    open_conversations(1, 0, 1, talks),
                    PretrainLoader(folder, "train", tokenizer, 1, config.context, cursor=place, packing=text.packing),
                    settings.replay,
                    rows,
                    world.rank,
                    world.world_size,
                    row,
                )
            )
        return loaders[-1]

    def describe_data() -> dict[str, Any]:
        counts = loaders[-1].counts
        if counts.dropped or counts.truncated:
            display.say(
                f"of {counts.total:,} conversations {counts.dropped:,} were dropped, {counts.truncated:,} truncated: "
                f"longer than the context of {config.context}"
            )
        return {"conversations": len(conversations), "counts": asdict(counts), "mixture_hash": data_hash, **replayed}

    course = Course(
        stage=stage,
        settings=settings,
        config=config,
        tokenizer=tokenizer,
        num_steps=plan.num_steps,
        num_microbatches=plan.num_microbatches,
        plan=asdict(plan) | {"mixture": asdict(epoch), "nanochat_version": nanochat.__version__},
        start=lambda: checkpoint.model,
        open_loader=open_training,
        validation=lambda: iter_validation(examples, tokenizer, rows, config.context),
        eval_tokens=settings.eval_tokens,
        sample=lambda model: sample_answers(model, tokenizer),
        describe_data=describe_data,
        source=str(source),
        group_bytes=measure_largest_group(folder) if folder else 0,
    )
    return run_course(job, course, display)


def describe_epoch(epoch: EpochSize, plan: StartedFinetunePlan, overlong: str, replay: float = 0.0) -> str:
    """What is about to be learnt, in a few lines. replay: share of the rows that are pretraining text.

    >>> from types import SimpleNamespace
    >>> plan = SimpleNamespace(num_steps=12, total_batch_tokens=512, context=64, num_tokens=6144)
    >>> print(describe_epoch(EpochSize(300, 3100, 50, 2, False), plan, "truncate"))
    300 conversations with 3,100 tokens fill 50 rows of 64
    12 steps of 512 tokens go through them 1.92 times
    2 of them are longer than the context of 64: truncated
    >>> print(describe_epoch(EpochSize(300, 3100, 50, 0, False), plan, "truncate", replay=0.25))
    300 conversations with 3,100 tokens fill 50 rows of 64
    12 steps of 512 tokens go through them 1.44 times; 25% of the rows are pretraining text
    """
    about = "about " if epoch.is_estimate else ""
    epochs = plan.num_steps * (plan.total_batch_tokens // plan.context) * (1 - replay) / epoch.rows
    mixed = f"; {100 * replay:g}% of the rows are pretraining text" if replay else ""
    lines = [
        f"{epoch.conversations:,} conversations with {about}{epoch.tokens:,} tokens fill {about}{epoch.rows:,} rows of "
        f"{plan.context:,}",
        f"{plan.num_steps:,} steps of {plan.total_batch_tokens:,} tokens go through them {epochs:.2f} times{mixed}",
    ]
    if epoch.too_long:
        fate = OVERLONG_SAID[overlong]
        lines.append(f"{about}{epoch.too_long:,} of them are longer than the context of {plan.context:,}: {fate}")
    return "\n".join(lines)


def find_source(job: Job, before: str) -> ModelPath:
    """The last checkpoint of a finished stage. Raises MissingError where it is not finished."""
    paths = job.run.stage(before)
    if not paths.steps():
        raise MissingError(
            f"run {job.run.name!r} has no {before} model to start from", f"nanochat train {before} --run {job.run.name}"
        )
    if not paths.result.is_file():
        raise MissingError(
            f"{before} of run {job.run.name!r} is not finished (step {paths.steps()[-1]})",
            f"nanochat resume {job.run.name}",
        )
    step = paths.steps()[-1]
    return ModelPath(paths.checkpoint(step), job.run, before, step)


def describe_untested(mixture: Sequence[str], job: Job) -> Iterator[str]:
    """The sentence about tasks that have no test examples of their own; nothing if all have."""
    names = list_untested(mixture, folder=job.workspace.tasks)
    if names:
        yield f"validation of {', '.join(names)} measures what is trained on: there are no test examples of their own"


def iter_validation(examples: Conversations, tokenizer: Tokenizer, rows: int, context: int) -> Iterator[Batch]:
    """One pass over the test examples of a mixture, each once: the same on every rank and for any batch."""
    ahead = Prefetcher(iter_once(examples, tokenizer, rows, context), PREFETCHED_BATCHES)
    try:
        yield from ahead
    finally:
        ahead.close()
