"""Who may ask, how much, and that every end frees its slot."""

import asyncio
import errno
import json
import signal
import socket
import threading
from contextlib import ExitStack

import httpx
import pytest

from nanochat.web import guard, patience
from nanochat.web.guard import Access
from nanochat.web.service import Limits
from nanochat.web.sse import within
from tests.engine.fakes import ScriptedModel
from tests.patience import PATIENCE_SECONDS, wait_until
from tests.web.serving import Serving, serving, take_time, tiny_model

FULL = {"running": 2, "waiting": 2}
ASK = [{"role": "user", "content": "hello"}]
LONG = {"prompt": [97] * 3, "max_tokens": 2000, "temperature": 0.9, "stream": True}


class SlowModel(ScriptedModel):
    """Takes 10 ms a token, later more (`take_time`), and ends no answer before its limit."""

    def __init__(self) -> None:
        super().__init__(["x" * 3000], context=4000)

    def forward(self, ids, cache=None):
        import torch

        take_time(0.01, int(cache.positions.max()) if cache is not None else ids.shape[1])
        logits = torch.full((ids.shape[0], 1, 265), -1e9)
        logits[:, 0, ord("x")] = 0.0
        return logits


def is_idle(server: Serving) -> bool:
    return server.service.pool.num_active == 0


@pytest.fixture(scope="module")
def slow():
    with serving(SlowModel(), slots=2, max_waiting=2, limits=Limits(retry_seconds=3)) as server:
        yield server


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "a b", "[::1"])
def test_other_hosts_are_refused(slow: Serving, host: str) -> None:
    answer = slow.get("/v1/models", headers={"Host": host})
    assert answer.status_code in (400, 403)
    if answer.status_code == 403:
        assert answer.json()["error"]["code"] == "host_not_allowed"


def test_pages_of_other_sites_are_refused_and_our_own_are_not(slow: Serving) -> None:
    for origin in ("http://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1:1"):
        answer = slow.post("/v1/completions", {"prompt": "a"}, headers={"Origin": origin})
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "origin_not_allowed", origin
    assert slow.get("/v1/models", headers={"Origin": slow.url}).status_code == 200


def test_a_key_is_asked_for_where_there_is_one() -> None:
    with serving(tiny_model(), access=Access(api_key="sésame", origins=("https://ours.example",))) as server:
        assert server.get("/health").status_code == 200
        for path in ("/", "/page/main.js", "/health"):
            answer = httpx.head(server.url + path)
            assert (answer.status_code, answer.content) == (200, b"") and int(answer.headers["content-length"]) > 0
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic sésame".encode()}):
            answer = server.get("/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error"
        good = {"Authorization": "Bearer sésame".encode(), "Origin": "https://ours.example"}
        assert server.get("/v1/models", headers=good).status_code == 200
        assert server.get("/metrics").status_code == 401


def test_a_large_body_is_refused_announced_or_not() -> None:
    with serving(tiny_model(), access=Access(max_body_bytes=1000)) as server:
        assert server.post("/v1/completions", {"prompt": "a" * 2000}).status_code == 413

        def parts():
            for _ in range(50):
                yield b"x" * 100

        answer = httpx.post(server.url + "/v1/completions", content=parts(), timeout=PATIENCE_SECONDS)
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
        assert server.post("/v1/completions", {"prompt": "a"}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"prompt": NaN}'])
def test_bodies_that_are_no_request(slow: Serving, body: bytes) -> None:
    answer = httpx.post(slow.url + "/v1/completions", content=body, timeout=PATIENCE_SECONDS)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


MANY = [
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 150_000}]}),
    ("chat/completions", {"messages": ASK, "unknown": [[]] * 300_000}),
    ("chat/completions", {"messages": ASK} | dict.fromkeys(map(str, range(100_000)))),
    ("chat/completions", {"messages": [ASK[0] | dict.fromkeys(map(str, range(100_000)))]}),
    ("completions", {"prompt": [[5]] * 300_000}),
    ("completions", {"prompt": [5] * 500_000 + ["x"]}),
    ("completions", {"prompt": ["x"] * 500_000}),
    ("completions", {"prompt": "x", "unknown": json.loads("[" * 100 + "]" * 100)}),
]


