"""Tasks of the hub, on small files of the test's own in the layouts that the hub has."""

import os
import random
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.conversation import Conversation, assistant, user
from nanochat.errors import DataError, MissingError
from nanochat.sources import TASK_SOURCES
from nanochat.tasks.catalog import HUB_TASKS, build_mixture, build_task
from nanochat.tasks.gsm8k import final_number
from nanochat.tasks.hub import HubRows
from nanochat.tasks.task import TaskSlice

SOLUTION = "She has 48/2 = <<48/2=24>>24 left.\nIn all 48+24 = <<48+24=72>>72.\n#### 1,072"
ROWS: dict[str, list[dict]] = {
    "gsm8k": [{"question": f"Question {i}?", "answer": SOLUTION} for i in range(10)],
    "mmlu": [
        {"question": f"What is {i}?", "subject": "x", "choices": ["0", "1", "2", "3"], "answer": i % 4}
        for i in range(9)
    ],
    "arc-easy": [
        {"id": "a", "question": "Q", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"},
        {"id": "b", "question": "Q", "choices": {"text": list("vwxyz"), "label": list("12345")}, "answerKey": "4"},
    ],
    "arc-challenge": [
        {"id": "c", "question": "Q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
    ],
    "smoltalk": [
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ],
            "source": "s",
        }
    ],
}


def place(folder: Path, task: str, split: str, rows: list[dict], name: str = "") -> Path:
    """Write rows where the hub's file of a task would lie."""
    pattern = TASK_SOURCES[task].files[split]
    path = folder / TASK_SOURCES[task].repo / (name or pattern.replace("*", "00000-of-00001"))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for task, rows in ROWS.items():
        for split in TASK_SOURCES[task].files:
            nested = task == "mmlu" and split == "train"  # so it is on the hub
            place(tmp_path, task, split, [{"train": row} for row in rows] if nested else rows)
    return tmp_path


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", HUB_TASKS)
def test_every_row_becomes_a_conversation_whose_own_answer_is_right(folder: Path, name: str, split) -> None:
    task = build_task(name, split, folder=folder)
    assert task.name == name and len(task) == len(ROWS[name])
    for conversation in task:
        assert [message.role for message in conversation.messages] == ["user", "assistant"]
        graded = task.evaluate(conversation, conversation.messages[-1].text)
        assert graded is (None if name == "smoltalk" else True)
        assert not task.evaluate(conversation, "Z")


def test_calculations_become_tool_calls(folder: Path) -> None:
    message = build_task("gsm8k", "test", folder=folder)[0].messages[-1]
    assert [(part.kind, part.text) for part in message.parts] == [
        ("text", "She has 48/2 = "),
        ("python", "48/2"),
        ("python_output", "24"),
        ("text", "24 left.\nIn all 48+24 = "),
        ("python", "48+24"),
        ("python_output", "72"),
        ("text", "72.\n#### 1,072"),
    ]


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("#### 1072", "1072"),
        ("so\n#### 1,072.00.", "1072"),
        ("####$1,072", "1072"),
        ("#### 3\n#### 1072", "1072"),
        ("#### -4", "-4"),
        ("#### .5", "0.5"),
        ("it is 1072", None),
        ("####", None),
        ("#### many", None),
        ("", None),
    ],
)
def test_the_number_after_the_mark_counts(folder: Path, said: str, number: str | None) -> None:
    assert final_number(said) == (None if number is None else Decimal(number))
    task = build_task("gsm8k", "test", folder=folder)
    assert task.evaluate(task[0], said) is (number == "1072")


def test_choices_have_as_many_letters_as_there_are(folder: Path) -> None:
    task = build_task("arc-easy", "test", folder=folder)
    assert [list(task.letters(i)) for i in range(2)] == [list("ABC"), list("ABCDE")]
    assert [conversation.messages[-1].text for conversation in task] == ["C", "D"]
    assert "A. v\nB. w\nC. x\nD. y\nE. z" in task[1].messages[0].text
    assert list(TaskSlice(task, 1).letters(0)) == list("ABCDE")
    assert build_task("mmlu", "train", folder=folder)[6].messages[-1].text == "C"


def test_a_system_message_opens_the_first_turn(folder: Path) -> None:
    assert build_task("smoltalk", folder=folder)[0] == Conversation((user("Be kind.\n\nHi"), assistant("Hello")))


def test_rows_come_in_any_order_from_several_files_and_are_written_out_once(tmp_path: Path) -> None:
    names = [f"main/test-0000{i}-of-00003.parquet" for i in range(3)]
    rows = [{"question": str(i), "answer": "#### 1"} for i in range(30)]
    paths = [place(tmp_path, "gsm8k", "test", rows[10 * i : 10 * i + 10], name) for i, name in enumerate(names)]
    table = HubRows("gsm8k", "test", ("question",), tmp_path)
    order = random.Random(0).sample(range(30), 30)
    assert [table[i] for i in order] == [{"question": str(i)} for i in order]
    with pytest.raises(IndexError):
        table[30]
    mapped = [path.with_name(f".{path.name}.arrow") for path in paths]
    times = [path.stat().st_mtime_ns for path in mapped]
    assert HubRows("gsm8k", "test", ("question",), tmp_path)[29] == {"question": "29"}
    assert [path.stat().st_mtime_ns for path in mapped] == times
    place(tmp_path, "gsm8k", "test", [{"question": "new", "answer": ""}] * 10, names[0])
    os.utime(paths[0], ns=(1, 1))
    mapped[1].write_bytes(b"cut off")
    again = HubRows("gsm8k", "test", ("question",), tmp_path)
    assert again[0] == {"question": "new"} and again[15] == {"question": "15"}
    assert not list(tmp_path.rglob("*.arrow.*"))


def test_where_the_folder_cannot_be_written_rows_are_held_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanochat.tasks.hub._write_table", fail)
    assert len(build_task("gsm8k", folder=folder)) == 10 and not list(folder.rglob("*.arrow"))


def test_what_is_not_there_names_its_command(tmp_path: Path) -> None:
    for folder in (tmp_path, None):
        with pytest.raises(MissingError, match="openai/gsm8k/main/train-.* is not downloaded") as caught:
            build_task("gsm8k", folder=folder)
        assert caught.value.hint == "nanochat download tasks gsm8k"
    with pytest.raises(MissingError):
        build_mixture(["letters:3", "mmlu:5*2"], folder=tmp_path)


@pytest.mark.parametrize("damage", ["bytes", "column", "empty", "row"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    path = place(tmp_path, "mmlu", "test", ROWS["mmlu"])
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:-30])
    elif damage == "column":
        place(tmp_path, "mmlu", "test", [{"question": "Q", "answer": 1}])
    elif damage == "empty":
        pq.write_table(pa.Table.from_pylist(ROWS["mmlu"]).slice(0, 0), path)
    else:
        place(tmp_path, "mmlu", "test", [{"question": "Q", "choices": ["a", "b"], "answer": 7}])
    with pytest.raises(DataError) as caught:
        build_task("mmlu", "test", folder=tmp_path)[0]
    assert (str(path) in caught.value.message or damage == "row") and "nanochat download" in caught.value.hint


def test_a_mixture_of_hub_and_own_tasks_is_sliced_and_shuffled(folder: Path) -> None:
    mixture = build_mixture(["gsm8k:4*2", "letters:3", "arc-challenge"], folder=folder)
    assert len(mixture) == 4 * 2 + 3 + 1 and len(list(mixture)) == 12
