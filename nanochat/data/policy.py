"""Sampled answers as weighted batches: what a policy gradient needs, and nothing that has no gradient.

Knows neither tasks nor sampling. Every rank is given all rows and takes its share, so that the rows, their padding and
the loss are the same however many ranks there are.

Legend: B rows, T tokens of the longest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nanochat.data.batch import IGNORED, WeightedBatch


class PolicyRow(NamedTuple):
    """Ids of a prompt and its answer; which of them the model chose (neither the prompt nor a tool); the advantage."""

    ids: Sequence[int]
    chosen: Sequence[bool]
    advantage: float


def compute_advantages(rewards: Sequence[float]) -> list[float]:
    """Each answer's reward less the mean of its question's; all zero where the rewards are equal.

    >>> compute_advantages([1.0, 0.0, 0.0, 1.0]), compute_advantages([0.1, 0.1, 0.1])
    ([0.5, -0.5, -0.5, 0.5], [0.0, 0.0, 0.0])
    """
    if min(rewards) == max(rewards):  # exactly, where the mean of equal floats need not be
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def build_policy_batches(
    rows: Sequence[PolicyRow], max_tokens: int, pad_id: int, rank: int = 0, world_size: int = 1
) -> list[WeightedBatch]:
    """This rank's micro-batches of a step, of at most max_tokens each, longest rows first; [] without any signal.

    The loop divides the summed loss by the number of targets. Rows with an advantage of 0 have no gradient and are left
    out, but their tokens count in the mean: the weights carry the share that is left. So the loss is
    -sum(advantage * log p(token)) / tokens, over the chosen tokens of all rows.

    Every rank gets as many rows; where they do not divide, rows without a target fill up. One row may be longer than
    max_tokens: it stands alone.
    """
    learnt = [row for row in rows if row.advantage]
    num_all, num_learnt = (sum(sum(row.chosen) for row in part) for part in (rows, learnt))
    if not num_learnt:
        return []
    share = num_learnt / num_all
    # Of equal length the order of the answers stands: sorting is stable, on every rank alike.
    learnt.sort(key=lambda row: -len(row.ids))
    learnt += [PolicyRow([pad_id] * 2, [False] * 2, 0.0)] * (-len(learnt) % world_size)
    mine = learnt[rank::world_size]
    batches = []
    while mine:
        width = len(mine[0].ids) - 1
        count = max(1, max_tokens // width)
        batches.append(_pad(mine[:count], width, pad_id, share))
        mine = mine[count:]
    return batches


def _pad(rows: Sequence[PolicyRow], width: int, pad_id: int, share: float) -> WeightedBatch:
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    targets = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    weights = torch.zeros(len(rows), width)
    for place, row in enumerate(rows):
        length = len(row.ids) - 1
        line = torch.tensor(row.ids, dtype=torch.int64)
        chosen = torch.tensor(row.chosen[1:], dtype=torch.bool)
        ids[place, :length] = line[:-1]
        targets[place, :length] = torch.where(chosen, line[1:], IGNORED)
        weights[place, :length] = torch.where(chosen, row.advantage * share, 0.0)
    return WeightedBatch(ids, targets, weights)
