"""Server-sent events, with an end for readers that are too slow. Source: WHATWG HTML, "Server-sent events"."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
WRITE_SECONDS = 20.0
"""For a client to take one event: then it is dropped."""

LOST = (OSError, TimeoutError, asyncio.TimeoutError)  # the last two are one from Python 3.11 on
"""What a client that is gone, or too slow, comes to."""


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Await something; raises asyncio.TimeoutError where it takes longer.

    asyncio.wait_for, before Python 3.12, loses a cancellation that comes as the work ends, and with it a slot.
    """
    task, is_late = asyncio.current_task(), False
    assert task is not None

    def end() -> None:
        nonlocal is_late
        is_late = True
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        return await work
    except asyncio.CancelledError:
        if is_late:
            raise asyncio.TimeoutError from None
        raise
    finally:
        timer.cancel()


class EventStream(Response):
    """A response of events that ends when the client is gone, or takes none for WRITE_SECONDS."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], write_seconds: float = WRITE_SECONDS) -> None:
        self.status_code, self.background = 200, None  # and no body, whose length would be announced
        self.events, self.write_seconds = events, write_seconds
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def write(data: bytes, more: bool = True) -> None:
            await within(self.write_seconds, send({"type": "http.response.body", "body": data, "more_body": more}))

        async def run() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in self.events:
                await write(f"data: {event}\n\n".encode())
            await write(b"", False)

        tasks = [asyncio.ensure_future(run()), asyncio.ensure_future(watch())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done() and (error := tasks[0].exception()) and not isinstance(error, LOST):
                raise error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.events.aclose()  # type: ignore[attr-defined]
