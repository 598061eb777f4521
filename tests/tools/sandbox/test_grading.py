import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.tools.sandbox import grading, process
from nanochat.tools.sandbox.grading import Program, Verdict, grade_programs
from nanochat.tools.sandbox.probe import measure_isolation
from nanochat.tools.sandbox.process import ClosedProcess, Limits
from tests.patience import PATIENCE_SECONDS, wait_until
from tests.tools.sandbox.listing import list_sandboxed

pytestmark = pytest.mark.skipif(measure_isolation().level != "strong", reason="this machine cannot close a process")

TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9, 'three'\n"
RIGHT = Program("def square(x):\n    return x * x", "square", "def square(x):\n    '''...'''\n", TEST)
ENDLESS = replace(RIGHT, code="def square(x):\n    while True: pass")
QUICK = Limits(cpu_seconds=1, wall_seconds=PATIENCE_SECONDS)
IMPATIENT = Limits(cpu_seconds=1, wall_seconds=0.5)


def judge(program: Program, limits: Limits = QUICK) -> Verdict:
    return grade_programs([program], measure_isolation(), limits)[0]


def test_right_passes_wrong_fails_and_says_why() -> None:
    assert judge(RIGHT) == Verdict(True)
    assert judge(replace(RIGHT, code="def square(x):\n    return 4")) == Verdict(False, "wrong: three")
    assert (
        judge(replace(RIGHT, code="def square(x):\n    return 1 / 0")).reason == "ZeroDivisionError: division by zero"
    )
    assert "SyntaxError" in judge(replace(RIGHT, code="def square(x) return")).reason
    assert "KeyError" in judge(replace(RIGHT, code="def cube(x): return x")).reason


def test_verdicts_keep_the_order_of_the_programs_and_progress_counts_them() -> None:
    wrong = replace(RIGHT, code="def square(x): return 0")
    seen: list[tuple[int, int]] = []
    verdicts = grade_programs(
        [wrong, RIGHT, ENDLESS, RIGHT], measure_isolation(), QUICK, lambda *counts: seen.append(counts)
    )
    assert [verdict.passed for verdict in verdicts] == [False, True, False, True]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert grade_programs([], measure_isolation()) == []


def test_the_library_of_python_is_there_and_numpy_is_not() -> None:
    names = "re math cmath random hashlib itertools functools collections heapq bisect datetime decimal fractions"
    names += " statistics string json copy typing dataclasses enum operator textwrap unicodedata struct array zlib"
    imports = "\n".join(f"import {name}" for name in names.split())
    code = f"{imports}\nhashlib.sha256(b'a'), hashlib.md5(b'a'), datetime.datetime.now()\n{RIGHT.code}"
    assert judge(replace(RIGHT, code=code)) == Verdict(True)
    assert "ModuleNotFoundError" in judge(replace(RIGHT, code="import numpy\n" + RIGHT.code)).reason


def test_values_of_every_plain_type_go_both_ways() -> None:
    test = (
        "def check(candidate):\n"
        "    for value in ([1, (2, 'x')], {'a': {1, 2}}, None, True, 1.5, 10**40, b'b', {(1, 2): [None]}):\n"
        "        assert candidate(value) == value and type(candidate(value)) is type(value)\n"
        "    assert candidate(x=7) == 7\n"
        "    mine = [3, 1]\n    assert candidate(mine) == mine and mine == [3, 1]\n"
    )
    echo = Program("def same(x):\n    y = x\n    return y", "same", "def same(x):\n", test)
    assert judge(echo) == Verdict(True)


def test_a_broken_test_is_no_verdict() -> None:
    for test in ("def check(candidate:", "raise ValueError", "x = 1", "def check(candidate):\n    pass\n"):
        verdict = judge(replace(RIGHT, test=test))
        assert verdict.passed is None and verdict.reason
    assert judge(replace(RIGHT, helpers="def square(x:")).passed is None


def test_a_machine_that_cannot_start_processes_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    isolation = measure_isolation()
    assert judge(RIGHT).passed
    broken = replace(isolation, wrapper=("/nonexistent/bwrap",))
    verdict = grade_programs([RIGHT], broken, QUICK)[0]
    assert verdict.passed is None and "no process could be started" in verdict.reason
    monkeypatch.setattr(process, "BOOT", "raise SystemExit(3)")
    verdict = judge(RIGHT)
    assert verdict.passed is None and "was not closed" in verdict.reason


def test_a_layer_that_fails_for_one_process_is_no_verdict() -> None:
    claimed = replace(measure_isolation(), layers=(*measure_isolation().layers, "another layer"))
    verdict = grade_programs([RIGHT], claimed, QUICK)[0]
    assert verdict.passed is None and "another layer" in verdict.reason


def test_a_program_that_answers_no_more_and_goes_on_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "GRACE_SECONDS", 0.1)
    code = "import os, time\ndef square(x):\n    os.closerange(3, 1024)\n    time.sleep(600)"
    assert judge(replace(RIGHT, code=code)).passed is False


