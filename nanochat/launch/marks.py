"""What became of each rank: one small JSON file a rank in the stage's log folder, for the other ranks and the launcher.

Standard library only. A rank says that it lives and where it stands; one that ended without a word was killed.
"""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from nanochat.errors import CapacityError, InterruptError, NanochatError, StoppedError
from nanochat.machine import is_running

Status = Literal["running", "done", "stopped", "failed"]


@dataclass(frozen=True)
class RankMark:
    """A rank's last word.

    launch: a word of the launcher's own, which no other launch has. boot: of the machine and its process ids.
    started, beat, since, ended: seconds since 1970 of the start, of the last sign of life, of the last progress, of the
    end. phase: "start", "data", "step" or the name of an event. is_echo: it failed only because another rank did.
    is_final: a restart would end the same way.
    """

    rank: int
    world_size: int
    pid: int
    host: str
    launch: str = ""
    boot: str = ""
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
    is_final: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def is_here(self) -> bool:
        """Whether its process id means the same to this process: host names repeat, among containers too."""
        return (self.host, self.boot) == (socket.gethostname(), name_boot())

    @property
    def is_killed(self) -> bool:
        """Whether its process ended without a word; that of another machine counts as alive."""
        return self.status == "running" and self.is_here and not is_running(self.pid)


class RankError(NanochatError):
    """The error of another process, with that one's exit code."""

    def __init__(self, message: str, hint: str, exit_code: int) -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


@cache
def name_boot() -> str:
    """This start of the machine and this namespace of process ids; "" where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def new_mark(rank: int, world_size: int, now: float, launch: str = "") -> RankMark:
    """The first mark of this process."""
    host = socket.gethostname()
    return RankMark(rank, world_size, os.getpid(), host, launch, name_boot(), started=now, beat=now, since=now)


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
        is_final=getattr(error, "is_final", False),
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


def write_mark(folder: Path, mark: RankMark) -> bool:
    """Replace a rank's mark in one step; where the disk is full, in place. Returns whether it stands there."""
    temporary, path = folder / f".rank_{mark.rank:03d}.{os.getpid()}", folder / f"rank_{mark.rank:03d}.json"
    text = json.dumps(asdict(mark)) + "\n"
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
        return True
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    try:
        with path.open("r+", encoding="utf-8") as file:  # its block is there already
            file.write(text)
            file.truncate()
        return True
    except OSError:
        return False


def read_marks(folder: Path) -> list[RankMark]:
    """The marks, by rank; unreadable ones are left out."""
    marks = []
    for path in sorted(folder.glob("rank_*.json")):
        try:
            marks.append(RankMark(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return marks


def leave_out_stale(marks: Sequence[RankMark], launch: str, launched: float) -> list[RankMark]:
    """Without what an earlier launch has left: marks of others whose last word came before this launch.

    launched: seconds since 1970. The clocks of two machines may differ by a few seconds.
    """
    return [mark for mark in marks if mark.launch == launch or max(mark.beat, mark.ended or 0) > launched - 5]


def clear_marks(folder: Path) -> None:
    """Forget the marks of an earlier launch; logs stay."""
    for path in folder.glob("*rank_*"):
        if path.suffix != ".log":
            path.unlink(missing_ok=True)


def are_all_done(marks: Sequence[RankMark]) -> bool:
    """Whether every rank of a launch has come to its end.

    >>> done = RankMark(0, 1, 1, "a", status="done")
    >>> are_all_done([]), are_all_done([replace(done, world_size=2)]), are_all_done([done])
    (False, False, True)
    """
    return bool(marks) and len(marks) == marks[0].world_size and all(mark.status == "done" for mark in marks)


def find_failed(marks: Sequence[RankMark], signals: Mapping[int, int] | None = None) -> list[RankMark]:
    """Ranks that failed or were killed, the culprit first: an own error, then a killed process, then an echo.

    signals: as of `explain_failure`. Of killed processes the launcher ends the others itself, with SIGTERM.
    """
    failed = sorted((mark for mark in marks if mark.status == "failed"), key=lambda mark: mark.ended or 0.0)
    own = [mark for mark in failed if not mark.is_echo]
    known = signals or {}
    killed = [mark for mark in marks if mark.is_killed]
    killed.sort(key=lambda mark: (mark.pid not in known, known.get(mark.pid) == signal.SIGTERM))
    return own + killed + [mark for mark in failed if mark.is_echo]


def explain_failure(
    folder: Path, marks: Sequence[RankMark], stage: str, resume: str, signals: Mapping[int, int] | None = None
) -> NanochatError | None:
    """The error of the first rank that failed; where none did but one stopped on request, that; else None.

    resume: the command that continues. signals: which signal ended a process, by its id, as far as that is known.
    """
    failed = find_failed(marks, signals)
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
        number = (signals or {}).get(culprit.pid, signal.SIGKILL)
        if number != signal.SIGKILL:
            return RankError(
                f"{name} (process {culprit.pid}) was ended by {name_signal(number)} at step {culprit.step}",
                f"less {log}",
                1,
            )
        return CapacityError(
            f"{name} (process {culprit.pid}) was killed at step {culprit.step}, most likely because memory ran out; "
            f"its log is {log}",
            resume,
        )
    if culprit.is_echo:
        return RankError(f"{name} lost the other ranks: {culprit.message}", f"less {log}", 4)
    hint = culprit.hint or f"less {log}"
    return RankError(f"{name}: {culprit.message}", hint, culprit.exit_code or 1)


def name_signal(number: int) -> str:
    """
    >>> name_signal(6), name_signal(64000)
    ('SIGABRT', 'signal 64000')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True)
class HangLimits:
    """Seconds. silent: without a sign of life; stuck: without progress while another rank is at another place."""

    silent: float
    stuck: float


def explain_hang(
    peers: Sequence[RankMark], own: RankMark, quiet: Mapping[int, float], stuck: float, limits: HangLimits
) -> str:
    """Name the ranks that this one waits for; "" where all is well.

    quiet: seconds for which this rank has seen a peer's mark unchanged, by rank; stuck: for which it has not come on.
    Both are of this rank's own clock: those of two machines differ.
    """
    silent = [mark for mark in peers if mark.status == "running" and quiet.get(mark.rank, 0) > limits.silent]
    if silent:
        longest = max(quiet[mark.rank] for mark in silent)
        return f"{', '.join(map(str, silent))} has given no sign of life for {longest:.0f} s: it is stopped or cut off"
    if stuck <= limits.stuck:
        return ""
    behind = [mark for mark in peers if (mark.step, mark.phase) != (own.step, own.phase)]
    places = ", ".join(f"{mark} is in phase {mark.phase!r} after step {mark.step}" for mark in behind)
    return f"no progress for {stuck:.0f} s after step {own.step}: {places}" if behind else ""
