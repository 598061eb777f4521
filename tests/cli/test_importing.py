"""`nanochat download import`: what it says, and how it ends."""

import json
import os
from pathlib import Path

import pytest

from nanochat.data.shards import verify_dataset
from nanochat.stages.lock import lock_run
from tests.cli.conftest import make_run


@pytest.fixture
def texts(home: Path) -> Path:
    folder = Path("texts")
    (folder / "deep").mkdir(parents=True)
    (folder / "a.jsonl").write_text("".join(json.dumps({"body": f"line {index}"}) + "\n" for index in range(300)))
    (folder / "deep" / "b.png").touch()
    (folder / ".hidden").touch()
    return folder


def test_an_import_says_both_sizes_and_what_it_left_out(nanochat, home, texts) -> None:
    outcome = nanochat("download", "import", "texts", "--column", "body", "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["train_chars"] + facts["val_chars"] == sum(len(f"line {index}") for index in range(300))
    assert facts["train_chars"] > 8 * facts["val_chars"] > 0
    assert "left out: files of other kinds (.png 1): 1" in outcome.err
    assert "left out: hidden files and folders: 1" in outcome.err
    assert "bits per byte on it depend on chance" in outcome.err and "--val-share 0.2" in outcome.err
    assert "reading: " in outcome.err and "(100%)" in outcome.err
    verify_dataset(home / "data" / "texts")


def test_enough_validation_text_is_no_news(nanochat, texts) -> None:
    (texts / "book.txt").write_text("word " * 80_000)
    outcome = nanochat("download", "import", "texts", "--key", "body")
    assert outcome.code == 0 and "depend on chance" not in outcome.err, outcome.err
    assert "cut, to validate on a part of each and train on the rest: 1 documents" in outcome.err


def test_a_folder_keeps_its_whole_name(nanochat, home) -> None:
    Path("books.v2").mkdir()
    Path("books.v2/a.txt").write_text("word " * 1_000)
    assert nanochat("download", "import", "books.v2").code == 0
    assert nanochat("download", "import", "books.v2/a.txt").code == 0
    assert sorted(path.name for path in (home / "data").iterdir()) == ["a", "books.v2"]


def test_ctrl_c_leaves_nothing_half_and_says_so(nanochat, home, texts, monkeypatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nanochat.data.folder.read_texts", interrupt)
    outcome = nanochat("download", "import", "texts", "--key", "body", "--seed", "3")
    assert outcome.code == 130
    assert outcome.err.splitlines()[-2:] == [
        "error: the import is stopped; nothing was changed",
        "hint:  nanochat download import texts --key body --seed 3 --name texts  # the same command again",
    ]
    assert list((home / "data").iterdir()) == []


def test_a_dry_run_looks_at_the_files(nanochat, home, texts) -> None:
    outcome = nanochat("download", "import", "texts", "--dry-run")
    assert outcome.code == 0 and "from 1 files of texts" in outcome.out and not home.exists()
    Path("empty").mkdir()
    assert nanochat("download", "import", "empty", "--dry-run").code == 4


@pytest.mark.parametrize("words", ["import texts --key body", "data --dataset demo", "tasks gsm8k --offline"])
def test_a_home_that_cannot_be_written_is_exit_4(nanochat, home, texts, words) -> None:
    home.write_text("a file")
    outcome = nanochat("download", *words.split())
    assert outcome.code == 4, outcome.err
    first, second = outcome.err.splitlines()[-2:]
    assert first.startswith("error: ") and "cannot be written" in first and second.startswith("hint: ")


def test_a_plan_says_how_often_it_goes_through_the_text(nanochat, texts) -> None:
    words = ("plan", "--preset", "demo", "--set", "data.dataset=texts")
    assert "which has" not in nanochat(*words).out  # it is not here yet
    assert nanochat("download", "import", "texts", "--key", "body").code == 0
    line = next(line for line in nanochat(*words).out.splitlines() if line.startswith("text "))
    assert "characters of texts, which has 0.0 MB: the text repeats: training goes through it about" in line
    assert "shards" not in line and ": 0.0 MB of text" in nanochat(*words).out
    assert "202 shards" in nanochat("plan", "--preset", "d20").out


@pytest.mark.parametrize(
    "words",
    ["download import texts --name x", "download data --dataset demo", "download verify", "runs ls", "chats ls"],
)
def test_a_folder_that_the_system_refuses_is_a_sentence(nanochat, home, texts, monkeypatch, words) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    for name in ("stat", "iterdir", "glob"):
        monkeypatch.setattr(Path, name, refuse)
    outcome = nanochat(*words.split())
    assert outcome.code == 4, outcome.err
    first, second = outcome.err.splitlines()[-2:]
    assert first.startswith("error: ") and "Permission denied" in first and second.startswith("hint: ")


def test_what_a_killed_import_left_goes_with_the_next(nanochat, home, texts) -> None:
    left = home / "data" / "texts"
    (left / ".import").mkdir(parents=True)
    (left / ".import" / "bucket_0").touch()
    (left / "shard_00000.parquet").touch()
    (left / ".shard_00000.parquet.123.tmp").touch()
    assert nanochat("download", "import", "texts", "--key", "body").code == 0
    assert sorted(path.name for path in left.iterdir()) == [
        "shard_00001.parquet",
        "shard_00002.parquet",
        "shards.json",
    ]
    verify_dataset(left)


def test_a_text_that_a_run_reads_is_not_replaced(nanochat, home, texts) -> None:
    run = make_run(home, "r", ("tokenizer",), "", "data.dataset=texts")
    words = ("download", "import", "texts", "--key", "body", "--yes")
    with lock_run(run):
        outcome = nanochat(*words)
        assert outcome.code == 2 and f"run 'r', at work in process {os.getpid()}, reads the data set" in outcome.err
        assert "--name texts-2" in outcome.err and not (home / "data").exists()
        assert nanochat(*words, "--name", "texts-2").code == 0
    assert nanochat(*words).code == 0
