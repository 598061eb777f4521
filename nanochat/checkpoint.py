"""Checkpoints: written whole or not at all, verified when read, and kept by a rule.

A checkpoint is a folder `step_000500` with model.safetensors, one optim_rank*.safetensors a rank, state.json
(what must survive a restart) and MANIFEST.json (whose it is, and size and SHA-256 of every other file, written
last). Files that the manifest does not list are ignored: nothing reads them. Knows neither the model nor the
optimizer: it maps names to tensors. All ranks write to one folder, so several machines need a shared file system.
"""

import hashlib
import json
import re
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nanochat.disk import check_space, disk_errors, sync_folder, write_text
from nanochat.errors import DataError, MissingError, NanochatError, UsageError
from nanochat.paths import StagePaths
from nanochat.retention import select_expired
from nanochat.runtime import World
from nanochat.safetensors_file import write_tensors

MANIFEST = "MANIFEST.json"
MODEL = "model.safetensors"
STATE = "state.json"
TEMPORARY = "tmp_"
CORRUPT = "corrupt_"
MANIFEST_KEYS = {1: {"version", "step", "files"}, 2: {"version", "stage", "step", "files"}}
"""By version; 1 did not say the stage."""
SPARE_BYTES = 16 * 2**20  # room for state.json, the manifest and the file system's own bookkeeping
SHARED_SECONDS = 30.0  # a network file system may show a new file late: NFS caches a folder for up to 30 s

T = TypeVar("T")


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
    *,
    keep_every: int = 0,
    best: int | None = None,
) -> Path:
    """Write `checkpoints/step_<step>` atomically, then delete what `select_expired` names; returns the folder.

    Collective: every rank calls this with its own optimizer tensors, writes and hashes them; rank 0 writes the
    rest. Where one rank fails, all raise: CapacityError where the disk is or becomes full, DataError where it
    fails otherwise. Earlier checkpoints are then as they were, except that a disk without room has lost those
    that this save would have deleted; the newest is never among them.
    """
    world = world or World()
    folder = stage.checkpoint(step)
    temporary = stage.checkpoints / f"{TEMPORARY}{folder.name}"
    num_bytes = sum(tensor.nbytes for tensor in (*optimizer.values(), *(model.values() if world.is_main else ())))
    shares = world.all_gather((num_bytes, bool(optimizer)))
    needed = sum(share for share, _ in shares) + SPARE_BYTES
    has_optimizer = any(has for _, has in shares)  # a rank without a share still writes its file: the set is whole

    def prepare() -> None:
        stage.checkpoints.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        if shutil.disk_usage(stage.checkpoints).free < needed:
            before = [old for old in stage.steps() if old != step]
            for old in select_expired([*before, step], keep, keep_every, best):
                if old != before[-1]:
                    _discard(stage.checkpoint(old))
        check_space(stage.checkpoints, needed, "a checkpoint")
        temporary.mkdir()

    def write_share() -> dict[str, dict]:
        files = {}
        if has_optimizer:
            name = _optimizer_name(world.rank, world.world_size)
            files[name] = write_tensors(temporary / name, optimizer)
        if world.is_main:
            files[MODEL] = write_tensors(temporary / MODEL, model)
            write_text(temporary / STATE, json.dumps({"state": state, "meta": meta}, indent=1))
            files[STATE] = {"bytes": (temporary / STATE).stat().st_size, "sha256": _hash(temporary / STATE)}
        return files

    def commit() -> None:
        manifest = {"version": 2, "stage": stage.root.name, "step": step, "files": dict(sorted(files.items()))}
        write_text(temporary / MANIFEST, json.dumps(manifest, indent=1))
        sync_folder(temporary)
        if folder.exists():
            _discard(folder)
        temporary.rename(folder)
        sync_folder(stage.checkpoints)
        for old in select_expired(stage.steps(), keep, keep_every, best):
            _discard(stage.checkpoint(old))

    try:
        _do_together(world, stage.checkpoints, prepare if world.is_main else _do_nothing)
        files = {
            name: entry
            for share in _do_together(world, stage.checkpoints, write_share)
            for name, entry in share.items()
        }
        _do_together(world, stage.checkpoints, commit if world.is_main else _do_nothing)
    except BaseException:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def load_checkpoint(folder: Path, with_optimizer: bool = True, world: World | None = None) -> Checkpoint:
    """Read a checkpoint, checking each file that is read against the manifest.

    With an optimizer, `world` says whose tensors: one file where as many processes wrote it, else all. Raises
    MissingError where there is no such folder and DataError, naming the file, where one is absent or altered.
    """
    world = world or World()
    if not folder.is_dir():
        raise MissingError(f"there is no checkpoint {folder}", "nanochat runs ls")
    files = _read_manifest(folder)["files"]
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
    """Load the newest checkpoint that verifies, or None where there is none.

    Collective: every rank calls this and verifies what it reads itself. A bad one is renamed to
    `corrupt_step_...` and said. Raises DataError where there are checkpoints and none is good: the next call
    then finds none, says so, and the stage starts again from its beginning.
    """
    world = world or World()
    steps = world.all_gather(stage.steps())[0]
    for step in reversed(steps):
        folder = stage.checkpoint(step)
        checkpoint, problem = None, ""
        try:
            written_by = _read_manifest(folder).get("stage", stage.root.name)
            if written_by != stage.root.name:
                raise DataError(f"it is a checkpoint of {written_by}, not of {stage.root.name}", "nanochat runs ls")
            checkpoint = load_checkpoint(folder, with_optimizer, world)
        except (DataError, MissingError) as error:
            problem = error.message
        problems = [text for text in world.all_gather(problem) if text]
        if checkpoint is not None and not problems:
            return step, checkpoint
        aside = _do_together(world, stage.checkpoints, lambda: _set_aside(folder) if world.is_main else folder)[0]  # noqa: B023
        say(f"checkpoint {folder.name} is bad ({problems[0]}); set aside as {aside.name}, trying the one before")
    root = stage.root
    if steps:
        raise DataError(
            f"none of the {len(steps)} checkpoints in {stage.checkpoints} is intact; they are set aside as {CORRUPT}*",
            f"nanochat train {root.name} --run {root.parent.name}  # starts {root.name} again from step 0",
        )
    num_corrupt = len(list(stage.checkpoints.glob(f"{CORRUPT}step_*")))
    if num_corrupt:
        say(f"no checkpoint of {root.name} is intact ({num_corrupt} set aside as {CORRUPT}*): starting from step 0")
    return None


