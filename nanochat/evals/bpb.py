"""Bits per byte: how well the model predicts text, in a unit that does not depend on the tokenizer.

Knows neither files nor where batches come from. Special tokens count no bytes and no loss.

Legend: B rows, T tokens of a row, V vocabulary.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.data.batch import Batch
from nanochat.runtime import World


@dataclass(frozen=True)
class Bits:
    """The sums behind the score. num_tokens counts every target, special tokens included, ignored ones not."""

    bits: float
    num_bytes: int
    num_tokens: int

    @property
    def bpb(self) -> float:
        """Bits per byte. Raises ValueError if no byte was scored."""
        if self.num_bytes == 0:
            raise ValueError("no token with bytes was scored: there is no validation text")
        return self.bits / self.num_bytes


@torch.inference_mode()
def measure_bits(
    model, batches: Iterable[Batch], token_bytes: Tensor, num_tokens: int, world: World | None = None
) -> Bits:
    """Sum bits and bytes over the first `num_tokens` targets, row by row, or over all there are where those are fewer.

    The last batch is cut at the exact token, so the score is the same however rows are put into batches.
    model: a GPT, or anything with its token_nll. token_bytes: (V,) integers, the byte length of every token and 0 for
    special ones, on the model's device.
    Collective with a `world`: every rank gives the same `batches`; rank r scores rows r, r + n, ... of the whole
    stream, so the score is the same for any number of ranks.
    """
    if num_tokens < 1:
        raise ValueError(f"num_tokens = {num_tokens} is not positive")
    rank, world_size = (0, 1) if world is None else (world.rank, world.world_size)
    device = token_bytes.device
    nats = torch.zeros((), dtype=torch.float64)
    num_bytes, seen, rows_seen, num_targets = 0, 0, 0, 0
    for batch in batches:
        ids, targets = batch.ids, batch.targets
        left = num_tokens - seen
        if targets.numel() > left:  # score the beginning only: row-major order is the order of the text
            targets = targets.clone()
            targets.view(-1)[left:] = -1
        seen += min(left, targets.numel())
        num_targets += int((targets >= 0).sum())
        first = (rank - rows_seen) % world_size
        rows_seen += len(ids)
        ids, targets = ids[first::world_size].to(device), targets[first::world_size].to(device)
        if len(ids):
            lengths = torch.where(targets >= 0, token_bytes[targets.clamp(min=0)], 0)  # (B, T)
            targets = torch.where(lengths > 0, targets, -1)
            nll = model.token_nll(ids, targets)  # (B, T) nats
            nats += torch.where(lengths > 0, nll, 0.0).cpu().double().sum()  # Metal has no float64
            num_bytes += int(lengths.sum())
        if seen >= num_tokens:
            break
    total = torch.tensor([nats.item(), float(num_bytes)], dtype=torch.float64)
    if world is not None and world_size > 1:
        total = total.to(device)
        world.all_reduce_sum(total)
        total = total.cpu()
    return Bits(total[0].item() / math.log(2), int(total[1].item()), num_targets)