@pytest.mark.parametrize(("path", "body"), MANY)
def test_a_body_of_very_many_parts_is_refused(slow: Serving, path: str, body: dict) -> None:
    error = slow.post(f"/v1/{path}", body).json()["error"]
    assert "more than" in error["message"] or error["param"] == "prompt", error


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 900_000}] * 8}),
        ("completions", {"prompt": ["x" * 900_000] * 8}),
        ("completions", {"prompt": [5] * 500_000}),
    ],
)
def test_what_cannot_fit_is_refused_before_it_is_encoded(slow: Serving, path: str, body: dict, monkeypatch) -> None:
    def encode(text: str) -> list[int]:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(slow.service.tokenizer, "encode", encode)
    error = slow.post(f"/v1/{path}", body).json()["error"]
    assert error["code"] == "context_length_exceeded" and "the context is 4000 tokens" in error["message"]


@pytest.mark.parametrize(
    ("path", "prompt"), [("chat/completions", {"messages": ASK}), ("completions", {"prompt": "a"})]
)
def test_the_server_answers_others_while_a_prompt_is_encoded(path: str, prompt: dict, monkeypatch) -> None:
    is_encoding, may_go_on = threading.Event(), threading.Event()
    with serving(tiny_model()) as server:
        encode = server.service.tokenizer.encode

        def wait(text: str) -> list[int]:
            is_encoding.set()
            assert may_go_on.wait(PATIENCE_SECONDS)
            return encode(text)

        monkeypatch.setattr(server.service.tokenizer, "encode", wait)
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(server.post(f"/v1/{path}", prompt | {"max_tokens": 1})))
        thread.start()
        assert is_encoding.wait(PATIENCE_SECONDS) and server.get("/health").status_code == 200
        may_go_on.set()
        thread.join(PATIENCE_SECONDS)
        assert answers[0].status_code == 200


def test_unknown_pages_and_methods_are_errors_of_the_same_form(slow: Serving) -> None:
    assert slow.get("/v1/nothing").json()["error"]["message"] == "there is no GET /v1/nothing here"
    answer = slow.get("/v1/completions")
    assert answer.status_code == 405 and "there is no GET" in answer.json()["error"]["message"]
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_a_client_that_leaves_frees_its_slot(slow: Serving) -> None:
    for wish in (LONG, LONG | {"stream": False}, LONG | {"n": 2}):
        with socket.create_connection(("127.0.0.1", int(slow.url.rpartition(":")[2]))) as client:
            body = json.dumps(wish).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            made = slow.service.pool.num_tokens
            wait_until(lambda made=made: slow.service.pool.num_tokens > made + 5)
        wait_until(lambda: is_idle(slow))
        assert slow.service.pool.num_tokens < made + 1000, wish


def test_a_full_server_says_when_to_come_again(slow: Serving) -> None:
    threads = [threading.Thread(target=slow.post, args=("/v1/completions", LONG)) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: slow.get("/health").json() | {"model": ""} == {"status": "ok", "model": "", **FULL})
    for body in (LONG, LONG | {"n": 3}):
        answer = slow.post("/v1/completions", body)
        assert answer.status_code == 429 and answer.headers["Retry-After"] == "3"
        assert answer.json()["error"]["type"] == "rate_limit_error"
    slow.service.pool.cancel_all()
    for thread in threads:
        thread.join()
    wait_until(lambda: is_idle(slow))


def test_a_deadline_ends_an_answer_with_what_there_is() -> None:
    with serving(SlowModel(), limits=Limits(deadline_seconds=0.5)) as server:
        choice = server.post("/v1/completions", LONG | {"stream": False}).json()["choices"][0]
        assert choice["finish_reason"] == "length" and len(choice["text"]) < LONG["max_tokens"]
        wait_until(lambda: is_idle(server))


def test_a_limit_of_new_tokens_is_the_servers() -> None:
    with serving(SlowModel(), limits=Limits(max_new_tokens=5)) as server:
        assert "this server's 5" in server.post("/v1/completions", LONG).json()["error"]["message"]
        answer = server.post("/v1/chat/completions", {"messages": ASK}).json()
        assert answer["usage"]["completion_tokens"] == 5 and answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("drain", [0.3, PATIENCE_SECONDS])
