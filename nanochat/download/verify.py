"""Whether what was downloaded is still what it was: every file of every record read and hashed again."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.download.fetch import Order
from nanochat.download.record import RECORD, Record, load_record, save_record
from nanochat.download.transfer import is_right_file, size_of
from nanochat.files import lock_folder
from nanochat.paths import Workspace

NUM_THREADS = 2
"""Files hashed at once: one is bound by a core, several by the disk."""


@dataclass(frozen=True)
class Damage:
    """A file that is not what it was. folder and path: where; what: what is wrong with it."""

    folder: Path
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.folder / self.path}: {self.what}"


def find_folders(workspace: Workspace) -> list[Path]:
    """Folders of the workspace that were downloaded: text, tasks and the CORE bundle."""
    patterns = ((workspace.home / "data", f"*/{RECORD}"), (workspace.tasks, f"*/*/{RECORD}"), (workspace.core, RECORD))
    return sorted(path.parent for folder, pattern in patterns for path in folder.glob(pattern))


def find_damage(folders: Sequence[Path], show: Callable[[int, int], None] = lambda done, total: None) -> list[Damage]:
    """Read every file that is recorded as here. show: is told bytes that are read and bytes in all.

    Raises DataError where a record cannot be read.
    """
    files = [(folder, *item) for folder in folders for item in _load(folder).here.items()]
    total, done, damages = sum(entry.size for _, _, entry in files), 0, []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        rights = pool.map(lambda item: is_right_file(item[0] / item[1], item[2].content), files)
        for (folder, path, entry), is_right in zip(files, rights, strict=True):
            done += entry.size
            show(done, total)
            if not is_right:
                damages.append(Damage(folder, path, _describe(folder / path, entry.size)))
    return damages


def set_aside(damages: Sequence[Damage], say: Callable[[str], None]) -> list[Order]:
    """Delete files that are not what they were; return the orders that bring them again, from the same commit."""
    orders = []
    for folder, damaged in _by_folder(damages):
        with lock_folder(folder, say):
            record = _load(folder)
            for damage in damaged:
                (folder / damage.path).unlink(missing_ok=True)
                record = record.with_file(damage.path, replace(record.files[damage.path], is_here=False))
            save_record(folder, record)
        orders.append(Order(record.repo, folder, tuple(damage.path for damage in damaged)))
    return orders


def _by_folder(damages: Sequence[Damage]) -> Iterator[tuple[Path, list[Damage]]]:
    for folder in dict.fromkeys(damage.folder for damage in damages):
        yield folder, [damage for damage in damages if damage.folder == folder]


def _load(folder: Path) -> Record:
    return load_record(folder) or Record("", "")


def _describe(path: Path, size: int) -> str:
    if not path.is_file():
        return "is missing"
    if size_of(path) != size:
        return f"has {size_of(path):,} bytes, not {size:,}"
    return "has other bytes than it was downloaded with"