def test_no_verdict_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Verdict(None, "full"), Verdict(None, "full"), Verdict(True)]
    monkeypatch.setattr(grading, "_grade", lambda *_: answers.pop(0))
    assert judge(RIGHT) == Verdict(True) and not answers
    late = [Verdict(False, "late", is_unsure=True), Verdict(False, "late", is_unsure=True)]
    monkeypatch.setattr(grading, "_grade", lambda *_: late.pop(0))
    assert judge(RIGHT).passed is False and not late


@pytest.mark.parametrize(("waited", "num_runs"), [(0.0, 1), (0.2, 2)])
def test_a_program_that_is_too_slow_is_run_again_only_if_the_machine_was_busy(
    monkeypatch: pytest.MonkeyPatch, waited: float, num_runs: int
) -> None:
    started: list[str] = []

    class Counted(ClosedProcess):
        def __init__(self, role: str, *words: Any) -> None:
            started.append(role)
            super().__init__(role, *words)

    monkeypatch.setattr(grading, "ClosedProcess", Counted)
    monkeypatch.setattr(process, "read_waited_seconds", lambda _: waited)
    verdict = judge(replace(RIGHT, code="import time\ndef square(x): time.sleep(600)"), IMPATIENT)
    assert verdict.passed is False and verdict.reason == "took more than 0.5 s"
    assert started == ["candidate", "checker"] * num_runs


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux says how long a process waits")
def test_who_waits_for_a_core_is_told_from_who_sleeps() -> None:
    core = min(os.sched_getaffinity(0))

    def start(*command: str) -> subprocess.Popen:
        return subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, {core}))

    spin = (sys.executable, "-c", "while True: pass")
    with start(*spin) as one, start(*spin) as two, start("sleep", "600") as sleeper:
        try:
            waited = process.read_waited_seconds
            wait_until(lambda: min(waited(one.pid), waited(two.pid)) > waited(sleeper.pid) + 0.5)
        finally:
            for each in (one, two, sleeper):
                each.kill()


def test_a_process_that_the_system_kills_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel does where memory is short."""
    started: list[ClosedProcess] = []
    begin = ClosedProcess.hand_over

    def hand_over(self: ClosedProcess, source: dict[str, str]) -> None:
        begin(self, source)
        if "code" in source:
            started.append(self)
            time.sleep(0.2)
            os.kill(self._process.pid, signal.SIGKILL)

    monkeypatch.setattr(ClosedProcess, "hand_over", hand_over)
    verdict = judge(replace(RIGHT, code="import time\ndef square(x): time.sleep(600)"))
    assert verdict.passed is None and "memory" in verdict.reason and len(started) == grading.ATTEMPTS


COUNT_WHAT_IS_LEFT = """
import os, threading, time
from dataclasses import replace
from tests.tools.sandbox.test_grading import ENDLESS, QUICK, RIGHT, grade_programs, judge, measure_isolation
def settle():  # a thread that has done its work still takes a moment to end
    for _ in range(500):
        if threading.active_count() == 1:
            break
        time.sleep(0.01)
    return threading.active_count(), set(os.listdir("/proc/self/fd"))
judge(RIGHT)
before = settle()
grade_programs([RIGHT, replace(RIGHT, code="import os\\nos._exit(1)"), ENDLESS] * 4, measure_isolation(), QUICK)
print(before[0], settle() == before)
"""


def test_nothing_is_left_open_or_running() -> None:
    """In a process of its own: other tests' threads come and go in this one."""
    running = list_sandboxed()
    command, root = [sys.executable, "-c", COUNT_WHAT_IS_LEFT], Path(__file__).parents[3]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout == "1 True\n"
    assert list_sandboxed() == running


GRADE_FOREVER = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins without
from nanochat.tools.sandbox.grading import Limits, Program, grade_programs
from nanochat.tools.sandbox.probe import measure_isolation
program = Program("import time\\ndef f(x): time.sleep(600)", "f", "def f(x):\\n", "def check(c): c(1)\\n")
print("ready", flush=True)
grade_programs([program] * 4, measure_isolation(), Limits(cpu_seconds=600, wall_seconds=600))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_whoever_grades_may_be_ended_at_any_time_and_nothing_goes_on(number: signal.Signals) -> None:
    before = list_sandboxed()
    root = str(Path(grading.__file__).parents[3])
    with subprocess.Popen(
        [sys.executable, "-c", GRADE_FOREVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root
    ) as parent:
        try:
            assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
            wait_until(lambda: len(list_sandboxed() - before) >= 2)
            time.sleep(0.5)
            parent.send_signal(number)
            assert parent.wait(timeout=PATIENCE_SECONDS) != 0
        finally:
            parent.kill()
    wait_until(lambda: not list_sandboxed() - before)
