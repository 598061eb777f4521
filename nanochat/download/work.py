"""Jobs that several threads do while one watches: what fails is listed, and a line that is down ends it early.

Knows neither the hub nor what a job is for.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat.download.faults import StoppedFetchError
from nanochat.download.transfer import Progress, Transfer
from nanochat.errors import CapacityError, NanochatError

NUM_THREADS = 4
"""Files at once: enough to fill a line whose servers limit each connection, few enough to be welcome."""
MAX_FAILURES = 3
"""Files in a row that cannot be had before the rest is not tried: the line is down, not a file missing."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Face:
    """What is said while it goes on. show: is called with the progress again and again, from one thread."""

    say: Callable[[str], None] = lambda text: None
    show: Callable[[Progress], None] = lambda progress: None


@dataclass(frozen=True)
class Missing:
    """A file that is wanted and not here, with the reason where it was tried. place: whose file it is."""

    place: str
    path: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.place}: {self.path}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, eq=False)
class Job:
    """Bring one file; run raises where it cannot be had."""

    place: str
    path: str
    run: Callable[[Transfer], None]
    is_local: bool = False
    """Whether it needs no socket."""


Outcome = tuple[Job, BaseException | None]


def run_jobs(
    jobs: Sequence[Job], transfer: Transfer, progress: Progress, face: Face, num_threads: int = NUM_THREADS
) -> list[Missing]:
    """Do the jobs in threads that end with the process; return what could not be had, with reasons.

    Raises CapacityError where the disk is full, and what is a bug of ours; the other jobs are then called off, as they
    are on Ctrl-C. A file that was being fetched stays as the part that it is.
    """
    waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    num_threads = min(num_threads, len(jobs))
    for item in (*jobs, *[None] * num_threads):
        waiting.put(item)
    threads = [threading.Thread(target=_work, args=(transfer, waiting, done), daemon=True) for _ in range(num_threads)]
    try:
        for thread in threads:
            thread.start()
        return _watch(jobs, done, progress, face)
    finally:
        transfer.stop.set()
        for thread in filter(threading.Thread.is_alive, threads):  # Ctrl-C may come before all are started
            thread.join(timeout=1.0)  # one that hangs in a read ends with the process; its part is good


def _work(transfer: Transfer, waiting: "queue.SimpleQueue[Job | None]", done: "queue.SimpleQueue[Outcome]") -> None:
    while (job := waiting.get()) is not None:
        try:
            job.run(transfer)
        except BaseException as error:  # the watching thread raises it
            done.put((job, error))
        else:
            done.put((job, None))


def _watch(jobs: Sequence[Job], done: "queue.SimpleQueue[Outcome]", progress: Progress, face: Face) -> list[Missing]:
    missing, open_jobs, in_a_row = [], dict.fromkeys(jobs), 0
    while open_jobs:
        face.show(progress)
        try:
            job, error = done.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
        if error is None:
            del open_jobs[job]
            in_a_row = 0
            progress.files += 1
        elif isinstance(error, CapacityError) or not isinstance(error, NanochatError | StoppedFetchError):
            raise error
        else:
            del open_jobs[job]
            in_a_row += 1
            missing.append(Missing(job.place, job.path, getattr(error, "message", "")))
            if in_a_row == MAX_FAILURES and open_jobs:
                face.say(f"{in_a_row} files in a row failed: the rest is not tried")
                break
    face.show(progress)
    return missing + [Missing(job.place, job.path) for job in open_jobs]
