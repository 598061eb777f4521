"""Downloads in one file, for machines without a network: a tar whose first member lists every path with its hash.

Nothing is taken from an archive that its list does not name, and nothing is in place before its hash is right.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nanochat.download.bundle import SENTINEL, check_path
from nanochat.download.record import RECORD
from nanochat.download.transfer import BLOCK_BYTES, Digest, size_of
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.files import check_space, disk_errors, lock_folder, sync_file, sync_folder
from nanochat.paths import Workspace

LIST = "nanochat-pack.json"
LIST_BYTES = 64_000_000
VERSION = 1
MANIFEST = "shards.json"
OTHER_HOME = "--home DIR  # another one; --yes replaces what is there"
LAST = (SENTINEL, MANIFEST, RECORD)
"""Files that make a folder what it is: put into place after all others, in this order."""
UNIT = re.compile(r"(data/[A-Za-z0-9][\w.-]*|tasks/[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*|core)/")

Show = Callable[[int, int], None]


@dataclass(frozen=True)
class Packed:
    """A file of an archive, by its path in the workspace."""

    path: str
    size: int
    sha256: str

    @property
    def unit(self) -> str:
        """The folder that is a data set, a task's data set or the bundle."""
        match = UNIT.match(self.path)
        assert match, self.path
        return match[1]


def list_units(workspace: Workspace) -> list[Path]:
    """Folders that can be packed: all with a record or a manifest."""
    home = workspace.home
    patterns = (f"data/*/{MANIFEST}", f"data/*/{RECORD}", f"tasks/*/*/{RECORD}", f"core/{RECORD}", f"core/{SENTINEL}")
    return sorted({path.parent for pattern in patterns for path in home.glob(pattern)})


