"""The server's process: on SIGTERM or Ctrl-C it lets answers end for a while, then ends them, and leaves."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nanochat.web.service import Service
from nanochat.web.talks import Talks

END_SECONDS = 10
"""For clients to take the last event of an answer that was ended."""
MAX_CONNECTIONS = 1024
MAX_FRAME_BYTES = 4 << 20
"""Of the page's socket, for files of conversations that are taken in."""


class Server(uvicorn.Server):
    """uvicorn's, but that a request to stop drains first. drain_seconds: how long answers may go on then."""

    def __init__(
        self, config: uvicorn.Config, service: Service, talks: Talks, drain_seconds: float, tell: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self.service, self.talks, self.drain_seconds, self.tell = service, talks, drain_seconds, tell
        self._deadline = float("inf")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.service_loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self.tell()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first one drains, a second one ends the answers now. New requests are refused meanwhile."""
        is_second, self.service.is_stopping = self.service.is_stopping, True
        self._deadline = time.monotonic() + (0.0 if is_second else self.drain_seconds)
        if not self.started:
            self.should_exit = True
        elif not is_second:
            self.service_loop.call_soon_threadsafe(lambda: self.service_loop.create_task(self._drain()))

    async def _drain(self) -> None:
        """Let answers end, then end them; the sockets are closed when their last event is out."""
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
) -> None:
    """Serve on an open port until a signal. tell: called once it answers. Raises what kept engines from starting."""
    config = uvicorn.Config(
        app,
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
    server = kind(config, service, app.state.talks, drain_seconds, tell)
    server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
