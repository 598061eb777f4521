"""The one optimizer loop for base, mid, sft and rl: accumulation, schedule, step, finite check, stop, save and log.

Knows no preset, no checkpoint format, no evaluation and no engine: a Recipe brings what differs.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nanochat.data.batch import IGNORED, WeightedBatch
from nanochat.errors import NumericalError, StoppedError
from nanochat.model.optim import MuonAdamW
from nanochat.runtime import World, deterministic_kernels
from nanochat.training.metrics import smooth
from nanochat.training.schedule import lr_multiplier, muon_momentum
from nanochat.training.stop import StopRequests

MAX_SKIPPED_IN_A_ROW = 3


class Batch(Protocol):
    """Inputs and targets, both (B, T) int64; targets of IGNORED carry no loss."""

    @property
    def ids(self) -> Tensor: ...

    @property
    def targets(self) -> Tensor: ...


@dataclass
class TrainState:
    """What must survive a restart and nothing else."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    smoothed_loss: float | None = None
    best: float | None = None
    """Lowest validation bits per byte so far."""
    skipped: int = 0
    """Steps not taken because the loss or the gradient was not finite."""
    cursor: dict | None = None
    """Where the data goes on; set when the state is saved."""
    rng: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """A plain value for JSON, with the random states of now."""
        self.rng = {"cpu": _to_hex(torch.get_rng_state())}
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            self.rng["cuda"] = _to_hex(torch.cuda.get_rng_state())
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "TrainState":
        """Read a state back and set the random states to what they were."""
        state = cls(**value)
        if "cpu" in state.rng:
            torch.set_rng_state(_from_hex(state.rng["cpu"]))
        if "cuda" in state.rng and torch.cuda.is_available():
            torch.cuda.set_rng_state(_from_hex(state.rng["cuda"]))
        return state


@dataclass(frozen=True)
class Event:
    """Something to do after a step. run must be safe to repeat at the same step: a resume repeats it.

    every: steps between two; 0: only after the last step, which always counts.
    """

    name: str
    every: int
    run: Callable[[TrainState], None]

    def is_due(self, step: int, num_steps: int) -> bool:
        return step >= num_steps or (self.every > 0 and step > 0 and step % self.every == 0)


@dataclass(frozen=True)
class Recipe:
    """What differs between stages.

    microbatches: this rank's micro-batches of the next step; none only where no rank has any.
    loss: summed nats of one micro-batch over its targets, a float32 scalar; takes ids, targets and, of a WeightedBatch,
    the weights.
    save: write a checkpoint of the state; always before the events of a step. save_every: steps between two saves, 0:
    only after the last step; save_seconds: and whenever so much time has gone by since the last.
    progress: told what comes next (how many steps are done, "data", "step", "save" or an event's name).
    deterministic: take steps with kernels that repeat their bits, for devices where that is not so anyway.
    """

    name: str
    model: nn.Module
    optimizer: MuonAdamW
    microbatches: Callable[[], Sequence[Batch]]
    loss: Callable[..., Tensor]
    num_steps: int
    warmup: float
    warmdown: float
    grad_clip: float
    save: Callable[[TrainState], None]
    resume_hint: str
    save_every: int = 0
    save_seconds: float | None = None
    progress: Callable[[int, str], None] = lambda step, phase: None
    deterministic: bool = False
    events: tuple[Event, ...] = ()
    log_every: int = 1
    flops_per_token: float | None = None
    peak_flops: float | None = None


def train(
    recipe: Recipe,
    state: TrainState,
    world: World,
    log: Callable[[dict], None],
    stop: StopRequests | None = None,
) -> TrainState:
    """Take steps until recipe.num_steps; returns the state, which also holds what a save needs on the way.

    Collective: every rank calls this. log gets one record a `log_every` steps. stop: entered already; None: this call's
    own. Raises StoppedError after a signal with everything saved, and NumericalError where three steps in a row are
    not finite.
    """
    if stop is None:
        with StopRequests(recipe.name, recipe.resume_hint) as own:
            return train(recipe, state, world, log, own)
    recipe.model.train()
    saved_step, saved_at = state.step, time.monotonic()
    skipped_in_a_row = 0
    stop.lost = lambda: _describe_lost(recipe, state.step, saved_step)
    stop.defer()
    if state.step > 0:
        _run_events(recipe, state)
    while state.step < recipe.num_steps:
        is_late = recipe.save_seconds is not None and time.monotonic() - saved_at >= recipe.save_seconds
        stopping, late = _any_rank(world, stop.requested, is_late)
        if late and not stopping and state.step != saved_step:
            _save(recipe, state)
            saved_step, saved_at = state.step, time.monotonic()
        if stopping:
            _stop(recipe, state, saved_step)
        started = time.perf_counter()
        with deterministic_kernels(recipe.deterministic):
            outcome = _take_step(recipe, state, world)
        _synchronize(world.device)
        seconds = time.perf_counter() - started
        state.seconds += seconds
        if outcome.skipped:
            state.skipped += 1
            skipped_in_a_row += 1
        elif outcome.loss is not None:
            skipped_in_a_row = 0
            state.smoothed_loss = smooth(state.smoothed_loss, outcome.loss)
        state.step += 1
        state.tokens += outcome.num_tokens
        last = state.step == recipe.num_steps
        if state.step % recipe.log_every == 0 or last or outcome.skipped:
            log(_record(recipe, state, outcome, seconds, world))
        if skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            _save(recipe, state)
            first = state.step - MAX_SKIPPED_IN_A_ROW + 1
            raise NumericalError(
                f"{recipe.name}: loss or gradient was not finite {MAX_SKIPPED_IN_A_ROW} steps in a row "
                f"(steps {first} to {state.step}); the weights before them are saved",
                f"nanochat config show, then try again with half of {recipe.name}.matrix_lr",
            )
        if last or (recipe.save_every and state.step % recipe.save_every == 0):
            _save(recipe, state)
            saved_step, saved_at = state.step, time.monotonic()
        _run_events(recipe, state)
    return state


