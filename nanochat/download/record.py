"""What a folder was downloaded from: a data set of the hub at a commit, with the size and hash of every file.

The commit that `main` stood for is written down once, so that every later download belongs to the first.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from nanochat.download.hub import HubFile, Listing
from nanochat.download.transfer import part_path
from nanochat.errors import DataError
from nanochat.files import write_atomically

RECORD = "source.json"
VERSION = 1


@dataclass(frozen=True)
class Entry:
    """A file of the data set. sha256: empty until it is known. is_here: it has been on the disk, and right."""

    size: int
    sha256: str = ""
    blob: str = ""
    is_here: bool = False

    @property
    def content(self) -> HubFile:
        return HubFile(self.size, self.sha256 or None, self.blob or None)


@dataclass(frozen=True)
class Record:
    """The files of a data set at a commit, by path inside its folder: those that are here and those that may come."""

    repo: str
    commit: str
    files: Mapping[str, Entry] = field(default_factory=dict)

    def with_file(self, path: str, entry: Entry) -> "Record":
        return replace(self, files={**self.files, path: entry})

    @property
    def here(self) -> dict[str, Entry]:
        return {path: entry for path, entry in self.files.items() if entry.is_here}


def build_record(repo: str, listing: Listing, before: Record | None = None) -> Record:
    """A record of a listing. before: what was here keeps its place where its content is the same."""
    files = {}
    for path, file in sorted(listing.files.items()):
        entry = Entry(file.size, file.sha256 or "", file.blob or "")
        old = before.files.get(path) if before else None
        if old and old.is_here and old.size == entry.size:
            if old.sha256 == entry.sha256 or (entry.blob and old.blob == entry.blob):
                entry = old
        files[path] = entry
    return Record(repo, listing.commit, files)


def load_record(folder: Path) -> Record | None:
    """The record of a folder, None where it has none. Raises DataError where it cannot be read."""
    path = folder / RECORD
    try:
        value = json.loads(path.read_bytes())
        if value["version"] != VERSION:
            raise ValueError(f"version {value['version']}, not {VERSION}")
        files = {str(name): Entry(**entry) for name, entry in value["files"].items()}
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
            raise ValueError("a path leads out of the folder")
        return Record(str(value["repo"]), str(value["commit"]), files)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = f"mv -n {path} {path}.damaged  # then download again: what is there is checked, not fetched again"
        raise DataError(f"{path} cannot be read: {error}", hint) from error


def sweep(folder: Path, record: Record | None) -> None:
    """Delete what killed processes left: halves of records and manifests, parts of other contents than the record's.

    Hold the folder's lock.
    """
    for pattern in (f".{RECORD}.*", ".shards.json.*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    files = record.files if record else {}
    good = {part_path(folder / path, entry.content) for path, entry in files.items()}
    for path in folder.rglob(".*.part"):
        if record is not None and path not in good:
            path.unlink(missing_ok=True)


def save_record(folder: Path, record: Record) -> None:
    """Write the record atomically, every file on a line of its own."""
    lines = [f"  {json.dumps(path)}: {json.dumps(asdict(entry))}" for path, entry in record.files.items()]
    head = {"version": VERSION, "repo": record.repo, "commit": record.commit}
    text = json.dumps(head)[:-1] + ', "files": {\n' + ",\n".join(lines) + "\n}}"
    write_atomically(folder / RECORD, text)
