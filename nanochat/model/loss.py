"""Soft-capped cross-entropy of a head that never builds the whole table of logits.

The table (tokens x vocabulary) in float32 is the largest tensor of a training step: at 32 rows of 2,048 tokens and
50,304 ids it is 13 GB. Here logits, loss and gradients are computed for a chunk of tokens at a time, so the backward
pass has nothing left to do but scale. Knows neither models nor ranks.

Legend: N tokens, C width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -1  # the target id that costs nothing; the same number everywhere
CHUNK_LOGITS = 1 << 22  # logits of one chunk: 16 MiB in float32, which stays near the cache


def rows_per_chunk(vocab_size: int) -> int:
    """Tokens of a chunk, at least 64 so that the matrix products stay efficient."""
    return max(64, CHUNK_LOGITS // vocab_size)


def capped_logits(hidden: Tensor, weight: Tensor, softcap: float) -> Tensor:
    """Logits (..., V) float32 of hidden (..., C), within (-softcap, softcap)."""
    return softcap * torch.tanh(F.linear(hidden, weight.to(hidden.dtype)).float() / softcap)


def softcap_token_nll(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 15.0, chunk_tokens: int | None = None
) -> Tensor:
    """Negative log-likelihood in nats (N,) float32 of targets (N,) int64; 0 where the target is IGNORED.

    hidden: (N, C). weight: (V, C). No gradient.
    """
    chunk = chunk_tokens or rows_per_chunk(weight.size(0))
    with torch.no_grad():
        pieces = [
            F.cross_entropy(capped_logits(h, weight, softcap), t, ignore_index=IGNORED, reduction="none")
            for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True)
        ]
        return torch.cat(pieces) if pieces else hidden.new_zeros(0, dtype=torch.float32)


def softcap_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    softcap: float = 15.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """Summed loss in nats, a float32 scalar, differentiable in hidden and weight.

    hidden: (N, C). weight: (V, C) float32. targets: (N,) int64, IGNORED costs nothing. weights: (N,) float32, a
    factor of each token's loss (1 where None). Where every target is ignored the loss and its gradients are 0.
    """
    scale = targets.ne(IGNORED).float()
    if weights is not None:
        scale = scale * weights
    chunk = chunk_tokens or rows_per_chunk(weight.size(0))
    return _ChunkedLoss.apply(hidden, weight, targets.clamp_min(0), scale, softcap, chunk)  # type: ignore[no-any-return]


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass; backward multiplies them by the gradient of the sum."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, softcap: float, chunk: int
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        cast_weight = weight.to(hidden.dtype)
        for start in range(0, hidden.size(0), chunk):
            rows = slice(start, start + chunk)
            h, s = hidden[rows], scale[rows]
            capped = torch.tanh(F.linear(h, cast_weight).float() / softcap)  # (n, V), logits / softcap
            index = targets[rows, None]
            log_z = torch.logsumexp(capped * softcap, dim=-1)
            nll = log_z - softcap * capped.gather(1, index).squeeze(1)
            total = total + (nll * s).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            grad = torch.exp(capped * softcap - log_z[:, None])  # softmax
            grad.scatter_add_(1, index, torch.full_like(index, -1, dtype=grad.dtype))
            grad *= (1 - capped * capped) * s[:, None]  # through the cap: d softcap*tanh(x/softcap) / dx
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ cast_weight
            if grad_weight is not None:
                grad_weight += (grad.T @ h).float()
        ctx.save_for_backward(*(g for g in (grad_hidden, grad_weight) if g is not None))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple:
        saved, scale = list(ctx.saved_tensors), grad_outputs[0]
        grad_hidden = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_hidden = saved.pop(0)
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = saved.pop(0) * scale
        return grad_hidden, grad_weight, None, None, None, None
