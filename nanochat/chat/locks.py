"""Which answers are being written by another program: a lock for each, which a kill gives back.

A byte of one file stands for an answer; the system's record locks (fcntl, POSIX) belong to a process, not to a thread.
"""

import fcntl
import os
import time
from pathlib import Path

_FILES: dict[Path, int] = {}
"""Open for as long as the process lives: to close any descriptor of a file gives all of its locks back."""


class AnswerLocks:
    """Locks beside a file of conversations. path: None has no other programs. A disk without locks has none either."""

    def __init__(self, path: Path | None) -> None:
        self._path = path.with_name(f"{path.name}-answers") if path is not None else None
        self._held: set[int] = set()

    def hold(self, message: int) -> None:
        """This program writes the answer from now on."""
        self._held.add(message)
        for _ in range(20):  # somebody who asks takes it for a moment
            if self._lock(message, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return
            time.sleep(0.005)

    def release(self, message: int) -> None:
        self._held.discard(message)
        self._lock(message, fcntl.LOCK_UN)

    def is_elsewhere(self, message: int) -> bool:
        """Whether another program writes it."""
        if message in self._held or self._path is None or not self._path.exists():
            return False
        if not self._lock(message, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return True
        self._lock(message, fcntl.LOCK_UN)
        return False

    def _lock(self, message: int, kind: int) -> bool:
        """False where another program has it."""
        if self._path is None:
            return True
        try:
            file = _FILES.get(self._path)
            if file is None or os.fstat(file).st_nlink == 0:
                file = _FILES[self._path] = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.lockf(file, kind, 1, message)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, as POSIX lets a system choose
            return False
        except OSError:  # no locks here: nobody can be asked
            return True
        return True
