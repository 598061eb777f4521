"""The CORE bundle: a zip from a server or from this disk, unpacked so that it is whole or not there.

core.yaml is put into place last: its presence means that the bundle is whole. Knows nothing of what is in the tasks.
"""

import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from nanochat.download.faults import Fault, WrongContentError, persist
from nanochat.download.record import Entry, Record, load_record, save_record, sweep
from nanochat.download.transfer import BLOCK_BYTES, Digest, Remote, Transfer, size_of
from nanochat.errors import DataError, MissingError
from nanochat.files import check_space, disk_errors, sync_file, sync_folder

SENTINEL = "core.yaml"
REQUIRED = (SENTINEL, "eval_meta_data.csv", "eval_data/")
BY_HAND = "by hand"
UNPACKING = ".unpacking"
DOWNLOAD = ".bundle.zip"
IGNORED = ("__MACOSX", ".DS_Store")


@dataclass(frozen=True)
class Bundle:
    """A zip (or a folder of this machine) that is to be unpacked into a folder. is_wish: the user named this source."""

    source: str
    folder: Path
    is_wish: bool = False

    @property
    def is_local(self) -> bool:
        return not self.source.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Member:
    """A file of a bundle, by its path below the bundle's top folder."""

    path: str
    size: int
    open: Callable[[], BinaryIO]


def find_bundle(bundle: Bundle, say: Callable[[str], None] = lambda text: None) -> Record | None:
    """The record of a bundle that is here and whole by its sizes, and comes from the source where the user named one.

    One that somebody put there is recorded as it is.
    """
    folder = bundle.folder
    record = load_record(folder)
    if record is None:
        if bundle.is_wish or not (folder / SENTINEL).is_file():
            return None
        _clear(folder, None)
        say(f"{folder} holds a bundle that was put there by hand; it is kept and recorded as it is")
        files = {path.relative_to(folder).as_posix(): _describe(path) for path in list_files(folder)}
        save_record(folder, Record(BY_HAND, "", files))
        return load_record(folder)
    if bundle.is_wish and record.repo != bundle.source:
        return None
    whole = all(size_of(folder / path) == entry.size for path, entry in record.files.items())
    if not whole or not (folder / SENTINEL).is_file():
        return None
    _clear(folder, record)
    return record


def bring_bundle(bundle: Bundle, transfer: Transfer) -> Record:
    """Fetch, check and unpack; return the record. Hold the folder's lock.

    Raises MissingError where a local source is not there, and DataError where it cannot be had or is no CORE bundle.
    """
    if bundle.is_local:
        source = Path(bundle.source).expanduser()
        if not source.exists():
            raise MissingError(f"there is no file {source}", "nanochat download core")
        try:
            return unpack(source, bundle)
        except Fault as fault:
            raise DataError(f"{source} {fault.reason}", "nanochat download core") from fault
    archive = bundle.folder / DOWNLOAD

    def attempt() -> Record:
        transfer.fetch(Remote(bundle.source), archive)
        try:
            return unpack(archive, bundle)
        finally:
            archive.unlink(missing_ok=True)

    return persist(attempt, transfer.patience, transfer.stop, transfer.progress.note)


