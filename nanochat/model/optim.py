"""Muon for the matrices and AdamW for the tables, in one optimizer that shards its own state.

Matrix i of a shape belongs to rank i mod world size; a table is cut into equal slices of whole rows. `reduce_gradients`
sums the gradients of all ranks straight into their owners (reduce-scatter), `step` updates what a rank owns and sends
it to all (all-gather), so that a rank keeps 1 / world_size of the state. One process is the case without communication.
Knows no schedules and no steps beyond Adam's own bias correction.

Sources: Jordan et al. 2024, "Muon"; Kingma and Ba 2015; Loshchilov and Hutter 2019 (decoupled weight decay);
Rajbhandari et al. 2020, "ZeRO" (sharded state).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.runtime import pick_dtype

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
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Groups have "kind" ("muon" or "adamw"), "names", "lr", "base_lr", "weight_decay"; muon also "momentum".

    Each step on every rank: `reduce_gradients()`, look at `grad_norm()`, then `clip_grad_norm()` and `step()`, or
    leave the step out: nothing but gradients has changed so far. lr and momentum are read from the groups at `step()`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], rank: int = 0, world_size: int = 1) -> None:
        super().__init__(groups, {"momentum": 0.95, "betas": ADAM_BETAS, "eps": ADAM_EPS, "dtype": torch.float32})
        self.rank, self.world_size = rank, world_size
        self._reduced: dict[nn.Parameter, Tensor] = {}  # what this rank owns of each summed gradient

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def reduce_gradients(self) -> None:
        """Sum the gradients of all ranks into their owners and free them. Nothing to do on one process.

        Collective: every rank calls this.
        """
        if self.world_size == 1:
            return
        self._reduced = {}
        for group in self.param_groups:
            if group["kind"] == "muon":
                for parameters in _by_shape(group["params"]):
                    for block in _blocks(parameters, self.world_size):
                        self._reduce_matrices(block)
            else:
                for parameter in group["params"]:
                    self._reduce_table(parameter)

    def grad_norm(self) -> Tensor:
        """Global L2 norm of the reduced gradients, a float32 scalar; not finite where any of them is not.

        Collective: every rank calls this, after `reduce_gradients`.
        """
        gradients = self._owned_gradients()
        square = torch.zeros((), dtype=torch.float32, device=self.parameters()[0].device)
        if gradients:
            square = torch.stack([gradient.float().norm() for gradient in gradients]).square().sum()
        if self.world_size > 1:
            dist.all_reduce(square)
        return square.sqrt()

    def scale_gradients(self, factor: Tensor | float) -> None:
        """Multiply every reduced gradient by factor, for clipping."""
        for gradient in self._owned_gradients():
            gradient.mul_(factor)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale the reduced gradients to a norm of at most max_norm; returns the norm that they had.

        Collective: every rank calls this. A norm that is not finite leaves them useless: do not step then.
        """
        norm = self.grad_norm()
        self.scale_gradients((max_norm / norm).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its reduced gradient. Collective: every rank calls this."""
        for group in self.param_groups:
            if group["kind"] == "muon":
                for parameters in _by_shape(group["params"]):
                    self._step_muon(group, parameters)
            else:
                for parameter in group["params"]:
                    self._step_adamw(group, parameter)
        self._reduced = {}

    def _owned_gradients(self) -> list[Tensor]:
        if self.world_size > 1:
            assert self._reduced, "reduce_gradients comes first"
            return [gradient for gradient in self._reduced.values() if gradient.numel()]
        return [parameter.grad for parameter in self.parameters() if parameter.grad is not None]

    def _reduce_matrices(self, block: list[nn.Parameter]) -> None:
        """One matrix for each rank, the last block filled up with zeros."""
        stacked = block[0].new_zeros(self.world_size, *block[0].shape)
        for row, parameter in zip(stacked, block, strict=False):
            row.copy_(_take_grad(parameter))
        mine = torch.empty_like(block[0])
        dist.reduce_scatter_tensor(mine, stacked.flatten(0, 1))
        if self.rank < len(block):
            self._reduced[block[self.rank]] = mine

    def _reduce_table(self, parameter: nn.Parameter) -> None:
        grad, size = _take_grad(parameter), self._shard_rows(parameter)
        mine = grad.new_empty(size, *grad.shape[1:])
        dist.reduce_scatter_tensor(mine, _pad_rows(grad, size * self.world_size))
        start, stop = self._owned_rows(parameter)
        self._reduced[parameter] = mine[: stop - start]

    def _shard_rows(self, table: Tensor) -> int:
        return -(-table.size(0) // self.world_size)

    def _owned_rows(self, table: Tensor) -> tuple[int, int]:
        """First and last + 1 of this rank's rows; the last ranks of a short table own none."""
        size = self._shard_rows(table)
        return min(self.rank * size, table.size(0)), min((self.rank + 1) * size, table.size(0))

    def _step_muon(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        """Stack this rank's matrices of one shape, so that one batched product serves them all."""
        owned = parameters[self.rank :: self.world_size]
        if owned:
            rows, cols = owned[0].shape
            scale = max(1.0, rows / cols) ** 0.5
            updates = []
            for parameter in owned:
                grad = self._reduced[parameter] if self.world_size > 1 else _grad(parameter)
                momentum = self._state_of(parameter, "momentum", parameter).lerp_(grad, 1 - group["momentum"])
                updates.append(grad.lerp(momentum, group["momentum"]))  # Nesterov
            for parameter, update in zip(owned, orthogonalize(torch.stack(updates), group["dtype"]), strict=True):
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)
        if self.world_size > 1:
            for block in _blocks(parameters, self.world_size):
                own = block[self.rank].data if self.rank < len(block) else torch.zeros_like(block[0])
                gathered = own.new_empty(self.world_size * own.size(0), own.size(1))
                dist.all_gather_into_tensor(gathered, own)
                for parameter, updated in zip(block, gathered.split(own.size(0)), strict=False):
                    parameter.copy_(updated)

    def _step_adamw(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        """AdamW on this rank's rows of the table."""
        start, stop = self._owned_rows(parameter)
        mine = parameter[start:stop]
        grad = self._reduced[parameter] if self.world_size > 1 else _grad(parameter)
        mean, square = self._state_of(parameter, "mean", mine), self._state_of(parameter, "square", mine)
        count = self.state[parameter].setdefault("step", torch.zeros((), dtype=torch.float32))
        count += 1
        step = int(count.item())
        beta1, beta2 = group["betas"]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        if group["weight_decay"]:
            mine.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        mine.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1**step))
        if self.world_size > 1:
            size = self._shard_rows(parameter)
            gathered = parameter.new_empty(size * self.world_size, *parameter.shape[1:])
            dist.all_gather_into_tensor(gathered, _pad_rows(mine, size))
            parameter.copy_(gathered[: parameter.size(0)])

    def _state_of(self, parameter: nn.Parameter, key: str, like: Tensor) -> Tensor:
        """A moment of this rank's part of a parameter, zero at first."""
        state = self.state[parameter]
        if key not in state:
            state[key] = torch.zeros_like(like)
        return state[key]

    def named_state(self) -> dict[str, Tensor]:
        """This rank's state as tensors named `<parameter>.<moment>`, ready to be written to a file."""
        named = {}
        for group in self.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                for key, value in self.state[parameter].items():
                    named[f"{name}.{key}"] = value
        return named

    def load_named_state(self, parts: Sequence[dict[str, Tensor]]) -> None:
        """Take over what all ranks of a world of any size saved with named_state, in their order.

        parts: what this rank saved, where that world had this size; otherwise what every rank of it saved.
        Raises ValueError where a name or a shape is not one of this model's.
        """
        parameters = {
            name: (group, parameter)
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        }
        position = {
            parameter: i
            for group in self.param_groups
            if group["kind"] == "muon"
            for alike in _by_shape(group["params"])
            for i, parameter in enumerate(alike)
        }
        for full_name in {name: None for part in parts for name in part}:
            name, _, key = full_name.rpartition(".")
            if name not in parameters:
                raise ValueError(f"optimizer state {full_name!r} belongs to no parameter of this model")
            group, parameter = parameters[name]
            saved = [part[full_name] for part in parts if full_name in part]
            if key == "step":
                value, rows = saved[0], None
            elif group["kind"] == "muon":
                if position[parameter] % self.world_size != self.rank:
                    continue
                value, rows = saved[0], slice(None)
            else:
                value, rows = torch.cat(saved), slice(*self._owned_rows(parameter))
                if value.shape == parameter.shape:
                    value = value[rows]
            shape = torch.Size() if rows is None else parameter[rows].shape
            if value.shape != shape:
                found, wanted = tuple(value.shape), tuple(shape)
                raise ValueError(f"optimizer state {full_name!r} has the shape {found}, not {wanted}")
            self.state[parameter][key] = value.to("cpu" if key == "step" else parameter.device).clone()


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "backward comes first"
    return parameter.grad


