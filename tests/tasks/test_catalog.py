import json
from collections import Counter
from pathlib import Path

import pytest

from nanochat.errors import DataError, MissingError, UsageError
from nanochat.tasks.arithmetic import ArithmeticTask
from nanochat.tasks.catalog import build_entry, build_mixture, build_task, list_untested
from nanochat.tasks.entry import parse_spec
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
    assert parse_spec("letters:5*2") == ("letters", slice(None, 5), 2)
    assert parse_spec("custom:a b.jsonl:10:20") == ("custom:a b.jsonl", slice(10, 20), 1)
    assert parse_spec("a.b:Mine::50:2*3") == ("a.b:Mine", slice(None, 50, 2), 3)
    assert len(build_task("letters", "test", 7)) == 7 and len(build_task("identity", "test", 7)) == 7


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "letters:",
        "letters:0",
        "letters*0",
        "letters*x",
        "a:b:c:5:x",
        "letters:-1",
        ":5",
        "letters:5:5",
        "letters:1:9:0",
        "letters:1:2:3:4",
    ],
)
def test_a_specification_that_cannot_be_read_is_said(spec: str) -> None:
    with pytest.raises(UsageError, match="is not NAME, NAME:STOP or NAME"):
        build_mixture([spec])


@pytest.mark.parametrize("part", ["3:9", "3:", "::4", ":9:2", "2:40:7"])
def test_a_part_is_a_python_slice(part: str) -> None:
    numbers = [int(text) if text else None for text in part.split(":")]
    whole = list(IdentityTask("train"))
    assert list(build_entry(f"identity:{part}")) == whole[slice(*numbers)]


def test_a_part_of_the_test_examples_is_as_many_of_them() -> None:
    assert list(build_entry("identity:100:120:2", "test")) == list(IdentityTask("test"))[:10]
    assert len(build_entry("letters:900:1000", "test")) == 100


def test_a_part_beyond_the_end_is_said() -> None:
    with pytest.raises(UsageError, match="identity:9000:9500 is empty: the task has 286 examples"):
        build_mixture(["identity:9000:9500"])


def test_an_unknown_task_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="no task 'leters'") as error:
        build_mixture(["leters:5"])
    assert "did you mean 'letters'?" in error.value.hint
    with pytest.raises(UsageError, match="empty"):
        build_mixture([])


def test_the_test_examples_of_a_mixture_are_each_there_once() -> None:
    mixture = list(build_mixture(["identity*20", "arithmetic:10*2", "arithmetic:20:30"], "test"))
    assert Counter(mixture) == Counter([*IdentityTask("test"), *ArithmeticTask("test", 20)])


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
        (b'[{"role": "user", "content": "x"}]\n', r":1: it ends with the user"),
        (b'[{"role": "assistant", "content": "x"}]\n', r"roles alternate"),
        (LINE.encode() + LINE.replace('"b"', '" "').encode(), r":2: answer 1 is empty"),
        (LINE.replace('"b"', '[{"type": "python_output", "text": "2"}]').encode(), r":1: answer 1 is empty"),
        (b"\n", r"has no conversations"),
        (b"[]", r"at least one message"),
        (LINE.replace('"b"', '"b", "weight": 0').encode(), r":1: no answer is learnt"),
        (LINE.replace('"b"', '"b", "wieght": 0').encode(), r":1: messages\[1\]: the key 'wieght' is not known"),
        (LINE.replace('"b"', '"b", "content": "c"').encode(), r":1: the key 'content' stands twice"),
        (LINE.replace('"b"', r'"\ud83d"').encode(), r":1: messages\[1\] holds half a surrogate pair"),
        (f"[{LINE},\n{LINE}, 7]".encode(), r":4, conversation 3: expected"),
        (f"[{LINE},\n{LINE}\n{LINE}]".encode(), r":5 is not JSON: Expecting ',' or ']'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said):
        build_task(f"custom:{path}")


@pytest.mark.parametrize(
    ("data", "layout"),
    [
        ("[\n" + LINE + "," + LINE + "]", "JSON"),
        (f"[{LINE.strip()}, {LINE.strip()}]", "JSON"),
        (json.dumps([json.loads(LINE)] * 2, indent=1), "JSON"),
        (json.dumps(json.loads(LINE), indent=1) * 2, "JSON"),
        (LINE + "\n" + LINE, "JSONL"),
        (json.dumps(json.loads(LINE)["messages"]) + "\n" + LINE, "JSONL"),
    ],
)
def test_arrays_and_values_of_many_lines_are_read_and_what_was_read_is_said(
    tmp_path: Path, data: str, layout: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(data)
    mixture = build_mixture([f"custom:{path}", f"custom:{path}*2"])
    assert len(mixture) == 6 and mixture[0].messages[1].text == "b"
    assert mixture.notes()[0] == f"mine.json: 2 conversations, {layout} in the shape of messages"


def test_masked_answers_and_other_shapes_are_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    talk = json.loads(LINE)["messages"]
    masked = json.dumps(talk + [talk[0], talk[1] | {"weight": 0}])
    other = '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}'
    path.write_text(f"{LINE}{other}\n{masked}\n")
    note = build_task(f"custom:{path}").notes()[0]
    assert "in the shape of messages and ShareGPT" in note
    assert note.endswith("1 of 4 answers are not learnt (weight 0 or train false)")


def test_the_hash_of_a_mixture_is_that_of_what_it_teaches(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [LINE.replace('"b"', json.dumps(f"answer {number}")) for number in range(9)]
    path.write_text("".join(lines))

    def hash_mixture(*specs: str, seed: int = 42) -> str:
        return build_mixture(specs, seed=seed).content_hash()

    specs = ("letters:30", f"custom:{path}*2")
    whole, part = hash_mixture(*specs), hash_mixture(f"custom:{path}:5")
    assert whole == hash_mixture(*specs)
    others = [hash_mixture("letters:31", specs[1]), hash_mixture(specs[0], f"custom:{path}")]
    assert whole not in [*others, hash_mixture(*specs, seed=43)]
    path.write_text("".join([*lines[:-1], lines[0]]))  # as many lines
    assert whole != hash_mixture(*specs) and part == hash_mixture(f"custom:{path}:5")


def test_a_part_of_a_large_file_is_held_out_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = [LINE.replace('"b"', f'"answer {number}"') for number in range(400)]

    def split(lines: list[str]) -> tuple[set[str], set[str]]:
        path.write_text("".join(lines))
        tasks = [build_task(f"custom:{path}", split) for split in ("train", "test")]
        train, test = ([task[index].messages[1].text for index in range(len(task))] for task in tasks)
        assert len(train) + len(test) == len(lines) and not set(train) & set(test)
        assert f"{len(test)} of them" in tasks[0].notes()[1]
        return set(train), set(test)

    train, test = split(lines)
    assert len(test) == 20 and list_untested([f"custom:{path}"]) == []
    assert split(lines[::-1]) == (train, test)  # an order is no matter
    assert split(lines + lines)[1] == test  # copies stay together
    assert len(split(lines[:100])[1]) == 8 and split(lines[:-1])[0] - train <= test  # an edit moves no other one
    path.write_text("".join(lines[:79]))
    assert list(build_task(f"custom:{path}")) == list(build_task(f"custom:{path}", "test"))
    assert "too few to hold some out" in build_task(f"custom:{path}").notes()[1]
    assert list_untested([f"custom:{path}", "letters:5", "identity*3"]) == [f"custom:{path}", "identity"]


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no file"):
        build_task(f"custom:{tmp_path / 'none.jsonl'}")
