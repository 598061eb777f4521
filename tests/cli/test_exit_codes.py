"""One kind of failure has one exit code, whatever command meets it."""

import errno
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.cli.main import main
from tests.cli.conftest import Outcome, make_run

Call = Callable[..., Outcome]
Prepare = Callable[[Path, pytest.MonkeyPatch], None]
DONE = ("tokenizer", "base", "mid", "sft")

MISSING_RUN = """
runs show r | runs path r | runs copy r s | runs rm r -y | report r | resume r | train base --run r | train mid --run r
train sft --run r | train rl --run r | run --run r | tokenize train --run r | tokenize encode hi --run r
tokenize eval --run r | eval bpb r | eval chat r | eval all r | chat r -p hi | serve r --port 0 | export hf r
rl show r | config show --run r | config validate --run r | plan --run r | data check mine.jsonl --run r
"""
READS_SETTINGS = """
train base --run r | train mid --run r | train rl --run r | run --run r | tokenize train --run r | eval bpb r
eval all r | config show --run r | config validate --run r | plan --run r | data check mine.jsonl --run r
"""
WRITES = """
tokenize train --preset demo | run --preset demo | run --run r | train sft --run r --set eval.max_examples=3 | report r
tokenize train --run r --set eval.max_examples=3 | download import texts --name t | download import texts --name t -y
identity init --name A --maker B --out home/mine.jsonl | presets copy demo home/mine.toml | runs rm r -y
"""
READS_A_FILE = """
plan --config FILE | run --config FILE | train base --config FILE | config validate --config FILE | chats import FILE
data check FILE --preset demo | run --preset demo --set sft.mixture=custom:FILE | download unpack FILE
download import FILE --name t
config validate --preset demo --set mid.mixture=custom:FILE | download import texts --val FILE --name t
"""
MISSING_FILE = READS_A_FILE + "download core --core-from FILE"


def split(table: str) -> list[str]:
    return [words.strip() for line in table.strip().splitlines() for words in line.split("|")]


def refuse(number: int, modes: str, place: str) -> Prepare:
    """Let the system refuse to open what lies at a place, for reading ("r") or writing ("wax+")."""

    def prepare(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened, refused = Path.open, str(home.parent / place)

        def check(path: object, mode: str) -> None:
            if str(path).startswith(refused) and any(letter in mode for letter in modes):
                raise OSError(number, os.strerror(number), str(path))

        def open_path(self: Path, mode: str = "r", *arguments: object, **named: object) -> object:
            check(self.absolute(), mode)
            return opened(self, mode, *arguments, **named)  # type: ignore[call-overload]

        monkeypatch.setattr(Path, "open", open_path)

    return prepare


def no_home(home: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    home.rename(home.parent / "away")


def home_below_a_file(home: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    home.rename(home.parent / "away")
    home.write_text("in the way")


def damaged_settings(home: Path, _monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "runs/r/settings.json").write_text("{")


NEW_RUN = "tokenize train --preset demo | run --preset demo | download import texts --name t | chats ls"
FAILURES: list[tuple[str, int, Prepare, str]] = [
    ("a missing run", 3, no_home, MISSING_RUN),
    ("a home that cannot be made", 4, home_below_a_file, NEW_RUN),
    ("settings that may not be read", 4, refuse(errno.EACCES, "r", "home/runs/r/settings.json"), READS_SETTINGS),
    ("settings on a failing disk", 4, refuse(errno.EIO, "r", "home/runs/r/settings.json"), READS_SETTINGS),
    ("damaged settings", 4, damaged_settings, READS_SETTINGS),
    ("a home that may not be written", 4, refuse(errno.EACCES, "wax+", "home"), WRITES),
    ("a home on a disk that is read-only", 4, refuse(errno.EROFS, "wax+", "home"), WRITES),
    ("a full disk", 5, refuse(errno.ENOSPC, "wax+", "home"), WRITES),
    ("a missing file", 3, lambda home, patch: None, MISSING_FILE.replace("FILE", "none.toml")),
    (
        "a file that may not be read",
        4,
        refuse(errno.EACCES, "r", "secret.jsonl"),
        READS_A_FILE.replace("FILE", "secret.jsonl"),
    ),
]
ROWS = [(words, *row[:3]) for row in FAILURES for words in split(row[3])]


@pytest.mark.parametrize(("words", "failure", "code", "prepare"), ROWS, ids=[f"{row[1]}: {row[0]}" for row in ROWS])
def test_a_failure_has_one_code_in_every_command(
    nanochat: Call, launched, home: Path, monkeypatch: pytest.MonkeyPatch, words: str, failure: str, code: int,
    prepare: Prepare,
) -> None:  # fmt: skip
    make_run(home, "r", DONE)
    example = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    for name in ("mine.jsonl", "secret.jsonl"):
        Path(name).write_text(json.dumps(example) + "\n")
    Path("texts").mkdir()
    for number in range(4):
        Path(f"texts/{number}.txt").write_text(f"text number {number} " * 200)
    prepare(home, monkeypatch)
    outcome = nanochat(*words.split())
    assert outcome.code == code, (failure, outcome.err)
    assert "error: " in outcome.err and "hint:  " in outcome.err


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EACCES, 4), (errno.EIO, 4), (errno.EROFS, 4), (errno.ENOSPC, 5), (errno.EDQUOT, 5)]
)
def test_what_a_disk_does_anywhere_has_a_code(nanochat: Call, home: Path, monkeypatch, number: int, code: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr("nanochat.config.plan.plan_base", fail)
    outcome = nanochat("plan", "--preset", "demo")
    assert outcome.code == code and "/some/file" in outcome.err and "hint:  " in outcome.err


def test_a_bug_is_not_called_a_disk_that_fails(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr("nanochat.config.plan.plan_base", lambda *_: os.stat("\0"))
    with pytest.raises(ValueError):
        main(["plan", "--preset", "demo"])
