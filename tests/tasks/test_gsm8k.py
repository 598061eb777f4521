from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.conversation import Part
from nanochat.errors import DataError
from nanochat.tasks.catalog import build_mixture, build_task
from nanochat.tasks.gsm8k import final_number, split_calls

ROWS = {
    "question": ["Ann has 48 clips and sells half. How many are left?", " A lamp is $1,250.50. What do 2 cost? "],
    "answer": [
        "She sells 48/2 = <<48/2=24>>24 clips.\nThen 48-24 = <<48-24=24>>24 are left.\n#### 24",
        "They cost 2*1250.5 = $<<2*1250.5=2501>>2501.\n#### 2,501",
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    main = tmp_path / "openai/gsm8k/main"
    main.mkdir(parents=True)
    for split in ("train", "test"):
        pq.write_table(pa.table(ROWS), main / f"{split}-00000-of-00001.parquet")
    return tmp_path


def test_annotations_become_tool_calls(folder: Path) -> None:
    task = build_task("gsm8k", "test", folder=folder)
    assert len(task) == 2 and task.name == "gsm8k"
    asked, answered = task[1].messages
    assert asked.text == "A lamp is $1,250.50. What do 2 cost?"
    assert answered.parts == (
        Part("text", "They cost 2*1250.5 = $"),
        Part("python", "2*1250.5"),
        Part("python_output", "2501"),
        Part("text", "2501.\n#### 2,501"),
    )
    assert len(build_mixture(["gsm8k:1*3"], folder=folder)) == 3


def test_an_annotation_without_a_result_stays_text() -> None:
    assert split_calls("a <<b>> c") == (Part("text", "a <<b>> c"),)
    assert split_calls("<<1+1=2>>") == (Part("python", "1+1"), Part("python_output", "2"))
    assert "".join(part.text for part in split_calls("x=<<2=1+1=2>>2")) == "x=2=1+122"


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("#### 2501", True),
        ("#### $2,501.00.", True),
        ("#### 2501 dollars", True),
        ("####2501", True),
        ("#### 2500 is wrong. #### 2501", True),
        ("They cost $2,501.", True),
        ("First 7, then 2501", True),
        ("#### -2501", False),
        ("#### 25012", False),
        ("#### 250", False),
        ("2501 and 3", False),
        ("#### ", False),
        ("", False),
        ("no number", False),
    ],
)
def test_the_final_number_decides(folder: Path, completion: str, right: bool) -> None:
    task = build_task("gsm8k", "test", folder=folder)
    assert task.evaluate(task[1], completion) is right
    assert all(task.evaluate(conversation, conversation.messages[-1].text) for conversation in task)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10-5", "5"),
        ("it is -5.", "-5"),
        ("it is $-5", "-5"),
        ("it is -$5", "-5"),
        ("it is \u22125", "-5"),
        (".5", "0.5"),
        ("1,2", "2"),
        ("1,000,000", "1000000"),
        ("50%", "50"),
        ("#### abc", None),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    main = tmp_path / "openai/gsm8k/main"
    main.mkdir(parents=True)
    pq.write_table(pa.table({"question": ["a", "b"], "answer": ["#### 1", None]}), main / "test-00000-of-00001.parquet")
    task = build_task("gsm8k", "test", folder=tmp_path)
    assert task[0].messages[1].text == "#### 1"
    with pytest.raises(DataError, match="row 1 of .* has no 'answer'"):
        task[1]
