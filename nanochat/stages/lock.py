"""The lock of a run: two processes never write one run directory at once."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from nanochat.errors import UsageError
from nanochat.paths import RunPaths


@contextmanager
def lock_run(run: RunPaths) -> Iterator[None]:
    """Hold the run's lock. Raises UsageError, naming the process, where another one holds it.

    The system releases it when the process ends, however it ends, so there is no stale lock to clean up.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    with run.lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UsageError(
                f"run {run.name!r} is in use by process {holder}",
                f"nanochat runs show {run.name}  # or wait for it to end",
            ) from None
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()
