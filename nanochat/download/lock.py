"""The lock of a folder that files are downloaded into: a second process waits for the first, and says for whom."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from nanochat.disk import disk_errors

LOCK = ".lock"
POLL_SECONDS = 0.2


@contextmanager
def lock_folder(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder's lock, waiting for it where another process has it; the folder is made where needed.

    The system releases it when the process ends, however it ends. Hold several in the order of their paths.
    """
    with _open_locked(folder, say) as file:
        with suppress(OSError):  # the name helps people only
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        try:
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(file.fileno(), 0)


def _open_locked(folder: Path, say: Callable[[str], None]) -> TextIO:
    while True:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("a+", encoding="utf-8")
        if not _try(file.fileno()):
            file.seek(0)
            say(f"waiting for process {file.read().strip() or '?'}, which is working in {folder}")
            while not _try(file.fileno()):
                time.sleep(POLL_SECONDS)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                return file
        file.close()  # who held it has removed it


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
