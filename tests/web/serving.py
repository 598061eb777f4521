"""A server on the loopback in a thread, over a fake model or a tiny one."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import torch

from nanochat.chat.store import ChatStore
from nanochat.engine.sampling import SamplingParams
from nanochat.web.app import build_app
from nanochat.web.build import build_service
from nanochat.web.guard import Access
from nanochat.web.server import run_server
from nanochat.web.service import Limits, Service
from nanochat.web.talks import Talks
from tests.engine.fakes import ByteTokenizer, TinyModel
from tests.patience import PATIENCE_SECONDS

TOKENIZER = ByteTokenizer()
END = TOKENIZER.special_ids["<|assistant_end|>"]


@dataclass
class Serving:
    """A server that runs. url ends without a slash."""

    url: str
    service: Service
    thread: threading.Thread

    @property
    def talks(self) -> Talks:
        return self.server.talks  # type: ignore[attr-defined]

    def stop(self, seconds: float = PATIENCE_SECONDS) -> bool:
        """Ask it to stop, as a signal would, and wait; whether it has."""
        self.server.handle_exit(15, None)  # type: ignore[attr-defined]
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def get(self, path: str, **options) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE_SECONDS, **options)

    def post(self, path: str, body: object, **options) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=PATIENCE_SECONDS, **options)


def take_time(seconds: float, place: int) -> None:
    """A step's time. A long answer becomes slow: it never ends by itself while a test waits for something else."""
    time.sleep(seconds if place < 400 else 20 * seconds)


class AlphabetModel(torch.nn.Module):
    """Says the letter of its place, a to z over and over, and never ends by itself; any number of slots.

    An answer that is continued begins with the next letter. seconds: see `take_time`.
    """

    def __init__(self, seconds: float = 0.003, context: int = 4000) -> None:
        super().__init__()
        self.config = SimpleNamespace(n_layer=1, n_head=1, n_kv_head=1, head_dim=2, context=context, vocab_size=265)
        self.compute_dtype = torch.float32
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seconds = seconds

    def hidden(self, ids, cache=None):
        return torch.zeros(*ids.shape, 2)

    def forward(self, ids, cache=None):
        logits = torch.full((ids.shape[0], 1, 265), -1e9)
        last = cache.positions[:, -1] if cache is not None else torch.tensor([ids.shape[1] - 1])
        take_time(self.seconds, int(last.max()))
        for row, place in enumerate(last.tolist()):
            logits[row, 0, ord("a") + place % 26] = 0.0
        return logits


class PlaceModel(AlphabetModel):
    """Says the token of its place: what it says next depends on how many tokens it has read, and on nothing else."""

    def __init__(self, say: Sequence[int], num_prompt: int) -> None:
        super().__init__(seconds=0)
        self.say, self.num_prompt = say, num_prompt

    def forward(self, ids, cache=None):
        logits = torch.full((ids.shape[0], 1, 265), -1e9)
        for row, place in enumerate(cache.positions[:, -1].tolist()):
            logits[row, 0, self.say[place - self.num_prompt + 1]] = 0.0
        return logits


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
    store: ChatStore | None = None,
    port: int = 0,
    others: Sequence[torch.nn.Module] = (),
) -> Iterator[Serving]:
    """others: models of further engines."""
    from nanochat.web import server as server_module

    service = build_service(
        [model, *others],
        TOKENIZER,  # type: ignore[arg-type]
        "fake/sft@1",
        num_slots=slots,
        max_context=None,
        max_waiting=max_waiting,
        default=SamplingParams(temperature=temperature),
        limits=limits,
        is_chat=is_chat,
    )
    listener = socket.create_server(("127.0.0.1", port))
    port = listener.getsockname()[1]
    started = threading.Event()
    servers: list[server_module.Server] = []

    class Kept(server_module.Server):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            servers.append(self)

    def run() -> None:
        run_server(build_app(service, access, store), service, listener, drain, started.set, Kept)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(PATIENCE_SECONDS)
    found = Serving(f"http://127.0.0.1:{port}", service, thread)
    found.server = servers[0]  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        if thread.is_alive():
            assert found.stop()


def run_async(work) -> object:
    return asyncio.run(work)
