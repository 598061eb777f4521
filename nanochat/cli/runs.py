"""`nanochat runs ls | show | path | copy | rm`."""

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nanochat.cli.console import format_table
from nanochat.cli.options import Invocation, command, new_group
from nanochat.cli.target import choose_run, has_started, is_done, read_result
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.files import count_bytes, disk_errors
from nanochat.paths import TRAIN_STAGES, RunPaths
from nanochat.text import format_size

app = new_group("See and remove runs.")

STAGES = ("tokenizer", *TRAIN_STAGES)
Run = Annotated[str | None, typer.Argument(help="The run; default: the newest.")]


@command(app, "ls", "nanochat runs ls")
def list_runs(invocation: Invocation) -> None:
    """List the runs, the newest last."""
    found = [describe_run(run) for run in invocation.workspace.list_runs()]
    if invocation.as_json:
        invocation.console.show_json(found)
        return
    for run in invocation.workspace.list_lost():
        invocation.console.say(f"{run.root} has lost its settings.json  # nanochat runs rm {run.name}")
    if not found:
        invocation.console.say(f"there is no run in {invocation.workspace.runs}")
        invocation.console.suggest("nanochat run --preset demo")
        return
    rows = [
        (
            run["run"],
            run["preset"] or "-",
            *(run["stages"][stage] for stage in STAGES),
            format_size(run["bytes"]),
            run["changed"],
        )
        for run in found
    ]
    invocation.console.show(format_table(rows, ("run", "preset", *STAGES, "size", "changed"), right=[7]))


@command(app, "show", "nanochat runs show demo")
def show_run(invocation: Invocation, run: Run = None) -> None:
    """Show how far a run is, and what came out."""
    from nanochat.cli.eval import is_number, list_scores, show_scores

    paths = choose_run(invocation, run)
    description = describe_run(paths)
    scores = list_scores(paths)
    if invocation.as_json:
        results = {stage: read_result(paths, stage) for stage in STAGES}
        plain = [{key: value for key, value in score.items() if key != "samples"} for score in scores]
        invocation.console.show_json(description | {"results": results, "scores": plain})
        return
    console = invocation.console
    console.show(
        f"{paths.name}  {paths.root}  preset {description['preset'] or '-'}  {format_size(description['bytes'])}"
    )
    rows = []
    for stage in STAGES:
        result = read_result(paths, stage)
        loss, bpb, seconds = result.get("loss"), result.get("val_bpb"), result.get("seconds")
        rows.append(
            (
                stage,
                description["stages"][stage],
                f"{result['step']:,}" if is_number(result.get("step")) else "-",
                f"{loss:.4f}" if is_number(loss) else "-",
                f"{bpb:.4f}" if is_number(bpb) else "-",
                f"{seconds:,.0f} s" if is_number(seconds) else "-",
                " ".join(f"@{step}" for step in paths.stage(stage).steps()),
            )
        )
    header = ("stage", "status", "steps", "loss", "val bpb", "time", "checkpoints")
    console.show(format_table(rows, header, right=[2, 3, 4, 5]))
    if scores:
        show_scores(invocation, scores)
    if damaged := len(list(paths.eval.glob("*.json"))) - len(scores):
        console.say(f"{damaged} damaged score files are left out: nanochat eval all {paths.name} writes them anew")
    if description["process"]:
        console.say(f"process {description['process']} is working on it")


@command(app, "path", "nanochat runs path demo/sft")
def show_path(
    invocation: Invocation,
    name: Annotated[str | None, typer.Argument(help="RUN, RUN/STAGE or RUN/STAGE@STEP.")] = None,
) -> None:
    """Print where a run, or the checkpoint of a model, lies."""
    if name is None or "/" not in name:
        path = choose_run(invocation, name).root
    else:
        path = invocation.workspace.resolve_model(name).checkpoint
    if invocation.as_json:
        invocation.console.show_json(str(path))
    else:
        invocation.console.show(str(path))


@command(app, "copy", "nanochat runs copy demo trial --until sft")
def copy_run(
    invocation: Invocation,
    run: Annotated[str, typer.Argument(help="The run to start from.")],
    name: Annotated[str, typer.Argument(help="The new run.")],
    until: Annotated[
        Literal["tokenizer", "base", "mid", "sft", "rl"] | None,
        typer.Option("--until", help="The last stage to take over; default: the last that is finished."),
    ] = None,
) -> None:
    """Make a new run with the finished stages of another, to try later ones again. Checkpoints take no room twice."""
    source, target = choose_run(invocation, run), invocation.workspace.run(name)
    if os.path.lexists(target.root):  # a link to nothing too
        option = "" if until is None else f" --until {until}"
        raise UsageError(f"run {name!r} exists already", f"nanochat runs copy {run} {name}-2{option}")
    wanted = STAGES if until is None else STAGES[: STAGES.index(until) + 1]
    stages = [stage for stage in wanted if is_done(source, stage)]
    if not stages or until not in (None, stages[-1]):
        what = until or "stage"
        raise MissingError(f"run {source.name!r} has no finished {what}", f"nanochat runs show {source.name}")
    if invocation.dry_run:
        invocation.would(f"make run {name} with {', '.join(stages)} of {source.name}")
        return
    write_copy(source, target, stages)
    if invocation.as_json:
        invocation.console.show_json({"run": name, "source": source.name, "stages": stages})
    invocation.console.say(f"run {name} has {', '.join(stages)} of {source.name}")
    after = STAGES[STAGES.index(stages[-1]) + 1 :]
    invocation.console.suggest(f"nanochat train {after[0]} --run {name}" if after else f"nanochat chat {name}")


