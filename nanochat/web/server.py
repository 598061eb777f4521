"""The server's process: on SIGTERM or Ctrl-C it lets answers end for a while, then ends them, and leaves."""

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from nanochat.web.service import Service

END_SECONDS = 10
"""For clients to take the last event of an answer that was ended."""
MAX_CONNECTIONS = 1024


class Server(uvicorn.Server):
    """uvicorn's, but that a request to stop drains first. drain_seconds: how long answers may go on then."""

    def __init__(
        self, config: uvicorn.Config, service: Service, drain_seconds: float, tell: Callable[[], object]
    ) -> None:
        super().__init__(config)
        self.service, self.drain_seconds, self.tell = service, drain_seconds, tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.service_loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self.tell()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: the first one drains, a second one ends the answers now."""
        self.should_exit = True
        seconds = 0.0 if self.service.is_stopping else self.drain_seconds
        self.service.is_stopping = True
        loop = self.service_loop
        loop.call_soon_threadsafe(loop.call_later, seconds, self.service.pool.cancel_all)


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
        ws_max_size=1 << 20,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    server = kind(config, service, drain_seconds, tell)
    server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure
