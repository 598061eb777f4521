"""A conversation over HTTP: with our own server, and with others that do what they like."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanochat.chat.recorder import Recorder
from nanochat.chat.store import ChatStore
from nanochat.conversation import parse_conversation
from nanochat.errors import DataError, MissingError, NanochatError, UsageError
from nanochat.tui.client import ServedModel, Server, find_proxy, read_url
from nanochat.tui.remote import RemoteParams, RemoteSession
from nanochat.web.guard import Access
from tests.engine.fakes import ScriptedModel
from tests.patience import PATIENCE_SECONDS
from tests.tui.servers import DONE, Reply, delta, error, event, foreign, text
from tests.web.serving import serving

CALL = ["Let me see: ", "<|python_start|>", "2+2", "<|python_end|>", " It is 4."]


def session_of(url: str, key: str = "", **options) -> RemoteSession:
    server = Server(url, key)
    return RemoteSession(server, server.list_models()[0], **options)


def said(session: RemoteSession) -> list[str]:
    return [message.text for message in session.history.messages]


def test_our_own_server_answers_with_its_tool_calls_and_counts() -> None:
    with serving(ScriptedModel(CALL, ["second"]), slots=1) as server:
        session = session_of(server.url)
        pieces = [(piece.kind, piece.text) for piece in session.send("What is 2+2?")]
        text = "".join(text for kind, text in pieces if kind == "text")
        assert text == "Let me see:  It is 4."
        assert [pair for pair in pieces if pair[0] != "text"] == [("python", "2+2"), ("python_output", "4")]
        place = [kind for kind, _ in pieces].index("python")
        assert "".join(text for _, text in pieces[:place]) == "Let me see: "
        assert session.finish == "stop" and session.notice == ""
        assert session.name == "fake/sft@1" and session.max_context == 512
        assert session.context_used > 20 and session.tokens_per_second > 0
        assert [part.kind for part in session.history.messages[1].parts] == ["text", "python", "python_output", "text"]
        assert "".join(piece.text for piece in session.send("And now?")) == "second"


def test_an_answer_is_stopped_while_the_server_is_silent_and_its_slot_is_free_again() -> None:
    model = ScriptedModel(["abcdef"], ["second"], pause_after=3)
    with serving(model, slots=1) as server:
        session = session_of(server.url)
        pieces = session.send("go")
        heard = next(pieces).text
        timer = threading.Timer(0.2, session.stop)
        timer.start()
        heard += "".join(piece.text for piece in pieces)
        assert not model.resume.is_set() and "abcdef".startswith(heard) and heard
        assert session.finish == "cancelled" and said(session) == ["go", heard]
        model.resume.set()
        model.pause_after = None
        assert "".join(piece.text for piece in session.send("more")) == "second"


def test_the_whole_conversation_and_the_chosen_numbers_are_sent_and_no_others() -> None:
    with foreign(text("a"), text("b"), text("c")) as server:
        session = session_of(server.url, system="Be brief.", params=RemoteParams(top_k=5, seed=7, max_new_tokens=9))
        for question in ("one", "two"):
            list(session.send(question))
        list(session.regenerate())
    assert server.asked[0] == {
        "model": "one",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_k": 5,
        "seed": 7,
        "max_tokens": 9,
    }
    assert [message["content"] for message in server.asked[2]["messages"]] == ["Be brief.", "one", "a", "two"]
    assert server.asked[2]["seed"] == 8
    assert said(session) == ["one", "a", "two", "c"]
    exported = session.export()
    assert exported["sampling"] == {"top_k": 5, "seed": 7, "max_new_tokens": 9}
    assert [message.text for message in parse_conversation(exported).messages][-1] == "c"
    assert [row["role"] for row in json.loads(session.raw())] == ["system", "user", "assistant", "user", "assistant"]


def test_a_key_is_sent_and_a_wrong_one_is_said() -> None:
    access = Access(None, (), "secret")
    with serving(ScriptedModel(["ok"]), slots=1, access=access) as server:
        assert "".join(piece.text for piece in session_of(server.url, "secret").send("go")) == "ok"
        for key, sentence in (("", "wants an API key"), ("wrong", "does not take this API key")):
            with pytest.raises(UsageError, match=sentence) as raised:
                session_of(server.url, key)
            assert "NANOCHAT_API_KEY" in raised.value.hint


@pytest.mark.parametrize(
    ("reply", "kind", "sentence", "hint"),
    [
        (error(404, "no model one"), MissingError, "does not know this: no model one", "/model"),
        (error(429, "slow down", Retry_After="17"), DataError, "busy or has had enough: slow down", "wait 17 s"),
        (error(429, "quota"), DataError, "quota", "wait a little"),
        (error(503, "stopping"), DataError, "failed with status 503: stopping", "ask again"),
        (error(400, "top_k is not supported by this server"), UsageError, "refuses top_k", "/set top_k off"),
        (error(400, "no"), UsageError, "refused with status 400: no", "/set"),
        (error(413, "Maximum context length is 7"), UsageError, "too long for the server", "shorter message"),
        (Reply(302, "text/html", [], {"Location": "http://x/"}), UsageError, "another address: http://x/", "--url"),
        (
            Reply(200, "text/html", [b"<html>"]),
            UsageError,
            "no OpenAI-compatible API: it answers with text/html",
            "/v1",
        ),
        (Reply(500, "text/html", [b"<html>\x1b[31m"]), DataError, "status 500: Internal Server Error", "ask again"),
        (Reply(parts=[b"data: {\n\n"]), DataError, "no JSON object", "OpenAI"),
        (Reply(parts=[b"data: " + b"[" * 100_000 + b"\n\n"]), DataError, "no JSON object", "OpenAI"),
        (Reply(400, "text/plain", [b"x" * (9 << 20)]), DataError, "without an end", "OpenAI"),
        (Reply(parts=[b"data: " + b"x" * (9 << 20)]), DataError, "without an end", "OpenAI"),
        (Reply(parts=[DONE[:5]]), DataError, "broke off in the middle", "/again"),
        (Reply(parts=[], cut=True), DataError, "broke", "/again"),
        (Reply(parts=[event(error={"message": "CUDA \x1b[31mon fire"})]), DataError, "gave up: CUDA on fire", "/again"),
    ],
)
def test_what_goes_wrong_is_a_sentence_with_a_hint(reply: Reply, kind, sentence: str, hint: str) -> None:
    with foreign(reply, text("fine")) as server:
        session = session_of(server.url, params=RemoteParams(top_k=5))
        with pytest.raises(kind) as raised:
            list(session.send("go"))
        assert sentence in raised.value.message and hint in raised.value.hint
        assert "\x1b" not in raised.value.message
        if "gave up" not in sentence:
            assert session.finish is None and said(session) == [], "a refused question is no part of it"
        session.clear()
        assert "".join(piece.text for piece in session.send("again")) == "fine"


def test_a_cut_answer_keeps_its_beginning() -> None:
    with foreign(Reply(parts=[delta(content="half an ")], cut=True)) as server:
        session = session_of(server.url)
        heard = []
        with pytest.raises(DataError, match="broke"):
            for piece in session.send("go"):
                heard.append(piece.text)
        assert heard == ["half an "] and said(session) == ["go", "half an "] and session.finish == "cancelled"


def test_an_answer_without_the_end_mark_but_with_a_reason_is_whole() -> None:
    with foreign(Reply(parts=[delta(content="all"), delta("length")])) as server:
        session = session_of(server.url)
        list(session.send("go"))
        assert session.finish == "length" and session.notice == "The answer was cut."


def test_old_turns_that_do_not_fit_are_left_out_and_that_is_said() -> None:
    def reply(body: dict) -> Reply:
        too_long = len(body["messages"]) > 3
        return error(400, "too long", "context_length_exceeded") if too_long else text(f"{len(body['messages'])}")

    with foreign(of=reply) as server:
        session = session_of(server.url)
        answers = ["".join(piece.text for piece in session.send(f"q{i}")) for i in range(4)]
        assert answers == ["1", "3", "3", "3"]
        assert session.notice.endswith("the model no longer sees the 2 oldest turns.")
        assert len(session.history.messages) == 8
        list(session.edit(0, "anew"))
        assert session.notice == ""


def test_a_limit_that_does_not_fit_goes_before_any_turn_does() -> None:
    """An answer ends with the context anyway."""

    def reply(body: dict) -> Reply:
        too_long = "max_tokens" in body and len(body["messages"]) > 1
        return error(400, "too long", "context_length_exceeded") if too_long else text(f"{len(body['messages'])}")

    with foreign(of=reply) as server:
        session = session_of(server.url, params=RemoteParams(max_new_tokens=250))
        answers = ["".join(piece.text for piece in session.send(f"q{i}")) for i in range(3)]
        assert answers == ["1", "3", "5"] and session.notice == ""


@pytest.mark.parametrize("kind", ["Application/Json", "TEXT/EVENT-STREAM; charset=utf-8"])
def test_media_types_ignore_case(kind: str) -> None:
    """RFC 9110, 8.3.1."""
    message = {"choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}
    data = json.dumps(message).encode()
    parts = [b"data: " + data + b"\n\n"] if "EVENT" in kind else [data]
    with foreign(Reply(200, kind, parts)) as server:
        assert "".join(piece.text for piece in session_of(server.url).send("x")) == "hello"


def test_our_own_server_says_what_does_not_fit() -> None:
    with serving(ScriptedModel(["x" * 60], context=150), slots=1) as server:
        session = session_of(server.url)
        for _ in range(4):
            list(session.send("go"))
        assert "no longer sees" in session.notice
        with pytest.raises(UsageError, match="too long for the server"):
            list(session.send("x" * 200))


def test_fields_that_a_server_does_not_know_are_left_out() -> None:
    def reply(body: dict) -> Reply:
        for name, words in (
            ("stream_options", "stream_options: unknown"),
            ("max_tokens", "Use max_completion_tokens instead"),
        ):
            if name in body:
                return error(400, words)
        return text("ok")

    with foreign(of=reply) as server:
        session = session_of(server.url, params=RemoteParams(max_new_tokens=5))
        assert "".join(piece.text for piece in session.send("go")) == "ok"
        assert server.asked[-1]["max_completion_tokens"] == 5
        list(session.send("go"))
        assert len(server.asked) == 4, "once is enough to learn it"


def test_a_server_that_streams_nothing_is_read_all_the_same() -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}]}
    with foreign(Reply(200, "application/json", [json.dumps(body).encode()])) as server:
        session = session_of(server.url)
        assert [piece.text for piece in session.send("go")] == ["whole"] and session.finish == "stop"


@pytest.mark.parametrize(
    "junk",
    [
        {"choices": 5},
        {"choices": [5]},
        {"choices": [{"delta": 5}]},
        {"choices": [{"delta": {"content": 5, "nanochat": {"tools": 5}}}]},
        {"choices": [{"delta": {"nanochat": {"tools": [{"expression": 5}]}}, "finish_reason": 5}]},
        {"usage": {"total_tokens": "many", "completion_tokens": -1}},
        {"usage": 5},
        {},
    ],
)
def test_odd_fields_are_ignored(junk: dict) -> None:
    with foreign(Reply(parts=[event(**junk), delta(content="ok"), delta("stop"), DONE])) as server:
        session = session_of(server.url)
        assert [piece.text for piece in session.send("go")] == ["ok"]


def test_nothing_of_a_server_can_steer_the_terminal(tmp_path: Path) -> None:
    parts = [
        delta(content="a\x1b[31mb\u202e\r"),
        delta(nanochat={"tools": [{"expression": "1\x1b]0;x\x07", "result": "\x9b2J2"}]}),
        delta(content="\ud800"),
        DONE,
    ]
    with foreign(Reply(parts=parts), models=["m\x1b[31m"]) as server:
        session = session_of(server.url)
        recorder = Recorder(session, ChatStore(tmp_path / "chats.db"))
        pieces = [(piece.kind, piece.text) for piece in recorder.send("go")]
    assert session.name == "m" and server.asked[0]["model"] == "m\x1b[31m"
    assert pieces == [("text", "ab"), ("python", "1"), ("python_output", "2"), ("text", "\ufffd")]
    assert recorder.path[1].finish == "stop"


def test_a_refused_question_leaves_nothing_in_the_store(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.db")
    with foreign(error(500, "no"), text("yes")) as server:
        recorder = Recorder(session_of(server.url), store)
        with pytest.raises(DataError):
            list(recorder.send("go"))
        assert store.list() == []
        list(recorder.send("go"))
        assert [stored.message.text for stored in recorder.path] == ["go", "yes"]


def test_ctrl_c_closes_the_connection_and_keeps_the_beginning() -> None:
    hold = threading.Event()
    with foreign(Reply(parts=[delta(content="abc"), DONE], hold=hold)) as server:
        session = session_of(server.url)
        pieces = session.send("go")
        assert next(pieces).text == "abc"
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
        assert server.gone.wait(PATIENCE_SECONDS), "the server was told"
        assert said(session) == ["go", "abc"] and session.finish == "cancelled"


def test_a_stop_before_the_first_word_keeps_the_question() -> None:
    with foreign(text("never")) as server:
        session = session_of(server.url)
        pieces = session.send("go")
        session.stop()
        assert list(pieces) == [] and said(session) == ["go", ""] and session.finish == "cancelled"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("localhost:8000", "does not begin with http://"),
        ("ftp://x", "does not begin with http://"),
        ("", "does not begin with http://"),
        ("http://a b", "is no address"),
        ("http://[::1", "is no address"),
        ("http://me:secret@host/v1", "a name or a password"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(UsageError) as raised:
        Server(url)
    assert sentence in raised.value.message and "secret" not in raised.value.message


def test_addresses_are_completed() -> None:
    for url in ("http://h", "http://h/", "http://h/v1", "http://h/v1/", "http://h/v1/models", "http://h?x=1"):
        assert read_url(url) == "http://h/v1"
    assert read_url("https://h/openai/v1") == "https://h/openai/v1"
    assert read_url("https://h/a/b") == "https://h/a/b"


@pytest.mark.parametrize(
    ("models", "kind", "sentence"),
    [
        ([], MissingError, "serves no model"),
        (Reply(200, "text/html", [b"<html>"]), UsageError, "no OpenAI-compatible API"),
        (Reply(200, "application/json", [b'{"data": [5]}']), UsageError, "no OpenAI-compatible API"),
        (error(404, "what?"), MissingError, "does not know this"),
    ],
)
def test_a_list_of_models_that_is_none_is_said(models, kind, sentence: str) -> None:
    with foreign(models=models) as server, pytest.raises(kind, match=sentence):
        Server(server.url).list_models()


def test_a_server_that_speaks_no_https_is_said_with_what_reaches_it() -> None:
    with foreign() as server, pytest.raises(DataError, match="does not speak https") as raised:
        Server(server.url.replace("http://", "https://")).list_models()
    assert raised.value.hint == f"nanochat chat --url {Server(server.url).url}"


def test_a_server_that_is_not_there_is_said_with_what_starts_one() -> None:
    with pytest.raises(DataError, match="cannot reach http://127.0.0.1:9/v1") as raised:
        Server("http://127.0.0.1:9").list_models()
    assert raised.value.hint.startswith("nanochat serve --port 9")
    session = RemoteSession(Server("http://127.0.0.1:9"), ServedModel("m"))
    with pytest.raises(NanochatError, match="cannot reach"):
        list(session.send("go"))


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("https_proxy", "http://me:secret@127.0.0.1:9", "http://127.0.0.1:9 of $https_proxy"),
        ("HTTPS_PROXY", "127.0.0.1:9", "http://127.0.0.1:9 of $https_proxy"),
        ("all_proxy", "http://nosuchproxy.invalid:3128", "http://nosuchproxy.invalid:3128 of $all_proxy"),
    ],
)
def test_a_proxy_that_is_not_there_is_said_with_its_variable(monkeypatch, name: str, value: str, shown: str) -> None:
    for each in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(each, raising=False)
        monkeypatch.delenv(each.upper(), raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("http_proxy", "http://another:1")
    with pytest.raises(DataError) as raised:
        Server("https://192.0.2.1:8123").list_models()
    assert raised.value.message.startswith(f"cannot reach https://192.0.2.1:8123/v1 through the proxy {shown}: ")
    assert raised.value.hint.startswith("no_proxy=192.0.2.1 nanochat chat --url https://192.0.2.1:8123/v1  # ")
    assert "secret" not in f"{raised.value.message} {raised.value.hint}"
    with pytest.raises(DataError, match="through the proxy"):
        list(RemoteSession(Server("https://192.0.2.1:8123"), ServedModel("m")).send("go"))
    monkeypatch.setenv("no_proxy", "example.org, 192.0.2.1")
    assert find_proxy("https://192.0.2.1:8123/v1") == find_proxy("https://sub.example.org/v1") == ("", "")


def test_a_key_over_an_open_network_is_noticed() -> None:
    assert Server("http://example.org", "k").leaks_key
    assert not any(
        server.leaks_key for server in (Server("https://x", "k"), Server("http://x"), Server("http://[::1]", "k"))
    )
    with pytest.raises(UsageError, match="no header may have"):
        Server("http://x", "a\nb")


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + delta(content="ok") + DONE,
        (delta(content="ok") + DONE).replace(b"data: ", b"data:"),
        (delta(content="ok") + DONE).replace(b"\n", b"\r"),
        (delta(content="ok") + DONE).replace(b"\n", b"\r\n"),
        b"data:\n\n" + delta(content="ok") + b"data\n\ndata: \n\n" + DONE,
        b"data: : keepalive\n\n: OPENROUTER PROCESSING\n\n" + delta(content="ok") + DONE,
        event(type="ping") + delta(content=[{"type": "text", "text": "ok"}]) + DONE,
        delta(refusal="ok", content=None) + b"data: [DONE] \n\n",
    ],
)
def test_an_answer_comes_through_whatever_a_server_does_with_its_lines(body: bytes) -> None:
    with foreign(Reply(parts=[body[place : place + 1] for place in range(len(body))])) as server:
        session = session_of(server.url)
        assert [piece.text for piece in session.send("go")] == ["ok"] and session.finish == "stop"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([b"error: " + json.dumps({"code": 500, "message": "no slot"}).encode() + b"\n\n"], "gave up: no slot"),
        ([b"event: error\ndata: overloaded\n\n"], "gave up: overloaded"),
        ([b'event: error\ndata: {"detail": "no"}\n\n'], "gave up: no"),
        ([event(object="error", message="too hot")], "gave up: too hot"),
        ([event(text="no worker", error_code=50002)], "gave up: no worker"),
        ([event(error=True)], "gave up: true"),
        ([DONE], "sent no answer"),
        ([event(choices=[]), event(usage={"total_tokens": 5}), DONE], "sent no answer"),
    ],
)
def test_errors_of_other_servers_and_answers_that_are_none_are_said(parts: list[bytes], said: str) -> None:
    with foreign(Reply(parts=parts)) as server, pytest.raises(DataError, match=said):
        list(session_of(server.url).send("go"))


def test_a_body_without_an_answer_leaves_the_conversation_as_it_was() -> None:
    with foreign(Reply(200, "application/json", [b'\xef\xbb\xbf{"id": "x"}'])) as server:
        session = session_of(server.url)
        with pytest.raises(DataError, match="sent no answer"):
            list(session.send("go"))
        assert said(session) == [] and session.finish is None


def test_an_empty_answer_is_noticed() -> None:
    with foreign(Reply(parts=[delta(role="assistant", content=""), delta("stop"), DONE])) as server:
        session = session_of(server.url)
        assert list(session.send("go")) == [] and session.notice == "The answer is empty: it ended at once."


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="top_p = 2 is not in"):
        RemoteParams(top_p=2)


def test_a_chat_with_a_server_loads_no_torch() -> None:
    modules = ", ".join(f"nanochat.{name}" for name in ("tui.remote", "tui.app", "tui.plain", "cli.chat"))
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
