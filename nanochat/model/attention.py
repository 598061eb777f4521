"""Causal self-attention with rotary positions and normalised queries and keys.

Sources: Su et al. 2021 (rotary positions), Dehghani et al. 2023 (normalised queries and keys), Ainslie et al. 2023
(grouped queries).

Legend: B batch, T new tokens, H query heads, G key and value heads, D head width, C = H * D.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.model.config import GPTConfig

RMS_EPS = 1e-6  # what transformers' NanoChatConfig uses


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
    """A linear layer without bias whose float32 weight is cast to the type of its input."""

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
            y = F.scaled_dot_product_attention(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                is_causal=True,
                enable_gqa=self.n_kv_head != self.n_head,
            ).transpose(1, 2)  # (B, T, H, D)
        return self.out(y.reshape(B, T, -1))
