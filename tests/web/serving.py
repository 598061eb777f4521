"""A server on the loopback in a thread, over a fake model or a tiny one."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import torch

from nanochat.engine.sampling import SamplingParams
from nanochat.web.app import build_app
from nanochat.web.build import build_service
from nanochat.web.guard import Access
from nanochat.web.server import run_server
from nanochat.web.service import Limits, Service
from tests.engine.fakes import ByteTokenizer, TinyModel

TOKENIZER = ByteTokenizer()
END = TOKENIZER.special_ids["<|assistant_end|>"]


@dataclass
class Serving:
    """A server that runs. url ends without a slash."""

    url: str
    service: Service
    thread: threading.Thread

    def stop(self, seconds: float = 20) -> bool:
        """Ask it to stop, as a signal would, and wait; whether it has."""
        self.server.handle_exit(15, None)  # type: ignore[attr-defined]
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def get(self, path: str, **options) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **options)

    def post(self, path: str, body: object, **options) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=30, **options)


def tiny_model(context: int = 128) -> TinyModel:
    """Talks in random letters; ends an answer now and then."""
    model = TinyModel(vocab_size=TOKENIZER.vocab_size, context=context)
    model.bias.fill_(-1e4)
    model.bias[[END, *range(ord(" "), ord("~"))]] = 0.0
    return model


@contextmanager
def serving(
    model: torch.nn.Module,
    *,
    slots: int = 4,
    max_waiting: int = 100,
    limits: Limits | None = None,
    access: Access | None = None,
    drain: float = 1.0,
    is_chat: bool = True,
    temperature: float = 0.0,
) -> Iterator[Serving]:
    from nanochat.web import server as server_module

    service = build_service(
        [model],
        TOKENIZER,  # type: ignore[arg-type]
        "fake/sft@1",
        num_slots=slots,
        max_context=None,
        max_waiting=max_waiting,
        default=SamplingParams(temperature=temperature),
        limits=limits,
        is_chat=is_chat,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    started = threading.Event()
    servers: list[server_module.Server] = []

    class Kept(server_module.Server):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            servers.append(self)

    def run() -> None:
        run_server(build_app(service, access), service, listener, drain, started.set, Kept)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(20)
    found = Serving(f"http://127.0.0.1:{port}", service, thread)
    found.server = servers[0]  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        if thread.is_alive():
            assert found.stop()


def run_async(work) -> object:
    return asyncio.run(work)
