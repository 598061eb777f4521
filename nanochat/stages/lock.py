"""The lock of a run: two processes never write one run directory at once."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from nanochat.errors import DataError, UsageError
from nanochat.files import disk_errors, try_lock
from nanochat.paths import RunPaths

HOLD = ".evaluating"
"""Beside the lock of a run: locked by all that evaluate it."""


def find_holder(run: RunPaths) -> str:
    """The id of the process that holds the run's lock; "" if none does. Leaves the lock as it is."""
    try:
        with run.lock.open("r", encoding="utf-8") as file:
            if not try_lock(file, shared=True):
                return file.read().strip() or "unknown"
    except OSError:  # no lock yet, or none to be had here
        pass
    return ""


def name_holder(run: RunPaths, holder: str) -> UsageError:
    """The error for a run that another process writes."""
    return UsageError(
        f"run {run.name!r} is in use by process {holder}", f"nanochat runs show {run.name}  # or wait for it to end"
    )


@contextmanager
def hold_run(run: RunPaths) -> Iterator[None]:
    """Keep a run from being removed; any number of processes may, and training continues beside them."""
    with ExitStack() as stack:
        with suppress(OSError):  # no locks here, or nothing may be written
            try_lock(stack.enter_context((run.root / HOLD).open("a+", encoding="utf-8")), shared=True)
        yield


def check_unused(run: RunPaths) -> None:
    """Raise UsageError if an evaluation reads the run."""
    try:
        with (run.root / HOLD).open("r", encoding="utf-8") as file:
            is_unused = try_lock(file)
    except OSError:  # never evaluated, or no locks here
        return
    if not is_unused:
        raise UsageError(
            f"run {run.name!r} is being evaluated", f"nanochat runs show {run.name}  # or wait for it to end"
        )


@contextmanager
def lock_run(run: RunPaths) -> Iterator[None]:
    """Hold the run's lock, which the system releases however the process ends.

    Raises UsageError, naming the process, if another one holds it; DataError if the file system has no locks.
    """
    with disk_errors(run.root):
        run.root.mkdir(parents=True, exist_ok=True)
        file = run.lock.open("a+", encoding="utf-8")
    with file:
        try:
            is_ours = try_lock(file)
        except OSError as error:
            raise DataError(
                f"{run.lock} cannot be locked: {error}; without a lock two processes could write one run",
                "--home DIR  # a folder on a file system that has locks (NFS: mounted without nolock)",
            ) from error
        if not is_ours:
            file.seek(0)
            raise name_holder(run, file.read().strip() or "unknown")
        with disk_errors(run.root):
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            with suppress(OSError):  # the name of a process that has ended does no harm
                os.ftruncate(file.fileno(), 0)
