"""A batch of rows: what every loader yields. Legend: B rows, T tokens of context."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

IGNORED = -1  # the target id that cross-entropy skips; the same number everywhere


class Batch(NamedTuple):
    """ids (B, T) int64; targets (B, T) int64: the token after each, or -1 where nothing is to be learnt."""

    ids: Tensor
    targets: Tensor


class WeightedBatch(NamedTuple):
    """A batch whose targets count unequally: weights (B, T) float32 are a factor of each target's loss."""

    ids: Tensor
    targets: Tensor
    weights: Tensor


def build_batch(rows: np.ndarray, learnt: np.ndarray | None = None) -> Batch:
    """rows: (B, T + 1) ids. learnt: (B, T + 1) bool, the tokens that are targets; None: all."""
    ids = rows[:, :-1].astype(np.int64)
    targets = rows[:, 1:].astype(np.int64)
    if learnt is not None:
        targets[~learnt[:, 1:]] = IGNORED
    return Batch(torch.from_numpy(ids), torch.from_numpy(targets))
