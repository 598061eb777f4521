"""Tracking: a process beside training that copies metrics.jsonl to wandb, trackio or TensorBoard.

A process of its own, because a tracker may raise, hang, crash natively, or wait for a network as it exits, and training
must feel none of it. It reads the file that training writes anyway, so nothing is queued or dropped. Knows no backend.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from nanochat.machine import drop_rank_variables, module_command
from nanochat.paths import StagePaths
from nanochat.runtime import read_environ

CLOSE_SECONDS = 15.0
"""Longest wait for a tracker to finish; half of the notice that Slurm gives before it kills."""

NOTHING_LOST = "training goes on, metrics.jsonl has every step"
TRUE_WORDS = ("1", "true", "yes", "on")
REMOTE_TRACKIO = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
"""They make trackio write to a server, where steps that a resumed run takes again would stand twice."""


class Tracking:
    """The process that follows one stage's metrics; without a process it does nothing."""

    def __init__(self, name: str = "", process: subprocess.Popen | None = None, log: Path = Path()) -> None:
        self.name, self.log, self._process = name, log, process

    def check(self, say: Callable[[str], None]) -> None:
        """Say once if the process has ended before training did. Costs a system call."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None
            say(f"tracking with {self.name} stopped: {_last_line(self.log)} (see {self.log}); {NOTHING_LOST}")

    def close(self, say: Callable[[str], None], seconds: float = CLOSE_SECONDS) -> None:
        """Let the process copy what is left, for at most `seconds`, then end it."""
        self.check(say)
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            if process.wait(seconds) != 0:
                say(f"tracking with {self.name} failed: {_last_line(self.log)} (see {self.log})")
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # with the helpers that a tracker starts
            process.wait()
            say(f"tracking with {self.name} did not finish in {seconds:.0f} s and was ended (see {self.log})")


def start_tracking(name: str | None, stage: StagePaths, say: Callable[[str], None]) -> Tracking:
    """Start copying a stage's metrics.jsonl; call it on one rank, after the file is cut back to the step of a resume.

    name: wandb, trackio, tensorboard or None. Raises nothing: what fails is said.
    """
    if name is None:
        return Tracking()
    log = stage.root / "tracking.log"
    command = module_command("nanochat.training.trackers", name, str(stage.root))
    environ = tracker_environ(read_environ(), stage.root)
    try:
        stage.root.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.PIPE,  # its end tells the process that training ended, however it ended
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C on the terminal is for training
            )
    except OSError as error:
        say(f"tracking with {name} cannot start: {error}; {NOTHING_LOST}")
        return Tracking()
    say(f"tracking with {name}: {describe_view(name, stage.root, is_offline(environ), log)}")
    return Tracking(name, process, log)


def tracker_environ(environ: Mapping[str, str], stage: Path) -> dict[str, str]:
    """The environment of the process: what the user has not set for a tracker is written under the run.

    Offline stays offline.
    """
    names = {"CACHE": "cache", "CONFIG": "config", "DATA": "data", "ARTIFACT": "artifacts"}
    folders = {"WANDB_DIR": str(stage), "TRACKIO_DIR": str(stage.parent / "trackio")}
    folders |= {f"WANDB_{name}_DIR": str(stage / "wandb" / folder) for name, folder in names.items()}
    values = folders | drop_rank_variables(environ)
    for name in REMOTE_TRACKIO:
        values.pop(name, None)
    if is_offline(environ):
        values["WANDB_MODE"] = "offline"
    return values


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether no socket may be opened: what the command line hands to its workers."""
    return any(environ.get(name, "").lower() in TRUE_WORDS for name in ("NANOCHAT_OFFLINE", "HF_HUB_OFFLINE"))


def describe_view(name: str, stage: Path, offline: bool, log: Path) -> str:
    """What to type to see the curves."""
    if name == "tensorboard":
        return f"tensorboard --logdir {stage.parent}"
    if name == "trackio":
        return f"TRACKIO_DIR={stage.parent / 'trackio'} trackio show --project nanochat"
    return f"wandb sync {stage / 'wandb' / 'latest-run'}" if offline else f"the page's address is in {log}"


def _last_line(path: Path) -> str:
    """The last words of the process: of a traceback, the error."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return "no reason was given"
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "no reason was given")
