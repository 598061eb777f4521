"""A thread that says that this rank lives, and ends it soon after another one has failed or hangs.

A process stuck in a collective hears no signal and raises no error; its watch still runs.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from nanochat.errors import StoppedError
from nanochat.launch.marks import (
    HangLimits,
    RankMark,
    end_mark,
    explain_hang,
    find_failed,
    new_mark,
    read_marks,
    write_mark,
)

BEAT_SECONDS = 1.0
GRACE_SECONDS = 4.0  # for a rank's own error, which says more, once another rank has ended
SILENT_SECONDS = 60.0  # a healthy process beats every second, whatever its main thread does
LATE_SECONDS = 15.0  # after a beat so late this process was stopped itself, and what it knows of the others is old
LOST_EXIT_CODE = 4


class RankWatch:
    """The mark of one rank while it works. Use as a context manager; where it is not used it does nothing.

    folder: of the stage's logs. is_used: a launcher reads the marks. hang_seconds: after so long without progress the
    ranks that are waited for are named, and all of them end. launch: the launcher's word for it. Leaving with an error
    ends the process: what torch would do in order can block for ever.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        is_used: bool,
        hang_seconds: float = float("inf"),
        launch: str = "",
    ) -> None:
        self.folder, self.is_used, self.hang_seconds = folder, is_used, hang_seconds
        self._mark = new_mark(rank, world_size, time.time(), launch)
        self._progressed = time.monotonic()
        self._lock = threading.Lock()  # of the mark: never held while a file is written, which may take long
        self._writing = threading.Lock()
        self._ended = threading.Event()
        self._is_joined = False

    def __enter__(self) -> "RankWatch":
        if self.is_used:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write()
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def join(self) -> None:
        """From now on the others' marks are of this launch: every rank has written one before the world was open."""
        self._is_joined = True

    def progress(self, step: int, phase: str) -> None:
        """Say where the main thread is: how many steps are done, and what it does next."""
        with self._lock:
            self._mark = replace(self._mark, step=step, phase=phase, since=time.time())
            self._progressed = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_used:
            return
        if isinstance(error, SystemExit) and not error.code:
            error = None
        if not self._set_end(error):
            return
        is_written = self._write()
        if error is not None:
            self._leave(is_written)

    def _set_end(self, error: BaseException | None, is_echo: bool = False) -> bool:
        """Make the last mark; False where the other thread has been first."""
        with self._lock:
            if self._ended.is_set():
                return False
            self._ended.set()
            self._mark = end_mark(self._mark, error, time.time(), is_echo)
        return True

    def _leave(self, is_written: bool) -> None:
        """End the process. Status 0 where torchrun should not start the ranks again: the launcher reads the marks.

        is_written: whether it can read this one's. What an echo follows has written its mark before it let go of the
        connection.
        """
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        cause = self._mark
        if cause.is_echo and self._is_joined:
            cause = next(iter(find_failed([mark for mark in read_marks(self.folder) if not mark.is_echo])), cause)
        is_final = cause.status == "stopped" or (cause.status == "failed" and cause.is_final)
        os._exit(0 if is_final and is_written and not cause.is_echo else self._mark.exit_code or 1)

    def _write(self) -> bool:
        """Write the mark as it is now: the last writer writes the newest. A full disk must not end a healthy rank."""
        with self._writing:
            with self._lock:
                mark = self._mark
            return write_mark(self.folder, mark)

    def _watch(self) -> None:
        started = beaten = time.monotonic()
        ended_since = None
        heard = _Heard()
        while not self._ended.wait(BEAT_SECONDS):
            now = time.monotonic()
            with self._lock:
                if now - beaten > LATE_SECONDS:
                    self._progressed = now
                self._mark = own = replace(self._mark, beat=time.time())
                stuck = now - self._progressed
            if now - beaten > LATE_SECONDS:
                started, heard = started + now - beaten, _Heard()
            beaten = now
            self._write()
            if not self._is_joined:
                if now - started > self.hang_seconds:
                    self._hang(f"the other ranks have not been met in {now - started:.0f} s")
                continue
            peers = [mark for mark in read_marks(self.folder) if mark.rank != own.rank]
            failed, stopped = find_failed(peers), [mark for mark in peers if mark.status == "stopped"]
            if failed or stopped:
                ended_since = ended_since or now
                if now - ended_since > GRACE_SECONDS:
                    self._follow(is_stop=not failed)
                continue
            ended_since = None
            limits = HangLimits(min(SILENT_SECONDS, self.hang_seconds), self.hang_seconds)
            reason = explain_hang(peers, own, heard.listen(peers, now), stuck, limits)
            if reason:
                self._hang(reason)

    def _hang(self, reason: str) -> None:
        if self._set_end(_HangError(reason)):
            self._leave(self._write())

    def _follow(self, is_stop: bool) -> None:
        """End after a rank that stopped, or as an echo of one that failed."""
        error = StoppedError("stopped with the other ranks") if is_stop else ConnectionError("another rank has failed")
        if self._set_end(error, is_echo=not is_stop):
            self._leave(self._write())


class _Heard:
    """When this process last saw a new beat of each other rank, by its own clock."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, float]] = {}

    def listen(self, peers: Sequence[RankMark], now: float) -> dict[int, float]:
        """Seconds since the last new beat, by rank."""
        for mark in peers:
            beat, _ = self._last.get(mark.rank, (None, now))
            if beat != mark.beat:
                self._last[mark.rank] = (mark.beat, now)
        return {rank: now - seen for rank, (_, seen) in self._last.items()}


class _HangError(Exception):
    exit_code = LOST_EXIT_CODE

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
