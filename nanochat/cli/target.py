"""Which run a command means, and with which settings: a new one, or one that is there and may not contradict itself."""

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat import __version__
from nanochat.cli.options import Invocation
from nanochat.download.sources import TEXT_SOURCES
from nanochat.errors import CapacityError, DataError, MissingError, UsageError
from nanochat.files import MAKE_ROOM, MEND, disk_errors
from nanochat.launch.launch import read_environ
from nanochat.paths import TRAIN_STAGES, RunPaths
from nanochat.stages.lock import find_holder, name_holder
from nanochat.text import format_size

if TYPE_CHECKING:
    from nanochat.config.settings import Settings


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
    from nanochat.config.load import apply_wishes, load_settings, read_environment, read_override, read_saved

    by_name = preset is None and config is None
    if preset is None and config is None and run is None:
        run = find_newest(invocation, newest).name
        invocation.console.say(f"run {run}, the newest")
    name = run if run is not None else preset or (config.stem if config else "")
    paths = invocation.workspace.run(name)
    exists = paths.settings.is_file()
    choice = f"--run {name}"
    if preset is None and config is None:
        if not exists:
            raise explain_missing(paths, f"nanochat run --preset demo --run {name}")
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
    changed = find_changes(paths, saved, settings, free, again, follow)
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
        raise explain_missing(run, "nanochat runs ls")
    return run


def explain_missing(run: RunPaths, hint: str) -> MissingError:
    """The error for a run that is not there, or whose folder has lost its settings."""
    if run.root.is_dir():
        again = f"nanochat run --preset NAME --run {run.name}  # with the settings that it had"
        return MissingError(f"run {run.name!r} has no settings.json any more: {run.root}", again)
    return MissingError(f"there is no run {run.name!r} in {run.root.parent}", hint)


def name_copy(run: RunPaths) -> str:
    """A name for another run of the same kind that is not taken: `demo-2`."""
    number = 2
    while run.root.with_name(f"{run.name}-{number}").exists():
        number += 1
    return f"{run.name}-{number}"


def suggest_copy(run: RunPaths, stage: str, follow: str) -> str:
    """The commands that train a stage anew in a copy of what came before it. follow: the second one, of `name_copy`."""
    stages = ("tokenizer", *TRAIN_STAGES)
    before = stages[stages.index(stage) - 1]
    return f"nanochat runs copy {run.name} {name_copy(run)} --until {before} && {follow}"


def find_changes(
    run: RunPaths,
    saved: "Settings",
    settings: "Settings",
    free: frozenset[str] = frozenset(),
    again: str = "--run NAME",
    follow: str = "--run NAME",
) -> dict[str, tuple[Any, Any]]:
    """What differs from the run's saved settings.

    For the hint: again is the command that begins a new run, follow the command that continues a copy which has the
    stages that stay as they are.

    Raises UsageError where a stage has already used what differs.
    """
    from nanochat.config.load import differing_keys
    from nanochat.stages.inputs import describe_edit, find_edits, list_settings, read_inputs

    changed = differing_keys(saved, settings)
    stages = ("tokenizer", *TRAIN_STAGES)
    used: list[tuple[int, str, Any, Any]] = []
    for number, stage in enumerate(stages):
        if not has_started(run, stage):
            continue
        inputs = read_inputs(run, stage)
        before = inputs.settings if inputs else list_settings(stage, saved)
        edits = find_edits(before, list_settings(stage, settings))
        if by_hand := {key: values for key, values in edits.items() if key not in changed}:
            raise describe_edit(run, stage, by_hand)
        used += [(number, key, *values) for key, values in edits.items() if key not in free]
    if not used:
        return changed
    first, key, before, now = used[0]
    num_more = len({key for _, key, _, _ in used}) - 1
    more = f" (and {num_more} more)" if num_more else ""
    hint = f"{again}  # a new run; `--run {run.name}` alone keeps the settings"
    if first:  # what came before need not be trained again
        hint = suggest_copy(run, stages[first], follow)
    raise UsageError(
        f"run {run.name!r} has trained its {stages[first]} with {key} = {_show(before)}, not {_show(now)}{more}", hint
    )


def warn_of_changed_data(invocation: Invocation, target: Target, stage: str) -> None:
    """Say what of the data of a finished stage is not what it learnt from, and what to do for the new one."""
    from nanochat.config.load import options_again
    from nanochat.stages.inputs import find_changed_data, hash_data, read_inputs

    run, inputs = target.run, read_inputs(target.run, stage)
    if inputs is None:
        return
    names = find_changed_data(inputs.data, hash_data(stage, target.settings, invocation.workspace))
    if not names:
        return
    copy = name_copy(run)
    settings = options_again(target.preset, target.settings, target.origins)
    again = shlex.join(["nanochat", "run", "--run", copy, *settings])
    if stage != "tokenizer":
        again = suggest_copy(run, stage, f"nanochat run --run {copy}")
    invocation.console.say(
        f"warning: {', '.join(names)} has changed since {stage} was trained; {stage} knows what it was before. "
        f"`{again}` trains on what it is now"
    )


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
    from nanochat.checkpoint.manifest import UnreadableError, verify_checkpoint

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

    Returns the target as it stands on the disk. Raises UsageError where they changed and another process is at work.
    """
    from nanochat.config.load import save_settings
    from nanochat.machine import describe_environment

    if target.changed and (holder := find_holder(target.run)):
        raise name_holder(target.run, holder)
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
    with disk_errors(target.run.root, "--home DIR" if target.is_new else MEND):
        save_settings(target.run.settings, target.preset, target.settings, target.origins, __version__)
        environment = target.run.root / "environment.json"
        environment.write_text(json.dumps(describe_environment(), indent=1) + "\n", encoding="utf-8")
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


def check_disk(invocation: Invocation, needed: int, is_new: bool) -> None:
    """Raise CapacityError where a stage's checkpoints do not fit on the disk. is_new: the run may lie elsewhere."""
    folder = next(path for path in (invocation.home, *invocation.home.parents) if path.exists())
    disk = shutil.disk_usage(folder)
    if disk.free < needed and disk.total:  # a file system of the kernel has no size, and the write says what is wrong
        raise CapacityError(
            f"{format_size(needed)} of checkpoints do not fit: {format_size(disk.free)} are free at {invocation.home}",
            "--home DIR" if is_new else MAKE_ROOM,
        )


def _show(value: Any) -> str:
    return json.dumps(value, default=str)
