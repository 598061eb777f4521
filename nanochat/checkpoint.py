"""Checkpoints: written whole or not at all, verified when read, the newest few kept.

A checkpoint is a folder `step_000500` with model.safetensors, one optim_rank*.safetensors a rank, state.json
(what must survive a restart) and MANIFEST.json (size and SHA-256 of every other file, written last). Knows
neither the model nor the optimizer: it maps names to tensors.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.errors import CapacityError, DataError, MissingError
from nanochat.paths import StagePaths
from nanochat.runtime import World

MANIFEST = "MANIFEST.json"
MODEL = "model.safetensors"
STATE = "state.json"
TEMPORARY = "tmp_"
SPARE_BYTES = 16 * 2**20  # room for state.json, the manifest and the file system's own bookkeeping


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds; tensors are on the CPU."""

    model: dict[str, Tensor]
    optimizer: list[dict[str, Tensor]]
    """Of this rank alone where as many ranks saved it, else of every rank that did, in their order."""
    state: dict
    meta: dict


def save_checkpoint(
    stage: StagePaths,
    step: int,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict,
    meta: dict,
    keep: int,
    world: World | None = None,
) -> Path:
    """Write `checkpoints/step_<step>` atomically and delete all but the `keep` newest; returns the folder.

    Collective: every rank calls this with its own optimizer tensors; rank 0 writes the rest. Raises
    CapacityError, leaving earlier checkpoints as they were, where the disk is or becomes full.
    """
    world = world or World()
    folder = stage.checkpoint(step)
    temporary = stage.checkpoints / f"{TEMPORARY}{folder.name}"
    optimizer_bytes = sum(tensor.nbytes for tensor in optimizer.values())
    with _disk_errors(stage.checkpoints):
        if world.is_main:
            stage.checkpoints.mkdir(parents=True, exist_ok=True)
            needed = sum(tensor.nbytes for tensor in model.values()) + optimizer_bytes * world.world_size
            _check_space(stage.checkpoints, needed + SPARE_BYTES)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        world.barrier()
        try:
            if optimizer:
                _save_tensors(temporary / _optimizer_name(world.rank, world.world_size), optimizer)
            if world.is_main:
                _save_tensors(temporary / MODEL, model)
                _write(temporary / STATE, json.dumps({"state": state, "meta": meta}, indent=1))
            world.barrier()
            if world.is_main:
                files = {path.name: _describe(path) for path in sorted(temporary.iterdir())}
                _write(temporary / MANIFEST, json.dumps({"version": 1, "step": step, "files": files}, indent=1))
                _sync_folder(temporary)
                if folder.exists():
                    _discard(folder)
                temporary.rename(folder)
                _sync_folder(stage.checkpoints)
                for old in stage.steps()[:-keep]:
                    _discard(stage.checkpoint(old))
        except BaseException:
            if world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
    world.barrier()
    return folder


def load_checkpoint(folder: Path, with_optimizer: bool = True, world: World | None = None) -> Checkpoint:
    """Read a checkpoint, checking each file that is read against the manifest.

    With an optimizer, `world` says whose tensors: one file where as many processes wrote it, else all. Raises
    MissingError where there is no such folder and DataError, naming the file, where one is absent or altered.
    """
    world = world or World()
    if not folder.is_dir():
        raise MissingError(f"there is no checkpoint {folder}", "nanochat runs ls")
    files = _read_manifest(folder)
    wanted = [MODEL, STATE]
    ranks = sorted(name for name in files if name.startswith("optim_rank"))
    if with_optimizer and ranks:
        own = _optimizer_name(world.rank, world.world_size)
        ranks = [own] if own in ranks else ranks
        wanted += ranks
    for name in wanted:
        _verify(folder, name, files)
    try:
        record = json.loads((folder / STATE).read_text(encoding="utf-8"))
        model = load_file(folder / MODEL)
        optimizer = [load_file(folder / name) for name in wanted[2:]]
        return Checkpoint(model, optimizer, record["state"], record["meta"])
    except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"checkpoint {folder} cannot be read: {error}", "nanochat runs ls") from error


