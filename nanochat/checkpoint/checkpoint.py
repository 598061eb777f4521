"""Checkpoints: written whole or not at all, verified when read, and kept by a rule.

A checkpoint is a folder `step_000500` with model.safetensors, one optim_rank*.safetensors a rank, state.json
(what must survive a restart) and MANIFEST.json (whose it is, and size and SHA-256 of every other file, written
last). Files that the manifest does not list are ignored: nothing reads them. Knows neither the model nor the
optimizer: it maps names to tensors. All ranks write to one folder, so several machines need a shared file system.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nanochat.checkpoint.manifest import (
    MANIFEST,
    MODEL,
    STATE,
    UnreadableError,
    is_folder,
    name_optimizer,
    read_errors,
    read_manifest,
    verify_file,
)
from nanochat.checkpoint.retention import select_expired
from nanochat.checkpoint.tensors import write_tensors
from nanochat.errors import DataError, LostError, MissingError, NanochatError, UsageError
from nanochat.files import (
    SHARED_SECONDS,
    SPARE_BYTES,
    await_path,
    check_space,
    disk_errors,
    hash_file,
    sync_folder,
    write_text,
)
from nanochat.paths import StagePaths
from nanochat.runtime import World

TEMPORARY = "tmp_"
CORRUPT = "corrupt_"

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
            name = name_optimizer(world.rank, world.world_size)
            files[name] = write_tensors(temporary / name, optimizer)
        if world.is_main:
            files[MODEL] = write_tensors(temporary / MODEL, model)
            write_text(temporary / STATE, json.dumps({"state": state, "meta": meta}, indent=1))
            files[STATE] = {"bytes": (temporary / STATE).stat().st_size, "sha256": hash_file(temporary / STATE)}
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
    MissingError where there is no such folder, DataError, naming the file, where one is absent or altered, and
    UnreadableError where the system refuses.
    """
    world = world or World()
    with read_errors(folder, folder):
        if not is_folder(folder):
            raise MissingError(f"there is no checkpoint {folder}", "nanochat runs ls")
    files = read_manifest(folder)["files"]
    wanted = [MODEL, STATE]
    ranks = sorted(name for name in files if name.startswith("optim_rank"))
    if with_optimizer and ranks:
        own = name_optimizer(world.rank, world.world_size)
        ranks = [own] if own in ranks else ranks
        wanted += ranks
    for name in wanted:
        verify_file(folder, name, files)
    try:
        with read_errors(folder, folder):
            record = json.loads((folder / STATE).read_text(encoding="utf-8"))
            model = load_file(folder / MODEL)
            optimizer = [load_file(folder / name) for name in wanted[2:]]
        return Checkpoint(model, optimizer, record["state"], record["meta"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"checkpoint {folder} cannot be read: {error}", "nanochat runs ls") from error


def latest_good(
    stage: StagePaths, say: Callable[[str], None], with_optimizer: bool = True, world: World | None = None
) -> tuple[int, Checkpoint] | None:
    """Load the newest checkpoint that verifies, or None where there is none.

    Collective: every rank calls this and verifies what it reads itself. A bad one is renamed to
    `corrupt_step_...` and said. Raises UnreadableError on every rank, and touches nothing, where the system does not
    let one read; LostError where there are checkpoints and none is good: the next call then finds none, says so, and
    the stage starts again from its beginning.
    """
    world = world or World()
    steps = world.ask_main(lambda: _list_steps(stage))
    for step in reversed(steps):
        folder = stage.checkpoint(step)
        checkpoint, problem = None, None
        try:
            if not world.is_main:
                await_path(folder)
            written_by = read_manifest(folder).get("stage", stage.root.name)
            if written_by != stage.root.name:
                raise DataError(f"it is a checkpoint of {written_by}, not of {stage.root.name}", "nanochat runs ls")
            checkpoint = load_checkpoint(folder, with_optimizer, world)
        except (DataError, MissingError) as error:
            problem = error
        problems = [other for other in world.all_gather(problem) if other]
        for other in problems:
            if isinstance(other, UnreadableError):
                raise other
        if checkpoint is not None and not problems:
            return step, checkpoint
        aside = _do_together(world, stage.checkpoints, lambda: _set_aside(folder) if world.is_main else folder)[0]  # noqa: B023
        say(
            f"checkpoint {folder.name} is bad ({problems[0].message}); set aside as {aside.name}, trying the one before"
        )
    root = stage.root
    if steps:
        raise LostError(
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
    await_path(token, seconds)
    blind = [rank for rank, sees in enumerate(world.all_gather(token.exists())) if not sees]
    if world.is_main:
        token.unlink(missing_ok=True)
    if blind:
        raise UsageError(
            f"{stage.root} is not the same folder on every machine: ranks {', '.join(map(str, blind))} "
            "do not see what rank 0 writes there",
            "--home DIR  # a folder on a file system that all machines share",
        )


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


def _list_steps(stage: StagePaths) -> list[int]:
    """The steps that have a checkpoint. Raises UnreadableError where the folder cannot be listed: it is not empty."""
    with read_errors(stage.checkpoints):
        if is_folder(stage.checkpoints):
            os.listdir(stage.checkpoints)  # a glob passes over what it may not read
    return stage.steps()


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{CORRUPT}{folder.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{CORRUPT}{folder.name}_{number}")
    return folder.rename(aside)


def _discard(folder: Path) -> None:
    """Delete a checkpoint so that an interruption never leaves half of one under its own name."""
    doomed = folder.with_name(f"{TEMPORARY}old_{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
