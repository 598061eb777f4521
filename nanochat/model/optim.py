"""Muon for the matrices and AdamW for the tables, in one optimizer that shards its own state.

Muon's momentum buffers belong to one rank each (matrix i of a group to rank i mod world size) and AdamW's moments are
cut into equal slices, so that a rank keeps 1 / world_size of the state. Gradients are averaged first
(`reduce_gradients`), a rank updates what it owns, and the owners send their part to all (`step`). One process is the
case without communication. Knows no schedules and no steps beyond Adam's own bias correction.

Sources: Jordan et al. 2024, "Muon"; Kingma and Ba 2015; Loshchilov and Hutter 2019 (decoupled weight decay).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at 0 while values stay within [0.7, 1.2]
NEWTON_SCHULZ_STEPS = 5
ADAM_BETAS = (0.8, 0.95)
ADAM_EPS = 1e-10
REFERENCE_WIDTH = 768  # the width at which embedding_lr and head_lr were tuned


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
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Groups have "kind" ("muon" or "adamw"), "names", "lr", "base_lr", "weight_decay"; muon also "momentum".

    Each step on every rank: `reduce_gradients()`, look at `grad_norm()`, then `step()` or leave it.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], rank: int = 0, world_size: int = 1) -> None:
        super().__init__(groups, {"momentum": 0.95, "betas": ADAM_BETAS, "eps": ADAM_EPS, "dtype": torch.float32})
        self.rank, self.world_size = rank, world_size

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def reduce_gradients(self) -> None:
        """Sum the gradients of all ranks. Collective: every rank calls this; nothing to do on one process."""
        if self.world_size > 1:
            for parameter in self.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)

    def grad_norm(self) -> Tensor:
        """Global L2 norm of the reduced gradients, a float32 scalar; not finite where any of them is not."""
        norms = [parameter.grad.float().norm() for parameter in self.parameters() if parameter.grad is not None]
        return torch.stack(norms).norm()

    def scale_gradients(self, factor: Tensor | float) -> None:
        """Multiply every gradient by factor, for clipping."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its reduced gradient. Collective: every rank calls this."""
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._step_muon(group)
            else:
                for parameter in group["params"]:
                    self._step_adamw(group, parameter)

    def _step_muon(self, group: dict[str, Any]) -> None:
        """Stack the group's matrices of one shape, so that one batched product serves them all."""
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            shapes.setdefault(parameter.shape, []).append(parameter)
        for (rows, cols), parameters in shapes.items():
            mine = parameters[self.rank :: self.world_size]
            if mine:
                updates = []
                for parameter in mine:
                    assert parameter.grad is not None
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(momentum, group["momentum"]))  # Nesterov
                scale = max(1.0, rows / cols) ** 0.5
                for parameter, update in zip(mine, orthogonalize(torch.stack(updates), group["dtype"]), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * scale)
            if self.world_size > 1:
                for index, parameter in enumerate(parameters):
                    dist.broadcast(parameter.data, src=index % self.world_size)

    def _step_adamw(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        """AdamW on this rank's slice of the flattened table."""
        assert parameter.grad is not None
        state = self.state[parameter]
        size = -(-parameter.numel() // self.world_size)
        start, stop = self.rank * size, min((self.rank + 1) * size, parameter.numel())
        mine, grad = parameter.view(-1)[start:stop], parameter.grad.view(-1)[start:stop]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["mean"], state["square"] = torch.zeros_like(mine), torch.zeros_like(mine)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        step = int(state["step"].item())
        mean = state["mean"].lerp_(grad, 1 - beta1)
        square = state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        mine.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        mine.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**step))
        if self.world_size > 1:
            padded = mine if len(mine) == size else torch.cat((mine, mine.new_zeros(size - len(mine))))
            gathered = mine.new_empty(size * self.world_size)
            dist.all_gather_into_tensor(gathered, padded.contiguous())
            parameter.view(-1).copy_(gathered[: parameter.numel()])

    def named_state(self) -> dict[str, Tensor]:
        """This rank's state as tensors named `<parameter>.<moment>`, ready to be written to a file."""
        named = {}
        for group in self.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                for key, value in self.state[parameter].items():
                    named[f"{name}.{key}"] = value
        return named

    def load_named_state(self, named: dict[str, Tensor]) -> None:
        """The inverse of named_state. Raises ValueError where a name belongs to no parameter of this model."""
        parameters = {
            name: parameter
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        }
        for full_name, value in named.items():
            name, _, key = full_name.rpartition(".")
            if name not in parameters:
                raise ValueError(f"optimizer state {full_name!r} belongs to no parameter of this model")
            device = "cpu" if key == "step" else parameters[name].device
            self.state[parameters[name]][key] = value.to(device).clone()


def build_optimizer(
    model: nn.Module,
    matrix_lr: float,
    embedding_lr: float,
    head_lr: float,
    weight_decay: float = 0.0,
    rank: int = 0,
    world_size: int = 1,
    dtype: torch.dtype = torch.float32,
) -> MuonAdamW:
    """Give the matrices of the blocks to Muon, embedding and head to AdamW with rates scaled by width^-0.5.

    model: has `embedding.weight` and `head.weight`; all other parameters are matrices.
    dtype: the type of Muon's orthogonalisation.
    """
    tables = {"embedding.weight": embedding_lr, "head.weight": head_lr}
    named = dict(model.named_parameters())
    width_scale = (named["embedding.weight"].size(1) / REFERENCE_WIDTH) ** -0.5
    matrices = [name for name in named if name not in tables]
    groups: list[dict[str, Any]] = [
        {"kind": "muon", "names": matrices, "lr": matrix_lr, "dtype": dtype, "weight_decay": weight_decay}
    ]
    for name, lr in tables.items():
        groups.append({"kind": "adamw", "names": [name], "lr": lr * width_scale, "weight_decay": weight_decay})
    for group in groups:
        group["params"] = [named[name] for name in group["names"]]
        group["base_lr"] = group["lr"]
    return MuonAdamW(groups, rank, world_size)
