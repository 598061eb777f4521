"""The one optimizer loop for base, mid, sft and rl: accumulation, schedule, step, finite check, stop, save and log.

Knows no preset, no checkpoint format, no evaluation and no engine: what differs is a method of Training.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.data.batch import IGNORED, Batch, WeightedBatch
from nanochat.errors import NumericalError, StoppedError
from nanochat.model.optim import MuonAdamW
from nanochat.runtime import World, deterministic_kernels
from nanochat.training.metrics import smooth
from nanochat.training.stop import StopRequests

MAX_SKIPPED_IN_A_ROW = 3
MUON_MOMENTUM = (0.85, 0.95)  # from, to: product facts, "Optimization"
MUON_MOMENTUM_STEPS = 300


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
    """Where the data continues; set when the state is saved."""
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
    run: Callable[[], None]

    def is_due(self, step: int, num_steps: int) -> bool:
        return step >= num_steps or (self.every > 0 and step > 0 and step % self.every == 0)


@dataclass(frozen=True)
class Pace:
    """The numbers of a training: how far, at what rates, and how often something is said or saved.

    save_every: steps between two saves, 0: only after the last step; save_seconds: or whenever so much time has passed.
    deterministic: take steps with kernels that repeat their bits. flops_per_token and peak_flops: for the MFU.
    resume_command: what continues it, for hints.
    """

    num_steps: int
    warmup: float
    warmdown: float
    grad_clip: float
    resume_command: str
    save_every: int = 0
    save_seconds: float | None = None
    deterministic: bool = False
    log_every: int = 1
    flops_per_token: float | None = None
    peak_flops: float | None = None


class Training(ABC):
    """What `train` trains: a stage gives it the attributes and overrides the methods. state is changed in place."""

    name: str
    model: nn.Module
    optimizer: MuonAdamW
    state: TrainState
    world: World
    pace: Pace

    @abstractmethod
    def microbatches(self) -> Sequence[Batch | WeightedBatch]:
        """This rank's micro-batches of the next step; none only if no rank has any."""

    @abstractmethod
    def loss(self, ids: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
        """Summed nats of one micro-batch over its targets, a float32 scalar. weights: of a WeightedBatch."""

    @abstractmethod
    def save(self) -> None:
        """Write a checkpoint; always before the events of a step."""

    def events(self) -> Sequence[Event]:
        """What is done after some of the steps, in this order."""
        return ()

    @abstractmethod
    def log(self, record: dict[str, Any]) -> None:
        """Take a record of the step that was just taken, every `log_every` steps."""

    @abstractmethod
    def progress(self, step: int, phase: str) -> None:
        """Hear what comes next: how many steps are done, and "data", "step", "save" or an event's name."""


def train(training: Training, stop: StopRequests | None = None) -> None:
    """Take steps until pace.num_steps. Collective: every rank calls this.

    stop: entered already; None: this call's own. Raises StoppedError after a signal, with everything saved, and
    NumericalError if three steps in a row are not finite.
    """
    pace, state, world = training.pace, training.state, training.world
    if stop is None:
        with StopRequests(training.name, pace.resume_command) as own:
            return train(training, own)
    training.model.train()
    saved_step, saved_at = state.step, time.monotonic()
    skipped_in_a_row = 0
    stop.lost = lambda: _describe_lost(pace, state.step, saved_step)
    stop.defer()
    if state.step > 0:
        _run_events(training)
    while state.step < pace.num_steps:
        is_late = pace.save_seconds is not None and time.monotonic() - saved_at >= pace.save_seconds
        stopping, late = _any_rank(world, stop.requested, is_late)
        if late and not stopping and state.step != saved_step:
            _save(training)
            saved_step, saved_at = state.step, time.monotonic()
        if stopping:
            _stop(training, saved_step)
        started = time.perf_counter()
        with deterministic_kernels(pace.deterministic):
            outcome = _take_step(training)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
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
        last = state.step == pace.num_steps
        if state.step % pace.log_every == 0 or last or outcome.skipped:
            training.log(_record(training, outcome, seconds))
        if skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            _give_up(training)
        if last or (pace.save_every and state.step % pace.save_every == 0):
            _save(training)
            saved_step, saved_at = state.step, time.monotonic()
        _run_events(training)


@dataclass(frozen=True)
class _Outcome:
    loss: float | None  # mean nats a target; None if there was no target
    grad_norm: float | None
    lr: float  # the multiplier of the base rates
    num_tokens: int
    skipped: bool


def _take_step(training: Training) -> _Outcome:
    """Forward, backward and one optimizer step over all micro-batches of all ranks."""
    optimizer, state, world, pace = training.optimizer, training.state, training.world, training.pace
    # The middle of the step: neither the first step of a warm-up nor the last of a warm-down is lost.
    lr = lr_multiplier((state.step + 0.5) / pace.num_steps, pace.warmup, pace.warmdown)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * lr
        if group["kind"] == "muon":
            group["momentum"] = muon_momentum(state.step)
    training.progress(state.step, "data")
    batches = training.microbatches()
    training.progress(state.step, "step")
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
        loss = training.loss(ids, targets, *weights) / num_targets
        with optimizer.reducing(last=index == len(batches) - 1):
            loss.backward()
        total += loss.detach()
    mean = world.all_reduce_sum(total).item()
    optimizer.reduce_gradients()
    grad_norm = optimizer.grad_norm().item()
    finite = math.isfinite(mean) and math.isfinite(grad_norm)
    if finite:
        if grad_norm > pace.grad_clip:
            optimizer.scale_gradients(pace.grad_clip / grad_norm)
        optimizer.step()
    training.model.zero_grad(set_to_none=True)
    return _Outcome(mean, grad_norm, lr, num_tokens, not finite)


def lr_multiplier(progress: float, warmup: float, warmdown: float) -> float:
    """Multiplier of the base rates at `progress` in [0, 1]: linear up, constant, linear to 0.

    warmup, warmdown: shares of the whole, each in [0, 1]; where they overlap the smaller multiplier counts.

    >>> [round(lr_multiplier(p, warmup=0.1, warmdown=0.2), 3) for p in (0.0, 0.05, 0.5, 0.8, 0.9, 1.0)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rising = 1.0 if warmup == 0 else progress / warmup
    falling = 1.0 if warmdown == 0 else (1.0 - progress) / warmdown
    return max(0.0, min(1.0, rising, falling))


def muon_momentum(step: int) -> float:
    """Muon's momentum at a step: 0.85 rising linearly to 0.95 over the first 300 steps.

    >>> [round(muon_momentum(step), 3) for step in (0, 150, 300, 1000)]
    [0.85, 0.9, 0.95, 0.95]
    """
    start, end = MUON_MOMENTUM
    share = min(1.0, step / MUON_MOMENTUM_STEPS)
    return (1.0 - share) * start + share * end


def _record(training: Training, outcome: _Outcome, seconds: float) -> dict[str, Any]:
    state, pace = training.state, training.pace
    rate = outcome.num_tokens / seconds
    mfu = None
    if pace.flops_per_token and pace.peak_flops:
        mfu = rate * pace.flops_per_token / (pace.peak_flops * training.world.world_size)
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


def _save(training: Training) -> None:
    training.progress(training.state.step, "save")
    training.save()


def _run_events(training: Training) -> None:
    state = training.state
    for event in training.events():
        if event.is_due(state.step, training.pace.num_steps):
            training.progress(state.step, event.name)
            event.run()
    training.model.train()


def _give_up(training: Training) -> None:
    _save(training)
    step, name = training.state.step, training.name
    raise NumericalError(
        f"{name}: loss or gradient was not finite {MAX_SKIPPED_IN_A_ROW} steps in a row "
        f"(steps {step - MAX_SKIPPED_IN_A_ROW + 1} to {step}); the weights before them are saved",
        f"nanochat config show, then try again with half of {name}.matrix_lr",
    )


def _stop(training: Training, saved_step: int) -> None:
    step, pace = training.state.step, training.pace
    if step != saved_step:
        _save(training)
    saved = "everything is saved" if step else "nothing was done yet"
    raise StoppedError(f"{training.name} stopped after step {step} of {pace.num_steps}; {saved}", pace.resume_command)


def _describe_lost(pace: Pace, step: int, saved_step: int) -> str:
    lost = f"{step - saved_step:,} steps since step {saved_step:,} are lost"
    if step == saved_step:
        lost = f"nothing but step {step + 1:,} is lost"
    return f"{lost}; continue with {pace.resume_command}"


def _any_rank(world: World, *flags: bool) -> list[bool]:
    """For each flag, True on every rank where any has it: all stop, or save, after the same step."""
    if world.world_size == 1:
        return list(flags)
    sums = world.all_reduce_sum(torch.tensor([float(flag) for flag in flags], device=world.device))
    return [value > 0 for value in sums.tolist()]


def _to_hex(tensor: Tensor) -> str:
    return tensor.cpu().numpy().tobytes().hex()


def _from_hex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8).clone()