def test_a_request_to_stop_lets_answers_end_and_ends_them_after_a_while(drain: float) -> None:
    with serving(SlowModel(), drain=drain) as server:
        found: list[str] = []

        def read() -> None:
            tokens = 2000 if drain < 1 else 60
            found.append(server.post("/v1/completions", LONG | {"max_tokens": tokens}).text)

        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: server.service.pool.num_tokens > 3)
        assert server.stop()
        thread.join()
        events = [line.removeprefix("data: ") for line in found[0].splitlines() if line]
        assert events[-1] == "[DONE]" and json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
        text = "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])
        assert len(text) == 60 if drain > 1 else 3 < len(text) < 2000
        with pytest.raises(httpx.ConnectError):
            server.get("/health")


def test_a_request_to_stop_says_what_is_waited_for_and_only_a_second_ctrl_c_ends_it_now() -> None:
    with serving(SlowModel(), drain=600.0) as server:
        notes: list[str] = []
        server.server.say = notes.append  # type: ignore[attr-defined]
        threads = [threading.Thread(target=server.post, args=("/v1/completions", LONG)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.service.pool.num_active == 2 and server.service.pool.num_tokens > 3)
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGUSR1):  # the kernel's and the shell's, and one more
            server.server.handle_exit(number, None)  # type: ignore[attr-defined]
        wait_until(lambda: bool(notes))
        assert notes == ["stopping: 2 answers may go on for up to 600 s; a second Ctrl-C ends them now"]
        made = server.service.pool.num_tokens
        wait_until(lambda: server.service.pool.num_tokens > made + 10)
        assert server.service.pool.num_active == 2
        server.server.handle_exit(signal.SIGINT, None)  # type: ignore[attr-defined]
        for thread in (*threads, server.thread):
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        assert len(notes) == 1 and server.service.pool.num_tokens < 2000


def test_a_terminal_that_is_gone_does_not_keep_the_server_from_stopping() -> None:
    def fail(text: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with serving(SlowModel()) as server:
        server.server.say = fail  # type: ignore[attr-defined]
        assert server.stop()


def test_an_engine_that_breaks_is_replaced_and_said() -> None:
    class Breaking(SlowModel):
        def forward(self, ids, cache=None):
            if 98 in ids:
                raise RuntimeError("out of luck")
            return super().forward(ids, cache)

    with serving(Breaking()) as server:
        answer = server.post("/v1/completions", {"prompt": "ab"})
        assert answer.status_code == 500 and "RuntimeError: out of luck" in answer.json()["error"]["message"]
        stream = server.post("/v1/completions", {"prompt": "ab", "stream": True}).text
        assert "out of luck" in stream and stream.rstrip().endswith("[DONE]")
        assert server.post("/v1/completions", {"prompt": "ac"}).json()["choices"][0]["text"] == "x" * 16
        assert "nanochat_engine_failures_total 2" in server.get("/metrics").text


def test_an_engine_that_cannot_be_made_again_is_said_and_nobody_waits() -> None:
    class Breaking(SlowModel):
        def forward(self, ids, cache=None):
            self.config = None  # what the next engine is made from
            raise RuntimeError("out of luck")

    with serving(Breaking()) as server:
        assert server.get("/health").json()["status"] == "ok"
        assert server.post("/v1/completions", {"prompt": [97]}).status_code == 500
        wait_until(lambda: server.service.pool.is_broken)
        answer = server.post("/v1/completions", {"prompt": [97]})
        assert answer.status_code == 503 and "cannot be started again" in answer.json()["error"]["message"]
        health = server.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "broken"
        assert server.stop()


def test_metrics_count_what_happened(slow: Serving) -> None:
    slow.post("/v1/completions", {"prompt": "a", "max_tokens": 3})
    slow.get("/a/path/of/somebody")
    lines = slow.get("/metrics").text.splitlines()
    values = {line.split()[0]: float(line.split()[1]) for line in lines if not line.startswith("#")}
    assert values['nanochat_requests_total{path="/v1/completions",status="200"}'] >= 1
    assert values['nanochat_requests_total{path="other",status="404"}'] >= 1
    assert values["nanochat_tokens_total"] >= 3 and values["nanochat_first_token_seconds_count"] >= 1
    assert len(values) < 40


async def test_a_cancellation_that_comes_as_the_work_ends_is_not_lost() -> None:
    for step in range(3):
        done = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(within(60, done))
        for _ in range(step):
            await asyncio.sleep(0)
        done.set_result(None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, asyncio.sleep(60))
    assert await within(60, asyncio.sleep(0, "done")) == "done"


def test_more_answers_than_an_idle_server_takes_are_refused_for_good() -> None:
    """Not 429, which says to ask again."""
    with serving(tiny_model(), slots=1, max_waiting=1) as server:
        completion = {"prompt": ["a", "b"], "max_tokens": 1}
        assert server.post("/v1/completions", completion).status_code == 200
        message = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        for path, body, name in (
            ("/v1/completions", completion | {"prompt": ["a", "b", "c"]}, "prompt"),
            ("/v1/completions", completion | {"n": 2}, "prompt"),
            ("/v1/chat/completions", message | {"n": 3}, "n"),
        ):
            answer = server.post(path, body)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == name, answer.text
            assert "this server takes at most 2 at a time" in answer.text


def test_a_completion_that_says_no_number_gets_what_fits() -> None:
    with serving(tiny_model(), limits=Limits(max_new_tokens=5)) as server:
        room = server.service.max_context
        for prompt, most in (("a", 5), ([1] * (room - 2), 2)):
            answer = server.post("/v1/completions", {"prompt": prompt})
            assert answer.status_code == 200, answer.text
            assert 0 < answer.json()["usage"]["completion_tokens"] <= most


def test_a_whole_address_is_a_path_too() -> None:
    """RFC 9112, 3.2.2: a client of a proxy sends it, and a server must accept it."""
    with serving(tiny_model()) as server:
        for target, status in (("/health", b"200"), ("/nowhere", b"404"), ("", b"200"), ("/a://b", b"404")):
            with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port or 0), timeout=120) as connection:
                head = "HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close"
                connection.sendall(f"GET {server.url}{target} {head}\r\n\r\n".encode())
                assert connection.recv(100).split()[1] == status, target


