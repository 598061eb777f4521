"""The page's WebSocket: wishes in, replies and events out, one JSON object a frame.

Each wish gets one reply, `{"id", "ok"}` or `{"id", "error"}`; events have no id and come in their order. A window that
takes nothing for a while, or sends what is no wish again and again, is closed.
"""

import asyncio
import json
import logging
import secrets
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from nanochat import __version__
from nanochat.web import wishes
from nanochat.web.errors import ApiError
from nanochat.web.sse import LOST, WRITE_SECONDS, within
from nanochat.web.talks import Talks

LOG = logging.getLogger("nanochat.web")
MAX_WINDOWS = 64
MAX_SOCKETS = 512
"""With those that have not said hello yet, which they must within HELLO_SECONDS."""
MAX_WAITING = 2000
"""Frames that wait for a slow window before it is closed."""
MAX_WRONG = 20
"""Frames that are no wish before a window is closed."""
HELLO_SECONDS = 10.0
"""For a window to say hello."""

POLICY, TRY_LATER = 1008, 1013
"""Codes that a socket is closed with (RFC 6455, section 7.4.1, and IANA's registry)."""


class Window:
    """One open socket."""

    def __init__(self, socket: WebSocket, talks: Talks, key: str) -> None:
        self.socket, self.talks, self.key = socket, talks, key
        self.is_known = False
        self.num_wrong = 0
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event, soon."""
        self._waiting.put_nowait(event)

    async def run(self) -> None:
        """Until either side closes it."""
        await self.socket.accept()
        tasks = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._write())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            code = next((code for task in done if (code := task.result()) is not None), None)
            if code is not None and self.socket.application_state is WebSocketState.CONNECTED:
                await within(1, self.socket.close(code))
        except (WebSocketDisconnect, RuntimeError, *LOST):
            pass  # it is gone
        finally:
            self.talks.leave(self.tell)
            for task in (*tasks, *self._tasks):
                task.cancel()
            await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)

    async def _read(self) -> int | None:
        """Returns the code to close with; None where the other side closed."""
        while True:
            try:
                receiving = self.socket.receive()
                message = await (receiving if self.is_known else within(HELLO_SECONDS, receiving))
            except asyncio.TimeoutError:
                return POLICY
            if message["type"] == "websocket.disconnect":
                return None
            frame = message.get("text")
            try:
                wish = wishes.parse_wish(frame) if frame is not None else None
                if wish is None:
                    raise ApiError(400, "frames are text")
                self._let_in(wish)
            except ApiError as error:
                self.num_wrong += 1
                self._reply(wishes.find_id(frame or ""), error=error)
                if self.num_wrong >= MAX_WRONG or not self.is_known:
                    await asyncio.sleep(0.1)  # for the reply to go out
                    return TRY_LATER if error.status == 429 else POLICY
                continue
            if isinstance(wish, wishes.Stop):
                self.talks.cancel(wish.chat)
            # In tasks, so that a stop is never behind a long wish; a few at a time, so that none piles them up.
            while len(self._tasks) >= 8:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.ensure_future(self._answer(wish))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _write(self) -> int:
        while True:
            event = await self._waiting.get()
            if self._waiting.qsize() > MAX_WAITING:
                return TRY_LATER
            await within(WRITE_SECONDS, self.socket.send_text(json.dumps(event)))

    def _let_in(self, wish: wishes.Wish) -> None:
        """Raises ApiError before the first hello, for one with a wrong key, and where too many windows are open."""
        if self.is_known:
            return
        if not isinstance(wish, wishes.Hello):
            raise ApiError(401, "the first frame must be a hello")
        if self.key and not secrets.compare_digest(wish.key.encode("utf-8", "replace"), self.key.encode()):
            raise ApiError(401, "this server needs an API key" if not wish.key else "this is not the API key")
        if len(self.talks.windows) >= MAX_WINDOWS:
            raise ApiError(429, f"{MAX_WINDOWS} windows are open on this server already: close one of them")
        self.is_known = True
        self.talks.windows.enter(self.tell)

    def _reply(self, number: int | None, ok: Any = None, error: ApiError | None = None) -> None:
        if error is None:
            self.tell({"id": number, "ok": ok})
        else:
            self.tell({"id": number, "error": {"status": error.status, "message": error.message, "code": error.code}})

    async def _answer(self, wish: wishes.Wish) -> None:
        try:
            self._reply(wish.id, await self._do(wish))
        except ApiError as error:
            self._reply(wish.id, error=error)
        except Exception as bug:
            LOG.error("a bug", exc_info=bug)
            self._reply(wish.id, error=ApiError(500, f"a bug of the server: {type(bug).__name__}"))

    async def _do(self, wish: wishes.Wish) -> Any:
        talks = self.talks
        match wish:
            case wishes.Hello():
                return describe_server(talks)
            case wishes.List():
                return await talks.find(self.tell, wish.search)
            case wishes.Open():
                talks.watch(self.tell, wish.chat)
                return await talks.show(wish.chat) if wish.chat is not None else None
            case wishes.Ask():
                return await talks.ask(self.tell, wish.chat, wish.parent, wish.text, wish.system, wish.sampling)
            case wishes.Again():
                return await talks.again(self.tell, wish.chat, wish.message, wish.sampling)
            case wishes.GoOn():
                return await talks.go_on(self.tell, wish.chat, wish.message, wish.sampling)
            case wishes.Choose():
                return await talks.choose(wish.chat, wish.message)
            case wishes.Rename():
                return await talks.rename(wish.chat, wish.title)
            case wishes.Delete():
                return await talks.delete(wish.chat)
            case wishes.Export():
                return await talks.export(wish.chat, wish.form)
            case wishes.Import():
                return await talks.take_in(wish.text, wish.name)
            case wishes.Stop():
                return None


def describe_server(talks: Talks) -> dict[str, Any]:
    service = talks.service
    default = service.default
    return {
        "version": __version__,
        "model": service.name,
        "is_chat": service.is_chat,
        "max_context": service.max_context,
        "max_new_tokens": service.limits.max_new_tokens,
        "is_kept": talks.store.path is not None,
        "default": {"temperature": default.temperature, "top_k": default.top_k, "top_p": default.top_p},
    }


def build_socket_router(talks: Talks, key: str) -> APIRouter:
    """The one route of the page's socket."""
    router = APIRouter()
    num_open = 0

    @router.websocket("/talk")
    async def talk(socket: WebSocket) -> None:
        nonlocal num_open
        if num_open >= MAX_SOCKETS:
            await socket.close(TRY_LATER, "too many sockets are open")
            return
        num_open += 1
        try:
            await Window(socket, talks, key).run()
        finally:
            num_open -= 1

    return router
