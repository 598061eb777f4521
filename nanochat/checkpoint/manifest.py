"""MANIFEST.json says whose a checkpoint is, and the size and SHA-256 of every other file.

A file that is absent or altered is damage; one that the system does not let us read now is not. Knows no tensors.
"""

import contextlib
import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from nanochat.errors import DataError
from nanochat.files import hash_file

MANIFEST = "MANIFEST.json"
MODEL = "model.safetensors"
STATE = "state.json"
MANIFEST_KEYS = {1: {"version", "step", "files"}, 2: {"version", "stage", "step", "files"}}
"""By version; 1 did not say the stage."""


class UnreadableError(DataError):
    """The system did not let us read a checkpoint: that says nothing about what it holds."""


def verify_checkpoint(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest. Raises DataError naming the file."""
    files = read_manifest(folder)["files"]
    for name in sorted({MODEL, STATE, *files}):
        verify_file(folder, name, files)


def name_optimizer(rank: int, world_size: int) -> str:
    """
    >>> name_optimizer(0, 2)
    'optim_rank000_of_002.safetensors'
    """
    return f"optim_rank{rank:03d}_of_{world_size:03d}.safetensors"


def is_folder(path: Path) -> bool:
    """Whether a folder is there. Raises OSError if the system does not say, which Path.is_dir takes for a no."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextlib.contextmanager
def read_errors(path: Path, folder: Path | None = None) -> Iterator[None]:
    """Turn errors of the system into UnreadableError. folder: the checkpoint that can be done without."""
    try:
        yield
    except OSError as error:
        else_move = f"; or move {folder} away to go on from the one before" if folder else ""
        hint = f"nanochat resume  # once it can be read{else_move}"
        raise UnreadableError(f"{path} cannot be read now: {error}", hint) from error


def read_manifest(folder: Path) -> dict:
    """The manifest. Raises DataError if it is absent, altered or that of another step."""
    path, hint = folder / MANIFEST, "nanochat runs ls"
    try:
        with read_errors(path, folder):
            try:
                text = path.read_text(encoding="utf-8")
            except (FileNotFoundError, NotADirectoryError):
                raise DataError(f"{path} is missing: the checkpoint is not complete", hint) from None
            except IsADirectoryError:
                raise DataError(f"{path} is not a file", hint) from None
        manifest = json.loads(text)
        if set(manifest) != MANIFEST_KEYS[manifest["version"]]:
            raise ValueError(f"it has other keys than version {manifest['version']} should")
        files = manifest["files"]
        if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
            raise ValueError("files is not a table")
        names = set(files) - {MODEL, STATE}
        if names != {name_optimizer(rank, len(names)) for rank in range(len(names))}:
            raise ValueError("it does not list one optimizer file for each rank")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint) from error
    match = re.fullmatch(r"step_(\d+)", folder.name)
    if match and manifest["step"] != int(match[1]):
        raise DataError(f"{path} is that of step {manifest['step']}", hint)
    return manifest


def verify_file(folder: Path, name: str, files: dict[str, dict]) -> None:
    """Check one file of a checkpoint. files: of its manifest. Raises DataError naming the file."""
    path = folder / name
    hint = "nanochat runs ls"
    if name not in files:
        raise DataError(f"{folder / MANIFEST} does not list {name}", hint)
    with read_errors(path, folder):
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{path} is missing", hint) from None
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{path} is not a file", hint)
        if found.st_size != files[name].get("bytes"):
            raise DataError(f"{path} has {found.st_size} bytes, the manifest says {files[name].get('bytes')}", hint)
        if hash_file(path) != files[name].get("sha256"):
            raise DataError(f"{path} is corrupt: its SHA-256 is not the manifest's", hint)
