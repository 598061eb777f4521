"""Muon for the matrices and AdamW for the tables, in one optimizer that shards its own state.

The gradients of all ranks are summed straight into their owners (reduce-scatter), `step` updates what a rank owns and
sends it to all (all-gather), so that a rank keeps 1 / world_size of the state; sharding.py says who owns what. Both
run beside the computing: a gradient leaves while backward is at the layers below, a weight while the next are updated.
One process is the case without communication. Knows no schedules and no steps beyond Adam's own bias correction.

Sources: Rajbhandari et al. 2020, "ZeRO" (sharded state); Li et al. 2020, "PyTorch Distributed" (buckets in a fixed
order). The arithmetic is in updates.py.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.model.sharding import Bucket, build_blocks, build_buckets, group_by_shape, iter_parts, owned_rows, pack
from nanochat.model.updates import update_with_adamw, update_with_muon
from nanochat.runtime import pick_dtype

ADAM_BETAS = (0.8, 0.95)
ADAM_EPS = 1e-10
REFERENCE_WIDTH = 768  # the width at which embedding_lr and head_lr were tuned


@dataclass
class _Transfer:
    """A collective under way. It holds both tensors: they must live until the work is waited for."""

    work: Any  # torch.distributed.Work, which has no public type in every build
    bucket: Bucket
    sent: Tensor
    received: Tensor


class MuonAdamW(torch.optim.Optimizer):
    """Groups have "kind" ("muon" or "adamw"), "names", "lr", "base_lr", "weight_decay"; muon also "momentum".

    Each step on every rank: the last backward inside `reducing()`, `reduce_gradients()`, look at `grad_norm()`, then
    `clip_grad_norm()` and `step()`, or leave the step out: nothing but gradients has changed so far. lr and momentum
    are read from the groups at `step()`.

    order: all parameters in the order in which the model uses them; None: that of the groups.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        rank: int = 0,
        world_size: int = 1,
        order: Sequence[nn.Parameter] | None = None,
    ) -> None:
        super().__init__(groups, {"momentum": 0.95, "betas": ADAM_BETAS, "eps": ADAM_EPS, "dtype": torch.float32})
        self.rank, self.world_size = rank, world_size
        self._reduced: dict[nn.Parameter, Tensor] = {}  # what this rank owns of each summed gradient
        self._under_way: deque[_Transfer] = deque()
        self._next = 0  # the first of _buckets that is not sent
        self._missing: list[int] = []  # gradients that each of _buckets waits for
        units = [(parameters, is_table) for _, parameters, is_table in self._units()]
        blocks = [block for unit in units for block in build_blocks(*unit, world_size)]
        self._buckets = build_buckets(blocks, order or self.parameters(), world_size)
        self._bucket_of = {
            parameter: index
            for index, bucket in enumerate(self._buckets)
            for block in bucket
            for parameter in block.parameters
        }

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _units(self) -> Iterator[tuple[dict[str, Any], list[nn.Parameter], bool]]:
        """What is updated at once, with its group: a table (True), or all matrices of a shape (False).

        Tables come first: they are the largest to send and the quickest to update, and Muon hides their way.
        """
        for group in sorted(self.param_groups, key=lambda group: group["kind"]):
            if group["kind"] == "muon":
                yield from ((group, alike, False) for alike in group_by_shape(group["params"]))
            else:
                yield from ((group, [parameter], True) for parameter in group["params"])

    @contextmanager
    def reducing(self, last: bool = True) -> Iterator[None]:
        """Around the backward of a micro-batch: the last one of a step sends each gradient as soon as it is there.

        The order of sending is fixed (head, last layer ... first layer, embedding): a bucket waits for those before it,
        whatever the order in which autograd happens to finish, and all are sent when the block ends. So the ranks
        cannot disagree. Where backward raises, what was sent is forgotten; the other ranks still wait for the rest.

        Collective where last is true: every rank calls this. Does nothing on one process.
        """
        if not last or self.world_size == 1:
            yield
            return
        self._forget()
        self._missing = [sum(len(block.parameters) for block in bucket) for bucket in self._buckets]
        # After the forward pass, so that torch.compile never sees them, and only for this one backward.
        hooks = [parameter.register_post_accumulate_grad_hook(self._receive) for parameter in self.parameters()]
        try:
            yield
            self._send_gradients(len(self._buckets))
        except BaseException:
            self._forget()
            raise
        finally:
            for hook in hooks:
                hook.remove()

    def _forget(self) -> None:
        self._under_way.clear()
        self._reduced = {}
        self._next = 0

    def _receive(self, parameter: Tensor) -> None:
        """Autograd has finished this gradient: send what is complete now."""
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        stop = self._next
        while stop < len(self._buckets) and self._missing[stop] == 0:
            stop += 1
        self._send_gradients(stop)

    @torch.no_grad()
    def _send_gradients(self, stop: int) -> None:
        """Start the reduce-scatter of the buckets before stop that are not sent yet; frees their gradients."""
        while self._next < stop:
            # What has arrived needs no buffer any more (NCCL knows; gloo says so only after a wait).
            while self._under_way and self._under_way[0].work.is_completed():
                self._keep_reduced()
            bucket = self._buckets[self._next]
            sent = pack(bucket, range(self.world_size), self.world_size, _grad)
            for block in bucket:
                for parameter in block.parameters:
                    parameter.grad = None
            received = sent.new_empty(sent.size(1))
            work = dist.reduce_scatter_tensor(received, sent.view(-1), async_op=True)
            self._under_way.append(_Transfer(work, bucket, sent, received))
            self._next += 1

    def _keep_reduced(self) -> None:
        transfer = self._under_way.popleft()
        transfer.work.wait()
        for parameter, _, part in iter_parts(transfer.received[None], transfer.bucket, [self.rank], self.world_size):
            self._reduced[parameter] = part

    def reduce_gradients(self) -> None:
        """Wait until the gradients of all ranks are summed into their owners; sends them where `reducing` did not.

        Collective: every rank calls this. Nothing to do on one process.
        """
        if self.world_size == 1:
            return
        if self._next == 0:
            self._forget()
            self._send_gradients(len(self._buckets))
        assert all(parameter.grad is None for parameter in self.parameters()), "a backward outside of `reducing`"
        while self._under_way:
            self._keep_reduced()
        self._next = 0

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
        """Update every parameter from its reduced gradient. Collective: every rank calls this.

        The weights under way take no more memory than the gradients that have been freed.
        """
        for group, parameters, is_table in self._units():
            if is_table:
                self._step_adamw(group, parameters[0])
            else:
                self._step_muon(group, parameters)
            if self.world_size > 1:
                self._send_weights(tuple(build_blocks(parameters, is_table, self.world_size)))
        self._reduced = {}
        while self._under_way:
            transfer = self._under_way.popleft()
            transfer.work.wait()
            ranks = range(self.world_size)
            for parameter, rows, part in iter_parts(transfer.received, transfer.bucket, ranks, self.world_size):
                parameter[rows].copy_(part)

    def _send_weights(self, bucket: Bucket) -> None:
        """Start the all-gather of what every rank has updated."""
        sent = pack(bucket, [self.rank], self.world_size, lambda parameter: parameter)
        received = sent.new_empty(self.world_size, sent.size(1))
        work = dist.all_gather_into_tensor(received.view(-1), sent.view(-1), async_op=True)
        self._under_way.append(_Transfer(work, bucket, sent, received))

    def _owned_gradients(self) -> list[Tensor]:
        if self.world_size > 1:
            assert self._reduced, "reduce_gradients comes first"
            return [gradient for gradient in self._reduced.values() if gradient.numel()]
        return [parameter.grad for parameter in self.parameters() if parameter.grad is not None]

    def _grad_of(self, parameter: nn.Parameter) -> Tensor:
        """The summed gradient of this rank's part of a parameter."""
        return self._reduced[parameter] if self.world_size > 1 else _grad(parameter)

    def _step_muon(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        """Muon on this rank's matrices of one shape."""
        owned = parameters[self.rank :: self.world_size]
        if owned:
            grads = [self._grad_of(parameter) for parameter in owned]
            momenta = [self._state_of(parameter, "momentum", parameter) for parameter in owned]
            rates = {key: group[key] for key in ("lr", "weight_decay", "momentum", "dtype")}
            update_with_muon(owned, grads, momenta, **rates)

    def _step_adamw(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        """AdamW on this rank's rows of the table."""
        mine = parameter[owned_rows(parameter, self.rank, self.world_size)]
        mean, square = self._state_of(parameter, "mean", mine), self._state_of(parameter, "square", mine)
        count = self.state[parameter].setdefault("step", torch.zeros((), dtype=torch.float32))
        count += 1
        rates = {key: group[key] for key in ("lr", "weight_decay", "betas", "eps")}
        update_with_adamw(mine, self._grad_of(parameter), mean, square, int(count.item()), **rates)

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
            for alike in group_by_shape(group["params"])
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
                value, rows = torch.cat(saved), owned_rows(parameter, self.rank, self.world_size)
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
    return MuonAdamW(groups, rank, world_size, order=list(named.values()))
