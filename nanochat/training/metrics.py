"""Records of a stage as JSON Lines: its metrics, and the answers that practice samples. Knows no tensors.

Both can be read while they grow, and are cut back to the step that a resume starts from.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanochat.errors import DataError
from nanochat.files import disk_errors, sync_file, write_atomically

MAX_TEXT_CHARS = 4_000
"""Of a sampled answer or its question: bounds what a step takes on the disk."""
NUMBERS = ("step", "question", "sample", "reward", "advantage", "tokens")
"""What the record of every sampled answer must have as a number; its texts may be anything."""
SMOOTHING = 0.9  # of the running mean: its memory is about ten logged steps


class MetricsFile:
    """A JSON Lines file of records that carry a "step"."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict) -> None:
        """Write one line and flush it; numbers that JSON does not know become null.

        Raises CapacityError if the disk is full and DataError if it fails: a run without its record is no run, and a
        resume takes the steps since the newest checkpoint again.
        """
        with disk_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: _finite(value) for key, value in record.items()}) + "\n")

    def sync(self) -> None:
        """Bring every line down to the disk: before a checkpoint, which must not know more steps than the record."""
        with disk_errors(self.path.parent):
            if self.path.is_file():
                with self.path.open("rb") as file:
                    sync_file(file.fileno())

    def read(self) -> list[dict]:
        """Every whole record."""
        try:
            return list(parse_records(self.path.read_text(encoding="utf-8", errors="replace").splitlines()))
        except FileNotFoundError:  # none yet, or a run that starts again has just forgotten its steps
            return []

    def truncate(self, step: int) -> None:
        """Forget everything after `step`: the steps that a resumed run takes again."""
        if not self.path.is_file():
            return
        kept = [json.dumps(record) for record in self.read() if record["step"] <= step]
        if kept:
            write_atomically(self.path, "\n".join(kept))
        else:
            self.path.unlink()

    def value_at(self, step: int, key: str) -> float | None:
        """The last value of `key` that was written for `step`."""
        return self.values(key).get(step)

    def values(self, key: str) -> dict[int, float]:
        """The last value of `key` by step, where one was written."""
        return {record["step"]: record[key] for record in self.read() if record.get(key) is not None}


def parse_records(lines: Iterable[str | bytes]) -> Iterator[dict]:
    """The records of lines that have a step; a line that a crash cut short is left out."""
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield record


class RolloutFiles:
    """`<folder>/step_000001.jsonl` and so on: the answers of a step, replaced whole, so none ever stands twice.

    keep: newest steps that stay; 0: nothing is written.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}.jsonl"

    def steps(self) -> list[int]:
        """Steps that have a file, the oldest first."""
        found = (re.fullmatch(r"step_(\d+)\.jsonl", path.name) for path in self.folder.glob("step_*.jsonl"))
        return sorted(int(match[1]) for match in found if match)

    def write(self, step: int, records: Sequence[dict[str, Any]]) -> None:
        """Write the answers of a step and delete the files of steps that are too old.

        Raises CapacityError if the disk is full and DataError if it fails.
        """
        if not self.keep:
            return
        lines = (
            json.dumps(
                {key: value[:MAX_TEXT_CHARS] if isinstance(value, str) else value for key, value in record.items()}
            )
            for record in records
        )
        write_atomically(self.path(step), "\n".join(lines))
        with disk_errors(self.folder):
            for old in self.steps()[: -self.keep]:
                self.path(old).unlink(missing_ok=True)

    def truncate(self, step: int) -> None:
        """As of MetricsFile."""
        with disk_errors(self.folder):
            for later in self.steps():
                if later > step:
                    self.path(later).unlink(missing_ok=True)

    def read(self, step: int, hint: str = "nanochat rl show") -> list[dict[str, Any]]:
        """The answers of a step, at least one. Raises DataError, with the hint, where its file is absent or damaged."""
        path = self.path(step)
        try:
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}", hint) from None
        if not records:
            raise DataError(f"{path} is empty", hint)
        for number, record in enumerate(records, start=1):
            values = record if isinstance(record, dict) else {}
            wrong = [key for key in NUMBERS if not isinstance(values.get(key), int | float)]
            if wrong:
                raise DataError(f"{path}: answer {number} has no number as its {wrong[0]!r}", hint)
        return records


def smooth(previous: float | None, value: float) -> float:
    """The running mean after one more value.

    >>> round(smooth(2.0, 1.0), 3)
    1.9
    """
    return value if previous is None else SMOOTHING * previous + (1.0 - SMOOTHING) * value


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
