"""The page's socket, by its frames: no browser."""

import json
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from nanochat.chat.store import ChatStore
from nanochat.conversation import Conversation, Message, Part, user
from nanochat.errors import CapacityError
from nanochat.web import socket as socket_module
from nanochat.web.guard import Access
from nanochat.web.service import Limits
from tests.engine.fakes import ScriptedModel
from tests.patience import PATIENCE_SECONDS, wait_until
from tests.web.serving import TOKENIZER, AlphabetModel, PlaceModel, Serving, serving


class Window:
    """A client of the socket: `ask` gives a reply; events are kept in `events`."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.events, self.number = connection, [], 0

    def read(self, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        return json.loads(self.connection.recv(seconds))

    def ask(self, what: str, **fields: Any) -> dict[str, Any]:
        self.number += 1
        self.connection.send(json.dumps({"id": self.number, "do": what, **fields}))
        while True:
            found = self.read()
            if found.get("id") == self.number:
                return found
            self.events.append(found)

    def get(self, what: str, **fields: Any) -> Any:
        found = self.ask(what, **fields)
        assert "ok" in found, found
        return found["ok"]

    def wait(self, event: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """The next event of a kind, those before it taken away."""
        while True:
            found = self.events.pop(0) if self.events else self.read(seconds)
            if found.get("event") == event:
                return found


@contextmanager
def window(server: Serving, key: str = "", **options: Any) -> Iterator[Window]:
    with connect(server.url.replace("http", "ws") + "/talk", **options) as connection:
        found = Window(connection)
        found.get("hello", key=key)
        yield found


def text_of(shown: dict[str, Any]) -> str:
    return shown["messages"][-1]["text"]


@pytest.fixture(scope="module")
def slow() -> Iterator[Serving]:
    with serving(AlphabetModel(), slots=2, max_waiting=1) as server:
        yield server


ASK = {"chat": None, "parent": None, "text": "hello"}


def test_a_question_is_answered_in_changes_that_make_up_the_whole() -> None:
    script = ["# Sum\n\nLet me see: ", "<|python_start|>", "2*21", "<|python_end|>", "It is **42**.\n\n- a\n- b\n"]
    with serving(ScriptedModel(script), slots=1) as server, window(server) as page:
        chat = page.get("ask", **ASK)["chat"]
        shown = page.wait("shown")
        assert shown["running"] == shown["messages"][1]["id"] and shown["chat"]["id"] == chat
        parts: list[Any] = []
        while (event := page.read())["event"] != "ended":
            for change in event.get("changes", ()):
                part = change["part"]
                parts += [None] * (part + 1 - len(parts))
                if "tool" in change:
                    parts[part] = change["tool"]
                else:
                    blocks = (parts[part] or {"blocks": []})["blocks"]
                    parts[part] = {"blocks": blocks[: change["keep"]] + change["blocks"]}
        answer = event["shown"]["messages"][1]
        assert parts == answer["parts"]
        assert answer["parts"][1] == {"expression": "2*21", "result": "42"}
        assert answer["parts"][0]["blocks"] == ["<h3>Sum</h3>", "<p>Let me see:</p>"]
        assert answer["finish"] == "stop" and event["stats"]["tokens"] > 20 and event["error"] == ""
        assert page.get("list", search="")["chats"][0]["title"] == "hello"
        assert page.get("list", search="bananas")["chats"] == []


def test_stopping_keeps_what_was_said_and_going_on_adds_to_it(slow: Serving) -> None:
    with window(slow) as page:
        chat = page.get("ask", **ASK)["chat"]
        page.wait("grew")
        assert page.ask("again", chat=chat, message=1)["error"]["code"] == "answering"
        page.get("stop", chat=chat)
        ended = page.wait("ended")
        said = text_of(ended["shown"])
        assert ended["shown"]["messages"][-1]["finish"] == "cancelled" and 0 < len(said) < 3000
        wait_until(lambda: slow.service.pool.num_active == 0)
        page.get("go on", chat=chat, message=ended["message"], sampling={"max_new_tokens": 30})
        again = page.wait("ended")
        whole = text_of(again["shown"])
        assert whole.startswith(said) and len(whole) == len(said) + 30 and again["message"] == ended["message"]
        assert all((ord(b) - ord(a)) % 26 == 1 for a, b in zip(whole, whole[1:], strict=False))
        assert again["shown"]["messages"][-1]["finish"] == "length"


def test_an_answer_that_was_cut_in_a_tool_call_calculates_when_it_is_continued() -> None:
    special = TOKENIZER.special_ids
    call = [special["<|python_start|>"], *b"6*7", special["<|python_end|>"]]
    output = [special["<|output_start|>"], *b"42", special["<|output_end|>"]]
    script = [*b"So: ", *call, *output, *b" it is."]
    model = PlaceModel([*script, special["<|assistant_end|>"]], num_prompt=len("hello") + 4)
    with serving(model, slots=1) as server, window(server) as page:
        for num_tokens in range(1, len(script) + 1):
            chat = page.get("ask", **ASK, sampling={"max_new_tokens": num_tokens})["chat"]
            cut = page.wait("ended")
            assert all(part.get("result", "") is not None for part in cut["shown"]["messages"][-1]["parts"])
            page.get("go on", chat=chat, message=cut["message"])
            answer = page.wait("ended")["shown"]["messages"][-1]
            assert answer["text"] == "So:  it is." and answer["finish"] == "stop"
            assert answer["parts"][1] == {"expression": "6*7", "result": "42"}


def test_an_answer_of_an_older_version_that_ends_in_a_call_is_continued_without_it() -> None:
    store = ChatStore(None)
    half = Message("assistant", (Part("text", "So: "), Part("python", "6*")))
    chat = store.load(Conversation((user("hello"), half)), answers=[{"finish": "length"}])
    with serving(AlphabetModel(), slots=1, store=store) as server, window(server) as page:
        message = page.get("open", chat=chat)["messages"][1]["id"]
        page.get("go on", chat=chat, message=message, sampling={"max_new_tokens": 3})
        answer = page.wait("ended")["shown"]["messages"][1]
        assert len(answer["parts"]) == 1 and answer["text"][:4] == "So: " and len(answer["text"]) == 7


def test_branches_are_made_by_asking_instead_and_again(slow: Serving) -> None:
    short = {"sampling": {"max_new_tokens": 3}}
    with window(slow) as page:
        chat = page.get("ask", **ASK, **short)["chat"]
        first = page.wait("ended")["shown"]["messages"]
        page.get("ask", chat=chat, parent=None, text="other words", **short)
        second = page.wait("ended")["shown"]["messages"]
        assert second[0]["siblings"] == [first[0]["id"], second[0]["id"]]
        page.get("again", chat=chat, message=second[0]["id"], **short)
        third = page.wait("ended")["shown"]["messages"]
        assert third[0]["id"] == second[0]["id"] and third[1]["siblings"] == [second[1]["id"], third[1]["id"]]
        back = page.get("choose", chat=chat, message=first[0]["id"])
        assert [message["id"] for message in back["messages"]] == [message["id"] for message in first]
        for wish in (
            {"do": "ask", "chat": chat, "parent": first[0]["id"], "text": "x"},  # after a question
            {"do": "ask", "chat": chat, "parent": 10**6, "text": "x"},
            {"do": "ask", "chat": "abcdef", "parent": None, "text": "x"},
            {"do": "ask", "chat": None, "parent": first[1]["id"], "text": "x"},  # into another conversation
            {"do": "again", "chat": chat, "message": first[1]["id"]},  # to an answer
            {"do": "choose", "chat": chat, "message": 10**6},
            {"do": "open", "chat": "abcdef"},
            {"do": "rename", "chat": "abcdef", "title": "x"},
            {"do": "delete", "chat": chat[:3]},
        ):
            name = wish.pop("do")
            assert page.ask(name, **wish)["error"]["status"] in (400, 404), wish
        wait_until(lambda: slow.service.pool.num_active == 0)


def test_the_last_window_that_closes_ends_an_answer(slow: Serving) -> None:
    with window(slow) as other:
        with window(slow) as page:
            chat = page.get("ask", **ASK)["chat"]
            page.wait("grew")
            shown = other.get("open", chat=chat)
            assert shown["running"] == shown["messages"][1]["id"]
            assert other.get("list")["chats"][0]["running"]
        other.wait("grew")  # it goes on for the other window
        assert slow.service.pool.num_active == 1
    wait_until(lambda: slow.service.pool.num_active == 0)
    wait_until(lambda: slow.talks.num_running == 0)  # it is written down
    with window(slow) as page:
        assert page.get("open", chat=chat)["messages"][1]["finish"] == "cancelled"


def test_showing_another_conversation_does_not_end_an_answer(slow: Serving) -> None:
    with window(slow) as page:
        chat = page.get("ask", **ASK, sampling={"max_new_tokens": 60})["chat"]
        page.wait("grew")
        page.get("open", chat=None)
        wait_until(lambda: slow.service.pool.num_active == 0)
        wait_until(lambda: page.get("open", chat=chat)["messages"][1]["finish"] == "length")


def test_a_busy_server_says_so_and_keeps_nothing_of_the_question(slow: Serving) -> None:
    with window(slow) as page:
        chats = [page.get("ask", **ASK)["chat"] for _ in range(3)]
        before = len(page.get("list")["chats"])
        assert page.ask("ask", **ASK)["error"] == {
            "status": 429,
            "message": "the server is busy",
            "code": "server_busy",
        }
        assert len(page.get("list")["chats"]) == before
        for chat in chats:
            page.get("stop", chat=chat)
    wait_until(lambda: slow.service.pool.num_active == 0)


def test_deleting_in_the_middle_of_an_answer_ends_it(slow: Serving) -> None:
    with window(slow) as page:
        chat = page.get("ask", **ASK)["chat"]
        page.wait("grew")
        page.get("delete", chat=chat)
        assert page.wait("deleted")["chat"] == chat
        wait_until(lambda: slow.service.pool.num_active == 0)
        assert page.ask("open", chat=chat)["error"]["status"] == 404


def test_what_does_not_fit_is_refused_or_left_out() -> None:
    with serving(AlphabetModel(context=60), slots=1) as server, window(server) as page:
        found = page.ask("ask", **{**ASK, "text": "x" * 100})["error"]
        assert found["code"] == "context_length_exceeded" and "the context is 60" in found["message"]
        chat = page.get("ask", **ASK, sampling={"max_new_tokens": 20})["chat"]
        answer = page.wait("ended")["message"]
        page.get("ask", chat=chat, parent=answer, text="and some words more", sampling={"max_new_tokens": 20})
        assert "no longer sees the 1 oldest turn" in page.wait("ended")["notice"]


def test_a_deadline_is_said() -> None:
    with serving(AlphabetModel(), limits=Limits(deadline_seconds=0.3)) as server, window(server) as page:
        page.get("ask", **ASK)
        assert page.wait("ended")["notice"] == "The answer was cut off after 0.3 seconds."


def test_an_engine_that_breaks_is_said_and_the_words_are_kept() -> None:
    class Breaking(AlphabetModel):
        def forward(self, ids, cache=None):
            if cache.positions.max() > 60:
                raise RuntimeError("out of luck")
            return super().forward(ids, cache)

    with serving(Breaking(0.01)) as server, window(server) as page:
        chat = page.get("ask", **ASK)["chat"]
        ended = page.wait("ended")
        assert "out of luck" in ended["error"] and ended["shown"]["messages"][1]["finish"] is None
        assert len(text_of(page.get("open", chat=chat))) > 20


def test_conversations_are_exported_and_taken_in(slow: Serving) -> None:
    with window(slow) as page:
        chat = page.get("ask", **ASK, sampling={"max_new_tokens": 5})["chat"]
        page.wait("ended")
        assert page.ask("export", chat=chat, form="jsonl")["error"]["message"].endswith("has no whole answer yet")
        slow.talks.store.write(page.get("open", chat=chat)["messages"][1]["id"], (Part("text", "stuvw"),), "stop")
        page.get("rename", chat=chat, title="Letters <b>")
        files = {form: page.get("export", chat=chat, form=form) for form in ("markdown", "json", "jsonl")}
        assert files["markdown"]["text"].startswith("# Letters <b>") and files["jsonl"]["name"].endswith(".jsonl")
        for form in ("json", "jsonl"):
            (taken,) = page.get("import", text=files[form]["text"], name=files[form]["name"])
            shown = page.get("open", chat=taken)
            assert [message["text"] for message in shown["messages"]] == ["hello", "stuvw"]
            assert shown["chat"]["title"] == ("Letters <b>" if form == "json" else "hello")
        refused = page.ask("import", text="{bad", name="x.json")["error"]
        assert refused["status"] == 400 and refused["message"].startswith("x.json:1: no JSON")


def test_another_program_that_writes_is_noticed(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.db")
    with serving(AlphabetModel(), store=store) as server, window(server) as page:
        other = ChatStore(tmp_path / "chats.db")
        chat = other.create()
        other.add(chat, None, user("from the terminal"))
        page.wait("chats")
        assert page.get("list")["chats"][0]["title"] == "from the terminal"
        shown = page.get("open", chat=chat)  # it was never answered
        page.get("again", chat=chat, message=shown["messages"][0]["id"], sampling={"max_new_tokens": 3})
        assert len(text_of(page.wait("ended")["shown"])) == 3
        other.close()


def test_a_stop_of_the_server_lets_an_answer_end_or_says_that_it_was_cut_off(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.db")
    with serving(AlphabetModel(0.01), store=store, drain=0.3) as server, window(server) as page:
        page.get("ask", **ASK)
        page.wait("grew")
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        ended = page.wait("ended")
        assert ended["notice"].startswith("The server is stopping") and text_of(ended["shown"])
        with pytest.raises(ConnectionClosed):
            while True:
                page.read()
        stopping.join()
        assert page.connection.close_code == 1012
    kept = ChatStore(tmp_path / "chats.db")
    answer = kept.read(kept.list()[0].id)[1]
    assert answer.finish == "cancelled" and answer.message.text == text_of(ended["shown"])


def test_a_key_is_asked_for_in_the_first_frame() -> None:
    with serving(AlphabetModel(), access=Access(api_key="sésame")) as server:
        assert server.get("/").status_code == 200 and server.get("/page/main.js").status_code == 200
        assert server.get("/v1/models").status_code == 401
        for frame in ('{"id": 1, "do": "hello"}', '{"id": 1, "do": "hello", "key": "no"}', '{"id": 1, "do": "list"}'):
            with connect(server.url.replace("http", "ws") + "/talk") as connection:
                connection.send(frame)
                assert json.loads(connection.recv(PATIENCE_SECONDS))["error"]["status"] == 401
                with pytest.raises(ConnectionClosed):
                    connection.recv(PATIENCE_SECONDS)
        with window(server, "sésame") as page:
            assert page.get("list")["chats"] == []


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost", "http://evil.example"),
        ("localhost", "null"),
        ("evil.example", None),
        ("localhost", "http://localhost"),
    ],
)
def test_pages_of_other_sites_cannot_open_a_socket(slow: Serving, host: str, origin: str | None) -> None:
    port = int(slow.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as client, pytest.raises(InvalidStatus) as refused:
        headers = {} if origin is None else {"Origin": origin}
        connect(f"ws://{host}:{port}/talk", sock=client, additional_headers=headers).close()
    assert refused.value.response.status_code == 403


def test_a_window_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_module, "HELLO_SECONDS", 0.2)
    monkeypatch.setattr(socket_module, "MAX_WINDOWS", 2)
    with serving(AlphabetModel()) as server:
        address = server.url.replace("http", "ws") + "/talk"
        with connect(address) as connection, pytest.raises(ConnectionClosed):
            connection.recv(PATIENCE_SECONDS)
        monkeypatch.setattr(socket_module, "HELLO_SECONDS", PATIENCE_SECONDS)
        with window(server), window(server), connect(address) as third:
            third.send('{"id": 1, "do": "hello"}')
            error = json.loads(third.recv(PATIENCE_SECONDS))["error"]
            assert error["status"] == 429 and error["message"].startswith("2 windows are open on this server already")
            with pytest.raises(ConnectionClosed):
                third.recv(PATIENCE_SECONDS)


def test_a_window_that_reads_nothing_is_closed_and_its_slot_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_module, "WRITE_SECONDS", 0.5)
    store = ChatStore(None)
    for number in range(20):
        answer = Message("assistant", (Part("text", "word " * 15_000),))
        store.load(Conversation((user(f"chat {number}"), answer)))
    with serving(AlphabetModel(), store=store) as server:
        with window(server, max_size=None) as page:
            chats = [info["id"] for info in page.get("list")["chats"]]
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
            client.sendall(
                b"GET /talk HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            assert b"101" in client.recv(20)
            for wish in ({"do": "hello"}, {"do": "ask", **ASK}):
                client.sendall(_frame({"id": 1, **wish}))
            wait_until(lambda: server.service.pool.num_active == 1)
            for chat in 3 * chats:
                client.sendall(_frame({"id": 2, "do": "open", "chat": chat}))
            wait_until(lambda: server.service.pool.num_active == 0)


def _frame(wish: dict[str, Any]) -> bytes:
    """A masked text frame, RFC 6455 section 5.2; the mask is zero."""
    body = json.dumps(wish).encode()
    assert len(body) < 126
    return bytes([0x81, 0x80 | len(body), 0, 0, 0, 0]) + body


NAMES = [
    "do",
    "id",
    "chat",
    "parent",
    "text",
    "sampling",
    "message",
    "system",
    "search",
    "title",
    "form",
    "key",
    "name",
]
VERBS = ["hello", "list", "open", "ask", "again", "go on", "stop", "choose", "rename", "delete", "export", "import", ""]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 2**63, 10**30, 1.5, "", " ", "\ud800", "a" * 5000, "abcdef", "../../x", "' OR 1=1 --"),
    *([], {}, [[]], {"temperature": -1}, {"temperature": "hot"}, {"top_k": 0}, {"x": 1}, {"max_new_tokens": 10**9}),
]


def test_a_thousand_frames_that_are_no_wish_do_no_harm(slow: Serving) -> None:
    random_ = random.Random(7)
    replies = closed = 0
    sent = 0
    while sent < 1000:
        with window(slow, max_size=None) as page:
            try:
                for _ in range(socket_module.MAX_WRONG + 1):
                    page.connection.send(_malformed(random_))
                    sent += 1
                    found = page.read()
                    while "event" in found:
                        found = page.read()
                    assert found["error"]["status"] in (400, 404, 409), found
                    replies += 1
            except ConnectionClosed as end:
                assert end.rcvd is not None and end.rcvd.code in (1008, 1007, 1009)
                closed += 1
    assert replies > 900 and closed > 40
    with window(slow) as page:
        assert page.get("ask", **ASK, sampling={"max_new_tokens": 2})["chat"]
        page.wait("ended")
    wait_until(lambda: slow.service.pool.num_active == 0)


def _malformed(random_: random.Random) -> str | bytes:
    kind = random_.randrange(6)
    if kind == 0:
        return random_.randbytes(random_.randrange(50))
    if kind == 1:
        return "".join(chr(random_.randrange(32, 0xD7FF)) for _ in range(random_.randrange(60)))
    if kind == 2:
        return "[" * random_.randrange(1, 50_000)
    good = {
        "id": 1,
        "do": random_.choice(VERBS),
        **{random_.choice(NAMES[1:]): random_.choice(VALUES) for _ in range(4)},
    }
    if kind == 3:
        return json.dumps(good)[: random_.randrange(1, 12)]
    return json.dumps({**good, "unknown": 1})  # well formed, and still refused


def test_what_the_disk_does_not_take_stays_on_the_page_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ChatStore(tmp_path / "chats.db")
    write, is_full = store.write, threading.Event()

    def write_unless_full(*arguments: Any) -> None:
        if is_full.is_set():
            raise CapacityError("the disk is full")
        write(*arguments)

    monkeypatch.setattr(store, "write", write_unless_full)
    with serving(AlphabetModel(), store=store) as server, window(server) as page:
        is_full.set()
        chat = page.get("ask", **ASK, sampling={"max_new_tokens": 30})["chat"]
        ended = page.wait("ended")
        assert "the disk is full" in ended["error"]
        assert len(ended["shown"]["messages"][1]["parts"][0]["blocks"][0]) == 30 + len("<p></p>")
        assert store.read(chat)[1].message.text == ""
        is_full.clear()
        page.wait("shown")
        wait_until(lambda: len(store.read(chat)[1].message.text) == 30)
        assert store.read(chat)[1].finish == "length"


def test_a_deletion_by_another_program_in_mid_answer_is_said(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.db")
    with serving(AlphabetModel(), store=store) as server, window(server) as page:
        chat = page.get("ask", **ASK, sampling={"max_new_tokens": 100})["chat"]
        page.wait("grew")
        other = ChatStore(tmp_path / "chats.db")
        other.delete(chat)
        assert page.wait("ended")["shown"] == {}
        found = page.get("list", search="something")
        assert found["watched"] == chat and found["current"] is None
        other.close()
