"""What base, mid and sft share: packed rows of tokens to learn from, and bits per byte of validation text."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import torch

from nanochat.config.settings import TextSettings
from nanochat.evals.bpb import measure_bits
from nanochat.stages.stage import Stage
from nanochat.training.loop import Batch


class Loader(Protocol):
    """An endless iterator of batches that can say where it stands.

    changed: what is not as it was for the cursor that it was opened with, in words.
    """

    @property
    def changed(self) -> str: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def cursor(self) -> dict: ...
    def close(self) -> None: ...


class PackedStage(Stage):
    """A stage whose batches come from a loader."""

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
