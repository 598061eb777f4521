"""Connections on which nothing is asked are closed; uvicorn itself waits for ever for the end of a request's head."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_SECONDS = 15.0
"""A connection without a request is closed at the second such look, so after 15 to 30 seconds."""


class PatientProtocol(H11Protocol):
    """uvicorn's own HTTP/1.1, with an end to its patience. Bodies have theirs in the guard, answers their deadline."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._was_idle = False
        self._timer = self.loop.call_later(IDLE_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # it is a WebSocket's now
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._was_idle:
            self.transport.close()
            return
        self._was_idle = is_idle
        self._timer = self.loop.call_later(IDLE_SECONDS, self._look)