def test_requests_are_spread_over_engines() -> None:
    with serving(SlowModel(), slots=1, max_waiting=1, others=[SlowModel()]) as server:
        one, two = server.service.pool.workers
        threads = [threading.Thread(target=server.post, args=("/v1/completions", LONG)) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: (one.num_active, two.num_active) == (2, 2))
        wait_until(lambda: server.get("/health").json() | {"model": ""} == {"status": "ok", "model": "", **FULL})
        assert server.post("/v1/completions", LONG).status_code == 429
        server.service.pool.cancel_all()
        for thread in threads:
            thread.join()


def test_an_engine_that_is_gone_for_good_leaves_the_others() -> None:
    class Breaking(SlowModel):
        def forward(self, ids, cache=None):
            self.config = None
            raise RuntimeError("out of luck")

    with serving(Breaking(), slots=2, others=[SlowModel()]) as server:
        codes = [server.post("/v1/completions", {"prompt": [97]}).status_code for _ in range(4)]
        assert codes == [500, 200, 200, 200]
        assert server.get("/health").status_code == 200


def test_connections_on_which_nothing_is_asked_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "IDLE_SECONDS", 1.0)
    monkeypatch.setattr(guard, "BODY_SECONDS", 1.0)
    with serving(SlowModel(), slots=1) as server:
        port = int(server.url.rpartition(":")[2])
        body = json.dumps({"prompt": [97], "max_tokens": 130, "temperature": 0}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(body)
        long = (head + b"\r\n" + body, b"HTTP/1.1 200 OK")  # an answer that takes longer is not cut
        cases = ((b"", b""), (head, b""), (head + b"\r\n" + body[:5], b"HTTP/1.1 408"), long)
        with ExitStack() as stack:
            clients = []
            for sent, _ in cases:
                client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
                clients.append(stack.enter_context(client))
                client.sendall(sent)
            for client, (sent, answer) in zip(clients, cases, strict=True):
                assert client.recv(10_000).startswith(answer), sent
        assert server.get("/health").status_code == 200


def test_a_client_that_leaves_with_half_a_body_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with serving(SlowModel(), slots=1) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as client:
                client.sendall(
                    b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"prompt"'
                )
        assert server.get("/health").status_code == 200
        wait_until(lambda: not server.server.server_state.connections)  # type: ignore[attr-defined]
    assert "Traceback" not in caplog.text and "a bug" not in caplog.text