def write_copy(source: RunPaths, target: RunPaths, stages: Sequence[str]) -> None:
    """Copy settings and stages; a half copy is never seen under its name. Checkpoints become hard links if possible."""
    temporary = target.root.with_name(f".{target.name}.{os.getpid()}")

    def copy(file: str, to: str) -> None:
        if "checkpoints" in Path(file).parts:
            try:
                os.link(file, to)
                return
            except OSError:  # another disk, or a file system without links
                pass
        shutil.copy2(file, to)

    with disk_errors(target.root.parent):
        try:
            temporary.mkdir()
            for path in (source.settings, source.root / "environment.json"):
                if path.is_file():
                    shutil.copyfile(path, temporary / path.name)  # with the time of now: the copy is the newest run
            for stage in stages:
                shutil.copytree(source.root / stage, temporary / stage, copy_function=copy)
            temporary.rename(target.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@command(app, "rm", "nanochat runs rm demo")
def remove_runs(
    invocation: Invocation, runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="The runs.")]
) -> None:
    """Remove runs with all their checkpoints."""
    from nanochat.stages.lock import check_unused, lock_run

    named = [invocation.workspace.run(run) for run in dict.fromkeys(runs)]
    paths = [run if run.root.is_dir() else choose_run(invocation, run.name) for run in named]  # also without settings
    sizes = {run.name: format_size(count_bytes(run.root)) for run in paths}
    if invocation.dry_run:
        return invocation.would(*(f"remove {describe_place(run)} ({sizes[run.name]})" for run in paths))
    if not invocation.yes and not sys.stdin.isatty():
        names = " ".join(sizes)
        raise UsageError(f"removing {names} needs a yes", f"nanochat runs rm {names} -y")
    with ExitStack() as locks:
        for run in paths:  # all of them may be removed before one is
            check_unused(run)
            locks.enter_context(lock_run(run))
        if not invocation.yes:
            asked = {run.name: f"remove {describe_place(run)} ({sizes[run.name]})?" for run in paths}
            kept = [name for name, question in asked.items() if not invocation.console.ask(question)]
            for name in kept:
                invocation.console.say(f"run {name} is kept")
            paths = [run for run in paths if run.name not in kept]
        places = {run.name: describe_place(run) for run in paths}
        remove_folders([run.root for run in paths])
    if invocation.as_json:
        invocation.console.show_json({"removed": list(places)})
    for name, place in places.items():
        invocation.console.say(f"removed {place} ({sizes[name]})")


def describe_place(run: RunPaths) -> str:
    """The folder of a run; a link is all that is removed of one that lies elsewhere."""
    return f"{run.root}, a link whose files stay in {run.root.resolve()}" if run.root.is_symlink() else str(run.root)


def remove_folders(folders: Sequence[Path]) -> None:
    """Remove all of them or, if one cannot be, none."""
    for folder in folders:
        check_removable(folder)
    hidden = {folder: folder.with_name(f".{folder.name}.{os.getpid()}.removed") for folder in folders}
    moved = []
    with disk_errors(folders[0].parent if folders else Path()):
        try:
            for folder in folders:
                folder.rename(hidden[folder])
                moved.append(folder)
        except OSError:
            for folder in moved:
                hidden[folder].rename(folder)
            raise
        for folder in folders:
            if hidden[folder].is_symlink():
                hidden[folder].unlink()
            else:
                shutil.rmtree(hidden[folder])


def check_removable(folder: Path) -> None:
    """Raise DataError, before anything is removed, if a folder inside may not be written: it would stay behind."""
    for place, names, _ in os.walk(folder):
        if not os.access(place, os.W_OK | os.X_OK) and (names or any(os.scandir(place))):
            raise DataError(
                f"{place} may not be written, so {folder.name} cannot be removed; nothing was", f"chmod -R u+w {folder}"
            )


def describe_run(run: RunPaths) -> dict[str, Any]:
    """Name, preset, status of each stage, bytes on disk, time of the last change."""
    try:
        preset = json.loads(run.settings.read_text(encoding="utf-8")).get("preset")
    except (OSError, ValueError, AttributeError):
        preset = None
    stages = {}
    for stage in STAGES:
        steps = run.stage(stage).steps()
        unfinished = f"at {steps[-1]}" if steps else "started"
        stages[stage] = "done" if is_done(run, stage) else unfinished if has_started(run, stage) else "-"
    from nanochat.stages.lock import find_holder

    return {
        "run": run.name,
        "preset": preset,
        "stages": stages,
        "bytes": count_bytes(run.root),
        "changed": time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)),
        "path": str(run.root),
        "process": find_holder(run),
    }
