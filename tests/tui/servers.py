"""Servers that answer as they are told: what another program may send to a client."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.http_server import EndingServer


@dataclass
class Reply:
    """What is sent. parts: written one by one. cut: the connection is closed before the end of the body.

    hold: wait until the test lets go, before the last part.
    """

    status: int = 200
    kind: str = "text/event-stream"
    parts: list[bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    hold: threading.Event | None = None


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(finish: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": finish}])


DONE = b"data: [DONE]\n\n"


def text(*words: str) -> Reply:
    return Reply(parts=[*(delta(content=word) for word in words), delta("stop"), DONE])


def error(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    return Reply(status, "application/json", [body], {name.replace("_", "-"): value for name, value in headers.items()})


class Foreign:
    """A server with a list of replies, or a function of the request; bodies and headers of what was asked."""

    def __init__(self, replies: list[Reply] | Callable[[dict], Reply], models: Any) -> None:
        self.replies, self.models = replies, models
        self.asked: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.gone = threading.Event()
        self.url = ""

    def reply(self, body: dict) -> Reply:
        self.asked.append(body)
        return self.replies(body) if callable(self.replies) else self.replies.pop(0)


@contextmanager
def foreign(*replies: Reply, of: Callable[[dict], Reply] | None = None, models: Any = ("one",)) -> Iterator[Foreign]:
    """models: names, or a Reply."""
    found = Foreign(of or list(replies), models)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            models = found.models
            if not isinstance(models, Reply):
                body = json.dumps({"object": "list", "data": [{"id": name} for name in models]}).encode()
                models = Reply(200, "application/json", [body])
            self.send(models if self.path == "/v1/models" else error(404, "no such page"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.send(found.reply(body))

        def send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            if reply.cut:
                self.send_header("Content-Length", "1000000")
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for place, part in enumerate(reply.parts):
                    if reply.hold is not None and place == len(reply.parts) - 1:
                        while not reply.hold.wait(0.02):
                            self.wfile.write(b": still here\n")  # fails once the client is gone
                    self.wfile.write(part)
                    self.wfile.flush()
            except OSError:
                found.gone.set()

    server = EndingServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    with server.running():
        yield found
