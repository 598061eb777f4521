"""The server's process: on a signal it lets answers end for a while, then ends them, and leaves."""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nanochat.web.patience import PatientProtocol
from nanochat.web.service import Service
from nanochat.web.talks import Talks

END_SECONDS = 10
"""For clients to take the last event of an answer that was ended."""
SIGNALS = ("SIGUSR1", "SIGHUP")
"""Besides Ctrl-C and SIGTERM: a scheduler's warning, a closed terminal."""
MAX_CONNECTIONS = 1024
MAX_FRAME_BYTES = 4 << 20
"""Of the page's socket, for files of conversations that are taken in."""


class Server(uvicorn.Server):
    """uvicorn's, but that a request to stop drains first. drain_seconds: how long answers may go on then.

    tell: called once it answers. say: told that it stops.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        talks: Talks,
        drain_seconds: float,
        tell: Callable[[], object],
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        super().__init__(config)
        self.service, self.talks, self.drain_seconds, self.tell, self.say = service, talks, drain_seconds, tell, say
        self._deadline = float("inf")
        self._draining: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                    previous[number] = signal.signal(number, self.handle_exit)
        try:
            with super().capture_signals():
                yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.service_loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self.tell()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first one drains, a second Ctrl-C or SIGTERM ends the answers now. New requests are refused
        meanwhile."""
        is_second, self.service.is_stopping = self.service.is_stopping, True
        if is_second and sig not in (signal.SIGINT, signal.SIGTERM):
            return  # a terminal that closes sends SIGHUP twice: the kernel does, and the shell
        self._deadline = time.monotonic() + (0.0 if is_second else self.drain_seconds)
        if not self.started:
            self.should_exit = True
        elif not is_second:
            self.service_loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        self._draining = self.service_loop.create_task(self._drain())

    async def _drain(self) -> None:
        """Let answers end, then end them; the sockets are closed when their last event is out."""
        number = self.service.pool.num_active
        answers = f"{number} answers" if number > 1 else "the last answer"
        more = f": {answers} may go on for up to {self.drain_seconds:g} s; a second Ctrl-C ends them now"
        with suppress(OSError, ValueError):  # the terminal may be gone
            self.say("stopping" + (more if number else ""))
        while not self._is_idle and time.monotonic() < self._deadline:
            await asyncio.sleep(0.02)
        self.service.pool.cancel_all()
        end = time.monotonic() + END_SECONDS
        while not self._is_idle and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # for windows to take what they were told
        self.should_exit = True

    @property
    def _is_idle(self) -> bool:
        return self.service.pool.num_active == 0 and self.talks.num_running == 0


def run_server(
    app: FastAPI,
    service: Service,
    listener: socket.socket,
    drain_seconds: float,
    tell: Callable[[], object],
    kind: type[Server] = Server,
    say: Callable[[str], object] = lambda text: None,
) -> None:
    """Serve on an open port until a signal. tell: called once it answers. say: told that it stops.

    Raises what kept engines from starting.
    """
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(drain_seconds) + END_SECONDS,
        timeout_keep_alive=30,
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # else a line for each write to a client that left
    server = kind(config, service, app.state.talks, drain_seconds, tell, say)
    server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