def unpack(source: Path, bundle: Bundle) -> Record:
    """Put the members of a zip or the files of a folder into the bundle's folder, core.yaml last, and record them.

    Raises WrongContentError where the archive is damaged and DataError where it is no CORE bundle or tries to escape.
    """
    folder, staging = bundle.folder, bundle.folder / UNPACKING
    with disk_errors(folder), _open_members(source) as (members, mark):
        paths = {member.path for member in members}
        absent = [name for name in REQUIRED if not any(path == name or path.startswith(name) for path in paths)]
        if absent:
            raise DataError(f"{bundle.source} is no CORE bundle: it has no {absent[0]}", "nanochat download core")
        check_space(folder, sum(member.size for member in members), "unpacking the CORE bundle")
        shutil.rmtree(staging, ignore_errors=True)
        files = {}
        for member in members:
            target = staging / member.path
            target.parent.mkdir(parents=True, exist_ok=True)
            files[member.path] = _copy(member, target)
        (folder / SENTINEL).unlink(missing_ok=True)
        before = load_record(folder) if (folder / "source.json").is_file() else None
        for path in sorted(set(before.files if before else ()) - paths):
            (folder / path).unlink(missing_ok=True)
        for path in sorted(paths - {SENTINEL}):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (staging / path).replace(folder / path)
        record = Record(bundle.source, mark, files)
        save_record(folder, record)  # before core.yaml: a kill between the two must not make it one put here by hand
        (staging / SENTINEL).replace(folder / SENTINEL)
        sync_folder(folder)
        shutil.rmtree(staging, ignore_errors=True)
        sweep(folder, record)
    return record


def _clear(folder: Path, record: Record | None) -> None:
    """Delete what a process left that was killed while it put a bundle here. Hold the folder's lock."""
    shutil.rmtree(folder / UNPACKING, ignore_errors=True)
    (folder / DOWNLOAD).unlink(missing_ok=True)
    sweep(folder, record)


@contextmanager
def _open_members(source: Path) -> Iterator[tuple[list[Member], str]]:
    """The members of a zip or a folder, below its top folder, and a mark of the whole: a zip's SHA-256."""
    if source.is_dir():
        top = next((path.parent for path in sorted(source.rglob(SENTINEL))), source)
        yield (
            [
                Member(path.relative_to(top).as_posix(), size_of(path), lambda path=path: path.open("rb"))
                for path in list_files(top)
            ],
            "",
        )
        return
    digest = Digest(None)
    digest.read(source)
    try:
        with zipfile.ZipFile(source) as archive:
            yield _list_zip(archive), digest.hex
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise WrongContentError(f"is no whole zip archive: {error}") from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma", "_lzma", "_bz2"):
            raise WrongContentError(f"is no whole zip archive: {error}") from error
        raise


def _list_zip(archive: zipfile.ZipFile) -> list[Member]:
    infos = [info for info in archive.infolist() if not info.is_dir() and not _is_ignored(info.filename)]
    for info in infos:
        check_path(info.filename)
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"the archive holds a link: {info.filename}", "nanochat download core")
    tops = [PurePosixPath(info.filename).parent for info in infos if PurePosixPath(info.filename).name == SENTINEL]
    top = f"{min(tops, key=lambda path: len(path.parts))}/".removeprefix("./") if tops else ""
    below = {info.filename.removeprefix(top): info for info in infos if info.filename.startswith(top)}
    return [
        Member(path, info.file_size, lambda info=info: archive.open(info))  # type: ignore[arg-type,return-value]
        for path, info in sorted(below.items())
    ]


def check_path(path: str) -> None:
    """Raise DataError where a path of an archive would leave the folder that it is unpacked into."""
    parts = path.split("/")
    if "\\" in path or "\0" in path or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
        raise DataError(f"the archive holds a path that leads out of its folder: {path!r}", "another archive")


def list_files(folder: Path) -> list[Path]:
    """The files of a folder, without those that are hidden or in hidden folders; links are not followed out of it."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _is_ignored(path: str) -> bool:
    return any(part in IGNORED for part in path.split("/"))


def _copy(member: Member, target: Path) -> Entry:
    digest = Digest(None)
    with member.open() as source, target.open("wb") as file:
        while block := source.read(BLOCK_BYTES):
            digest.update(block)
            file.write(block)
        file.flush()
        sync_file(file.fileno())
    size = digest.size
    if size != member.size:
        raise WrongContentError(f"is no whole zip archive: {member.path} has {size:,} bytes, not {member.size:,}")
    return Entry(size, digest.hex, is_here=True)


def _describe(path: Path) -> Entry:
    digest = Digest(None)
    digest.read(path)
    return Entry(digest.size, digest.hex, is_here=True)
