"""Causal self-attention with rotary positions and normalised queries and keys.

Sources: Su et al. 2021 (rotary positions), Dehghani et al. 2023 (normalised queries and keys), Ainslie et al. 2023
(grouped queries).

Legend: B batch, T new tokens, S tokens seen, H query heads, G key and value heads, D head width, C = H * D.
"""

from contextlib import AbstractContextManager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanochat.model.config import GPTConfig

RMS_EPS = 1e-6  # what transformers' NanoChatConfig uses
CPU_BLOCK_TOKENS = 256  # as fast as 64 and 128 from a context of 256 on, with fewer kernels to compile
CPU_BLOCKS_CONTEXT = 1024  # beyond it the scores kept for backward outgrow what the blocks save


class Cache(Protocol):
    """Keys and values of earlier tokens, kept by the engine."""

    @property
    def positions(self) -> Tensor:
        """Absolute positions of the new tokens, (B, T) int64."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store k and v (B, T, G, D), attend with q (B, T, H, D) to all that is stored; returns (B, T, H, D)."""
        ...


def normalize(x: Tensor) -> Tensor:
    """RMSNorm without parameters over the last dimension, in the type of x."""
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


class Linear(nn.Linear):
    """A linear layer without bias whose weight is cast to the type of its input, if it is of another."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype))


def build_rotation(positions: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B or 1, T, 1, D / 2) for positions (B or 1, T) int64, computed in float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None].float() * base**-exponents  # (B, T, D / 2)
    return angles.cos().to(dtype)[:, :, None], angles.sin().to(dtype)[:, :, None]


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs (x[i], x[i + D / 2]) of x (B, T, H, D) clockwise by the angle of their position."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def varied_lengths() -> AbstractContextManager[object]:
    """For lengths that change at every call: without cuDNN, torch's choice on Hopper, which plans anew for each."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q (B, T, H, D) to k and v (B, T, G, D); returns (B, T, H, D). q and k are normalised."""
    if q.device.type == "cpu" and q.size(1) <= CPU_BLOCKS_CONTEXT:
        return attend_by_blocks(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.size(1) != q.size(1))
    return y.transpose(1, 2)


def attend_by_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attend` for a CPU: a block of queries at a time, against the keys up to its end.

    1.2 to 2.2 times as fast there as torch's fused kernel (benchmarks/attention.py). The exponentials need no
    shift by their maximum: normalised queries and keys keep a score within sqrt(D).
    """
    groups = q.size(2) // k.size(2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or G, T, D)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    positions = torch.arange(q.size(2), device=q.device)
    blocks = []
    for start in range(0, q.size(2), CPU_BLOCK_TOKENS):
        end = min(start + CPU_BLOCK_TOKENS, q.size(2))
        scores = q[:, :, start:end] @ k[:, :, :end].mT  # (B, H, T, S)
        weights = (scores.to(torch.promote_types(scores.dtype, torch.float32)) * q.size(-1) ** -0.5).exp()
        weights = weights.where(positions[:end] <= positions[start:end, None], 0.0)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        blocks.append(weights.to(v.dtype) @ v[:, :, :end])
    return torch.cat(blocks, dim=2).transpose(1, 2)


class Attention(nn.Module):
    """One attention layer; the output projection starts at zero, so that a new block adds nothing."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_head, self.n_kv_head, self.head_dim = layer, config.n_head, config.n_kv_head, config.head_dim
        self.q = Linear(config.n_embd, config.n_head * config.head_dim)
        self.k = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.v = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.out = Linear(config.n_head * config.head_dim, config.n_embd)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        B, T, _ = x.shape
        q = self.q(x).view(B, T, self.n_head, self.head_dim)
        k = self.k(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.v(x).view(B, T, self.n_kv_head, self.head_dim)
        q, k = normalize(rotate(q, rotation)), normalize(rotate(k, rotation))
        if cache is not None:
            y = cache.attend(self.layer, q, k, v)
        else:
            y = attend(q, k, v)
        return self.out(y.reshape(B, T, -1))
