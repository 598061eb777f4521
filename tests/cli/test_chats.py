"""`nanochat chats`, and `chat` that keeps what is said."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.chat.store import ChatStore
from nanochat.conversation import Conversation, assistant, user
from nanochat.paths import Workspace
from tests.cli.conftest import Outcome

Call = Callable[..., Outcome]
CODE = "import sys; from nanochat.cli.main import main; sys.exit(main())"


@pytest.fixture
def chats(home: Path) -> list[str]:
    """Two conversations, the older one about ducks."""
    store = ChatStore(Workspace(home).chats)
    ducks = Conversation((user("Ducks\x1b[31m?"), assistant(("python", "1+1"), ("python_output", "2"), " ducks")))
    known = [{"model": "demo/sft@1", "finish": "stop"}]
    return [store.load(ducks, answers=known), store.load(Conversation((user("Geese"), assistant("No"))))]


def test_they_are_listed_shown_and_searched(nanochat: Call, chats: list[str]) -> None:
    lines = nanochat("chats", "ls").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == chats[::-1] and lines[2].endswith("Ducks?")
    assert chats[1] not in nanochat("chats", "ls", "--search", "DUCKS").out
    assert [row["id"] for row in json.loads(nanochat("chats", "ls", "--limit", "1", "--json").out)] == chats[1:]
    shown = nanochat("chats", "show", chats[0][:7]).out
    assert shown == "you\nDucks?\n\ndemo/sft@1\n`1+1 = 2` ducks\n\n"
    assert json.loads(nanochat("chats", "show", "latest", "--json").out)["title"] == "Geese"


def test_a_good_one_goes_into_a_training_file_and_back(nanochat: Call, chats: list[str], tmp_path: Path) -> None:
    file = tmp_path / "good.jsonl"
    assert nanochat("chats", "export", chats[0], "--format", "jsonl", "--out", str(file)).code == 0
    again = nanochat("chats", "export", chats[0], "--out", str(file))
    assert again.code == 2 and "exists already" in again.err
    assert "2 text" not in nanochat("chats", "export", chats[0]).out
    taken = nanochat("chats", "import", str(file), "--json")
    (chat,) = json.loads(taken.out)
    assert nanochat("chats", "show", chat).out.endswith("`1+1 = 2` ducks\n\n")
    for content, said in ((b"\xff", "is not UTF-8"), (b"{", "no JSON"), (b"", "holds no conversation")):
        file.write_bytes(content)
        refused = nanochat("chats", "import", str(file))
        assert refused.code == 4 and said in refused.err


def test_a_dry_run_changes_nothing(nanochat: Call, chats: list[str], tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    file.write_text('{"messages": [{"role": "user", "content": "a"}]}')
    before = nanochat("chats", "ls").out
    for words in (
        ("import", str(file)),
        ("rename", "latest", "new"),
        ("export", "latest", "--out", str(tmp_path / "o")),
    ):
        outcome = nanochat("chats", *words, "--dry-run")
        assert outcome.code == 0 and outcome.out.startswith("would "), outcome
        told = nanochat("chats", *words, "--dry-run", "--json")
        assert ["would " + deed for deed in json.loads(told.out)["would"]] == outcome.out.splitlines()
    assert nanochat("chats", "ls").out == before and not (tmp_path / "o").exists()


def test_they_are_renamed_and_removed(nanochat: Call, chats: list[str]) -> None:
    assert nanochat("chats", "rename", chats[0], "About ducks").code == 0
    assert "About ducks" in nanochat("chats", "ls").out
    refused = nanochat("chats", "rm", chats[0])
    assert refused.code == 2 and "needs a yes" in refused.err
    assert nanochat("chats", "rm", chats[0], "--dry-run").code == 0
    assert nanochat("chats", "rm", chats[0][:6], "-y").code == 0
    assert chats[0] not in nanochat("chats", "ls").out
    missing = nanochat("chats", "show", chats[0])
    assert missing.code == 3 and "hint:  nanochat chats ls" in missing.err


def test_without_any_the_next_command_is_named(nanochat: Call, home: Path) -> None:
    outcome = nanochat("chats", "ls")
    assert outcome.code == 0 and "next:  nanochat chat" in outcome.err


def chat(home: Path, said: str, *words: str) -> subprocess.CompletedProcess[str]:
    words = ("chat", "whole/sft", "--plain", "--max-new-tokens", "3", "--home", str(home), *words)
    return subprocess.run([sys.executable, "-c", CODE, *words], input=said, capture_output=True, text=True)


def test_chat_keeps_what_is_said_unless_it_is_asked_not_to(trained_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "runs").symlink_to(trained_home / "runs")
    assert chat(home, "What is 1 + 2?\n", "--no-history").returncode == 0
    assert not (home / "chats").exists()
    first = chat(home, "What is 1 + 2?\n/again\n", "--system", "Compute.")
    assert first.returncode == 0, first.stderr
    second = chat(home, "And 3?\n", "--continue", "latest")
    assert second.returncode == 0, second.stderr
    store = ChatStore(Workspace(home).chats)
    (info,) = store.list()
    path = store.read(info.id)
    assert info.system == "Compute." and info.title == "What is 1 + 2?"
    assert [m.message.text for m in path[::2]] == ["What is 1 + 2?", "And 3?"] and len(path[1].siblings) == 2
    wrong = chat(home, "", "--continue", "latest", "--no-history")
    assert wrong.returncode == 2 and "--continue goes with" in wrong.stderr
    assert chat(home, "", "--continue", "zzz").returncode == 3


def test_they_come_through_a_pipe_and_a_long_list_says_so(nanochat: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"title": "T", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    monkeypatch.setattr("sys.stdin", io.StringIO(line * 3))
    taken = nanochat("chats", "import", "-")
    assert taken.code == 0 and "took in 3 conversations" in taken.err
    listed = nanochat("chats", "ls", "--limit", "2")
    assert listed.out.count("  T") == 2 and "the newest 2 are shown" in listed.err
    assert "are shown" not in nanochat("chats", "ls", "--limit", "3").err
