"""Who owns which part of which parameter, and how parts of many parameters travel as one tensor.

Matrix i of a shape belongs to rank i mod world size; a table is cut into equal slices of whole rows. A block holds
one such part, of one shape, for every rank, and a bucket is the blocks of one collective. Layout only: knows no process
group and no optimizer.

Legend: R ranks, S numbers of a rank in a bucket.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BUCKET_BYTES = 8 << 20
"""Blocks are joined up to this size: below it a collective is all latency, far above it the last ones start late.

Between the 1 MB of the first and the 25 MB of the other buckets of PyTorch's DDP (Li et al. 2020).
"""


@dataclass(frozen=True)
class Block:
    """Up to world_size matrices of one shape, one for each rank, or one table (a slice of rows for each rank)."""

    parameters: tuple[nn.Parameter, ...]
    is_table: bool
    slot: torch.Size
    """Shape of what one rank owns, padding included."""


Bucket = tuple[Block, ...]


def group_by_shape(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters of one shape together, in their order."""
    shapes: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        shapes.setdefault(parameter.shape, []).append(parameter)
    return list(shapes.values())


def build_blocks(parameters: Sequence[nn.Parameter], is_table: bool, world_size: int) -> list[Block]:
    """Blocks of tables, or of matrices of one shape, in their order."""
    if is_table:
        return [
            Block((table,), True, torch.Size((-(-table.size(0) // world_size), *table.shape[1:])))
            for table in parameters
        ]
    return [
        Block(tuple(parameters[start : start + world_size]), False, parameters[start].shape)
        for start in range(0, len(parameters), world_size)
    ]


def build_buckets(blocks: Sequence[Block], order: Sequence[nn.Parameter], world_size: int) -> list[Bucket]:
    """Join neighbours in the order in which a backward pass completes them; the same on every rank.

    order: the parameters in the order in which the model uses them. A block is complete when the gradient of its first
    parameter is there. A table travels alone, because it is large and may need no copy.
    """
    position = {parameter: index for index, parameter in enumerate(order)}
    buckets: list[Bucket] = []
    room = 0
    for block in sorted(blocks, key=lambda block: -min(position[parameter] for parameter in block.parameters)):
        num_bytes = world_size * block.slot.numel() * block.parameters[0].element_size()
        if room > 0 and not block.is_table:
            buckets[-1] = (*buckets[-1], block)
            room -= num_bytes
        else:
            buckets.append((block,))
            room = 0 if block.is_table else BUCKET_BYTES - num_bytes
    return buckets


def owned_rows(table: Tensor, rank: int, world_size: int) -> slice:
    """The rows of a table that belong to a rank; the last ranks of a short table own none."""
    size = -(-table.size(0) // world_size)
    return slice(min(rank * size, table.size(0)), min((rank + 1) * size, table.size(0)))


def iter_parts(
    packed: Tensor, bucket: Bucket, ranks: Sequence[int], world_size: int
) -> Iterator[tuple[nn.Parameter, slice, Tensor]]:
    """Views of packed (R, S), one for each part that the ranks own, with its parameter and rows."""
    start = 0
    for block in bucket:
        stop = start + block.slot.numel()
        for numbers, rank in zip(packed, ranks, strict=True):
            slot = numbers[start:stop].view(block.slot)
            if block.is_table:
                rows = owned_rows(block.parameters[0], rank, world_size)
                yield block.parameters[0], rows, slot[: rows.stop - rows.start]
            elif rank < len(block.parameters):
                yield block.parameters[rank], slice(None), slot
        start = stop


def pack(bucket: Bucket, ranks: Sequence[int], world_size: int, source: Callable[[nn.Parameter], Tensor]) -> Tensor:
    """Copy the ranks' parts of source(parameter) into one tensor (R, S), zero where a rank owns less than others.

    A whole table whose rows divide by the ranks is not copied: the result is a view of it.
    """
    first = bucket[0]
    like = first.parameters[0]
    if first.is_table and len(bucket) == 1 and len(ranks) == world_size and like.size(0) % world_size == 0:
        return source(like).contiguous().view(world_size, -1)
    packed = like.new_zeros(len(ranks), sum(block.slot.numel() for block in bucket))
    for parameter, rows, part in iter_parts(packed, bucket, ranks, world_size):
        part.copy_(source(parameter)[rows])
    return packed
