"""Files: writes that a crash cannot halve, locks, hashes, and the sentences for a disk that is full or failing.

Standard library only; knows no checkpoint and no run.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from nanochat.errors import CapacityError, DataError, NanochatError
from nanochat.machine import is_running
from nanochat.text import format_size

FULL = (errno.ENOSPC, errno.EDQUOT)
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
"""How file systems without fsync answer it; EBADF where a folder is opened for reading, which must do."""
FAILING = (*FULL, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE)
"""What a disk does to us; any other error of the system is more likely a bug of ours."""
MEND = "nanochat doctor  # mend the disk; then the same command again, or `nanochat resume`"
CHOOSE_ANOTHER = "--out DIR  # another folder, where files can be written"
LOCK = ".lock"
POLL_SECONDS = 0.2
SHARED_SECONDS = 30.0  # a network file system may show a new file late: NFS caches a folder for up to 30 s
SPARE_BYTES = 16 * 2**20  # beside tensors: records, the manifest and the file system's own bookkeeping
MAKE_ROOM = "nanochat runs ls  # `nanochat runs rm RUN` makes room; then the same command again, or `nanochat resume`"


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step: a reader sees the old text or the new, never a part.

    Raises CapacityError where the disk is full and DataError where it fails otherwise; the old text is then kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_text(temporary, text)
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text and its final newline, down to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        sync_file(file.fileno())


@contextmanager
def new_folder(folder: Path, hint: str = MEND) -> Iterator[Path]:
    """A temporary folder, which takes the place of `folder` once the block has ended well: whole or not at all.

    Where the block fails nothing is left; what a killed process left is removed by the next call. What stood there
    before is removed in the end, never earlier. Raises CapacityError where the disk is full and DataError where it
    fails otherwise, with the hint.
    """
    temporary, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{word}") for word in ("tmp", "old"))
    with disk_errors(folder.parent, hint):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.*"):
            pid, _, word = path.name.removeprefix(f".{folder.name}.").partition(".")
            if word in ("tmp", "old") and pid.isdecimal() and (int(pid) == os.getpid() or not is_running(int(pid))):
                shutil.rmtree(path, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            sync_folder(temporary)
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
            sync_folder(folder.parent)
        finally:
            for path in (temporary, old):
                shutil.rmtree(path, ignore_errors=True)


def await_path(path: Path, seconds: float = SHARED_SECONDS) -> None:
    """Wait for a path that another process has made, on another machine perhaps."""
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.2)


def sync_file(descriptor: int) -> bool:
    """Bring what was written to a file down to the disk; False where the file system does not offer that.

    `describe_unsynced` says it to people, once for a run and once for a command.
    """
    try:
        os.fsync(descriptor)
        return True
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False


def sync_folder(folder: Path) -> bool:
    """Bring the names in a folder down to the disk: without it, a power cut may undo a rename.

    False where the file system does not offer that, as some network disks do not: not to open a folder, or not to
    sync it.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EISDIR):
            raise
        return False
    try:
        return sync_file(descriptor)
    finally:
        os.close(descriptor)


def describe_unsynced(folder: Path) -> str:
    """What a power cut may do in a folder that cannot be synced; "" where it can, or is not there yet."""
    try:
        if sync_folder(folder):
            return ""
    except OSError:  # what writes there says what is wrong
        return ""
    return f"the file system of {folder} does not sync folders: a power cut may lose the newest file"


def count_bytes(folder: Path, own: bool = False) -> int:
    """Bytes of all files of a folder; one that vanishes meanwhile counts nothing. own: without hard-linked ones."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            found = path.stat()
            if stat.S_ISREG(found.st_mode) and not (own and found.st_nlink > 1):
                total += found.st_size
    return total


def check_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise CapacityError where the disk has less room than `purpose` needs."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise CapacityError(
            f"{purpose} needs {format_size(needed_bytes)} in {folder}, but {format_size(free)} are free", MAKE_ROOM
        )


def name_error(error: OSError, folder: Path, hint: str = MEND) -> NanochatError:
    """The sentence and the exit code for an error of the system: CapacityError for a full disk, else DataError.

    hint: what to do where the disk is not full.
    """
    if error.errno in FULL:
        return CapacityError(f"the disk of {folder} is full: {error}", MAKE_ROOM)
    return DataError(f"{folder} cannot be written: {error}", hint)


@contextmanager
def disk_errors(folder: Path, hint: str = MEND) -> Iterator[None]:
    """Turn errors of the system into those of `name_error`."""
    try:
        yield
    except OSError as error:
        raise name_error(error, folder, hint) from error


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
        if not try_lock(file):
            file.seek(0)
            say(f"waiting for process {file.read().strip() or '?'}, which is working in {folder}")
            while not try_lock(file):
                time.sleep(POLL_SECONDS)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                return file
        file.close()  # who held it has removed it


def try_lock(file: TextIO, shared: bool = False) -> bool:
    """Lock a whole file, which closing it or the end of this process undoes; False while another process has it.

    shared: with others that lock it so. Raises OSError where the file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sign(record: dict) -> dict:
    """A record with the SHA-256 of what it says, by which an edit is known.

    >>> is_edited(sign({"a": 1})), is_edited(sign({"a": 1}) | {"a": 2}), is_edited({"a": 1})
    (False, True, False)
    """
    return record | {"sha256": hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}


def is_edited(record: dict) -> bool:
    """Whether a record says something else than when it was signed; one that never was is not known to."""
    plain = {key: value for key, value in record.items() if key != "sha256"}
    return "sha256" in record and record != sign(plain)


def hash_file(path: Path) -> str:
    """SHA-256 as hexadecimal digits; reads 4 MiB at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
