"""The arithmetic of Muon and AdamW on weights, gradients and moments. Knows neither groups nor ranks.

Sources: Jordan et al. 2024, "Muon"; Kingma and Ba 2015; Loshchilov and Hutter 2019 (decoupled weight decay).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at 0 while values stay within [0.7, 1.2]
NEWTON_SCHULZ_STEPS = 5


def orthogonalize(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Move the singular values of matrices (M, rows, cols) to about 1, keeping the singular vectors.

    dtype: the type of the products, bfloat16 where the hardware multiplies it fast.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.size(-2) > matrices.size(-1)
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def update_with_muon(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    momenta: Sequence[Tensor],
    lr: float,
    weight_decay: float,
    momentum: float,
    dtype: torch.dtype,
) -> None:
    """One step, in place, of matrices of one shape: stacked, so that one batched product serves them all."""
    rows, cols = weights[0].shape
    scale = max(1.0, rows / cols) ** 0.5
    updates = []
    for grad, average in zip(grads, momenta, strict=True):
        updates.append(grad.lerp(average.lerp_(grad, 1 - momentum), momentum))  # Nesterov
    for weight, update in zip(weights, orthogonalize(torch.stack(updates), dtype), strict=True):
        if weight_decay:
            weight.mul_(1 - lr * weight_decay)
        weight.add_(update, alpha=-lr * scale)


def update_with_adamw(
    weight: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step, in place. step: counts from 1, this one included."""
    beta1, beta2 = betas
    mean.lerp_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    if weight_decay:
        weight.mul_(1 - lr * weight_decay)
    denominator = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(eps)
    weight.addcdiv_(mean, denominator, value=-lr / (1 - beta1**step))
