"""Soft-capped cross-entropy of a head that never builds the whole table of logits.

The table (tokens x vocabulary) in float32 is the largest tensor of a training step: at 32 rows of 2,048 tokens and
50,304 ids it is 13 GB. Here logits, loss and gradients are computed for a chunk of tokens at a time, so the backward
pass has nothing left to do but scale. Knows neither models nor ranks.

Legend: N tokens, C width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -1  # the target id that costs nothing; the same number everywhere
CPU_CHUNK_LOGITS = 1 << 22  # 16 MiB in float32: half of a common last-level cache, measured fastest on two cores
CHUNK_LOGITS = 1 << 27  # 512 MiB on an accelerator: enough tokens a chunk that the products stay compute-bound
MIN_CHUNK_TOKENS = 256  # fewer make the products thin, and each chunk adds a whole weight gradient
CHUNK_MULTIPLE = 128  # rows of a tile of a matrix product

ChunkLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


def plan_chunk_tokens(num_tokens: int, vocab_size: int, device: torch.device) -> int:
    """Tokens of a chunk: all of them if they are within the limit of the device, else a multiple of CHUNK_MULTIPLE.

    Chunks are equal, so that they compile once. Of up to twice as many as there must be, those that need the least
    padding are chosen.

    >>> plan_chunk_tokens(4096, 8192, torch.device("cpu")), plan_chunk_tokens(4000, 512, torch.device("cpu"))
    (512, 4000)
    >>> plan_chunk_tokens(65_536, 50_304, torch.device("cuda"))
    2048
    """
    limit = max(MIN_CHUNK_TOKENS, (CPU_CHUNK_LOGITS if device.type == "cpu" else CHUNK_LOGITS) // vocab_size)
    if num_tokens <= limit:
        return max(1, num_tokens)
    fewest = -(-num_tokens // (limit // CHUNK_MULTIPLE * CHUNK_MULTIPLE))
    counts = range(fewest, 2 * fewest + 1)
    sizes = [-(-num_tokens // (count * CHUNK_MULTIPLE)) * CHUNK_MULTIPLE for count in counts]
    return min(sizes, key=lambda size: (-num_tokens % size, -size))


def capped_logits(hidden: Tensor, weight: Tensor, softcap: float) -> Tensor:
    """Logits (..., V) float32 of hidden (..., C), within (-softcap, softcap)."""
    logits = F.linear(hidden, weight.to(hidden.dtype))
    return softcap * torch.tanh(logits.to(torch.promote_types(logits.dtype, torch.float32)) / softcap)


def softcap_token_nll(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 15.0, chunk_tokens: int | None = None
) -> Tensor:
    """Negative log-likelihood in nats (N,) float32 of targets (N,) int64; 0 where the target is IGNORED.

    hidden: (N, C). weight: (V, C). No gradient.
    """
    chunk = chunk_tokens or plan_chunk_tokens(hidden.size(0), weight.size(0), hidden.device)
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
    chunk_loss: ChunkLoss | None = None,
) -> Tensor:
    """Summed loss in nats, a float32 scalar, differentiable in hidden and weight.

    hidden: (N, C). weight: (V, C) float32. targets: (N,) int64, IGNORED costs nothing. weights: (N,) float32, a
    factor of each token's loss (1 where None). Where every target is ignored the loss and its gradients are 0.
    chunk_loss: compute_chunk_loss, compiled or not; compiled it nearly halves the time on a CPU.
    """
    scale = targets.ne(IGNORED).to(torch.promote_types(hidden.dtype, torch.float32))
    if weights is not None:
        scale = scale * weights
    chunk = chunk_tokens or plan_chunk_tokens(hidden.size(0), weight.size(0), hidden.device)
    targets = targets.clamp_min(0)
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        return (softcap_token_nll(hidden, weight, targets, softcap, chunk) * scale).sum()
    return _ChunkedLoss.apply(  # type: ignore[no-any-return]
        hidden, weight, targets, scale, softcap, chunk, chunk_loss or compute_chunk_loss
    )


def compute_chunk_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss of a chunk with its gradients in hidden (n, C) and weight (V, C), all computed at once.

    hidden and weight: the compute dtype. targets: (n,) int64, none IGNORED. scale: (n,) factor of each token's loss.
    The exponentials need no shift by their maximum: the cap keeps them between exp(-softcap) and exp(softcap). It is
    written so that the compiler makes two passes over the logits, both in registers, and stores only `grad`.
    """
    index = targets[:, None]
    logits = F.linear(hidden, weight)
    capped = _cap(logits, softcap)
    grad = torch.mul(capped, softcap).exp_()
    total = grad.sum(dim=-1)
    target = _cap(logits.gather(1, index), softcap).squeeze(1) * softcap  # again: to look it up would store `capped`
    loss = ((total.log() - target) * scale).sum()
    ids = torch.arange(weight.size(0), device=hidden.device)
    grad.mul_((scale / total)[:, None]).sub_(torch.where(ids == index, scale[:, None], 0.0))  # softmax - one-hot
    grad.addcmul_(grad, capped.square_(), value=-1)  # through the cap: d softcap * tanh(x / softcap) / dx
    grad = grad.to(hidden.dtype)
    return loss, grad @ weight, grad.T @ hidden


def _cap(logits: Tensor, softcap: float) -> Tensor:
    """tanh(logits / softcap) in float32 or wider, as 2 * sigmoid(2x) - 1: half the time of the vectorised tanh."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.mul(wide, 2 / softcap).sigmoid_().mul_(2).sub_(1)


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass; backward multiplies them by the gradient of the sum.

    The weight's gradient adds up in the type of the weight, float32, whatever the compute dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        softcap: float,
        chunk: int,
        chunk_loss: ChunkLoss,
    ) -> Tensor:
        cast_weight = weight.to(hidden.dtype)
        total = scale.new_zeros(())
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, hidden.size(0), chunk):
            rows = slice(start, start + chunk)
            h, t, s = hidden[rows], targets[rows], scale[rows]
            num_rows = h.size(0)
            if start and num_rows < chunk:  # tokens of scale 0 cost nothing, another shape compiles once more
                missing = chunk - num_rows
                h, t, s = F.pad(h, (0, 0, 0, missing)), F.pad(t, (0, missing)), F.pad(s, (0, missing))
            loss, grad_rows, grad_chunk = chunk_loss(h, cast_weight, t, s, softcap)
            total += loss
            grad_hidden[rows] = grad_rows[:num_rows]
            grad_weight += grad_chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple:
        grad_hidden, grad_weight = ctx.saved_tensors
        wanted_hidden, wanted_weight = ctx.needs_input_grad[:2]
        scale = grad_outputs[0]
        return (
            grad_hidden * scale.to(grad_hidden.dtype) if wanted_hidden else None,
            grad_weight * scale.to(grad_weight.dtype) if wanted_weight else None,
            *(None,) * 5,
        )
