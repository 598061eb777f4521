"""The worker: `python -m nanochat.stages STAGE <home>/runs/<run>/settings.json`, alone or under torchrun.

Runs one stage to its result and turns what went wrong into a sentence and an exit code.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from nanochat.disk import FAILING, name_error
from nanochat.errors import CapacityError, NanochatError
from nanochat.runtime import (
    World,
    end_with_parent,
    is_main_process,
    open_world,
    pick_device,
    pick_dtype,
    prepare_compile,
    use_all_cores,
)
from nanochat.settings import Settings
from nanochat.stages.base import run_base
from nanochat.stages.display import Display
from nanochat.stages.evaluate import run_evaluate
from nanochat.stages.job import Job, read_settings
from nanochat.stages.lock import lock_run
from nanochat.stages.mid import run_mid
from nanochat.stages.sft import run_sft
from nanochat.stages.tokenizer import run_tokenizer

RUN_STAGE = {"tokenizer": run_tokenizer, "base": run_base, "mid": run_mid, "sft": run_sft}
SCORES = ("all", "bpb", "chat")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m nanochat.stages", description="Run one stage of a run.")
    parser.add_argument("stage", choices=(*RUN_STAGE, "evaluate"))
    parser.add_argument("settings", type=Path, help="the run's settings.json")
    parser.add_argument(
        "--of", default=None, metavar="STAGE[@STEP]", help="evaluate: whose model (default: the furthest)"
    )
    parser.add_argument("--score", default="all", choices=SCORES, help="evaluate: which scores")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="evaluate: a setting for this call only"
    )
    parser.add_argument("--quiet", action="store_true", help="errors only")
    parser.add_argument("--debug", action="store_true", help="tracebacks of errors")
    options = parser.parse_args(arguments)
    with Display(quiet=options.quiet or not is_main_process()) as display:
        try:
            return _run(options, display)
        except NanochatError as error:
            if options.debug:
                raise
            display.fail(error)
            return error.exit_code
        except OSError as error:  # from a write that has no sentence of its own
            if options.debug or error.errno not in FAILING:
                raise
            named = name_error(error, options.settings.parent)
            display.fail(named)
            return named.exit_code
        except KeyboardInterrupt:
            display.finish()
            return 130


def _run(options: argparse.Namespace, display: Display) -> int:
    workspace, run, settings = read_settings(options.settings, options.set)
    torch.set_float32_matmul_precision("high")
    use_all_cores()
    prepare_compile(workspace.home / "compile")
    world = open_world(pick_device(settings.runtime.device))
    try:
        dtype, reason = pick_dtype(settings.runtime.dtype, world.device)
        job = Job(workspace, run, settings, world, dtype, reason)
        with _memory_errors(settings, world):
            if options.stage == "evaluate":
                run_evaluate(job, display, options.of, options.score)
                return 0
            with lock_run(run) if world.is_main else contextlib.nullcontext():
                RUN_STAGE[options.stage](job, display)
        return 0
    finally:
        world.close()


@contextlib.contextmanager
def _memory_errors(settings: Settings, world: World):
    """Turn exhausted memory into a sentence with the setting that mends it."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "not enough memory" not in text:
            raise
        rows = settings.batch.device_batch_size
        raise CapacityError(
            f"out of memory on {world.device} at batch.device_batch_size = {rows}, depth {settings.model.depth}",
            f"--set batch.device_batch_size={max(1, rows // 2)} (the tokens of a step stay the same)",
        ) from error


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main())