def latest_good(
    stage: StagePaths, say: Callable[[str], None], with_optimizer: bool = True, world: World | None = None
) -> tuple[int, Checkpoint] | None:
    """Load the newest checkpoint that verifies, or None where there is none at all.

    A bad one is renamed to `corrupt_step_...` and said. Collective: every rank calls this. Raises DataError
    where there are checkpoints and none is good.
    """
    world = world or World()
    steps = stage.steps()
    world.barrier()  # rank 0 renames bad folders: every rank must have listed them before
    for step in reversed(steps):
        folder = stage.checkpoint(step)
        problem = _find_problem(folder) if world.is_main else ""
        if not _agree(world, not problem):
            if world.is_main:
                aside = _set_aside(folder)
                say(f"checkpoint {folder.name} is bad ({problem}); set aside as {aside.name}, trying the one before")
            world.barrier()
            continue
        return step, load_checkpoint(folder, with_optimizer, world)
    if steps:
        raise DataError(
            f"none of the {len(steps)} checkpoints in {stage.checkpoints} is intact",
            f"nanochat train {stage.root.name} --run {stage.root.parent.name}",
        )
    return None


def remove_stale(stage: StagePaths) -> int:
    """Delete temporary folders that an interrupted save or clean-up left behind; returns how many."""
    stale = [path for path in stage.checkpoints.glob(f"{TEMPORARY}*") if path.is_dir()]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return len(stale)


def verify_checkpoint(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest. Raises DataError naming the file."""
    files = _read_manifest(folder)
    for name in sorted({MODEL, STATE, *files}):
        _verify(folder, name, files)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step: a reader sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _disk_errors(path.parent):
        try:
            _write(temporary, text)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _optimizer_name(rank: int, world_size: int) -> str:
    return f"optim_rank{rank:03d}_of_{world_size:03d}.safetensors"


def _agree(world: World, good: bool) -> bool:
    """True where rank 0 says so: it has verified for all."""
    if world.world_size == 1:
        return good
    vote = torch.tensor(float(good and world.is_main), device=world.device)
    return world.all_reduce_sum(vote).item() > 0


def _find_problem(folder: Path) -> str:
    try:
        verify_checkpoint(folder)
    except DataError as error:
        return error.message
    return ""


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"corrupt_{folder.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"corrupt_{folder.name}_{number}")
    folder.rename(aside)
    return aside


def _read_manifest(folder: Path) -> dict[str, dict]:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
            raise ValueError("files is not a table")
        return files
    except FileNotFoundError:
        raise DataError(f"{folder / MANIFEST} is missing: the checkpoint is not complete", "nanochat runs ls") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST} cannot be read: {error}", "nanochat runs ls") from error


def _verify(folder: Path, name: str, files: dict[str, dict]) -> None:
    path = folder / name
    hint = "nanochat runs ls"
    if name not in files:
        raise DataError(f"{folder / MANIFEST} does not list {name}", hint)
    if not path.is_file():
        raise DataError(f"{path} is missing", hint)
    size = path.stat().st_size
    if size != files[name].get("bytes"):
        raise DataError(f"{path} has {size} bytes, the manifest says {files[name].get('bytes')}", hint)
    if _hash(path) != files[name].get("sha256"):
        raise DataError(f"{path} is corrupt: its SHA-256 is not the manifest's", hint)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _describe(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": _hash(path)}


def _save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(folder: Path) -> None:
    """Delete a checkpoint so that an interruption never leaves half of one under its own name."""
    doomed = folder.with_name(f"{TEMPORARY}old_{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CapacityError(
            f"a checkpoint needs {needed / 1e6:,.0f} MB in {folder}, but {free / 1e6:,.0f} MB are free",
            "nanochat runs ls",
        )


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk into CapacityError; other errors of the system into DataError."""
    try:
        yield
    except SafetensorError as error:
        if "No space left" in str(error) or "code: 28" in str(error) or "quota" in str(error).lower():
            raise CapacityError(f"the disk of {folder} is full: {error}", "nanochat runs ls") from error
        raise DataError(f"{folder} cannot be written: {error}", "nanochat doctor") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CapacityError(f"the disk of {folder} is full: {error}", "nanochat runs ls") from error
        raise DataError(f"{folder} cannot be written: {error}", "nanochat doctor") from error
