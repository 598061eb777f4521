"""Requests to stop: the signals of a terminal, a scheduler and a preemption, as one flag that the loop looks at."""

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from nanochat.errors import InterruptError, StoppedError

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
"""Ctrl-C; kill, a preemption or a scheduler's limit; its warning before that; a closed terminal."""
INTERRUPTED = InterruptError.exit_code


class StopRequests:
    """Turn the first signal into `requested`; a second Ctrl-C leaves at once. Use as a context manager.

    Until `defer()` the first signal raises StoppedError: nothing has been done that could be lost. name: what stops.
    say: prints a line. is_resumable: whether it can continue where it stopped; if not, the first signal raises
    InterruptError.
    """

    def __init__(
        self, name: str, resume_hint: str = "", say: Callable[[str], None] | None = None, is_resumable: bool = True
    ) -> None:
        self.name, self.resume_hint, self.is_resumable = name, resume_hint, is_resumable
        self.requested = False
        self.lost: Callable[[], str] = lambda: "nothing is lost"
        """What leaving right now would lose, as a phrase."""
        self._say = say or (lambda text: None)
        self._is_deferred = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) is signal.SIG_IGN and number == getattr(signal, "SIGHUP", None):
                continue  # nohup
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: a test or an embedding program keeps its own handlers
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on only the flag is set: someone looks at it between steps."""
        self._is_deferred = True

    def leave(self) -> None:
        """Raise what the first signal raises where nobody looks at the flag. Whoever swallowed it calls this."""
        if not self.is_resumable:
            raise InterruptError(f"{self.name} was interrupted; what it had finished is kept", self.resume_hint)
        if not self._is_deferred:
            raise StoppedError(f"{self.name} stopped before its first step; nothing is lost", self.resume_hint)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
            self.leave()
            if number == signal.SIGINT:
                self._say("stopping after this step; Ctrl-C once more leaves without saving")
        elif number == signal.SIGINT:
            self._say(f"left without saving: {self.lost()}")
            os._exit(INTERRUPTED)
