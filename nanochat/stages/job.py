"""A job: one stage of one run, with its settings checked and its machine chosen."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from nanochat.config.load import apply_wishes, read_override
from nanochat.config.settings import Settings
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.paths import RunPaths, Workspace
from nanochat.runtime import World
from nanochat.stages.display import Display
from nanochat.training.stop import StopRequests


@dataclass(frozen=True)
class Job:
    """What a stage is told.

    progress: takes where the work stands, for the watch over the ranks. stop: requests to stop, caught already; None:
    the loop catches its own. resume_command: what continues this stage. display: what people see.
    """

    workspace: Workspace
    run: RunPaths
    settings: Settings
    world: World
    dtype: torch.dtype
    dtype_reason: str
    resume_command: str = "nanochat resume"
    progress: Callable[[int, str], None] = lambda step, phase: None
    stop: StopRequests | None = None
    display: Display = field(default_factory=Display)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def rows(self) -> int:
        """Rows of a device, once `fit_batch` has found them."""
        rows = self.settings.batch.device_batch_size
        assert rows != "auto", "fit_batch comes first"
        return rows

    @property
    def is_deterministic(self) -> bool:
        """Whether training must choose its kernels; those of a CPU repeat their bits anyway."""
        return self.settings.runtime.deterministic and self.world.device.type == "cuda"

    def say(self, text: str) -> None:
        self.display.say(text)

    def advance(self, name: str, done: int, total: int, unit: str) -> None:
        """Tell people and the watch over the ranks how far `name` is."""
        self.progress(done, name)
        self.display.advance(name, done, total, unit)

    def with_settings(self, table: str, **values: Any) -> "Job":
        """The same job with other values in one table of its settings."""
        changed = getattr(self.settings, table).model_copy(update=values)
        return replace(self, settings=self.settings.model_copy(update={table: changed}))


def read_settings(path: Path, overrides: Sequence[str] = ()) -> tuple[Workspace, RunPaths, Settings]:
    """Read `<home>/runs/<run>/settings.json`, which names the workspace and the run by where it lies.

    overrides: `key=value`, on top of what is saved. Raises MissingError, DataError or UsageError with what is wrong.
    """
    path = path.absolute()
    if path.parent.parent.name != "runs":
        raise UsageError(f"{path} does not lie in <home>/runs/<run>", "nanochat run --preset demo")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        settings = Settings.model_validate(record["settings"])
        if overrides:
            settings, _ = apply_wishes(settings, [read_override(text) for text in overrides], {})
    except FileNotFoundError:
        raise MissingError(f"there is no {path}", "nanochat run --preset demo") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UsageError(f"{path}: {place}: {first['msg']}", "nanochat config validate") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "nanochat run --preset demo") from error
    return Workspace(path.parent.parent.parent), RunPaths(path.parent), settings
