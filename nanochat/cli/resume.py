"""`nanochat resume`: continue whatever was interrupted."""

from typing import Annotated

import typer

from nanochat.cli.options import Invocation, Overrides, command
from nanochat.cli.run import run_pipeline
from nanochat.cli.target import choose_run, choose_target, find_damage, has_started, is_done
from nanochat.cli.tracking import Track, add_track
from nanochat.cli.train import train
from nanochat.errors import MissingError
from nanochat.launch.cluster import Cluster
from nanochat.launch.launch import ALONE
from nanochat.paths import TRAIN_STAGES, RunPaths


def register(app: typer.Typer) -> None:
    command(app, "resume", "nanochat resume d20 --gpus 8")(resume)


def resume(
    invocation: Invocation,
    run: Annotated[str | None, typer.Argument(help="The run; default: the newest interrupted one.")] = None,
    overrides: Overrides = None,
    cluster: Cluster = ALONE,
    track: Track = None,
) -> int:
    """Continue what was interrupted: a stage from its newest good checkpoint, and the pipeline that `run` began."""
    paths = choose_run(invocation, run) if run is not None else find_interrupted_run(invocation)
    overrides = add_track(overrides, track)
    if paths.pipeline.is_file():
        invocation.console.say(f"resuming the pipeline that `nanochat run` began with run {paths.name}")
        return run_pipeline(invocation, overrides=overrides, run=paths.name, cluster=cluster)
    stage = find_interrupted(paths) or find_damaged(paths)
    if stage is None:
        done = [name for name in TRAIN_STAGES if is_done(paths, name)]
        raise MissingError(
            f"no stage of run {paths.name!r} was interrupted ({', '.join(done) or 'nothing'} done)",
            f"nanochat run --run {paths.name}",
        )
    invocation.console.say(f"resuming {stage} of run {paths.name}")
    target = choose_target(invocation, run=paths.name, overrides=overrides, trains=False)
    return train(stage, invocation, target, cluster)


def find_interrupted(run: RunPaths) -> str | None:
    """The first stage that was started and not finished."""
    return next((stage for stage in TRAIN_STAGES if has_started(run, stage) and not is_done(run, stage)), None)


def find_damaged(run: RunPaths) -> str | None:
    """The first finished stage whose last checkpoint is damaged."""
    return next((stage for stage in TRAIN_STAGES if is_done(run, stage) and find_damage(run, stage)), None)


def find_interrupted_run(invocation: Invocation) -> RunPaths:
    """The newest run with an interrupted stage or pipeline, else the newest run."""
    runs = invocation.workspace.list_runs()
    if not runs:
        raise MissingError(f"there is no run in {invocation.workspace.runs}", "nanochat run --preset demo")
    return next((run for run in reversed(runs) if run.pipeline.is_file() or find_interrupted(run)), runs[-1])
