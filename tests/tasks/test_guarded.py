"""A task of somebody's own whose code is wrong is told so, with its line, and never scores by accident."""

from pathlib import Path

import pytest

from nanochat.errors import DataError, UsageError
from nanochat.tasks.catalog import build_task

GOOD = """
import sys
from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.task import Task

class Own(Task):
    def __init__(self, split): pass
    def num_examples(self): return 3
    def example(self, index): return Conversation((user("q"), assistant("a")))
    def evaluate(self, conversation, completion): return completion == "a"
"""


def build(folder: Path, *lines: str):
    path = folder / f"own_{abs(hash(lines))}.py"
    path.write_text(GOOD + "".join(f"    {line}\n" for line in lines))
    return build_task(f"{path}:Own", "test")


def test_a_right_one_works_and_what_it_prints_goes_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    task = build(tmp_path, "def num_examples(self): print('noise'); return 2")
    assert task.num_examples() == 2 and task.name.endswith(":Own") and task.example(1).messages[-1].text == "a"
    assert [task.evaluate(task.example(0), text) for text in "ab"] == [True, False]
    assert task.evaluate_all([(task.example(0), "a"), (task.example(0), "b")]) == [True, False]
    shown = capsys.readouterr()
    assert shown.out == "" and "noise" in shown.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("def num_examples(self): return 2.5", "num_examples() is 2.5"),
        ("def num_examples(self): return 0", "num_examples() is 0, expected an integer from 1 on"),
        ("def num_examples(self): return -3", "num_examples() is -3"),
        ("def num_examples(self): return True", "num_examples() is True"),
        ("def num_examples(self): sys.exit(0)", "SystemExit: 0"),
        ("name = 5", "name is 5"),
        ("name = ' '", "name is ' '"),
        ("eval_type = 'oral'", "eval_type is 'oral'"),
        ("max_new_tokens = '8'", "max_new_tokens is '8'"),
        ("max_new_tokens = 0", "max_new_tokens is 0"),
        ("def __init__(self, split): raise KeyError('x')", "KeyError: 'x'"),
        ("def __init__(self, split): sys.exit()", "SystemExit"),
    ],
)
def test_what_is_wrong_with_it_is_found_when_it_is_made(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(DataError) as refused:
        build(tmp_path, line)
    assert said in refused.value.message and "own_" in refused.value.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("def example(self, index): raise ValueError('no')", "ValueError: no"),
        ("def example(self, index): return 'text'", "example(1) is 'text', expected a Conversation"),
        ("def example(self, index): return Conversation((user('q'),))", "ends with the right answer"),
        ("def evaluate(self, conversation, completion): return 'no'", "evaluate(...) is 'no'"),
        ("def evaluate(self, conversation, completion): return 0.5", "evaluate(...) is 0.5"),
        ("def evaluate(self, conversation, completion): return 1", "evaluate(...) is 1"),
        ("def evaluate(self, conversation, completion): return 1 / 0", "ZeroDivisionError"),
        ("def evaluate_all(self, items, progress=None): return []", "evaluate_all is '0 verdicts'"),
        ("def letters(self, index): return ()", "letters(1) is ()"),
        ("def letters(self, index): return 'AB'", "letters(1) is 'AB'"),
    ],
)
def test_what_it_raises_or_returns_is_told(tmp_path: Path, line: str, said: str) -> None:
    task = build(tmp_path, line)
    with pytest.raises(DataError) as refused:
        task.letters(1)
        task.evaluate_all([(task.example(1), "a")])
    assert said in refused.value.message
    if "raise" in line or "1 / 0" in line:
        assert f".py:{GOOD.count(chr(10)) + 1})" in refused.value.message


def test_a_built_in_name_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="their scores would be one file"):
        build(tmp_path, "name = 'letters'")
