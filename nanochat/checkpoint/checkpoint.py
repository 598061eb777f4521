"""Checkpoints: written whole or not at all, verified when read, and kept by a rule.

A checkpoint is a folder `step_000500` with model.safetensors, one optim_rank*.safetensors a rank, state.json (what must
survive a restart) and MANIFEST.json, written last. Files that the manifest does not list are ignored. Knows neither the
model nor the optimizer: it maps names to tensors. All ranks write to one folder: several machines must share it.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

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

    Collective: every rank calls this with its own optimizer tensors, writes and hashes them; rank 0 writes the rest.
    If one rank fails, all raise: CapacityError if the disk is or becomes full, DataError if it fails otherwise.
    Earlier checkpoints then stay, except that a disk without room has lost those that this save would have deleted,
    never the newest.
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
        files = {name: entry for share in written for name, entry in share.items()}
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
        _do_on_main(world, stage.checkpoints, prepare)
        written = _do_together(world, stage.checkpoints, write_share)
        _do_on_main(world, stage.checkpoints, commit)
    except BaseException:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def load_checkpoint(folder: Path, with_optimizer: bool = True, world: World | None = None) -> Checkpoint:
    """Read a checkpoint, checking each file that is read against the manifest.

    world: whose optimizer tensors: one file if as many processes wrote it, else all. Raises MissingError without such a
    folder, DataError, naming the file, if one is absent or altered, and UnreadableError if the system refuses.
    """
    world = world or World()
    with read_errors(folder, folder):
        if not is_folder(folder):
            raise MissingError(f"there is no checkpoint {folder}", "nanochat runs ls")
    files, own = read_manifest(folder)["files"], name_optimizer(world.rank, world.world_size)
    optimizers: list[str] = []
    if with_optimizer:
        optimizers = [own] if own in files else sorted(set(files) - {MODEL, STATE})
    for name in (MODEL, STATE, *optimizers):
        verify_file(folder, name, files)
    try:
        with read_errors(folder, folder):
            record = json.loads((folder / STATE).read_text(encoding="utf-8"))
            model = load_file(folder / MODEL)
            optimizer = [load_file(folder / name) for name in optimizers]
        return Checkpoint(model, optimizer, record["state"], record["meta"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"checkpoint {folder} cannot be read: {error}", "nanochat runs ls") from error


def latest_good(
    stage: StagePaths, say: Callable[[str], None], world: World | None = None
) -> tuple[int, Checkpoint] | None:
    """Load the newest checkpoint that verifies, or None if there is none.

    Collective: every rank calls this and verifies what it reads itself. A bad one is renamed to `corrupt_step_...` and
    said. Raises, on every rank, UnreadableError if the system does not let one read, and touches nothing then; and
    LostError if there are checkpoints and none is good: the next call finds none, and the stage starts again.
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
            checkpoint = load_checkpoint(folder, world=world)
        except (DataError, MissingError) as error:
            problem = error
        problems = [other for other in world.all_gather(problem) if other]
        for other in problems:
            if isinstance(other, UnreadableError):
                raise other
        if checkpoint is not None and not problems:
            return step, checkpoint
        aside = _do_on_main(world, stage.checkpoints, partial(_set_aside, folder))
        reason = problems[0].message
        say(f"checkpoint {folder.name} is bad ({reason}); set aside as {aside.name}, trying the one before")
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

    seconds: to wait for a file system that shows new files late.
    """
    if world.world_size == 1:
        return

    token = stage.root / f".shared.{world.all_gather(uuid.uuid4().hex)[0]}"  # in what this rank takes for the folder

    def write_token() -> None:
        stage.root.mkdir(parents=True, exist_ok=True)
        token.touch()

    _do_on_main(world, stage.root, write_token)
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


def _do_on_main(world: World, folder: Path, work: Callable[[], T]) -> T:
    """Let rank 0 work; returns what it returns, on every rank, or raises on every rank if it failed."""
    return cast(T, _do_together(world, folder, lambda: work() if world.is_main else None)[0])


def _list_steps(stage: StagePaths) -> list[int]:
    """The steps that have a checkpoint. Raises UnreadableError if the folder cannot be listed: it is not empty."""
    with read_errors(stage.checkpoints):
        if is_folder(stage.checkpoints):
            os.listdir(stage.checkpoints)  # a glob passes over what it may not read
    return stage.steps()


def _set_aside(folder: Path) -> Path:
    aside, number = folder.with_name(f"{CORRUPT}{folder.name}"), 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{CORRUPT}{folder.name}_{number}")
    return folder.rename(aside)


def select_expired(steps: Sequence[int], keep: int, keep_every: int = 0, best: int | None = None) -> list[int]:
    """Which checkpoints to delete: all but the `keep` newest, the multiples of keep_every (0: none) and the best.

    >>> select_expired([10, 20, 30, 40, 50], keep=2, keep_every=20, best=10)
    [30]
    """
    ordered = sorted(steps)
    kept = {*ordered[-max(keep, 1) :], best}
    return [step for step in ordered if step not in kept and not (keep_every and step % keep_every == 0)]


def find_best(steps: Sequence[int], scores: Mapping[int, float]) -> int | None:
    """The step with the lowest score among those that have a checkpoint; the earlier one of two; None without any.

    >>> find_best([10, 20, 30], {5: 1.0, 10: 1.5, 20: 1.2})
    20
    """
    scored = [step for step in sorted(steps) if step in scores]
    return min(scored, key=lambda step: scores[step], default=None)


def _discard(folder: Path) -> None:
    """Delete a checkpoint so that an interruption never leaves half of one under its own name."""
    doomed = folder.with_name(f"{TEMPORARY}old_{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
