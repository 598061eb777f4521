"""What mid and sft share: packed conversations with masked targets, from the model of the stage before."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

from nanochat.config.plan import FinetunePlan, plan_finetune
from nanochat.config.settings import FinetuneSettings
from nanochat.data.batch import Batch
from nanochat.data.finetune import PREFETCHED_BATCHES, Conversations, EpochSize, FinetuneLoader, iter_once
from nanochat.data.prefetch import Prefetcher
from nanochat.data.pretrain import PretrainLoader
from nanochat.data.replay import ReplayLoader, split_cursor
from nanochat.data.shards import load_manifest, measure_largest_group
from nanochat.evals.samples import Sample, sample_answers
from nanochat.model.gpt import GPT
from nanochat.stages.base import PackedStage
from nanochat.stages.dataset import open_dataset
from nanochat.tasks.catalog import build_mixture, list_untested
from nanochat.tokenizer.bpe import Tokenizer

OVERLONG_SAID = {"drop": "dropped", "truncate": "truncated", "error": "an error"}


class Finetuning(PackedStage):
    """Train on a mixture of conversations, from the last model of the stage before. Raises MissingError without one."""

    options: FinetuneSettings

    def prepare(self) -> None:
        options, settings = self.options, self.job.settings
        self.open_source()
        seed, tasks = settings.runtime.seed, self.job.workspace.tasks
        self.conversations = build_mixture(options.mixture, "train", seed, folder=tasks)
        self.examples = build_mixture(options.mixture, "test", seed, folder=tasks)
        for note in self.conversations.notes():
            self.say(note)
        if untested := ", ".join(list_untested(options.mixture, folder=tasks)):
            self.say(f"validation of {untested} measures what is trained on: there are no test examples of their own")
        self.data_hash = self.conversations.content_hash()
        self.fit_rows()
        self.folder: Path | None = None  # of the pretraining text that is mixed in
        self.replayed: dict[str, str] = {}
        if options.replay:
            self.folder = open_dataset(self.job.workspace, settings.data.dataset, self.say, self.world)
            self.replayed = {"dataset": settings.data.dataset, "dataset_hash": load_manifest(self.folder).hash}
            self.group_bytes = measure_largest_group(self.folder)
        with self.build_conversations(self.job.rows, 0, 1, None) as probe:
            self.epoch = probe.measure_epoch()
        stage, num_ranks = cast(Literal["mid", "sft"], self.name), self.world.world_size
        self.plan = plan_finetune(self.job.settings, stage, num_ranks, self.epoch.rows, self.config)
        self.say(describe_epoch(self.epoch, self.plan, options.overlong, options.replay))

    def build_conversations(self, rows: int, rank: int, world_size: int, cursor: dict | None) -> FinetuneLoader:
        return FinetuneLoader(
            self.conversations,
            self.tokenizer,
            rows,
            self.config.context,
            seed=self.job.settings.runtime.seed,
            overlong=self.options.overlong,
            rank=rank,
            world_size=world_size,
            cursor=cursor,
            data_hash=self.data_hash,
        )

    def build_loader(self, cursor: dict | None) -> FinetuneLoader | ReplayLoader:
        rows, world, context = self.plan.device_batch_size, self.world, self.config.context
        if self.folder is None:
            return self.build_conversations(rows, world.rank, world.world_size, cursor)
        talks, place, row = split_cursor(cursor)
        packing = self.job.settings.data.packing
        return ReplayLoader(
            self.build_conversations(1, 0, 1, talks),
            PretrainLoader(self.folder, "train", self.tokenizer, 1, context, cursor=place, packing=packing),
            self.options.replay,
            rows,
            world.rank,
            world.world_size,
            row,
        )

    def validation(self) -> Iterator[Batch]:
        return iter_validation(self.examples, self.tokenizer, self.plan.device_batch_size, self.config.context)

    def sample(self, model: GPT) -> Sequence[Sample]:
        return sample_answers(model, self.tokenizer)

    def describe_plan(self) -> dict[str, Any]:
        return super().describe_plan() | {"mixture": asdict(self.epoch)}

    def describe_data(self) -> dict[str, Any]:
        assert isinstance(self.loader, (FinetuneLoader, ReplayLoader))
        counts = self.loader.counts
        if counts.dropped or counts.truncated:
            self.say(
                f"of {counts.total:,} conversations {counts.dropped:,} were dropped, {counts.truncated:,} truncated: "
                f"longer than the context of {self.config.context}"
            )
        mixture = {"conversations": len(self.conversations), "counts": asdict(counts), "mixture_hash": self.data_hash}
        return mixture | self.replayed


def describe_epoch(epoch: EpochSize, plan: FinetunePlan, overlong: str, replay: float = 0.0) -> str:
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
    assert plan.num_steps is not None
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


def iter_validation(examples: Conversations, tokenizer: Tokenizer, rows: int, context: int) -> Iterator[Batch]:
    """One pass over the test examples of a mixture, each once: the same on every rank and for any batch."""
    ahead = Prefetcher(iter_once(examples, tokenizer, rows, context), PREFETCHED_BATCHES)
    try:
        yield from ahead
    finally:
        ahead.close()
