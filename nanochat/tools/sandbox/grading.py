"""Verdicts on model-written programs: the program in one closed process, the test with its expected values in another.

The test calls the program's function over a pipe and compares what comes back as plain data, so that nothing that the
program prints, patches or returns as an exit status can pass for a right answer. Source of the form of a test: Chen et
al. 2021, "Evaluating Large Language Models Trained on Code".
"""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from nanochat.tools.sandbox.probe import Isolation, num_workers
from nanochat.tools.sandbox.process import ClosedProcess, Ending, Limits

ATTEMPTS = 3
"""Times that a program is run where the machine, not the program, failed."""
BUSY_SHARE = 0.2
"""The machine was busy if a program that was too slow waited for a core for more than this share of its time. By itself
it waits for none of it; beside twice as many busy programs as cores for two thirds."""
GRACE_SECONDS = 2.0
"""For a process whose pipe is closed to be seen to end."""


@dataclass(frozen=True)
class Program:
    """code: what a model wrote, whole. entry_point: the function asked for. helpers: trusted code that the test may
    use, as of the question. test: defines `check(candidate)`, which raises where an answer is wrong."""

    code: str
    entry_point: str
    helpers: str
    test: str


@dataclass(frozen=True)
class Verdict:
    """passed: None where there is none, for the machine or the test failed; reason: why it did not pass.

    is_unsure: the machine was busy, which may have been the reason.
    """

    passed: bool | None
    reason: str = ""
    is_unsure: bool = False


def grade_programs(
    programs: Sequence[Program],
    isolation: Isolation,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Verdict]:
    """Judge programs side by side, in their order. isolation: as `require_isolation` found it.

    A program that got no verdict is run again by itself; so is, once, one that was too slow while the machine was busy.
    """
    limits = limits or Limits()
    running = _Running()
    verdicts: list[Verdict | None] = [None] * len(programs)
    with ThreadPoolExecutor(num_workers(), "grading") as pool:
        try:
            futures = {
                pool.submit(_grade, program, isolation, limits, running): place
                for place, program in enumerate(programs)
            }
            for done, future in enumerate(as_completed(futures), 1):
                verdicts[futures[future]] = future.result()
                if progress:
                    progress(done, len(programs))
        except BaseException:  # Ctrl-C among them: nothing may go on behind the prompt
            pool.shutdown(wait=False, cancel_futures=True)
            running.stop()
            raise
    found = [verdict for verdict in verdicts if verdict is not None]
    for place, program in enumerate(programs):
        for attempt in range(1, ATTEMPTS):
            verdict = found[place]
            if verdict.passed is None or verdict.is_unsure and attempt == 1:
                found[place] = _grade(program, isolation, limits, running)
                if progress:
                    progress(len(programs), len(programs))
    return found


class _Running:
    """The processes at work, so that all can be ended at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[ClosedProcess] = set()
        self._stopped = False

    def add(self, process: ClosedProcess) -> None:
        with self._lock:
            self._processes.add(process)
            stopped = self._stopped
        if stopped:
            process.kill()

    def remove(self, process: ClosedProcess) -> None:
        with self._lock:
            self._processes.discard(process)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            processes = list(self._processes)
        for process in processes:
            process.kill()


def _grade(program: Program, isolation: Isolation, limits: Limits, running: _Running) -> Verdict:
    """Run a program and its test to a verdict; no process is left."""
    calls_out, calls_in = os.pipe()
    answers_out, answers_in = os.pipe()
    ours = [calls_out, calls_in, answers_out, answers_in]
    started: list[ClosedProcess] = []
    try:
        for role, fds in (("candidate", (calls_out, answers_in)), ("checker", (calls_in, answers_out))):
            process = ClosedProcess(role, isolation.wrapper, limits, fds, fds)
            started.append(process)
            running.add(process)
        for fd in ours:
            os.close(fd)
        ours.clear()
        candidate, checker = started
        entry = {"entry_point": program.entry_point}
        checker.hand_over({"helpers": program.helpers, "test": program.test} | entry)
        candidate.hand_over({"code": program.code} | entry)
        report = checker.read_report()
        for process in started:
            missing = set(isolation.layers) - {"bubblewrap"} - set(process.layers)
            if missing and not process.is_late:
                return Verdict(None, f"the process was not closed: {', '.join(sorted(missing))} failed")
        ending = candidate.end(GRACE_SECONDS if report and report.get("gone") else 0.0)
        if candidate.is_late or checker.is_late:
            waited = max(candidate.waited_seconds, checker.waited_seconds)
            is_busy = waited > BUSY_SHARE * limits.wall_seconds
            return Verdict(False, f"took more than {limits.wall_seconds:g} s", is_unsure=is_busy)
        if report is None:
            own = checker.end(GRACE_SECONDS)
            if used_up(own, limits):
                return Verdict(False, f"its answers took the test more than {limits.cpu_seconds} s")
            return Verdict(None, f"the test's process {describe_ending(own, limits)}")
        if report.get("gone") and not candidate.is_cut:
            if ending.status == -signal.SIGKILL and not used_up(ending, limits):
                return Verdict(None, "the system ended its process: is memory short?")
            return Verdict(False, f"{describe_ending(ending, limits)} ({report['reason']})")
        return Verdict(report["passed"], report["reason"])
    except OSError as error:
        return Verdict(None, f"no process could be started: {error}")
    finally:
        for fd in ours:
            os.close(fd)
        for process in started:
            process.end()
            running.remove(process)


def used_up(ending: Ending, limits: Limits) -> bool:
    """Whether a process was ended for its computing time."""
    spent = ending.cpu_seconds >= limits.cpu_seconds
    return ending.status == -signal.SIGXCPU or ending.status == -signal.SIGKILL and spent


def describe_ending(ending: Ending, limits: Limits) -> str:
    """
    >>> describe_ending(Ending(-11, 0.1), Limits()), describe_ending(Ending(-24, 5.0), Limits())
    ('was ended by SIGSEGV', 'used more than 5 s of computing time')
    """
    if used_up(ending, limits):
        return f"used more than {limits.cpu_seconds} s of computing time"
    if ending.status < 0:
        return f"was ended by {signal.Signals(-ending.status).name}"
    return f"ended with status {ending.status}"
