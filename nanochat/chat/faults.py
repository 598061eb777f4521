"""What went wrong with the file of conversations, as a sentence with a hint that loses nothing."""

import os
import shutil
import sqlite3
from pathlib import Path

from nanochat.errors import CapacityError, DataError, NanochatError
from nanochat.files import FULL, MAKE_ROOM

LITTLE = 1 << 20
"""Bytes that are free where SQLite's "disk I/O error" means a full disk."""
WITHOUT = "--no-history  # of chat and serve: keeps nothing"


def name_fault(error: Exception, path: Path | None) -> NanochatError:
    """CapacityError for a full disk, else DataError. Only for a file that is damaged the hint moves it away."""
    if path is None:
        return DataError(f"the conversations in memory cannot be used: {error}", WITHOUT)
    folder, text = path.parent, str(error)
    if _is_full(error, folder):
        return CapacityError(f"the disk of {folder} is full: conversations cannot be written ({error})", MAKE_ROOM)
    if "locked" in text or "busy" in text:
        return DataError(
            f"another program keeps writing to {path}: {error}", f"end it, or wait and try again; or {WITHOUT}"
        )
    if isinstance(error, OSError) or any(word in text for word in ("readonly", "read-only", "unable to open", "I/O")):
        return DataError(
            f"the conversations in {path} cannot be opened or written: {error}",
            f"ls -ld {folder}  # is it a folder that you may read and write? or {WITHOUT}",
        )
    # All three files of it: SQLite's log beside the file holds the newest conversations.
    hint = f"mv -n {folder} {folder}.old  # after ending every nanochat that uses it; a new one is made"
    return DataError(f"the conversations in {path} are damaged: {error}", hint)


def _is_full(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    if not isinstance(error, sqlite3.Error):
        return False
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return False
    return "full" in str(error) or ("I/O" in str(error) and free < LITTLE)


def find_inode(path: Path) -> tuple[int, int] | None:
    """Which file lies at a path; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
