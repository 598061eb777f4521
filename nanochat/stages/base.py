"""Pretraining: packed documents, from a fresh initialisation to a base model."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nanochat
from nanochat.config.plan import CHARS_PER_TOKEN, plan_base, plan_model
from nanochat.data.batch import Batch
from nanochat.data.dataset import describe_repeats
from nanochat.data.packing import Packing
from nanochat.data.pretrain import PretrainLoader
from nanochat.data.shards import load_manifest, measure_largest_group, measure_text
from nanochat.evals.samples import sample_texts
from nanochat.stages.assemble import open_tokenizer
from nanochat.stages.course import Course, Loader, run_course
from nanochat.stages.dataset import open_dataset
from nanochat.stages.display import Display
from nanochat.stages.fit import fit_batch
from nanochat.stages.job import Job
from nanochat.tokenizer.bpe import Tokenizer

CROPPED = "data.packing = crop: bits per byte are those of cropped rows, which are easier than the whole text"


def run_base(job: Job, display: Display) -> dict[str, Any]:
    """Pretrain, from where it stands, to the plan's horizon; returns the result. Collective: every rank calls this."""
    world = job.world
    tokenizer = open_tokenizer(job)
    folder = open_dataset(job.workspace, job.settings.data.dataset, display, world)
    dataset_hash = load_manifest(folder).hash  # of what is read, whatever takes its place meanwhile
    config = plan_model(job.settings, tokenizer.vocab_size)
    job = fit_batch(job, "base", config, display)
    settings = job.settings
    plan = plan_base(settings, world.world_size, vocab_size=tokenizer.vocab_size)
    rows, packing = plan.device_batch_size, settings.data.packing
    loaders: list[PretrainLoader] = []
    epochs = estimate_epochs(job, folder, plan.num_tokens)
    notes = [CROPPED] if packing == "crop" else []
    if repeats := describe_repeats(epochs):
        notes.append(repeats)

    def open_loader(cursor: dict | None) -> Loader:
        place = {"rank": world.rank, "world_size": world.world_size, "cursor": cursor}
        loader = PretrainLoader(folder, "train", tokenizer, rows, config.context, **place, packing=packing)
        loaders.append(loader)
        return loader

    def describe_data() -> dict[str, Any]:
        share = loaders[-1].dropped_share if loaders else 0.0
        display.say(f"packing dropped {100 * share:.2f}% of the tokens")
        return {
            "packing": packing,
            "dropped_share": share,
            "epochs": round(epochs, 2),
            "dataset": settings.data.dataset,
            "dataset_hash": dataset_hash,
        }

    course = Course(
        stage="base",
        settings=settings.base,
        config=config,
        tokenizer=tokenizer,
        num_steps=plan.num_steps,
        num_microbatches=plan.num_microbatches,
        plan=asdict(plan) | {"nanochat_version": nanochat.__version__},
        start=None,
        open_loader=open_loader,
        validation=lambda: iter_validation(folder, tokenizer, rows, config.context, packing),
        eval_tokens=settings.base.eval_tokens,
        sample=lambda model: sample_texts(model, tokenizer),
        notes=tuple(notes),
        describe_data=describe_data,
        group_bytes=measure_largest_group(folder),
    )
    return run_course(job, course, display)


def estimate_epochs(job: Job, folder: Path, num_tokens: int) -> float:
    """How often so many tokens go through the text: by the bytes per token that the tokenizer stage has measured."""
    try:
        ratio = float(json.loads((job.run.tokenizer / "result.json").read_bytes())["bytes_per_token"])
    except (OSError, ValueError, KeyError, TypeError):  # a tokenizer that was put there by hand
        ratio = CHARS_PER_TOKEN
    return num_tokens * ratio / max(1, measure_text(folder, "train"))


def iter_validation(
    folder: Path, tokenizer: Tokenizer, rows: int, context: int, packing: Packing = "cut"
) -> Iterator[Batch]:
    """One pass over the validation documents, the same on every rank."""
    with PretrainLoader(folder, "val", tokenizer, rows, context, packing=packing) as loader:
        yield from loader
