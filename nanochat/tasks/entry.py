"""An entry of a mixture: a task's name, which of its examples, how many times. Knows no task."""

import re
from typing import NamedTuple

from nanochat.errors import UsageError

ENTRY = re.compile(r"(?P<name>.+?)(?P<part>(?::\d*){1,3})?(?:\*(?P<times>\d+))?")
NAME = re.compile(r"custom:.+|[^:*]+(?::[A-Za-z_]\w*)?")
CUSTOM = "custom:"


class Entry(NamedTuple):
    """part: which examples, as in Python."""

    name: str
    part: slice
    times: int

    @property
    def count(self) -> int | None:
        """The number of examples that the part asks for; None: all, or all from some place on."""
        start, stop, step = self.part.start, self.part.stop, self.part.step
        return None if stop is None else len(range(start or 0, stop, step or 1))


def parse_spec(spec: str) -> Entry:
    """Split a mixture's entry into name, part and repetitions. Raises UsageError where it cannot be read or is empty.

    >>> parse_spec("letters:5000")
    Entry(name='letters', part=slice(None, 5000, None), times=1)
    >>> parse_spec("mine.py:Reversal:100:2000:2*3")
    Entry(name='mine.py:Reversal', part=slice(100, 2000, 2), times=3)
    """
    match = ENTRY.fullmatch(spec.strip())
    numbers = [int(text) if text else None for text in (match["part"] or "").split(":")[1:]] if match else []
    if len(numbers) == 1:
        numbers = [None, *numbers] if numbers[0] is not None else [0, 0]  # `name:` says nothing
    part = slice(*numbers) if numbers else slice(None)
    times = int(match["times"] or 1) if match else 0
    if not match or not NAME.fullmatch(match["name"]) or part.step == 0 or times == 0:
        raise _refuse(spec)
    entry = Entry(match["name"], part, times)
    if entry.count == 0:
        raise _refuse(spec)
    return entry


def _refuse(spec: str) -> UsageError:
    return UsageError(
        f"mixture entry {spec!r} is not NAME, NAME:STOP or NAME*TIMES, nor NAME:START:STOP:STEP",
        "for example letters:5000, gsm8k:1000:7000:2 or identity*100",
    )
