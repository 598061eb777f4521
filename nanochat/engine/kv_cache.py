"""Keys and values of past tokens, one row per active request. Knows neither requests nor sampling.

The model sees a view that says where its tokens stand and what they attend to: `PrefillView` for many
tokens of one row, `DecodeView` for one token of each of the first B rows.

Legend: L layers, R rows, B batch, T new tokens, S tokens read, H heads, G query heads per key head, D head size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def cache_bytes(
    n_layer: int, n_kv_head: int, head_dim: int, num_rows: int, max_context: int, dtype: torch.dtype
) -> int:
    """Bytes that a KVCache of these sizes takes.

    >>> cache_bytes(20, 10, 128, 1, 2048, torch.bfloat16)
    209715200
    """
    return 2 * n_layer * num_rows * n_kv_head * max_context * head_dim * dtype.itemsize


class KVCache:
    """Storage for R rows of at most max_context tokens: keys and values (L, R, Hkv, max_context, D)."""

    def __init__(
        self,
        n_layer: int,
        n_kv_head: int,
        head_dim: int,
        num_rows: int,
        max_context: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (n_layer, num_rows, n_kv_head, max_context, head_dim)
        # Zeros, not empty: a masked position has weight 0, and 0 * NaN would still be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.max_context = max_context

    def copy_row(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first num_tokens of a row over another row."""
        if source != target and num_tokens:
            self.keys[:, target, :, :num_tokens] = self.keys[:, source, :, :num_tokens]
            self.values[:, target, :, :num_tokens] = self.values[:, source, :, :num_tokens]

    def exchange_rows(self, first: int, second: int, num_tokens: int) -> None:
        """Let two rows change their first num_tokens."""
        for values in (self.keys, self.values):
            kept = values[:, first, :, :num_tokens].clone()
            values[:, first, :, :num_tokens] = values[:, second, :, :num_tokens]
            values[:, second, :, :num_tokens] = kept

    def prefill(self, row: int, start: int, num_tokens: int) -> "PrefillView":
        """A view for the tokens start .. start + num_tokens of one row, whose first `start` tokens are here."""
        return PrefillView(self, row, start, num_tokens)

    def decode(self, lengths: Sequence[int]) -> "DecodeView":
        """A view for one new token in each of the first len(lengths) rows, after lengths[i] tokens."""
        return DecodeView(self, lengths)


class PrefillView:
    """Many new tokens of one row; attention is causal and sees what the row held before."""

    def __init__(self, cache: KVCache, row: int, start: int, num_tokens: int) -> None:
        end = start + num_tokens
        assert 0 <= start < end <= cache.max_context
        device = cache.keys.device
        self._cache, self._row, self._start, self._end = cache, row, start, end
        self.positions = torch.arange(start, end, device=device)[None]  # (1, T)
        self._visible = None
        if start:
            self._visible = torch.arange(end, device=device)[None] <= self.positions[0, :, None]  # (T, S)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, T, H, D), k and v (1, T, Hkv, D) -> (1, T, H, D)."""
        keys, values = self._cache.keys[layer, self._row], self._cache.values[layer, self._row]  # (Hkv, max_context, D)
        keys[:, self._start : self._end] = k[0].transpose(0, 1)
        values[:, self._start : self._end] = v[0].transpose(0, 1)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2).to(keys.dtype),  # (1, H, T, D)
            keys[None, :, : self._end],
            values[None, :, : self._end],
            attn_mask=self._visible,
            is_causal=self._visible is None,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return out.transpose(1, 2).to(q.dtype)


class DecodeView:
    """One new token in each of the first B rows; reads no further than the longest of them."""

    def __init__(self, cache: KVCache, lengths: Sequence[int]) -> None:
        assert lengths and max(lengths) < cache.max_context
        device = cache.keys.device
        self._cache = cache
        self._longest = max(lengths) + 1
        self._rows = torch.arange(len(lengths), device=device)
        self._new = torch.tensor(lengths, device=device)  # (B,)
        self.positions = self._new[:, None]  # (B, 1)
        self._visible = None
        if min(lengths) != max(lengths):
            seen = torch.arange(self._longest, device=device)[None] <= self.positions  # (B, S)
            self._visible = seen[:, None, None]  # (B, 1, 1, S)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, 1, H, D), k and v (B, 1, Hkv, D) -> (B, 1, H, D)."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]  # (R, Hkv, max_context, D)
        keys[self._rows, :, self._new] = k[:, 0].to(keys.dtype)
        values[self._rows, :, self._new] = v[:, 0].to(values.dtype)
        num_rows, _, num_heads, head_dim = q.shape
        # With one new token the G query heads that share a key head are simply G queries: no key is repeated.
        grouped = q.reshape(num_rows, k.shape[2], -1, head_dim)  # (B, Hkv, G, D)
        out = F.scaled_dot_product_attention(
            grouped.to(keys.dtype),
            keys[:num_rows, :, : self._longest],
            values[:num_rows, :, : self._longest],
            attn_mask=self._visible,
        )
        return out.reshape(num_rows, 1, num_heads, head_dim).to(q.dtype)