def remove_stale(stage: StagePaths) -> int:
    """Delete temporary folders that an interrupted save or clean-up left behind; returns how many."""
    stale = [path for path in stage.checkpoints.glob(f"{TEMPORARY}*") if path.is_dir()]
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)
    return len(stale)


def check_shared(stage: StagePaths, world: World, seconds: float = SHARED_SECONDS) -> None:
    """Raise UsageError on every rank where one does not see the files of rank 0. Collective: every rank calls this.

    A checkpoint is one folder that all ranks write: the run directory of several machines must be shared.
    seconds: to wait for a file system that shows new files late.
    """
    if world.world_size == 1:
        return
    token = stage.root / f".shared.{world.all_gather(uuid.uuid4().hex)[0]}"

    def write_token() -> None:
        stage.root.mkdir(parents=True, exist_ok=True)
        token.touch()

    _do_together(world, stage.root, write_token if world.is_main else _do_nothing)
    end = time.monotonic() + seconds
    while not token.exists() and time.monotonic() < end:
        time.sleep(0.2)
    blind = [rank for rank, sees in enumerate(world.all_gather(token.exists())) if not sees]
    if world.is_main:
        token.unlink(missing_ok=True)
    if blind:
        raise UsageError(
            f"{stage.root} is not the same folder on every machine: ranks {', '.join(map(str, blind))} "
            "do not see what rank 0 writes there",
            "--home DIR  # a folder on a file system that all machines share",
        )


def verify_checkpoint(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest. Raises DataError naming the file."""
    files = _read_manifest(folder)["files"]
    for name in sorted({MODEL, STATE, *files}):
        _verify(folder, name, files)


def _do_together(world: World, folder: Path, work: Callable[[], T]) -> list[T]:
    """Let every rank do its share; returns all of them, or raises on every rank where one failed."""
    outcome: T | NanochatError
    try:
        with disk_errors(folder):
            outcome = work()
    except NanochatError as error:
        outcome = error
    outcomes = world.all_gather(outcome)
    if isinstance(outcome, NanochatError):
        raise outcome
    for rank, other in enumerate(outcomes):
        if isinstance(other, NanochatError):
            raise type(other)(f"rank {rank}: {other.message}", other.hint)
    return [share for share in outcomes if not isinstance(share, NanochatError)]


def _do_nothing() -> None:
    pass


def _optimizer_name(rank: int, world_size: int) -> str:
    return f"optim_rank{rank:03d}_of_{world_size:03d}.safetensors"


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{CORRUPT}{folder.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{CORRUPT}{folder.name}_{number}")
    return folder.rename(aside)


def _read_manifest(folder: Path) -> dict:
    """The manifest. Raises DataError where it is absent, altered or that of another step."""
    path, hint = folder / MANIFEST, "nanochat runs ls"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if set(manifest) != MANIFEST_KEYS[manifest["version"]]:
            raise ValueError(f"it has other keys than version {manifest['version']} should")
        files = manifest["files"]
        if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
            raise ValueError("files is not a table")
        names = set(files) - {MODEL, STATE}
        if names != {_optimizer_name(rank, len(names)) for rank in range(len(names))}:
            raise ValueError("it does not list one optimizer file for each rank")
    except FileNotFoundError:
        raise DataError(f"{path} is missing: the checkpoint is not complete", hint) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint) from error
    match = re.fullmatch(r"step_(\d+)", folder.name)
    if match and manifest["step"] != int(match[1]):
        raise DataError(f"{path} is that of step {manifest['step']}", hint)
    return manifest


def _verify(folder: Path, name: str, files: dict[str, dict]) -> None:
    path = folder / name
    hint = "nanochat runs ls"
    if name not in files:
        raise DataError(f"{folder / MANIFEST} does not list {name}", hint)
    if not path.is_file():
        raise DataError(f"{path} is {'not a file' if path.exists() else 'missing'}", hint)
    try:
        size = path.stat().st_size
        if size != files[name].get("bytes"):
            raise DataError(f"{path} has {size} bytes, the manifest says {files[name].get('bytes')}", hint)
        if _hash(path) != files[name].get("sha256"):
            raise DataError(f"{path} is corrupt: its SHA-256 is not the manifest's", hint)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", hint) from error


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _discard(folder: Path) -> None:
    """Delete a checkpoint so that an interruption never leaves half of one under its own name."""
    doomed = folder.with_name(f"{TEMPORARY}old_{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
