"""The worker: `nanochat.stages STAGE <home>/runs/<run>/settings.json`, alone or under torchrun.

Runs one stage to its result and turns what went wrong into a sentence and an exit code.
"""

import argparse
import contextlib
import faulthandler
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from nanochat.errors import NanochatError
from nanochat.files import FAILING, describe_unsynced, name_error
from nanochat.launch.marks import log_path
from nanochat.launch.watch import RankWatch
from nanochat.machine import Rank, end_with_parent, read_rank
from nanochat.paths import TRAIN_STAGES, RunPaths
from nanochat.runtime import (
    open_terminal,
    open_world,
    pick_device,
    pick_dtype,
    prepared_process,
    read_environ,
    redirect_output,
)
from nanochat.stages.base import Pretraining
from nanochat.stages.display import Display
from nanochat.stages.evaluate import run_evaluate
from nanochat.stages.finetune import Finetuning
from nanochat.stages.fit import memory_errors
from nanochat.stages.job import Job, read_settings
from nanochat.stages.lock import hold_run, lock_run
from nanochat.stages.rl import Practice
from nanochat.stages.tokenizer import run_tokenizer
from nanochat.training.stop import INTERRUPTED, StopRequests

RUN_STAGE: dict[str, Callable[[Job], Any]] = {
    "tokenizer": run_tokenizer,
    "base": lambda job: Pretraining(job, "base").run(),
    "mid": lambda job: Finetuning(job, "mid").run(),
    "sft": lambda job: Finetuning(job, "sft").run(),
    "rl": lambda job: Practice(job, "rl").run(),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit code. A process that torchrun started ends here where the stage fails."""
    options = _build_parser().parse_args(arguments)
    rank, folder = read_rank(read_environ()), RunPaths(options.settings.absolute().parent).logs(options.stage)
    terminal = None
    if rank.is_managed:
        if not options.launch:  # not by our launcher, which shows what rank 0 says
            log = log_path(folder, rank.rank)
            sys.stderr.write(f"rank {rank.rank} of {rank.world_size}, started by torchrun; its log is {log}\n")
        redirect_output(log_path(folder, rank.rank))
        terminal = open_terminal(options.terminal) if rank.rank == 0 else None
        faulthandler.enable()
    with (
        RankWatch(folder, rank.rank, rank.world_size, rank.is_managed, launch=options.launch) as watch,
        _open_log(folder, options, rank) as log,
        Display(options.quiet or (rank.is_managed and terminal is None), stream=terminal, log=log) as display,
    ):
        try:
            with _disk_errors(options):
                return _run(options, rank, watch, display)
        except NanochatError as error:
            if options.debug:
                traceback.print_exc()
            if rank.is_managed:  # the launcher shows the first one's error last
                raise
            display.fail(error)
            return error.exit_code
        except KeyboardInterrupt:
            display.finish()
            if rank.is_managed:
                raise
            return INTERRUPTED
        except Exception:
            if rank.is_managed:
                traceback.print_exc()
            raise


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nanochat.stages", description="Run one stage of a run.")
    parser.add_argument("stage", choices=(*RUN_STAGE, "evaluate"))
    parser.add_argument("settings", type=Path, help="the run's settings.json")
    parser.add_argument(
        "--of", default=None, metavar="STAGE[@STEP]", help="evaluate: whose models, with commas (default: the furthest)"
    )
    parser.add_argument("--score", default="all", help="evaluate: bpb, core, chat, several with commas, or all")
    parser.add_argument("--keep-finished", action="store_true", help="evaluate: continue an interrupted one")
    parser.add_argument("--log-samples", action="store_true", help="evaluate: also write every prediction of CORE")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="evaluate: a setting for this call only"
    )
    parser.add_argument("--resume", default="", metavar="COMMAND", help="what continues this stage, for hints")
    parser.add_argument("--launch", default="", metavar="WORD", help="the launcher's word for this launch")
    parser.add_argument("--terminal", default="", metavar="PATH", help="where rank 0 shows how far it is")
    parser.add_argument("--quiet", action="store_true", help="errors only")
    parser.add_argument("--debug", action="store_true", help="tracebacks of errors")
    return parser


def _run(options: argparse.Namespace, rank: Rank, watch: RankWatch, display: Display) -> int:
    workspace, run, settings = read_settings(options.settings, options.set)
    watch.hang_seconds = settings.runtime.hang_seconds
    resume = options.resume or f"nanochat resume {run.name}"
    is_resumable = options.stage in TRAIN_STAGES
    if rank.is_managed and (restarts := read_environ().get("TORCHELASTIC_RESTART_COUNT", "0")) != "0":
        log = log_path(run.logs(options.stage), rank.rank)
        display.say(f"a rank failed, and all were started again (restart {restarts}): less {log}")
    with (
        StopRequests(options.stage, resume, display.say, is_resumable) as stop,
        prepared_process(workspace.home / "compile", settings.runtime.deterministic, rank),
    ):
        world = open_world(pick_device(settings.runtime.device), rank, settings.runtime.hang_seconds)
        watch.join()
        if world.is_main and (warning := describe_unsynced(run.root)):
            display.say(warning)
        dtype, reason = pick_dtype(settings.runtime.dtype, world.device)
        job = Job(workspace, run, settings, world, dtype, reason, resume, watch.progress, stop, display)
        with memory_errors(job, options.stage):
            if options.stage == "evaluate":
                with hold_run(run) if world.is_main else contextlib.nullcontext():
                    for of in options.of.split(",") if options.of else [None]:
                        run_evaluate(job, of, options.score, options.keep_finished, options.log_samples)
            else:
                with lock_run(run) if world.is_main else contextlib.nullcontext():
                    RUN_STAGE[options.stage](job)
        world.close()
    return 0


@contextlib.contextmanager
def _disk_errors(options: argparse.Namespace) -> Iterator[None]:
    """Turn the error of a write that has no sentence of its own into one that has."""
    try:
        yield
    except OSError as error:
        if options.debug or error.errno not in FAILING:
            raise
        raise name_error(error, options.settings.parent) from error


@contextlib.contextmanager
def _open_log(folder: Path, options: argparse.Namespace, rank: Rank) -> Iterator[TextIO | None]:
    """Where each line goes beside the terminal. Under torchrun that is standard error, which is the rank's log."""
    if rank.is_managed:
        yield sys.stderr
        return
    if not options.settings.is_file() or options.stage == "evaluate":
        yield None
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = log_path(folder, 0).open("a", encoding="utf-8", errors="replace")
    except OSError:  # no disk, no log: the stage says what is wrong with the disk
        yield None
        return
    with file:
        yield file


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
