"""A run on text of one's own: what the tokenizer sees of it, and how often base goes through it."""

import json
from pathlib import Path

import pytest

from nanochat.data.shards import load_manifest, measure_text, write_shards
from nanochat.paths import RunPaths
from nanochat.stages.__main__ import main
from nanochat.stages.tokenizer import iter_training_text
from tests.conftest import write_settings

BOOK = " ".join(f"word{index % 997}" for index in range(20_000))


@pytest.mark.parametrize("doc_cap", [1, 100, 10_000])
def test_a_book_is_read_to_its_end_and_nothing_twice(tmp_path: Path, doc_cap: int) -> None:
    documents = [BOOK[:30_000], "a short one", BOOK[30_000:30_500]]
    write_shards(tmp_path, documents, "train")
    pieces = list(iter_training_text(tmp_path, 10**9, doc_cap))
    for document in documents:
        assert any(start == 0 and document.startswith(text) for start, text in pieces)
    assert sum(len(text) for _, text in pieces) == sum(map(len, documents))
    assert all(any(document[start:].startswith(text) for document in documents) for start, text in pieces)


def test_many_documents_give_no_more_than_the_cap_of_each(tmp_path: Path) -> None:
    write_shards(tmp_path, [BOOK[index : index + 500] for index in range(50)], "train")
    pieces = list(iter_training_text(tmp_path, 2_000, 50))
    assert [len(text) for _, text in pieces] == [50] * 40 and {start for start, _ in pieces} == {0}


def test_the_tokenizer_of_one_book_is_trained_on_all_of_it_and_says_so(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "data" / "tiny"
    write_shards(folder, [BOOK], "train")
    write_shards(folder, ["validation text"], "val")
    settings = write_settings(tmp_path, "book", {"tokenizer": {"doc_cap": 100, "train_chars": 1_000_000}})
    assert main(["tokenizer", str(settings)]) == 0
    result = json.loads((RunPaths(settings.parent).tokenizer / "result.json").read_text())
    assert result["train_chars"] == result["doc_chars"] == len(BOOK) and result["doc_cap"] == 100
    told = capsys.readouterr().err
    assert f"tokenizer.doc_cap = 100 was raised to {len(BOOK):,}" in told
    assert f"from {len(BOOK):,} characters" in told


def test_text_that_repeats_is_said_by_base_and_its_result(trained_home: Path, start_run, capsys) -> None:
    settings = start_run()
    folder = settings.parents[2] / "data" / "tiny"
    write_shards(folder, ["hello world " * 20, "another one " * 20], "train")
    write_shards(folder, ["ten tokens"], "val")
    assert main(["base", str(settings)]) == 0
    told = capsys.readouterr().err
    result = json.loads(RunPaths(settings.parent).stage("base").result.read_text())
    assert result["epochs"] > 10 and f"the text repeats: training goes through it about {result['epochs']:,.1f}" in told
    num_targets = int(told.split("bits per byte on ")[1].split(" tokens")[0])
    assert 1 < num_targets <= 11  # not the places of the row that nothing fills


def test_text_is_measured_with_and_without_a_manifest_that_knows(tmp_path: Path) -> None:
    manifest = write_shards(tmp_path, ["one two", "three"] * 100, "train")
    assert manifest.text_bytes("train") == measure_text(tmp_path, "train") == 1_200
    save_manifest_of_old(tmp_path)
    assert load_manifest(tmp_path).text_bytes("train") is None
    assert measure_text(tmp_path, "train") > 0


def save_manifest_of_old(folder: Path) -> None:
    value = json.loads((folder / "shards.json").read_text())
    for shard in value["shards"]:
        del shard["text_bytes"]
    (folder / "shards.json").write_text(json.dumps(value))
