"""Which run a command means, and with which settings: a new one, or one that is there and may not contradict itself."""

import errno
import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat import __version__
from nanochat.cli.launch import read_environ
from nanochat.cli.options import Invocation
from nanochat.disk import disk_errors, format_size
from nanochat.errors import CapacityError, DataError, MissingError, UsageError
from nanochat.paths import TRAIN_STAGES, RunPaths
from nanochat.sources import TEXT_SOURCES
from nanochat.stages.lock import find_holder

if TYPE_CHECKING:
    from nanochat.settings import Settings

FREE = frozenset(
    {"runtime.device", "runtime.dtype", "runtime.compile", "runtime.log_every", "runtime.hang_seconds"}
    | {"runtime.track", "runtime.deterministic", "batch.device_batch_size"}
    | {f"checkpoint.{name}" for name in ("every", "keep", "keep_best", "keep_every")}
    | {f"{stage}.{name}" for stage in ("base", "mid", "sft") for name in ("eval_every", "eval_tokens", "sample_every")}
    | {f"rl.{name}" for name in ("eval_every", "eval_questions", "eval_samples", "sample_every", "check_questions")}
    | {f"rl.{name}" for name in ("batch_size", "keep_rollouts")}
)
"""Settings that a run may change at any time: they say how, not what, is learned. So are all of [eval]."""

SHARED = ("model", "batch", "runtime")
"""Tables that every training stage hangs on."""


@dataclass(frozen=True)
class Target:
    """A run and its settings, checked but not yet written."""

    run: RunPaths
    preset: str | None
    settings: "Settings"
    origins: dict[str, str]
    is_new: bool
    changed: dict[str, tuple[Any, Any]]
    choice: str
    """The options that choose this run again, for hints."""


def choose_target(
    invocation: Invocation,
    preset: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] | None = None,
    run: str | None = None,
    *,
    newest: bool = False,
    free: frozenset[str] = frozenset(),
    trains: bool = True,
) -> Target:
    """Find or name the run. newest: without preset, config and run take the run that was touched last.

    free: settings that may differ from those that the run was trained with, where it does not go on. trains: the
    command that was typed takes `--run` and trains that run.

    Raises UsageError where the settings contradict what the run has already trained.
    """
    from nanochat.layers import apply_wishes, load_settings, read_environment, read_override, read_saved

    by_name = preset is None and config is None
    if preset is None and config is None and run is None:
        run = find_newest(invocation, newest).name
        invocation.console.say(f"run {run}, the newest")
    name = run or preset or (config.stem if config else "")
    paths = invocation.workspace.run(name)
    exists = paths.settings.is_file()
    choice = f"--run {name}"
    if preset is None and config is None:
        if not exists:
            raise MissingError(
                f"there is no run {name!r} in {invocation.workspace.runs}", f"nanochat run --preset demo --run {name}"
            )
        preset, saved, origins = read_saved(paths.settings)
        wishes = [*read_environment(read_environ()), *(read_override(text) for text in overrides or ())]
        settings, origins = apply_wishes(saved, wishes, origins)
    else:
        settings, origins = load_settings(preset, config, overrides or (), read_environ())
        if not exists:
            choice = shlex.join(target_options(preset, config, run, overrides))
            return Target(paths, preset, settings, origins, True, {}, choice)
        saved = read_saved(paths.settings)[1]
    copy = name_copy(paths)
    again = follow = f"--run {copy}"
    if by_name and preset:
        again = shlex.join(["nanochat", "run", *target_options(preset, None, copy, overrides)])
    if not trains:
        follow = shlex.join(["nanochat", "run", *target_options(None, None, copy, overrides)])
    changed = find_changes(paths, saved, settings, free, copy, again, follow)
    return Target(paths, preset, settings, origins, False, changed, choice)


def target_options(
    preset: str | None, config: Path | None, run: str | None, overrides: Sequence[str] | None
) -> list[str]:
    """The options that choose the same run with the same settings again, for hints."""
    given = [("--preset", preset), ("--config", config), ("--run", run), *(("--set", text) for text in overrides or ())]
    return [word for option, value in given if value for word in (option, str(value))]


