"""`nanochat chat` from the command line, with a server instead of a model."""

import builtins
import io
import json
import sys

import pytest

from nanochat.cli.sessions import LocalModels
from nanochat.errors import NanochatError
from nanochat.paths import Workspace
from tests.cli.conftest import make_run
from tests.tui.servers import Reply, delta, error, foreign, text


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    def put(words: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(words))

    return put


def test_one_answer_of_a_server(nanochat) -> None:
    with foreign(text("Hel", "lo.")) as server:
        done = nanochat("chat", "--url", server.url, "-p", "Hi")
    assert (done.code, done.out) == (0, "Hello.\n")
    assert f"model one at {server.url}/v1" in done.err
    assert server.asked[0]["messages"] == [{"role": "user", "content": "Hi"}] and "temperature" not in server.asked[0]


def test_one_answer_as_json_with_chosen_numbers_and_a_pipe(nanochat, typed) -> None:
    typed("a text\n")
    with foreign(text("ok"), models=["one", "two"]) as server:
        done = nanochat(
            "chat", "two", "--url", server.url, "--json", "-p", "Sum up:", "--temperature", "0", "--seed", "3"
        )
    found = json.loads(done.out)
    assert (found["model"], found["finish"], found["sampling"]) == ("two", "stop", {"temperature": 0.0, "seed": 3})
    assert found["messages"][0]["content"] == "Sum up:\n\na text"
    assert server.asked[0]["model"] == "two" and server.asked[0]["temperature"] == 0


def test_lines_talk_to_a_server_list_its_models_and_switch(nanochat, typed, home) -> None:
    typed("Hi\n/model\n/model tow\n/model two\nAgain\n/set top_k 5\n/raw\n/editor\n/theme\n/quit\n")
    with foreign(text("first"), text("second"), models=["one", "two"]) as server:
        done = nanochat("chat", "--url", server.url, "--plain")
    assert done.code == 2 and done.out == "first\nsecond\n"
    assert [body["model"] for body in server.asked] == ["one", "two"]
    assert [message["content"] for message in server.asked[1]["messages"]] == ["Hi", "first", "Again"]
    for said in (
        "model one at",
        "/model lists all 2",
        "* one",
        "did you mean two?",
        "two answers from now on.",
        "temperature off, top_k 5",
        '"content": "second"',
        "an editor needs a terminal",
        "Lines have no theme.",
        "2 of 10 lines failed; the exit code 2 is that of the last of them.",
    ):
        assert said in done.err, said
    assert "first" in nanochat("chats", "show", "latest").out, "conversations with servers are kept as well"


def test_the_key_comes_from_the_environment_or_the_option(nanochat, monkeypatch) -> None:
    with foreign(text("a"), text("b")) as server:
        monkeypatch.setenv("NANOCHAT_API_KEY", "of-the-environment\n")
        nanochat("chat", "--url", server.url, "-p", "Hi")
        nanochat("chat", "--url", server.url, "-p", "Hi", "--api-key", "of-the-option")
        keys = [headers["authorization"] for headers in server.headers]
    assert keys == ["Bearer of-the-environment", "Bearer of-the-option"]


@pytest.mark.parametrize(
    ("words", "code", "sentence", "hint"),
    [
        (["--url", "localhost:1"], 2, "does not begin with http://", "--url http://localhost:1"),
        (["--url", "http://127.0.0.1:9"], 4, "cannot reach http://127.0.0.1:9/v1", "nanochat serve --port 9"),
        (["--url", "http://127.0.0.1:9", "--offline"], 2, "--offline opens none", "leave one"),
        (["--url", "http://127.0.0.1:9", "--device", "cpu"], 2, "computes where it likes", "nanochat chat --url"),
        (["--api-key", "x"], 2, "--api-key is for a server", "--url"),
        (["--url", "http://127.0.0.1:9", "--top-p", "2"], 2, "--top-p 2.0 is not in (0, 1]", "nanochat chat --help"),
    ],
)
def test_what_does_not_work_with_a_server_is_said(nanochat, words, code: int, sentence: str, hint: str) -> None:
    done = nanochat("chat", *words, "-p", "Hi")
    assert done.code == code and sentence in done.err and hint in done.err


