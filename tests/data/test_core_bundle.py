import json
from pathlib import Path

import pytest

from nanochat.data.core_bundle import CORE_TASKS, check_bundle, load_bundle, load_items
from nanochat.errors import DataError, MissingError, NanochatError, UsageError
from tests.core_bundle import KINDS, write_bundle
from tests.oracle_core import read_tasks


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def test_tasks_keep_their_order_their_delimiters_and_their_baselines(tmp_path: Path) -> None:
    bundle = load_bundle(write_bundle(tmp_path))
    assert [task.label for task in bundle.tasks] == list(KINDS)
    for task, raw in zip(bundle.tasks, read_tasks(tmp_path), strict=True):
        assert (task.kind, task.num_fewshot, task.continuation_delimiter) == (
            raw["icl_task_type"],
            raw["num_fewshot"][0],
            raw.get("continuation_delimiter", " "),
        )
        assert task.baseline == pytest.approx(KINDS[task.label][2] / 100)


def test_only_the_22_tasks_together_are_core(tmp_path: Path) -> None:
    assert len(CORE_TASKS) == len(set(CORE_TASKS)) == 22
    whole = load_bundle(write_bundle(tmp_path / "whole", CORE_TASKS))
    assert whole.is_core and whole.missing == {}
    more = load_bundle(write_bundle(tmp_path / "more", (*CORE_TASKS, "mine")))
    assert not more.is_core
    partial = load_bundle(write_bundle(tmp_path / "partial", CORE_TASKS[:20]))
    assert not partial.is_core and list(partial.missing) == ["boolq", "bigbench_language_identification"]


def test_a_task_whose_file_is_not_there_is_missing_and_named(tmp_path: Path) -> None:
    write_bundle(tmp_path, CORE_TASKS)
    (tmp_path / "eval_data/all/squad.jsonl").unlink()
    bundle = load_bundle(tmp_path)
    assert bundle.missing == {"squad": "no squad.jsonl"} and not bundle.is_core
    assert "squad" not in [task.label for task in bundle.tasks]


def test_some_tasks_can_be_chosen(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    bundle = load_bundle(tmp_path, ["jeopardy", "copa"])
    assert [task.label for task in bundle.tasks] == ["copa", "jeopardy"]
    assert bundle.missing["arc_easy"] == "not asked for" and bundle.missing["squad"] == "not in core.yaml"
    with pytest.raises(UsageError, match="'jeopardi'") as caught:
        load_bundle(tmp_path, ["jeopardi"])
    assert "did you mean 'jeopardy'" in caught.value.hint
    with pytest.raises(MissingError, match="squad: not in core.yaml"):
        load_bundle(tmp_path, ["squad"])


def test_no_bundle_is_missing_with_the_command_that_gets_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError) as caught:
        check_bundle(tmp_path / "none")
    assert caught.value.hint == "nanochat download core"
    write_bundle(tmp_path, ["copa"])
    (tmp_path / "eval_data/all/copa.jsonl").unlink()
    with pytest.raises(MissingError, match="none of the tasks"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("name", "before", "after", "sentence"),
    [
        ("core.yaml", "icl_tasks:", "icl_task:", "not a list of tasks"),
        ("core.yaml", "icl_tasks:", "icl_tasks: [", "not a list of tasks"),
        ("core.yaml", "label: copa", "label: winograd", "names task 'winograd' twice"),
        ("core.yaml", "label: copa", "lable: copa", "no label"),
        ("core.yaml", "multiple_choice", "many_choice", "'many_choice' of copa"),
        ("core.yaml", "num_fewshot: [0]", "num_fewshot: [0, 5]", "is not one number"),
        ("core.yaml", "num_fewshot: [0]", "num_fewshot: [-1]", "is not one number"),
        ("core.yaml", "all/copa.jsonl", "../../etc/passwd", "leads out of"),
        ("core.yaml", "num_fewshot: [0]", "num_fewshot: [0]\n  prompt_string: Hi", "prompt_string of copa"),
        ("eval_meta_data.csv", "copa,", "kopa,", "no random baseline for copa"),
        ("eval_meta_data.csv", "Random baseline", "Baseline", "'Random baseline'"),
        ("eval_meta_data.csv", ",50", ",fifty", "fifty"),
        ("eval_meta_data.csv", ",50", ",", "of copa is '', not in"),
        ("eval_meta_data.csv", ",50", ",nan", "of copa is 'nan'"),
        ("eval_meta_data.csv", ",50", ",100", "of copa is '100', not in"),
    ],
)
def test_a_damaged_description_is_a_sentence(tmp_path: Path, name: str, before: str, after: str, sentence: str) -> None:
    write_bundle(tmp_path)
    change(tmp_path / name, before, after)
    with pytest.raises(DataError, match=sentence) as caught:
        load_bundle(tmp_path)
    assert caught.value.hint == "nanochat download core" and "\n" not in caught.value.message


def test_a_baseline_of_a_task_that_is_not_there_may_be_anything(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    path = tmp_path / "eval_meta_data.csv"
    path.write_text(path.read_text() + "another,some,?\nyet another,some\n")
    assert len(load_bundle(tmp_path).tasks) == len(KINDS)


def test_baselines_are_not_guessed(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    (tmp_path / "eval_meta_data.csv").unlink()
    with pytest.raises(DataError, match="what guessing gets is unknown"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("label", "line", "sentence"),
    [
        ("copa", "{", "Expecting"),
        ("copa", "[1]", "expected an object"),
        ("copa", '{"query": "a", "choices": ["b"], "gold": 0}', "two or more"),
        ("copa", '{"query": "a", "choices": ["b", ""], "gold": 0}', "two or more"),
        ("copa", '{"query": "a", "choices": ["b", "c"], "gold": 2}', "gold = 2"),
        ("copa", '{"query": "a", "choices": ["b", "c"], "gold": true}', "gold = True"),
        ("copa", '{"query": 3, "choices": ["b", "c"], "gold": 1}', "query = 3"),
        ("winograd", '{"context_options": ["a", "b"], "gold": 1}', "continuation = None"),
        ("lambada_openai", '{"context": "a", "continuation": " "}', "continuation = ' '"),
        ("lambada_openai", '{"context": "\xff', "lambada_openai.jsonl:13"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, label: str, line: str, sentence: str) -> None:
    write_bundle(tmp_path)
    path = tmp_path / f"eval_data/all/{label}.jsonl"
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    task = next(task for task in load_bundle(tmp_path).tasks if task.label == label)
    with pytest.raises(NanochatError, match=sentence) as caught:
        load_items(task)
    assert f"{label}.jsonl:13: " in caught.value.message


def test_items_have_the_hash_of_their_file_and_texts_without_spaces_around(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    task = next(task for task in load_bundle(tmp_path).tasks if task.label == "lambada_openai")
    items, digest = load_items(task)
    assert len(items) == 12 and all(item.options[0][0].endswith(":") for item in items)
    task.path.write_text(json.dumps({"context": "a", "continuation": "b"}) + "\n\n")
    changed, other = load_items(task)
    assert len(changed) == 1 and digest != other
    task.path.write_text("\n")
    with pytest.raises(DataError, match="holds no question"):
        load_items(task)
