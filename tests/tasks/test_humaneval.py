from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.conversation import Conversation, user
from nanochat.errors import DataError, UsageError
from nanochat.tasks import humaneval
from nanochat.tasks.catalog import RUN_CODE, build_task
from nanochat.tasks.humaneval import complete_program
from nanochat.tools.sandbox.probe import Isolation, measure_isolation

PROMPTS = [
    "import math\n\ndef area(r: float) -> float:\n    '''The area of a circle.'''\n",
    "def twice(n):\n    return 2 * n\n\ndef halve(n):\n    '''Undo twice.'''\n",
]
ROWS = {
    "task_id": ["HumanEval/0", "HumanEval/1"],
    "prompt": PROMPTS,
    "canonical_solution": ["    return math.pi * r * r\n", "    return n // 2\n"],
    "test": [
        "def check(candidate):\n    assert abs(candidate(1.0) - 3.14159) < 1e-4\n    assert candidate(0.0) == 0\n",
        "def check(candidate):\n    for n in range(9):\n        assert candidate(twice(n)) == n\n",
    ],
    "entry_point": ["area", "halve"],
}

strong = pytest.mark.skipif(measure_isolation().level != "strong", reason="this machine cannot close a process")


def write_rows(folder: Path, **changes: list[str]) -> Path:
    path = folder / "openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(ROWS | changes), path)
    return folder


@strong
def test_the_right_answer_is_right_in_each_form_and_a_wrong_one_is_wrong(tmp_path: Path) -> None:
    task = build_task("humaneval", "test", folder=write_rows(tmp_path))
    first, second = task
    assert first.messages[0].text == PROMPTS[0] and task.evaluate(first, first.messages[1].text)
    progress: list[tuple[int, int]] = []
    answers = [
        (first, "    return math.pi * r ** 2"),  # the body alone: the prompt's import is there
        (first, "def area(r):\n    return math.pi * r * r"),
        (first, "Of course!\n```python\ndef area(r):\n    return 3.14159265 * r * r\n```\nHope it helps."),
        (first, "```\ndef area(r):\n    return math.pi * r * r"),  # cut before the fence
        (first, "    return 3 * r * r"),
        (first, "The area is pi times the square of r."),
        (first, ""),
        (second, "    return n // 2"),
        (second, "def twice(n):\n    return 0\n\ndef halve(n):\n    return 0"),  # the test's own helper stays
    ]
    verdicts = task.evaluate_all(answers, lambda done, total: progress.append((done, total)))
    assert verdicts == [True] * 4 + [False] * 3 + [True, False]
    assert progress[-1] == (9, 9) and len(progress) == 9


@strong
def test_a_test_that_is_broken_gives_no_verdict(tmp_path: Path) -> None:
    tests = ["def check(candidate:\n", "def check(candidate):\n    pass\n"]  # a syntax error; asks nothing
    task = build_task("humaneval", "test", folder=write_rows(tmp_path, test=tests))
    assert task.evaluate_all([(task[0], "    return 1"), (task[1], "    return 1")]) == [None, None]


def test_below_strong_isolation_nothing_runs_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weak = Isolation("weak", ("rlimits",), ("read files",))
    monkeypatch.setattr("nanochat.tools.sandbox.probe.measure_isolation", lambda: weak)
    started: list[int] = []
    monkeypatch.setattr(humaneval, "grade_programs", lambda programs, *_, **__: started.append(len(programs)) or [])
    task = build_task("humaneval", "test", folder=write_rows(tmp_path))
    with pytest.raises(UsageError, match="it can read files") as caught:
        task.evaluate(task[0], "    return 1")
    assert "--allow-weak-isolation" in caught.value.hint and not started
    allowed = build_task("humaneval", "test", folder=tmp_path, allow_weak_isolation=True)
    allowed.evaluate_all([(task[0], "    return 1")])
    assert started == [1]


def test_it_is_for_tests_only(tmp_path: Path) -> None:
    folder = write_rows(tmp_path)
    with pytest.raises(UsageError, match="no 'train' split"):
        build_task("humaneval", "train", folder=folder)
    assert "humaneval" in RUN_CODE


def test_questions_of_others_and_rows_without_a_name_are_refused(tmp_path: Path) -> None:
    task = build_task("humaneval", "test", folder=write_rows(tmp_path / "a"), allow_weak_isolation=True)
    with pytest.raises(UsageError, match="not one of HumanEval"):
        task.evaluate(Conversation((user("What is 6*7?"),)), "42")
    broken = build_task("humaneval", "test", folder=write_rows(tmp_path / "b", entry_point=["area", "two words"]))
    with pytest.raises(DataError, match="'two words'"):
        broken[1]


def test_the_block_that_defines_the_function_is_the_answer() -> None:
    answer = "First:\n```\npip install x\n```\n```python\nimport re\ndef f(x):\n    return x\n```\nuse:\n```\nf(1)\n```"
    assert complete_program("def f(x):\n    '''...'''\n", "f", answer) == "import re\ndef f(x):\n    return x\n"
    assert complete_program("def f(x):\n", "f", "f = lambda x: x") == "f = lambda x: x"
    assert complete_program("def f(x):\n", "f", "    def fx(): ...\n") == "def f(x):\n    def fx(): ...\n"
