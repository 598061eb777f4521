"""One file from a server to the disk: by ranges from where it stands, hashed as it goes, in place only when right.

A kill at any moment leaves a `.part` file, which the next attempt goes on from, and never a wrong file.
"""

import errno
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

from nanochat.download.faults import Fault, Pace, Patience, StoppedFetchError, WrongContentError, persist
from nanochat.download.hub import Hub, HubFile
from nanochat.errors import DataError
from nanochat.files import disk_errors, sync_file, sync_folder

BLOCK_BYTES = 1 << 20
PROGRESS_BYTES = 8_000_000
"""What an attempt must bring, or a twentieth of the file, for the count of failures to begin again."""


@dataclass(frozen=True)
class Remote:
    """A file to fetch. content: what it must be; None where nobody has said, and its reader has to check it."""

    url: str
    content: HubFile | None = None


@dataclass
class Progress:
    """How far all jobs are together, in files and bytes. problems: what went wrong and was tried again, counted."""

    files: int = 0
    total_files: int = 0
    bytes: int = 0
    total_bytes: int = 0
    fetched_bytes: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    lock: Lock = field(default_factory=Lock, repr=False)

    def move(self, change: int) -> None:
        with self.lock:
            self.bytes += change
            self.fetched_bytes += max(0, change)

    def expect(self, num_bytes: int) -> None:
        with self.lock:
            self.total_bytes += num_bytes

    def note(self, reason: str) -> None:
        with self.lock:
            self.problems[reason] += 1


class Transfer:
    """How files are fetched. hub: None: offline."""

    def __init__(self, hub: Hub | None, patience: Patience, stop: Event, progress: Progress) -> None:
        self.hub, self.patience, self.stop, self.progress = hub, patience, stop, progress
        self._sized: set[Path] = set()

    def open_hub(self) -> Hub:
        """Raises DataError where this is offline."""
        if self.hub is None:
            raise DataError("offline")
        return self.hub

    def fetch(self, remote: Remote, target: Path) -> str:
        """Bring the file into place, replacing what is there; return its SHA-256.

        Raises DataError where it cannot be had, CapacityError where the disk is full, and StoppedFetchError.
        """
        part = part_path(target, remote.content)
        gained = 0
        whole = remote.content.size if remote.content else 20 * PROGRESS_BYTES

        def attempt() -> str:
            nonlocal gained
            before = size_of(part)
            try:
                return self._attempt(remote, part)
            finally:
                gained = size_of(part) - before

        with disk_errors(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            sha256 = persist(
                attempt, self.patience, self.stop, self.progress.note, lambda: gained > min(PROGRESS_BYTES, whole // 20)
            )
            with part.open("rb+") as file:
                sync_file(file.fileno())
            part.replace(target)
            validator_path(part).unlink(missing_ok=True)
            sync_folder(target.parent)
        return sha256

    def _attempt(self, remote: Remote, part: Path) -> str:
        content, validator = remote.content, validator_path(part)
        if content and size_of(part) > content.size:
            self._give_up(part)
        if content is None and not validator.is_file():
            self._give_up(part)  # nothing says that what the server has now is what this is the beginning of
        digest = Digest(content)
        digest.read(part)
        start = digest.size
        if content is None or start < content.size or not part.exists():
            headers = {"Range": f"bytes={start}-"} if start else {}
            if start and content is None:
                headers["If-Range"] = validator.read_text(encoding="utf-8")
            with self.open_hub().open(remote.url, headers) as response:
                if response.status_code == 416:
                    self._give_up(part)
                    raise Fault("answers 416: it has no such range")
                if response.status_code == 200 and start:
                    self._give_up(part)
                    digest, start = Digest(content), 0
                size = check_length(response, start, content.size if content else None, remote.url)
                if content is None and size is not None and part not in self._sized:
                    self._sized.add(part)
                    self.progress.expect(size - start)
                if content is None and not start:
                    keep_validator(validator, response)
                self._receive(response, part, digest, size)
        if not digest.is_right():
            self._give_up(part)
            raise WrongContentError("sends other bytes than its listing promises")
        return digest.hex

    def _receive(self, response: Any, part: Path, digest: "Digest", size: int | None) -> None:
        pace = Pace(self.patience)
        with part.open("ab") as file:
            for chunk in response.iter_raw():
                if size is not None and digest.size + len(chunk) > size:
                    file.close()
                    self._give_up(part)
                    raise WrongContentError(f"sends more than {size:,} bytes")
                file.write(chunk)
                digest.update(chunk)
                self.progress.move(len(chunk))
                if self.stop.is_set():
                    raise StoppedFetchError
                pace.take(len(chunk))
        if size is not None and digest.size < size:
            raise Fault(f"ends after {digest.size:,} of {size:,} bytes")

    def _give_up(self, part: Path) -> None:
        self.progress.move(-size_of(part))
        part.unlink(missing_ok=True)
        validator_path(part).unlink(missing_ok=True)


class Digest:
    """The hashes of a file as it grows."""

    def __init__(self, content: HubFile | None) -> None:
        self.content, self.size = content, 0
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(usedforsecurity=False)
        if content:
            self._git.update(f"blob {content.size}\0".encode())

    def update(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._sha256.update(chunk)
        if self.content and self.content.blob:
            self._git.update(chunk)

    def read(self, path: Path) -> None:
        """Take in a file, where there is one."""
        try:
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    self.update(block)
        except FileNotFoundError:
            return

    @property
    def hex(self) -> str:
        return self._sha256.hexdigest()

    def is_right(self) -> bool:
        """Whether this is the content that was promised; True where nothing was."""
        content = self.content
        if content is None:
            return True
        if content.sha256 is not None:
            return self.size == content.size and self.hex == content.sha256
        return self.size == content.size and self._git.hexdigest() == content.blob


def is_right_file(path: Path, content: HubFile) -> bool:
    """Whether a file on the disk has this content, all of it read."""
    if size_of(path) != content.size or not path.is_file():
        return False
    digest = Digest(content)
    digest.read(path)
    return digest.is_right()


def check_length(response: Any, start: int, size: int | None, url: str) -> int | None:
    """Compare an answer's headers with what is asked for; return the size of the whole file, None where not known.

    Raises Fault before a byte is written.
    """
    headers = response.headers
    if headers.get("Content-Type", "").startswith("text/html") and not url.endswith((".html", ".htm")):
        raise Fault("answers with a web page instead of the file")
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers.get("Content-Range", ""))
        if not match or int(match[1]) != start:
            raise Fault(f"sends another range than from byte {start:,}")
        if match[3] != "*":
            if size is not None and int(match[3]) != size:
                raise Fault(f"has a file of {int(match[3]):,} bytes, not of {size:,}")
            size = int(match[3])
    length = headers.get("Content-Length", "")
    if length.isdigit():
        if size is not None and start + int(length) != size:
            raise Fault(f"announces {int(length):,} bytes, not {size - start:,}")
        size = start + int(length)
    return size


def keep_validator(path: Path, response: Any) -> None:
    """Write down the strong ETag that tells whether the rest of a file, later, belongs to its beginning."""
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        path.write_text(etag, encoding="utf-8")


def part_path(target: Path, content: HubFile | None) -> Path:
    """Where a file grows: the name holds what it is to become, so that no other content goes on from it."""
    mark = ((content.sha256 or content.blob or "") if content else "any")[:16]
    return target.with_name(f".{target.name}.{mark}.part")


def validator_path(part: Path) -> Path:
    return part.with_suffix(".etag")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    try:
        return path.stat().st_size
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return 0
