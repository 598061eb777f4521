"""Metrics: one JSON line a log, readable while it grows and cut back to the step that a resume starts from."""

import json
import math
from pathlib import Path

from nanochat.files import disk_errors, sync_file, write_atomically

SMOOTHING = 0.9  # of the running mean: its memory is about ten logged steps


class MetricsFile:
    """A JSON Lines file of records that carry a "step"."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict) -> None:
        """Write one line and flush it; numbers that JSON does not know become null.

        Raises CapacityError where the disk is full and DataError where it fails: a run without its record is no run,
        and it loses nothing, for a resume takes the steps since the newest checkpoint again.
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
        """Every whole record; a line that a crash cut short is left out."""
        try:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:  # none yet, or a run that starts again has just forgotten its steps
            return []
        records = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
        return records

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


def smooth(previous: float | None, value: float) -> float:
    """The running mean after one more value.

    >>> round(smooth(2.0, 1.0), 3)
    1.9
    """
    return value if previous is None else SMOOTHING * previous + (1.0 - SMOOTHING) * value


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
