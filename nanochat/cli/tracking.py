"""`--track NAME`: shorthand for a setting, and the check that the tracker's package is there before training starts."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated

import typer

from nanochat.errors import MissingError

Track = Annotated[
    str | None,
    typer.Option("--track", metavar="NAME", help="Copy the metrics to wandb, trackio, tensorboard, or none of them."),
]


def add_track(overrides: Sequence[str] | None, track: str | None) -> list[str]:
    """
    >>> add_track(["base.num_steps=3"], "wandb")
    ['base.num_steps=3', 'runtime.track=wandb']
    """
    return [*(overrides or ()), *([f"runtime.track={track}"] if track is not None else [])]


def check_tracker(name: str | None) -> None:
    """Raise MissingError where the tracker's package is not installed; it is not loaded."""
    if name is None:
        return
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # no origin: only a folder of that name, such as wandb leaves behind
        raise MissingError(
            f"runtime.track = {name!r}, but the package {name} is not installed",
            f"pip install {name}  # or go on without it: --track none",
        )