def test_a_refusal_ends_one_answer_with_its_code(nanochat) -> None:
    with foreign(error(429, "later", Retry_After="3")) as server:
        done = nanochat("chat", "--url", server.url, "-p", "Hi")
    assert done.code == 4 and done.out == "" and "wait 3 s" in done.err
    with foreign(models=["one"]) as server:
        done = nanochat("chat", "onee", "--url", server.url, "-p", "Hi")
    assert done.code == 3 and "did you mean one?" in done.err


def test_lines_from_a_pipe_that_all_fail_end_with_the_code_of_the_last(nanochat, typed) -> None:
    typed("one\ntwo\n")
    with foreign(error(400, "top_k is unknown"), error(503, "stopping")) as server:
        done = nanochat("chat", "--url", server.url, "--plain", "--top-k", "5")
    assert done.code == 4 and "2 of 2 lines failed; the exit code 4" in done.err


def test_an_answer_that_is_cut_ends_its_line(nanochat) -> None:
    with foreign(Reply(parts=[delta(content="half")], cut=True)) as server:
        done = nanochat("chat", "--url", server.url, "-p", "Hi")
    assert (done.code, done.out) == (4, "half\n") and "broke" in done.err


def test_a_key_is_never_repeated_in_a_hint(nanochat) -> None:
    done = nanochat("chat", "--url", "localhost:8000", "--api-key", "s3cret", "-p", "Hi")
    assert done.code == 2 and "nanochat chat --url http://localhost:8000" in done.err and "s3cret" not in done.err


def test_nothing_is_asked_in_a_dry_run(nanochat) -> None:
    done = nanochat("chat", "--url", "http://127.0.0.1:9", "--dry-run")
    assert done.code == 0 and "would ask http://127.0.0.1:9" in done.out


def test_wrong_settings_of_the_chat_are_said_before_a_model_is_loaded(nanochat, home) -> None:
    make_run(home, "r", ("tokenizer", "base", "mid", "sft"))
    (home / "chat.toml").write_text('[keys]\nregnerate = "f9"\n')
    done = nanochat("chat", "r", "--plain")
    assert done.code == 2 and "chat.toml:2: unknown action regnerate" in done.err
    assert "did you mean regenerate?" in done.err


def test_trained_models_are_listed_and_a_mistyped_one_is_guessed(home) -> None:
    make_run(home, "first", ("tokenizer", "base"))
    make_run(home, "second", ("tokenizer", "base", "mid", "sft"))
    models = LocalModels(Workspace(home), "cpu")
    assert sorted(models.list_names()) == ["first/base@20", "second/base@20", "second/mid@20", "second/sft@20"]
    for name, sentence, hint in (
        ("frist/base", "there is no run 'frist'", "did you mean first?"),
        ("zzz", "there is no run 'zzz'", "/model lists them"),
        ("first/sft", "has no checkpoint of stage 'sft'", "nanochat train sft"),
        ("first/base@7", "has no step 7, only 20", "nanochat runs show first"),
        ("../x", "is not a name", "nanochat runs ls"),
    ):
        with pytest.raises(NanochatError) as raised:
            models.open(name, None)
        assert sentence in raised.value.message and hint in raised.value.hint, name


@pytest.mark.parametrize("aside", [None, "stdout", "stderr"])
def test_the_full_screen_is_drawn_only_if_everything_goes_to_the_terminal(nanochat, monkeypatch, aside) -> None:
    faces = []

    def read(_: str) -> str:
        faces.append("lines")
        raise EOFError

    monkeypatch.setattr("nanochat.tui.app.ChatApp.run", lambda app: faces.append("screen"))
    monkeypatch.setattr(builtins, "input", read)
    monkeypatch.setenv("TERM", "xterm")
    for name in {"stdin", "stdout", "stderr"} - {aside}:
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True)
    with foreign() as server:
        assert nanochat("chat", "--url", server.url).code == 0
    assert faces == (["lines"] if aside else ["screen"])
