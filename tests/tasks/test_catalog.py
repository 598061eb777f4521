from collections import Counter
from pathlib import Path

import pytest

from nanochat.errors import DataError, MissingError, UsageError
from nanochat.tasks.arithmetic import ArithmeticTask
from nanochat.tasks.catalog import build_mixture, build_task, parse_spec
from nanochat.tasks.identity import IdentityTask
from nanochat.tasks.letters import LettersTask
from nanochat.tasks.task import TaskMixture, TaskSequence, TaskSlice

LINE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


def test_a_slice_is_a_python_slice() -> None:
    task = ArithmeticTask("train", 50)
    assert list(TaskSlice(task, 5, -10, 7)) == list(task)[5:-10:7]
    assert len(TaskSlice(task, None, 10_000)) == 50
    assert TaskSlice(task, 0, 3).name == "arithmetic"


def test_a_sequence_keeps_the_order_and_repeats() -> None:
    task = ArithmeticTask("train", 5)
    assert list(TaskSequence([task, task])) == list(task) * 2


def test_a_mixture_holds_every_example_of_every_task_and_interleaves() -> None:
    letters, sums = LettersTask("train", 40), ArithmeticTask("train", 40)
    mixture = list(TaskMixture([letters, sums, sums], seed=1))
    assert Counter(mixture) == Counter([*letters, *sums, *sums])
    assert any(conversation in list(sums) for conversation in mixture[:20])
    assert (
        mixture == list(TaskMixture([letters, sums, sums], seed=1)) != list(TaskMixture([letters, sums, sums], seed=2))
    )


def test_a_specification_slices_and_repeats() -> None:
    mixture = build_mixture(["letters:30", "identity*3", "arithmetic:10*2"])
    assert len(mixture) == 30 + 3 * len(IdentityTask("train")) + 20
    assert parse_spec("letters:5*2") == ("letters", 5, 2)
    assert len(build_task("letters", "test", 7)) == 7 and len(build_task("identity", "test", 7)) == 7


@pytest.mark.parametrize("spec", ["", "letters:", "letters:0", "letters*0", "letters*x", "a:b:c", "letters:-1", ":5"])
def test_a_specification_that_cannot_be_read_is_said(spec: str) -> None:
    with pytest.raises(UsageError, match="is not NAME, NAME:STOP or NAME"):
        build_mixture([spec])


def test_an_unknown_task_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="no task 'leters'") as error:
        build_mixture(["leters:5"])
    assert "did you mean 'letters'?" in error.value.hint
    with pytest.raises(UsageError, match="empty"):
        build_mixture([])


def test_a_file_of_conversations_is_a_task(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(LINE + "\n" + LINE)
    task = build_task(f"custom:{path}")
    assert len(task) == 2 and task[1].messages[1].text == "b"
    assert task.evaluate(task[0], "b") is None
    assert len(build_mixture([f"custom:{path}*3"])) == 6


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (LINE.encode() + b"{\n", r":2 is not JSON"),
        (b"\xff\n", r":1 is not UTF-8"),
        (b'{"text": "x"}\n', r':1: expected \{"messages"'),
        (b'[{"role": "user", "content": "x"}]\n', r":1 ends with the user"),
        (b'[{"role": "assistant", "content": "x"}]\n', r"roles alternate"),
        (b"\n", r"has no conversations"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said):
        build_task(f"custom:{path}")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no file"):
        build_task(f"custom:{tmp_path / 'none.jsonl'}")
