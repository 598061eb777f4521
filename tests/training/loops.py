"""A training made of functions, for tests of the loop alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nanochat.data.batch import Batch
from nanochat.model.optim import MuonAdamW
from nanochat.runtime import World
from nanochat.training import loop
from nanochat.training.loop import Pace, TrainState
from nanochat.training.stop import StopRequests


@dataclass(frozen=True)
class Event:
    name: str
    every: int
    run: Callable[[TrainState], None]


@dataclass
class Recipe:
    name: str
    model: nn.Module
    optimizer: MuonAdamW
    microbatches: Callable[[], Sequence[Any]]
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
    events: tuple[Event, ...] = field(default=())
    log_every: int = 1
    flops_per_token: float | None = None
    peak_flops: float | None = None


class _Training(loop.Training):
    def __init__(self, recipe: Recipe, state: TrainState, world: World, log: Callable[[dict], None]) -> None:
        self.recipe, self.state, self.world, self.log = recipe, state, world, log  # type: ignore[method-assign]
        self.name, self.model, self.optimizer = recipe.name, recipe.model, recipe.optimizer
        self.pace = Pace(
            recipe.num_steps,
            recipe.warmup,
            recipe.warmdown,
            recipe.grad_clip,
            recipe.resume_hint,
            recipe.save_every,
            recipe.save_seconds,
            log_every=recipe.log_every,
            flops_per_token=recipe.flops_per_token,
            peak_flops=recipe.peak_flops,
        )

    def microbatches(self) -> Sequence[Batch]:
        return self.recipe.microbatches()

    def loss(self, ids: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
        return self.recipe.loss(ids, targets, *weights)

    def save(self) -> None:
        self.recipe.save(self.state)

    def log(self, record: dict[str, Any]) -> None: ...

    def events(self) -> list[loop.Event]:
        state = self.state
        return [loop.Event(e.name, e.every, lambda run=e.run: run(state)) for e in self.recipe.events]

    def progress(self, step: int, phase: str) -> None:
        self.recipe.progress(step, phase)


def train(
    recipe: Recipe,
    state: TrainState,
    world: World,
    log: Callable[[dict], None],
    stop: StopRequests | None = None,
) -> TrainState:
    loop.train(_Training(recipe, state, world, log), stop)
    return state