def find_newest(invocation: Invocation, allowed: bool = True) -> RunPaths:
    """The run that was touched last. Raises where there is none or the command needs an explicit choice."""
    if not allowed:
        raise UsageError("neither --preset nor --config nor --run says what to train", "--preset demo")
    runs = invocation.workspace.list_runs()
    if not runs:
        raise MissingError(f"there is no run in {invocation.workspace.runs}", "nanochat run --preset demo")
    return runs[-1]


def choose_run(invocation: Invocation, name: str | None) -> RunPaths:
    """A run that exists: by name, else the newest, which is said."""
    if name is None:
        run = find_newest(invocation)
        invocation.console.say(f"run {run.name}, the newest")
        return run
    run = invocation.workspace.run(name)
    if not run.settings.is_file():
        raise MissingError(f"there is no run {name!r} in {invocation.workspace.runs}", "nanochat runs ls")
    return run


def name_copy(run: RunPaths) -> str:
    """A name for another run of the same kind that is not taken: `demo-2`."""
    number = 2
    while run.root.with_name(f"{run.name}-{number}").exists():
        number += 1
    return f"{run.name}-{number}"


def find_changes(
    run: RunPaths,
    saved: "Settings",
    settings: "Settings",
    free: frozenset[str] = frozenset(),
    copy: str = "NAME",
    again: str = "--run NAME",
    follow: str = "--run NAME",
) -> dict[str, tuple[Any, Any]]:
    """What differs from the run's saved settings.

    For the hint: copy names a new run, again is the command that begins it, follow the command that continues it once
    it has the stages which stay as they are.

    Raises UsageError where a stage has already used what differs.
    """
    from nanochat.layers import differing_keys

    changed = differing_keys(saved, settings)
    stages = ("tokenizer", *TRAIN_STAGES)
    users = [(find_user(run, key), key) for key in changed if key not in free]
    used = [(stages.index(stage), key) for stage, key in users if stage is not None]
    if not used:
        return changed
    first, key = min(used)
    before, now = changed[key]
    more = f" (and {len(used) - 1} more)" if len(used) > 1 else ""
    hint = f"{again}  # a new run; `--run {run.name}` alone keeps the settings"
    if first:  # what came before need not be trained again
        hint = f"nanochat runs copy {run.name} {copy} --until {stages[first - 1]} && {follow}"
    raise UsageError(
        f"run {run.name!r} has trained its {stages[first]} with {key} = {_show(before)}, not {_show(now)}{more}", hint
    )


def find_user(run: RunPaths, key: str) -> str | None:
    """The first stage of the run that has used a setting, None where it may still change."""
    section = key.partition(".")[0]
    if key in FREE or section == "eval":
        return None
    if key == "data.packing":
        return "base" if has_started(run, "base") else None
    if section in ("tokenizer", "data") or key == "runtime.seed":
        if run.tokenizer.is_dir():
            return "tokenizer"
    stages = TRAIN_STAGES if section in (*SHARED, "data") else (section,)
    return next((stage for stage in stages if has_started(run, stage)), None)


def has_started(run: RunPaths, stage: str) -> bool:
    if stage == "tokenizer":
        return run.tokenizer.is_dir()
    paths = run.stage(stage)
    if paths.result.is_file() or paths.steps():
        return True
    return paths.plan.is_file() and bool(find_holder(run))  # it is at work, and has saved nothing yet


def is_done(run: RunPaths, stage: str) -> bool:
    return run.tokenizer.is_dir() if stage == "tokenizer" else run.stage(stage).result.is_file()


def find_damage(run: RunPaths, stage: str) -> str:
    """What is wrong with the last checkpoint of a finished stage, "" if it is whole or there is none."""
    from nanochat.manifest import UnreadableError, verify_checkpoint

    steps = run.stage(stage).steps()
    try:
        if steps:
            verify_checkpoint(run.stage(stage).checkpoint(steps[-1]))
    except UnreadableError:
        raise
    except DataError as error:
        return error.message
    return ""