@dataclass(frozen=True)
class _Outcome:
    loss: float | None  # mean nats a target; None where there was no target
    grad_norm: float | None
    lr: float  # the multiplier of the base rates
    num_tokens: int
    skipped: bool


def _take_step(recipe: Recipe, state: TrainState, world: World) -> _Outcome:
    """Forward, backward and one optimizer step over all micro-batches of all ranks."""
    optimizer = recipe.optimizer
    # The middle of the step: neither the first step of a warm-up nor the last of a warm-down is lost.
    lr = lr_multiplier((state.step + 0.5) / recipe.num_steps, recipe.warmup, recipe.warmdown)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * lr
        if group["kind"] == "muon":
            group["momentum"] = muon_momentum(state.step)
    recipe.progress(state.step, "data")
    batches = recipe.microbatches()
    recipe.progress(state.step, "step")
    counts = torch.tensor(
        [sum(int((batch.targets != IGNORED).sum()) for batch in batches), sum(batch.ids.numel() for batch in batches)],
        dtype=torch.float64 if world.device.type != "mps" else torch.float32,
        device=world.device,
    )
    num_targets, num_tokens = (int(value) for value in world.all_reduce_sum(counts).tolist())
    if num_targets == 0:  # nothing to learn from: not even momentum moves
        return _Outcome(None, None, lr, num_tokens, False)
    total = torch.zeros((), dtype=counts.dtype, device=world.device)
    for index, batch in enumerate(batches):
        ids = batch.ids.to(world.device, non_blocking=True)
        targets = batch.targets.to(world.device, non_blocking=True)
        weights = (batch.weights.to(world.device, non_blocking=True),) if isinstance(batch, WeightedBatch) else ()
        loss = recipe.loss(ids, targets, *weights) / num_targets
        with optimizer.reducing(last=index == len(batches) - 1):
            loss.backward()
        total += loss.detach()
    mean = world.all_reduce_sum(total).item()
    optimizer.reduce_gradients()
    grad_norm = optimizer.grad_norm().item()
    finite = math.isfinite(mean) and math.isfinite(grad_norm)
    if finite:
        if grad_norm > recipe.grad_clip:
            optimizer.scale_gradients(recipe.grad_clip / grad_norm)
        optimizer.step()
    recipe.model.zero_grad(set_to_none=True)
    return _Outcome(mean, grad_norm, lr, num_tokens, not finite)


def _record(recipe: Recipe, state: TrainState, outcome: _Outcome, seconds: float, world: World) -> dict:
    rate = outcome.num_tokens / seconds
    mfu = None
    if recipe.flops_per_token and recipe.peak_flops:
        mfu = rate * recipe.flops_per_token / (recipe.peak_flops * world.world_size)
    return {
        "step": state.step,
        "loss": outcome.loss,
        "smoothed_loss": state.smoothed_loss,
        "lr": outcome.lr,
        "tokens": state.tokens,
        "tokens_per_second": round(rate, 1),
        "mfu": mfu,
        "grad_norm": outcome.grad_norm,
        "seconds": round(state.seconds, 3),
        "skipped": state.skipped,
    }


def _save(recipe: Recipe, state: TrainState) -> None:
    recipe.progress(state.step, "save")
    recipe.save(state)


def _run_events(recipe: Recipe, state: TrainState) -> None:
    for event in recipe.events:
        if event.is_due(state.step, recipe.num_steps):
            recipe.progress(state.step, event.name)
            event.run(state)
    recipe.model.train()


def _stop(recipe: Recipe, state: TrainState, saved_step: int) -> None:
    if state.step != saved_step:
        _save(recipe, state)
    saved = "everything is saved" if state.step else "nothing was done yet"
    raise StoppedError(
        f"{recipe.name} stopped after step {state.step} of {recipe.num_steps}; {saved}", recipe.resume_hint
    )


def _describe_lost(recipe: Recipe, step: int, saved_step: int) -> str:
    if step == saved_step:
        return f"nothing but step {step + 1:,} is lost; continue with {recipe.resume_hint}"
    return f"{step - saved_step:,} steps since step {saved_step:,} are lost; continue with {recipe.resume_hint}"


def _any_rank(world: World, *flags: bool) -> list[bool]:
    """For each flag, True on every rank where any has it: all stop, or save, after the same step."""
    if world.world_size == 1:
        return list(flags)
    sums = world.all_reduce_sum(torch.tensor([float(flag) for flag in flags], device=world.device))
    return [value > 0 for value in sums.tolist()]


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _to_hex(tensor: Tensor) -> str:
    return tensor.cpu().numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8).clone()
