"""What became of each rank: one small JSON file a rank in the stage's log folder, for the other ranks and the launcher.

Standard library only. A rank says that it lives and where it stands; one that ended without a word was killed.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from nanochat.errors import CapacityError, InterruptError, NanochatError, StoppedError
from nanochat.processes import is_running

Status = Literal["running", "done", "stopped", "failed"]

FINAL_EXIT_CODES = (2, 3, 5, 6, 7)
"""Settings, something missing, memory or disk, numbers, a check: a restart would end the same way."""


@dataclass(frozen=True)
class RankMark:
    """A rank's last word.

    started, beat, since, ended: seconds since 1970 of the start, of the last sign of life, of the last progress, of the
    end. phase: "start", "data", "step" or the name of an event. is_echo: it failed only because another rank did.
    """

    rank: int
    world_size: int
    pid: int
    host: str
    status: Status = "running"
    step: int = 0
    phase: str = "start"
    started: float = 0.0
    beat: float = 0.0
    since: float = 0.0
    ended: float | None = None
    exit_code: int = 0
    message: str = ""
    hint: str = ""
    is_echo: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_killed(self) -> bool:
        """Whether its process ended without a word; that of another machine counts as alive."""
        return self.status == "running" and self.is_here and not is_running(self.pid)


class RankError(NanochatError):
    """The error of another process, with that one's exit code."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def new_mark(rank: int, world_size: int, now: float) -> RankMark:
    """The first mark of this process."""
    return RankMark(rank, world_size, os.getpid(), socket.gethostname(), started=now, beat=now, since=now)


def end_mark(mark: RankMark, error: BaseException | None, now: float, is_echo: bool = False) -> RankMark:
    """The last mark of a process. error: what ended it; None where it is done."""
    if error is None:
        return replace(mark, status="done", ended=now)
    message = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
    return replace(
        mark,
        status="stopped" if isinstance(error, (StoppedError, InterruptError)) else "failed",
        ended=now,
        exit_code=getattr(error, "exit_code", 1),
        message=message[:2000],
        hint=getattr(error, "hint", "")[:1000],
        is_echo=is_echo or is_lost_peer(error),
    )


def is_lost_peer(error: BaseException | None) -> bool:
    """Whether an error only says that another rank is gone."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    text = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def log_path(folder: Path, rank: int) -> Path:
    """What a rank prints, one launch after the other."""
    return folder / f"rank_{rank:03d}.log"


def write_mark(folder: Path, mark: RankMark) -> None:
    """Replace a rank's mark in one step."""
    temporary = folder / f".rank_{mark.rank:03d}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(mark)) + "\n", encoding="utf-8")
    temporary.replace(folder / f"rank_{mark.rank:03d}.json")


def read_marks(folder: Path) -> list[RankMark]:
    """The marks, by rank; unreadable ones are left out."""
    marks = []
    for path in sorted(folder.glob("rank_*.json")):
        try:
            marks.append(RankMark(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return marks


def clear_marks(folder: Path) -> None:
    """Forget the marks of an earlier launch; logs stay."""
    for path in folder.glob("*rank_*"):
        if path.suffix != ".log":
            path.unlink(missing_ok=True)


def are_all_done(marks: Sequence[RankMark]) -> bool:
    """Whether every rank of a launch has come to its end.

    >>> are_all_done([]), are_all_done([RankMark(0, 2, 1, "a", "done")]), are_all_done([RankMark(0, 1, 1, "a", "done")])
    (False, False, True)
    """
    return bool(marks) and len(marks) == marks[0].world_size and all(mark.status == "done" for mark in marks)


def find_failed(marks: Sequence[RankMark]) -> list[RankMark]:
    """Ranks that failed or were killed, the culprit first: an own error, then a killed process, then an echo."""
    failed = sorted((mark for mark in marks if mark.status == "failed"), key=lambda mark: mark.ended or 0.0)
    own = [mark for mark in failed if not mark.is_echo]
    return own + [mark for mark in marks if mark.is_killed] + [mark for mark in failed if mark.is_echo]


def explain_failure(folder: Path, stage: str, resume: str) -> NanochatError | None:
    """The error of the first rank that failed; where none did but one stopped on request, that; else None.

    resume: the command that continues.
    """
    marks = read_marks(folder)
    failed = find_failed(marks)
    if not failed:
        stopped = [mark for mark in marks if mark.status == "stopped"]
        if not stopped:
            return None
        kind = InterruptError if stopped[0].exit_code == InterruptError.exit_code else StoppedError
        return kind(stopped[0].message or f"{stage} stopped", resume)
    culprit = failed[0]
    name = f"rank {culprit.rank} of {culprit.world_size}"
    log = log_path(folder, culprit.rank)
    if culprit.is_killed:
        return CapacityError(
            f"{name} (process {culprit.pid}) was killed at step {culprit.step}, most likely because memory ran out; "
            f"its log is {log}",
            resume,
        )
    if culprit.is_echo:
        return RankError(f"{name} lost the other ranks: {culprit.message}", f"less {log}", 4)
    hint = culprit.hint or f"less {log}"
    return RankError(f"{name}: {culprit.message}", hint, culprit.exit_code or 1)


def explain_hang(peers: Sequence[RankMark], own: RankMark, silent_seconds: float, hang_seconds: float) -> str:
    """Name the ranks that this one waits for; "" where all is well.

    silent_seconds: without a sign of life; hang_seconds: without progress while another rank is at another place. The
    clock of both is own.beat.
    """
    now = own.beat
    silent = [mark for mark in peers if mark.status == "running" and now - mark.beat > silent_seconds]
    if silent:
        quiet = now - min(mark.beat for mark in silent)
        return f"{', '.join(map(str, silent))} has given no sign of life for {quiet:.0f} s: it is stopped or cut off"
    if now - own.since <= hang_seconds:
        return ""
    behind = [mark for mark in peers if (mark.step, mark.phase) != (own.step, own.phase)]
    places = ", ".join(f"{mark} is in phase {mark.phase!r} after step {mark.step}" for mark in behind)
    return f"no progress for {now - own.since:.0f} s after step {own.step}: {places}" if behind else ""
