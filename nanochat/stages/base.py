"""Pretraining: packed documents, from a fresh initialisation to a base model."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nanochat.config.plan import CHARS_PER_TOKEN, plan_base, plan_model
from nanochat.data.batch import Batch
from nanochat.data.dataset import describe_repeats
from nanochat.data.packing import Packing
from nanochat.data.pretrain import PretrainLoader
from nanochat.data.shards import load_manifest, measure_largest_group, measure_text
from nanochat.evals.samples import Sample, sample_texts
from nanochat.model.gpt import GPT
from nanochat.stages.assemble import open_tokenizer
from nanochat.stages.dataset import open_dataset
from nanochat.stages.display import Display
from nanochat.stages.fit import fit_batch
from nanochat.stages.job import Job
from nanochat.stages.packed import PackedStage
from nanochat.tokenizer.bpe import Tokenizer

CROPPED = "data.packing = crop: bits per byte are those of cropped rows, which are easier than the whole text"


class Pretraining(PackedStage):
    """Train to the plan's horizon."""

    def __init__(self, job: Job, display: Display) -> None:
        super().__init__(job, "base", display)

    def prepare(self) -> None:
        self.tokenizer = open_tokenizer(self.job)
        data = self.job.settings.data
        self.packing: Packing = data.packing
        self.folder = open_dataset(self.job.workspace, data.dataset, self.display, self.world)
        self.dataset_hash = load_manifest(self.folder).hash  # of what is read, whatever takes its place meanwhile
        self.config = plan_model(self.job.settings, self.tokenizer.vocab_size)
        self.job = fit_batch(self.job, "base", self.config, self.display)
        self.plan = plan_base(self.job.settings, self.world.world_size, vocab_size=self.tokenizer.vocab_size)
        self.epochs = estimate_epochs(self.job, self.folder, self.plan.num_tokens)
        self.group_bytes = measure_largest_group(self.folder)
        self.notes = [CROPPED] if self.packing == "crop" else []
        if repeats := describe_repeats(self.epochs):
            self.notes.append(repeats)

    def build_loader(self, cursor: dict | None) -> PretrainLoader:
        return PretrainLoader(
            self.folder,
            "train",
            self.tokenizer,
            self.plan.device_batch_size,
            self.config.context,
            rank=self.world.rank,
            world_size=self.world.world_size,
            cursor=cursor,
            packing=self.packing,
        )

    def validation(self) -> Iterator[Batch]:
        rows, context = self.plan.device_batch_size, self.config.context
        return iter_validation(self.folder, self.tokenizer, rows, context, self.packing)

    def sample(self, model: GPT) -> Sequence[Sample]:
        return sample_texts(model, self.tokenizer)

    def describe_data(self) -> dict[str, Any]:
        assert isinstance(self.loader, PretrainLoader)
        self.say(f"packing dropped {100 * self.loader.dropped_share:.2f}% of the tokens")
        return {
            "packing": self.packing,
            "dropped_share": self.loader.dropped_share,
            "epochs": round(self.epochs, 2),
            "dataset": self.job.settings.data.dataset,
            "dataset_hash": self.dataset_hash,
        }


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