def _take_grad(parameter: nn.Parameter) -> Tensor:
    grad, parameter.grad = _grad(parameter), None
    return grad


def _by_shape(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    shapes: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        shapes.setdefault(parameter.shape, []).append(parameter)
    return list(shapes.values())


def _blocks(parameters: list[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    return [parameters[start : start + size] for start in range(0, len(parameters), size)]


def _pad_rows(table: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - table.size(0)
    return torch.cat((table, table.new_zeros(missing, *table.shape[1:]))) if missing else table.contiguous()


def build_optimizer(
    model: nn.Module,
    matrix_lr: float,
    embedding_lr: float,
    head_lr: float,
    weight_decay: float = 0.0,
    rank: int = 0,
    world_size: int = 1,
    dtype: torch.dtype | None = None,
) -> MuonAdamW:
    """Give the matrices of the blocks to Muon, embedding and head to AdamW with rates scaled by width^-0.5.

    model: has `embedding.weight` and `head.weight`; all other parameters are matrices.
    dtype: the type of Muon's orthogonalisation; where None, bfloat16 on hardware that multiplies it fast, else float32.
    """
    tables = {"embedding.weight": embedding_lr, "head.weight": head_lr}
    named = dict(model.named_parameters())
    width_scale = (named["embedding.weight"].size(1) / REFERENCE_WIDTH) ** -0.5
    dtype = dtype or pick_dtype("auto", named["embedding.weight"].device)[0]
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
