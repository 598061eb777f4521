"""Stages in processes of their own, which may be ended at any time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nanochat.launch.marks import RankMark, read_marks
from nanochat.paths import RunPaths
from nanochat.training.metrics import MetricsFile
from tests.patience import PATIENCE_SECONDS, wait_until

# Ends itself with a signal right after the metrics line of a step is written.
ENDING = """
import os, sys
from nanochat.training.metrics import MetricsFile
append = MetricsFile.append
def append_and_end(self, record):
    append(self, record)
    if "loss" in record and record["step"] == int(sys.argv[1]):
        os.kill(os.getpid(), int(sys.argv[2]))
MetricsFile.append = append_and_end
from nanochat.stages.__main__ import main
sys.exit(main([sys.argv[4], sys.argv[3]]))
"""


def run_until(settings: Path, step: int, number: int, stage: str = "base") -> subprocess.CompletedProcess[str]:
    """Train a stage in a process of its own that gets a signal right after the record of a step."""
    command = [sys.executable, "-c", ENDING, str(step), str(int(number)), str(settings), stage]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


class Launch:
    """The command line in a process of its own, its output in a file."""

    def __init__(
        self,
        settings: Path,
        *options: str,
        stage: str = "base",
        environ: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.run, self.stage = RunPaths(settings.parent), stage
        self.output = settings.parents[2] / f"output_{time.time_ns()}"
        words = ["train", stage, "--run", self.run.name, "--home", str(settings.parents[2]), *options]
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "nanochat.cli.main", *words],
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                env=os.environ | (environ or {}),
                start_new_session=True,
            )

    def wait(self) -> int:
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def wait_for(self, is_true: Callable[[], object]) -> None:
        """Wait for what happens while it runs."""

        def happened() -> bool:
            is_here = is_true()
            assert is_here or self.process.poll() is None, self.text
            return bool(is_here)

        wait_until(happened, lambda: self.text)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.step >= step)

    @property
    def step(self) -> int:
        records = MetricsFile(self.run.stage(self.stage).metrics).read()
        return records[-1]["step"] if records else 0

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def marks(self) -> list[RankMark]:
        return read_marks(self.run.logs(self.stage))


def ranks(number: int, *more: str) -> tuple[str, ...]:
    """Options of Launch for processes on the CPU."""
    return ("--device", "cpu", "--gpus", str(number), *more)
