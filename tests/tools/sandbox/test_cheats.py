"""No program passes that is not right; each is judged on several questions, for one may fit by chance."""

import pytest

from nanochat.tools.sandbox.grading import Program, grade_programs
from nanochat.tools.sandbox.probe import measure_isolation
from nanochat.tools.sandbox.process import Limits
from tests.tools.sandbox.cheats import CHEATS

pytestmark = pytest.mark.skipif(measure_isolation().level != "strong", reason="this machine cannot close a process")

LIMITS = Limits(cpu_seconds=2, wall_seconds=5)  # some wait for ever: these five seconds count
QUESTIONS = {
    "number": "def check(candidate):\n    for n in range(4):\n        assert candidate(n) == n * n\n",
    "nearly": "def check(candidate):\n    assert abs(candidate(2.0) - 1.41421) < 1e-3\n",
    "order": "def check(candidate):\n    assert candidate([3, 1]) > 5\n    assert candidate([]) <= 7\n",
    "truth": "def check(candidate):\n    assert candidate('a') is True\n    assert candidate('b') is False\n",
    "words": "def check(candidate):\n    assert candidate('ab') == ['a', 'b']\n    assert len(candidate('c')) == 1\n",
    "member": "def check(candidate):\n    assert 'x' in candidate(1)\n    assert not candidate(0)\n",
}
"""Tests of made-up questions; none is passed by a constant."""


def test_there_are_enough() -> None:
    assert len(CHEATS) >= 40 and len(set(CHEATS.values())) == len(CHEATS)


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_cheat_passes_and_each_gets_a_verdict(question: str) -> None:
    programs = [
        Program(code.replace("NAME", "f"), "f", "def f(*a):\n", QUESTIONS[question]) for code in CHEATS.values()
    ]
    verdicts = dict(zip(CHEATS, grade_programs(programs, measure_isolation(), LIMITS), strict=True))
    assert {name: verdict.reason for name, verdict in verdicts.items() if verdict.passed is not False} == {}


def test_a_test_that_forgives_errors_is_not_passed_by_a_program_that_ends_or_breaks_the_protocol() -> None:
    forgiving = (
        "def check(candidate):\n    try:\n        candidate(1)\n    except Exception:\n        pass\n"
        "    try:\n        candidate(2)\n    except Exception:\n        pass\n"
    )
    ending = [name for name in CHEATS if name.startswith(("leaves", "replies", "aborts", "crashes", "closes"))]
    programs = [Program(CHEATS[name].replace("NAME", "f"), "f", "def f(x):\n", forgiving) for name in ending]
    honest = Program("def f(x):\n    raise ValueError(x)", "f", "def f(x):\n", forgiving)  # an error is an answer
    verdicts = grade_programs([*programs, honest], measure_isolation(), LIMITS)
    assert [verdict.passed for verdict in verdicts] == [False] * len(ending) + [True]


def test_a_test_may_swallow_nothing_and_still_say_why() -> None:
    swallowing = "def check(candidate):\n    try:\n        candidate(1)\n    except BaseException:\n        pass\n"
    programs = [Program("import os\nos._exit(0)", "f", "def f(x):\n", swallowing)]
    (verdict,) = grade_programs(programs, measure_isolation(), LIMITS)
    assert verdict.passed is False and "ended with status 0" in verdict.reason
