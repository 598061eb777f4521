"""Sampled answers on disk: a JSON Lines file a step, replaced whole, the newest steps only.

A step that is taken again after a crash replaces its file, so no answer ever stands twice. Knows no tensors.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.errors import DataError
from nanochat.files import disk_errors, write_atomically

MAX_TEXT_CHARS = 4_000
"""Of a question or an answer: bounds what a step takes on the disk."""


NUMBERS = ("step", "question", "sample", "reward", "advantage", "tokens")
"""What every record must have as a number; its texts may be anything."""


class RolloutFiles:
    """`<folder>/step_000001.jsonl` and so on. keep: newest steps that stay; 0: nothing is written."""

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

        Raises CapacityError where the disk is full and DataError where it fails.
        """
        if not self.keep:
            return
        write_atomically(self.path(step), "\n".join(json.dumps(_cut(record)) for record in records))
        with disk_errors(self.folder):
            for old in self.steps()[: -self.keep]:
                self.path(old).unlink(missing_ok=True)

    def truncate(self, step: int) -> None:
        """Forget everything after `step`: the steps that a resumed run takes again."""
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
            wrong = [key for key in NUMBERS if not isinstance(record, dict) or not _is_number(record.get(key))]
            if wrong:
                raise DataError(f"{path}: answer {number} has no number as its {wrong[0]!r}", hint)
        return records


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _cut(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value[:MAX_TEXT_CHARS] if isinstance(value, str) else value for key, value in record.items()}
