"""What goes wrong on the way to a server, how long to keep trying, and when to stop.

Knows no protocol and no file.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from threading import Event
from time import monotonic, time
from typing import TypeVar

from nanochat.errors import DataError

Result = TypeVar("Result")


class Fault(Exception):
    """An attempt failed in a way that another may not. wait_seconds: what the server asks for, if anything."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_seconds = wait_seconds


class WrongContentError(Fault):
    """All bytes came and they are not those that were promised."""


class StoppedFetchError(Exception):
    """The work was called off: by the user, by a full disk, or because nothing gets through."""


@dataclass(frozen=True)
class Patience:
    """How long to keep trying.

    attempts: in a row without progress. wrong_contents: times a whole file may come with other bytes than promised.
    first_wait_seconds doubles up to longest_wait_seconds; a server that asks for more than that is not waited for.
    A connection that brings fewer than slow_bytes in slow_seconds is dropped, and its bytes are kept.
    """

    attempts: int = 6
    wrong_contents: int = 3
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    slow_bytes: int = 30_000
    slow_seconds: float = 30.0

    def wait_seconds(self, failures: int, asked_seconds: float | None) -> float:
        """Seconds before the next attempt after so many failures in a row; a little random, so that peers spread.

        Raises DataError where the server asks for more than longest_wait_seconds.
        """
        if asked_seconds is not None:
            if asked_seconds > self.longest_wait_seconds:
                raise DataError(f"the server asks to wait {asked_seconds:,.0f} seconds")
            return asked_seconds
        wait = min(self.first_wait_seconds * 2 ** (failures - 1), self.longest_wait_seconds)
        return wait * random.uniform(0.75, 1.25)


class Pace:
    """Whether a connection still brings enough."""

    def __init__(self, patience: Patience) -> None:
        self.patience, self._start, self._bytes = patience, monotonic(), 0

    def take(self, num_bytes: int) -> None:
        """Count bytes that came. Raises Fault where those of the last slow_seconds were too few."""
        self._bytes += num_bytes
        seconds = monotonic() - self._start
        if seconds > self.patience.slow_seconds:
            if self._bytes < self.patience.slow_bytes:
                raise Fault(f"brings less than {self.patience.slow_bytes / seconds:,.0f} bytes a second")
            self._start, self._bytes = monotonic(), 0


def persist(
    attempt: Callable[[], Result],
    patience: Patience,
    stop: Event,
    note: Callable[[str], None],
    has_progressed: Callable[[], bool] = lambda: False,
) -> Result:
    """Repeat an attempt until it returns. note: is told the reason of each failure that another attempt follows.

    has_progressed: whether the attempt that failed brought enough for the count of failures to begin again.
    Raises DataError where patience ends and StoppedFetchError where stop is set.
    """
    failures = wrong = 0
    while True:
        if stop.is_set():
            raise StoppedFetchError
        try:
            return attempt()
        except Fault as fault:
            wrong += isinstance(fault, WrongContentError)
            failures = 1 if has_progressed() and not isinstance(fault, WrongContentError) else failures + 1
            if failures >= patience.attempts or wrong >= patience.wrong_contents:
                times = f" ({failures} times in a row)" if failures > 1 else ""
                raise DataError(f"{fault.reason}{times}") from fault
            wait = patience.wait_seconds(failures, fault.wait_seconds)
            note(fault.reason)
        if stop.wait(wait):
            raise StoppedFetchError


def read_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds a number or a date; None where it says nothing.

    >>> read_retry_after("7"), read_retry_after("soon"), read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT")
    (7.0, None, 0.0)
    """
    text = (value or "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (TypeError, ValueError, OverflowError):
        return None
