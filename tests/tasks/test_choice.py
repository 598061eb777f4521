from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.errors import DataError
from nanochat.tasks.catalog import build_task
from nanochat.tasks.task import Split, TaskSlice

SUMS = [
    {"question": f"What is {n} + 1?", "subject": "sums", "choices": [str(n + k) for k in range(4)], "answer": 1}
    for n in range(6)
]
SCIENCE = [
    {"id": "a", "question": "Hot?", "choices": {"text": ["ice", "fire", "dew"], "label": ["A", "B", "C"]}},
    {"id": "b", "question": "Wet?", "choices": {"text": ["sand", "sun", "sea", "salt"], "label": list("1234")}},
    {"id": "c", "question": "Big?", "choices": {"text": list("vwxyz"), "label": list("ABCDE")}},
]
KEYS = ["B", "3", "E"]


def write(folder: Path, path: str, rows: list[dict[str, Any]], nested: bool = False) -> None:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"train": rows}) if nested else pa.Table.from_pylist(rows), file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "cais/mmlu/auxiliary_train/train-00000-of-00001.parquet", SUMS, nested=True)
    write(tmp_path, "cais/mmlu/all/test-00000-of-00001.parquet", SUMS[:4])
    science = [row | {"answerKey": key} for row, key in zip(SCIENCE, KEYS, strict=True)]
    for kind in ("ARC-Easy", "ARC-Challenge"):
        for split in ("train", "test"):
            write(tmp_path, f"allenai/ai2_arc/{kind}/{split}-00000-of-00001.parquet", science)
    return tmp_path


@pytest.mark.parametrize(("split", "size"), [("train", 6), ("test", 4)])
def test_mmlu_reads_both_layouts(folder: Path, split: Split, size: int) -> None:
    task = build_task("mmlu", split, folder=folder)
    assert len(task) == size and task.eval_type == "categorical"
    asked, answered = task[3].messages
    assert asked.text == "What is 3 + 1?\n\nA. 3\nB. 4\nC. 5\nD. 6\n\nAnswer with the letter only."
    assert answered.text == "B" and "".join(task.letters(3)) == "ABCD"


@pytest.mark.parametrize("name", ["arc-easy", "arc-challenge"])
def test_arc_has_three_to_five_choices_under_two_kinds_of_labels(folder: Path, name: str) -> None:
    task = build_task(name, "test", folder=folder)
    assert task.name == name
    assert [conversation.messages[-1].text for conversation in task] == ["B", "C", "E"]
    assert ["".join(task.letters(index)) for index in range(3)] == ["ABC", "ABCD", "ABCDE"]
    assert "\nC. sea\n" in task[1].messages[0].text


def test_a_slice_keeps_the_letters_of_its_examples(folder: Path) -> None:
    task = TaskSlice(build_task("arc-easy", "train", folder=folder), None, None, -2)
    assert ["".join(task.letters(index)) for index in range(2)] == ["ABCDE", "ABC"]
    assert task.eval_type == "categorical" and task.evaluate(task[0], "E")


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("B", True),
        (" B.", True),
        ("(B)", True),
        ("B. fire", True),
        ("b", False),
        ("A", False),
        ("Bee", False),
        ("", False),
    ],
)
def test_a_written_answer_is_graded_by_its_letter(folder: Path, completion: str, right: bool) -> None:
    task = build_task("arc-easy", "test", folder=folder)
    assert task.evaluate(task[0], completion) is right


def test_a_row_without_a_right_choice_is_named(tmp_path: Path) -> None:
    write(tmp_path, "cais/mmlu/all/test-00000-of-00001.parquet", [SUMS[0], SUMS[0] | {"answer": 4}])
    task = build_task("mmlu", "test", folder=tmp_path)
    assert task[0].messages[-1].text == "B"
    with pytest.raises(DataError, match="mmlu: row 1 of .*: the answer 4 is not in 0..3"):
        task[1]
    write(tmp_path, "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet", [SCIENCE[0] | {"answerKey": "D"}])
    with pytest.raises(DataError, match="'D' is none of A, B, C"):
        build_task("arc-easy", "test", folder=tmp_path)[0]


def test_smoltalk_keeps_all_turns_and_merges_the_system_message(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Goodbye"},
    ]
    rows = [{"messages": talk, "source": "x"}, {"messages": talk[1:4], "source": "x"}]
    write(tmp_path, "HuggingFaceTB/smol-smoltalk/data/train-00000-of-00001.parquet", rows)
    task = build_task("smoltalk", "train", folder=tmp_path)
    assert [message.text for message in task[0].messages] == ["Be kind.\n\nHi", "Hello", "Bye", "Goodbye"]
    assert task.evaluate(task[0], "Goodbye") is None
    with pytest.raises(DataError, match="smoltalk: row 1 of .* ends with the user"):
        task[1]