def pack(workspace: Workspace, target: Path, show: Show) -> list[Packed]:
    """Write all that was downloaded or imported into a tar, atomically; return what is in it.

    Raises MissingError where there is nothing, DataError where a file changes while it is packed, and CapacityError.
    """
    units = list_units(workspace)
    if not units:
        raise MissingError(f"there is nothing to pack in {workspace.home}", "nanochat download all --for d20")
    temporary = target.with_name(f".{target.name}.part")
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        paths = sorted(path for unit in units for path in _files_of(unit))
        total = sum(map(size_of, paths))
        check_space(target.parent, total, "the archive")
        done = 0

        def count(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            show(done // 2, total)  # each byte is read to be hashed and again to be written

        packed = [_describe(workspace.home, path, count) for path in paths]
        value = {"version": VERSION, "files": [vars(item) for item in packed]}
        head = json.dumps(value, indent=0).encode()
        try:
            with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
                archive.addfile(_member(LIST, len(head)), io.BytesIO(head))
                for item in packed:
                    with (workspace.home / item.path).open("rb") as file:
                        reader = _Reader(file, count)
                        archive.addfile(_member(item.path, item.size), reader)  # type: ignore[arg-type]
                        if reader.hex != item.sha256 or file.read(1):
                            raise DataError(f"{workspace.home / item.path} changed while it was packed", "")
            with temporary.open("rb+") as file:
                sync_file(file.fileno())
            temporary.replace(target)
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return packed


def unpack(
    workspace: Workspace, source: Path, say: Callable[[str], None], show: Show, *, replace: bool = False
) -> tuple[list[Packed], int]:
    """Put what an archive holds into the workspace; return what is in it, and how many files were there already.

    replace: also a folder whose files of the same names differ. Interrupted, it goes on with what is not there yet.
    Raises MissingError where there is no such file; DataError where it is no pack, is cut or damaged, or holds a path
    that is none of ours; UsageError where a folder holds something else; CapacityError.
    """
    if not source.is_file():
        raise MissingError(f"there is no file {source}", f"nanochat download pack {source}  # where the downloads are")
    with disk_errors(workspace.home), _open(source) as archive:
        packed = _read_list(archive, source)
        by_path = {item.path: item for item in packed}
        workspace.home.mkdir(parents=True, exist_ok=True)
        total, done, kept = sum(item.size for item in packed), 0, 0
        for unit in sorted({item.unit for item in packed}):
            with lock_folder(workspace.home / unit, say):
                _check_unit(workspace.home, unit, by_path, replace)
        missing = sum(item.size for item in packed if size_of(workspace.home / item.path) != item.size)
        check_space(workspace.home, missing, "unpacking")
        held: dict[str, bytes] = {}
        while (member := archive.next()) is not None:
            item = by_path.pop(member.name, None)
            if item is None or not member.isreg() or member.size != item.size:
                raise DataError(f"{source} holds {member.name!r}, which its list does not name so", "another archive")
            target = workspace.home / item.path
            content = archive.extractfile(member)
            assert content is not None
            with lock_folder(workspace.home / item.unit, say):
                if target.name in LAST:
                    held[item.path] = _read_small(content, item, source)
                elif _is_same(target, item):
                    kept += 1
                else:
                    _place(content, target, item, source)
            done += item.size
            show(done, total)
        if by_path:
            raise DataError(f"{source} is cut: {next(iter(by_path))} is not in it", "copy the archive again")
        for path in sorted(held, key=lambda path: LAST.index(Path(path).name)):
            item = next(item for item in packed if item.path == path)
            with lock_folder(workspace.home / item.unit, say):
                if _is_same(workspace.home / path, item):
                    kept += 1
                else:
                    _place(io.BytesIO(held[path]), workspace.home / path, item, source)
    return packed, kept


def _check_unit(home: Path, unit: str, by_path: dict[str, Packed], replace: bool) -> None:
    """Refuse to mix: a folder that has another record or manifest stays as it is, or is no data set until the end."""
    for head in (home / unit / name for name in LAST):
        item = by_path.get(f"{unit}/{head.name}")
        if head.is_file() and (item is None or not _is_same(head, item)):
            if not replace:
                raise UsageError(f"{home / unit} holds something else already (its {head.name} differs)", OTHER_HOME)
            head.unlink()


@contextmanager
def _open(source: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(source, "r:") as archive:
            yield archive
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{source} is no pack, or is damaged: {error}", "copy the archive again") from error


def _read_list(archive: tarfile.TarFile, source: Path) -> list[Packed]:
    member = archive.next()
    if member is None or member.name != LIST or not member.isreg() or member.size > LIST_BYTES:
        raise DataError(f"{source} is no pack: it does not begin with {LIST}", "nanochat download pack FILE")
    content = archive.extractfile(member)
    assert content is not None
    try:
        value = json.loads(content.read())
        if value["version"] != VERSION:
            raise ValueError(f"version {value['version']}, not {VERSION}")
        packed = [Packed(str(item["path"]), int(item["size"]), str(item["sha256"])) for item in value["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the list of {source} cannot be read: {error}", "copy the archive again") from error
    for item in packed:
        check_path(item.path)
        if not UNIT.match(item.path):
            raise DataError(f"{source} holds {item.path!r}, which is no place for a download", "another archive")
    return packed


def _place(content: IO[bytes], target: Path, item: Packed, source: Path) -> None:
    """Write a file beside its place, compare its hash, and rename it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.parent.resolve() != target.parent.absolute() and not _is_inside(target, item):
        raise DataError(f"{target.parent} leads out of the workspace", "another --home")
    part = target.with_name(f".{target.name}.{item.sha256[:16]}.part")
    try:
        with part.open("wb") as file:
            digest = hashlib.sha256()
            while block := content.read(BLOCK_BYTES):
                digest.update(block)
                file.write(block)
            file.flush()
            sync_file(file.fileno())
        if digest.hexdigest() != item.sha256:
            raise DataError(f"{item.path} in {source} is damaged: its SHA-256 differs", "copy the archive again")
        part.replace(target)
        sync_folder(target.parent)
    finally:
        part.unlink(missing_ok=True)


def _is_inside(target: Path, item: Packed) -> bool:
    """Whether the folder, links followed, lies below the workspace that the path begins in."""
    home = Path(str(target)[: -len(item.path)])
    return target.parent.resolve().is_relative_to(home.resolve())


def _read_small(content: IO[bytes], item: Packed, source: Path) -> bytes:
    value = content.read()
    if hashlib.sha256(value).hexdigest() != item.sha256:
        raise DataError(f"{item.path} in {source} is damaged: its SHA-256 differs", "copy the archive again")
    return value


def _is_same(path: Path, item: Packed) -> bool:
    if not path.is_file() or size_of(path) != item.size:
        return False
    digest = Digest(None)
    digest.read(path)
    return digest.hex == item.sha256


def _files_of(unit: Path) -> list[Path]:
    found = [path for path in unit.rglob("*") if path.is_file()]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(unit).parts)]


def _describe(home: Path, path: Path, count: Callable[[int], None]) -> Packed:
    digest = Digest(None)
    digest.read(path)
    count(digest.size)
    return Packed(path.relative_to(home).as_posix(), digest.size, digest.hex)


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


class _Reader:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self._file, self._digest, self._count = file, hashlib.sha256(), count

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(size)
        self._digest.update(block)
        self._count(len(block))
        return block

    @property
    def hex(self) -> str:
        return self._digest.hexdigest()