def read_result(run: RunPaths, stage: str) -> dict[str, Any]:
    """The result of a finished stage; {} where it cannot be read."""
    path = run.tokenizer / "result.json" if stage == "tokenizer" else run.stage(stage).result
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def settle(invocation: Invocation, target: Target, work: Callable[[Target], int]) -> int:
    """Write the run's settings and do the work; returns its exit code.

    Where it ends with a usage error before a stage has begun, the settings are what they were: what was wrong with them
    is not found again by the next command.
    """
    run = target.run
    paths = (run.settings, run.root / "environment.json", run.pipeline)
    before = {path: path.read_bytes() for path in paths if path.is_file()}
    begun = list_begun(run)

    def take_back() -> None:
        changed = [path for path in paths if path.is_file() and path.read_bytes() != before.get(path)]
        if not changed or list_begun(run) != begun:
            return
        with disk_errors(run.root):
            for path in changed:
                path.write_bytes(before[path]) if path in before else path.unlink()
        if run.settings in changed:
            invocation.console.say(f"run {run.name}: its settings are {'as they were' if before else 'not kept'}")

    written = write_target(invocation, target)
    try:
        code = work(written)
    except UsageError:
        take_back()
        raise
    if code == UsageError.exit_code:
        take_back()
    return code


def list_begun(run: RunPaths) -> list[str]:
    """The stages that have left something."""
    return [stage for stage in ("tokenizer", *TRAIN_STAGES) if has_started(run, stage)]


def write_target(invocation: Invocation, target: Target) -> Target:
    """Write the run's settings, and beside them what it runs on; says what changed. A dry run only says it.

    Returns the target as it stands on the disk.
    """
    from nanochat.layers import save_settings
    from nanochat.report.environment import describe_environment

    for key, (before, now) in target.changed.items():
        section = key.partition(".")[0]
        done = (
            f"; {section} is done and stays as it is"
            if section in TRAIN_STAGES and is_done(target.run, section)
            else ""
        )
        invocation.console.say(f"run {target.run.name}: {key} was {_show(before)}, is now {_show(now)}{done}")
    if invocation.dry_run or not (target.is_new or target.changed):
        return replace(target, changed={})
    try:
        save_settings(target.run.settings, target.preset, target.settings, target.origins, __version__)
        environment = target.run.root / "environment.json"
        environment.write_text(json.dumps(describe_environment(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        if error.errno == errno.EIO:
            raise DataError(f"{target.run.root} cannot be written: {error.strerror}", "nanochat doctor") from None
        raise UsageError(f"cannot write {target.run.root}: {error.strerror}", "--home DIR") from None
    return replace(target, is_new=False, changed={}, choice=f"--run {target.run.name}")


def override_options(target: Target) -> list[str]:
    """What differs from the run's saved settings, as options of a worker that is to leave those as they are."""
    options = []
    for key, (_, now) in target.changed.items():
        options += ["--set", f"{key}={'none' if now is None else json.dumps(now)}"]
    return options


def check_dataset(invocation: Invocation, name: str, choice: str = "--preset d20") -> None:
    """Raise MissingError where the pretraining text is neither there nor made on the spot.

    choice: options that choose the settings which say how much of it is read, for the hint.
    """
    folder = invocation.workspace.dataset(name)
    if name != "demo" and not (folder / "shards.json").is_file():
        fetched = f"nanochat download data {choice}" if name in TEXT_SOURCES else ""
        hint = fetched or f"nanochat download import DIR --name {name}"
        raise MissingError(f"data set {name!r} is not in {folder}", hint)


def check_disk(invocation: Invocation, needed: int) -> None:
    """Raise CapacityError where a stage's checkpoints do not fit on the disk."""
    folder = next(path for path in (invocation.home, *invocation.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CapacityError(
            f"{format_size(needed)} of checkpoints do not fit: {format_size(free)} are free at {invocation.home}",
            "--home DIR",
        )


def _show(value: Any) -> str:
    return json.dumps(value, default=str)
