"""What base, mid and sft share, packed rows of tokens to learn from; and base: from fresh weights to a base model."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from nanochat.config.plan import CHARS_PER_TOKEN, plan_base, plan_model
from nanochat.config.settings import TextSettings
from nanochat.data.batch import Batch
from nanochat.data.dataset import describe_repeats
from nanochat.data.packing import Packing
from nanochat.data.pretrain import PretrainLoader
from nanochat.data.shards import load_manifest, measure_largest_group, measure_text
from nanochat.evals.bpb import measure_bits
from nanochat.evals.samples import Sample, sample_texts
from nanochat.model.gpt import GPT
from nanochat.stages.assemble import open_tokenizer
from nanochat.stages.dataset import open_dataset
from nanochat.stages.stage import Stage
from nanochat.tokenizer.bpe import Tokenizer

CROPPED = "data.packing = crop: bits per byte are those of cropped rows, which are easier than the whole text"


class Loader(Protocol):
    """An endless iterator of batches. changed: what is not as it was for the cursor that it began at, in words."""

    @property
    def changed(self) -> str: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def cursor(self) -> dict: ...
    def close(self) -> None: ...


class PackedStage(Stage):
    """A stage whose batches come from a loader, measured in bits per byte of validation text."""

    scored_by = "val_bpb"
    options: TextSettings

    @abstractmethod
    def build_loader(self, cursor: dict | None) -> Loader:
        """The training batches from a cursor on."""

    @abstractmethod
    def validation(self) -> Iterable[Batch]:
        """One pass over the validation data, the same every time and on every rank."""

    def open_data(self, cursor: dict | None) -> str:
        self.loader = self.build_loader(cursor)
        return self.loader.changed

    def close_data(self) -> None:
        self.loader.close()

    def cursor(self) -> dict:
        return self.loader.cursor()

    def microbatches(self) -> Sequence[Batch]:
        return list(islice(self.loader, self.plan.num_microbatches))

    def measure(self) -> dict[str, Any] | None:
        token_bytes = torch.tensor(self.tokenizer.token_bytes, dtype=torch.int64, device=self.world.device)
        bits = measure_bits(self.model, self.validation(), token_bytes, self.options.eval_tokens, self.world)
        step, state = self.state.step, self.state
        if bits.num_bytes == 0:
            self.say(f"step {step}: there is no validation text, so no bits per byte")
            return None
        state.best = bits.bpb if state.best is None else min(state.best, bits.bpb)
        self.say(f"step {step}: validation {bits.bpb:.4f} bits per byte on {bits.num_tokens:,} tokens")
        return {"val_bpb": bits.bpb, "eval_tokens": bits.num_tokens}


class Pretraining(PackedStage):
    """Train on packed documents to the plan's horizon."""

    def prepare(self) -> None:
        self.tokenizer = open_tokenizer(self.job)
        data = self.job.settings.data
        self.packing: Packing = data.packing
        self.folder = open_dataset(self.job.workspace, data.dataset, self.say, self.world)
        self.dataset_hash = load_manifest(self.folder).hash  # of what is read, whatever takes its place meanwhile
        self.config = plan_model(self.job.settings, self.tokenizer.vocab_size)
        self.fit_rows()
        self.plan = plan_base(self.job.settings, self.world.world_size, vocab_size=self.tokenizer.vocab_size)
        self.epochs = self.estimate_epochs(self.plan.num_tokens)
        self.group_bytes = measure_largest_group(self.folder)
        repeats = describe_repeats(self.epochs)
        self.notes = [*([CROPPED] if self.packing == "crop" else []), *([repeats] if repeats else [])]

    def estimate_epochs(self, num_tokens: int) -> float:
        """How often so many tokens go through the text, by the bytes per token that the tokenizer stage measured."""
        try:
            ratio = float(json.loads((self.job.run.tokenizer / "result.json").read_bytes())["bytes_per_token"])
        except (OSError, ValueError, KeyError, TypeError):  # a tokenizer that was put there by hand
            ratio = CHARS_PER_TOKEN
        return num_tokens * ratio / max(1, measure_text(self.folder, "train"))

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


def iter_validation(
    folder: Path, tokenizer: Tokenizer, rows: int, context: int, packing: Packing = "cut"
) -> Iterator[Batch]:
    """One pass over the validation documents, the same on every rank."""
    with PretrainLoader(folder, "val", tokenizer, rows, context, packing=packing) as loader:
        yield from loader
