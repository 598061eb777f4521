"""Many endings of one beginning in a single pass: rows of a prefix and, side by side behind it, its tails.

A token of a tail sees the whole prefix and its own tail, at the positions it would have if that tail stood there alone.
So the states equal those of separate rows, and the prefix is computed once. Knows neither tasks nor scores.

Legend: B rows, P tokens of the longest prefix, T tokens of all tails of a row, S = P + T, H heads, D head width.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.attention import attend

Row = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prefix and its tails; a tail may be empty, the prefix may not."""


class TreeAttention:
    """Stands where the model expects a cache and keeps nothing. ids and positions: (B, S) int64.

    Both parts are padded on the right: nothing that counts comes after padding of a prefix, and tails look past it.
    """

    def __init__(self, rows: Sequence[Row], padding: int, device: torch.device) -> None:
        self.num_prefix = max(len(prefix) for prefix, _ in rows)
        width = max(sum(map(len, tails)) for _, tails in rows)
        ids = np.full((len(rows), self.num_prefix + width), padding, dtype=np.int64)
        positions = np.zeros_like(ids)
        positions[:, : self.num_prefix] = np.arange(self.num_prefix)
        tail_numbers = np.full((len(rows), width), -1)  # which tail a place belongs to
        for row, (prefix, tails) in enumerate(rows):
            ids[row, : len(prefix)] = prefix
            place = 0
            for number, tail in enumerate(tails):
                span = slice(place, place + len(tail))
                ids[row, self.num_prefix :][span] = tail
                positions[row, self.num_prefix :][span] = np.arange(len(prefix), len(prefix) + len(tail))
                tail_numbers[row, span] = number
                place += len(tail)
        self.ids, self.positions = torch.from_numpy(ids).to(device), torch.from_numpy(positions).to(device)
        numbers = torch.from_numpy(tail_numbers).to(device)
        lengths = torch.tensor([len(prefix) for prefix, _ in rows], device=device)
        sees_prefix = torch.arange(self.num_prefix, device=device) < lengths[:, None, None]  # (B, 1, P)
        sees_tail = (numbers[:, :, None] == numbers[:, None]).tril()  # (B, T, T); padding sees padding, never nothing
        self._mask = torch.cat((sees_prefix.expand(-1, width, -1), sees_tail), dim=2)[:, None]  # (B, 1, T, S)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, S, H, D) to k and v (B, S, G, D); returns (B, S, H, D)."""
        first = self.num_prefix
        prefix = attend(q[:, :first], k[:, :first], v[:, :first])
        if q.size(1) == first:
            return prefix
        q, k, v = q[:, first:].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        tails = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask, enable_gqa=k.size(1) != q.size(1))
        return torch.cat((prefix, tails.transpose(1, 2)), dim=1)

    def place(self, row: Row, tail: int, token: int) -> int:
        """Where in its row of S the state lies that predicts token `token` of tail `tail`."""
        prefix, tails = row
        if token == 0:
            return len(prefix) - 1
        return self.num_prefix + sum(len(other) for other in tails[:tail]) + token - 1
