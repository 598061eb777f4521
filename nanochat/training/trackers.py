"""The tracking process: `nanochat.training.trackers NAME STAGE_FOLDER`, started by tracking.py.

Follows the stage's metrics.jsonl and hands each record to one tracker, until stdin ends and the file is read. Each
start copies the file from its first line; each tracker sees to it that no step stands twice.
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nanochat.training.metrics import parse_records

POLL_SECONDS = 1.0
ORPHAN_SECONDS = 30.0
"""How long the process outlives a trainer that was killed: enough to finish, and it cannot stay for ever."""


class Tracker(Protocol):
    """Where records go. A step may come twice, with other names; steps never go down."""

    def log(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Identity:
    """What a tracker calls the stage. id: the same for all starts of this stage, and of no other."""

    run: str
    stage: str
    id: str
    settings: dict[str, Any]


class TensorBoardTracker:
    """Event files in <stage>/tensorboard, made anew: metrics.jsonl has all that was in them.

    Source: torch.utils.tensorboard.SummaryWriter; purge_step hides what a viewer that is open has read before.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        from torch.utils.tensorboard import SummaryWriter

        events = folder / "tensorboard"
        for old in events.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(events), purge_step=0, flush_secs=10)
        self._writer.add_text("settings", f"```\n{json.dumps(identity.settings, indent=1)}\n```", 0)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """One wandb run a stage, which a resumed run continues. Source: wandb.init(id=, resume="allow")."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        import wandb  # type: ignore[import-not-found]

        self._run = wandb.init(
            project="nanochat",
            id=identity.id,
            name=f"{identity.run}/{identity.stage}",
            group=identity.run,
            job_type=identity.stage,
            config=identity.settings,
            dir=str(folder),
            resume="allow",
            save_code=False,
            settings=wandb.Settings(console="off", disable_git=True),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        if step >= self._run.starting_step:  # what is before it was sent by an earlier start
            self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class TrackioTracker:
    """One trackio run a stage in $TRACKIO_DIR, made anew. Source: trackio.init, trackio.Api."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        import trackio  # type: ignore[import-not-found]

        try:
            earlier = [run for run in trackio.Api().runs("nanochat") if run.name == identity.stage]
        except ValueError:  # there is no such project yet
            earlier = []
        for run in earlier:
            run.delete()
        self._run = trackio.init(project="nanochat", name=identity.stage, config=identity.settings, embed=False)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Identity], Tracker]] = {
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
    "tensorboard": TensorBoardTracker,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy one stage's metrics until training ends; what a tracker raises is this process's end and traceback."""
    name, folder = sys.argv[1:] if arguments is None else arguments
    stage, ended = Path(folder), threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    with (stage / "tracking.lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the process that a killed trainer left behind is gone
        tracker = TRACKERS[name](stage, describe_stage(stage))
        for record in follow(stage / "metrics.jsonl", ended):
            values = select_numbers(record)
            if values:
                tracker.log(record["step"], values)
        tracker.close()
    return 0


def follow(path: Path, ended: threading.Event, poll_seconds: float = POLL_SECONDS) -> Iterator[dict]:
    """Yield the records of a JSON Lines file while it grows, until `ended` is set and the rest is read."""
    position, rest = 0, b""
    while True:
        last = ended.is_set()  # asked before reading: what is written before the end is read
        if path.is_file():
            with path.open("rb") as file:
                file.seek(position)
                rest += file.read()
                position = file.tell()
        *lines, rest = rest.split(b"\n")
        yield from parse_records(lines)
        if last:
            return
        ended.wait(poll_seconds)


def select_numbers(record: dict) -> dict[str, float]:
    """
    >>> select_numbers({"step": 3, "loss": 2.5, "mfu": None, "skipped": 0})
    {'loss': 2.5, 'skipped': 0}
    """
    numbers = {key: value for key, value in record.items() if type(value) in (int, float)}  # not bool
    return {key: value for key, value in numbers.items() if key != "step"}


def describe_stage(stage: Path) -> Identity:
    """Read the run's settings and this stage's id, which is made at the first start and stays in tracking.json."""
    path = stage / "tracking.json"
    identifier = _read_value(path, "id")
    if identifier is None:  # two machines may both have a `demo`
        identifier = f"{stage.parent.name}-{stage.name}-{uuid.uuid4().hex[:8]}"
        path.write_text(json.dumps({"id": identifier}) + "\n", encoding="utf-8")
    settings = _read_value(stage.parent / "settings.json", "settings") or {}
    return Identity(stage.parent.name, stage.name, identifier, settings)


def _read_value(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _wait_for_end(ended: threading.Event) -> None:
    """Set `ended` when the trainer has closed its end or has died; then see that this process ends, too."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    ended.set()
    time.sleep(ORPHAN_SECONDS)
    if os.getpgrp() == os.getpid():  # the leader of a session of its own: take the tracker's helpers along
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
