"""Answers that are being said in kept conversations: written down as they grow, then shown in the windows.

An answer belongs to the windows that asked for it or showed it, and ends when the last of them is closed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nanochat.chat.decoding import Piece
from nanochat.chat.prompts import describe_unseen, fit_prompt
from nanochat.chat.store import Finish
from nanochat.conversation import Message, Part
from nanochat.errors import NanochatError
from nanochat.web.errors import ApiError
from nanochat.web.kept import KeptChats
from nanochat.web.service import Answer, Service
from nanochat.web.shown import GrowingAnswer, show_chat
from nanochat.web.windows import Watcher, Windows
from nanochat.web.wishes import Sampling

LOG = logging.getLogger("nanochat.web")
FLUSH_SECONDS = 0.04
"""Between two changes of an answer on the page."""


@dataclass
class Running:
    """An answer that is being said. windows: those that it belongs to.

    pieces: that came since the last change of the page; showing: what shows them. first, last: when tokens came.
    """

    chat: str
    message: int
    answer: Answer
    num_prompt: int
    arrived: float
    growing: GrowingAnswer
    notice: str
    windows: set[Watcher]
    is_stopped: bool = False
    is_deleted: bool = False
    finish: Finish | None = None
    first: float = 0.0
    last: float = 0.0
    pieces: list[Piece] = field(default_factory=list)
    showing: asyncio.Task[None] | None = field(default=None, repr=False)
    task: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def stats(self) -> dict[str, Any]:
        num, seconds = self.answer.num_tokens, self.last - self.first
        return {
            "tokens": num,
            "tokens_per_second": (num - 1) / seconds if num > 1 and seconds > 0 else None,
            "first_seconds": self.first - self.arrived if num else None,
            "context": self.num_prompt + num,
        }


@dataclass(frozen=True)
class Beginning:
    """What an answer begins with. messages: the branch that it is read from, its own beginning last if it has one.

    num_answers: that there are to the question already. parts: of the answer that is continued. add: writes that it
    was asked for, in the store's thread, and returns the ids of the conversation and of the answer.
    """

    messages: Sequence[Message]
    system: str
    add: Callable[..., tuple[str, int]]
    num_answers: int = 0
    parts: Sequence[Part] = ()


class Answers:
    """At most one of each conversation. All of it is called in the event loop; raises ApiError."""

    def __init__(self, service: Service, kept: KeptChats, windows: Windows) -> None:
        self.service, self.kept, self.windows = service, kept, windows
        self._running: dict[str, Running] = {}
        self._unwritten: dict[int, Running] = {}

    def __len__(self) -> int:
        """Answers that are being said or written down."""
        return len(self._running)

    def __contains__(self, chat: str) -> bool:
        return chat in self._running

    async def stop(self) -> None:
        """End them all, and wait until what was said is written."""
        for running in list(self._running.values()):
            running.answer.stream.cancel()
        await asyncio.gather(*(running.task for running in list(self._running.values()) if running.task))
        await self.write_the_unwritten()

    def watch(self, watcher: Watcher, chat: str) -> None:
        """The conversation's answer belongs to this window too."""
        if chat in self._running:
            self._running[chat].windows.add(watcher)

    def leave(self, watcher: Watcher) -> None:
        """A window is closed: what belongs to no other one ends."""
        for running in self._running.values():
            running.windows.discard(watcher)
            if not running.windows:
                running.answer.stream.cancel()

    def cancel(self, chat: str, is_deleted: bool = False) -> None:
        """End the answer of a conversation; nothing where there is none. is_deleted: and say nothing more of it."""
        running = self._running.get(chat)
        if running is not None:
            running.is_stopped = True
            running.is_deleted = running.is_deleted or is_deleted
            running.answer.stream.cancel()

    async def show(self, chat: str) -> dict[str, Any]:
        """A conversation with its current branch, and what is being said in it."""
        info, path = await self.kept.read(chat)
        shown = await asyncio.to_thread(show_chat, info, path)  # a long text takes a while
        running = self._running.get(chat)
        growing = {message: unwritten.growing for message, unwritten in self._unwritten.items()}
        if running is not None:
            shown["running"] = running.message
            growing[running.message] = running.growing
        for message in shown["messages"]:
            if message["id"] in growing:
                message["parts"] = growing[message["id"]].shown
        return shown

    async def begin(self, watcher: Watcher, beginning: Beginning, sampling: Sampling) -> dict[str, Any]:
        """Ask the engine, and write down that it was asked; returns the ids of the conversation and of the answer."""
        service, arrived = self.service, time.monotonic()
        asked = sampling.max_new_tokens or service.limits.max_new_tokens
        room = min(asked, service.max_context // 4)
        try:
            prompt, num_unseen = await asyncio.to_thread(
                fit_prompt, service.tokenizer, beginning.messages, beginning.system, service.max_context, room
            )
        except NanochatError as error:
            raise ApiError(400, f"{error.message}: {error.hint}", "text", "context_length_exceeded") from error
        params = service.draw(sampling, min(asked, service.max_context - len(prompt)))
        params = replace(params, seed=(params.seed + beginning.num_answers) % 2**53)
        (answer,) = service.start(prompt, params, 1)

        def add_and_hold() -> tuple[str, int]:
            name, number = beginning.add(model=service.name, sampling=asdict(params))
            self.kept.store.locks.hold(number)
            return name, number

        try:
            chat, message = await self.kept.do(add_and_hold)
        except BaseException:
            answer.stream.cancel()
            raise
        windows = {watcher} if watcher in self.windows else set()
        growing, notice = GrowingAnswer(beginning.parts), describe_unseen(num_unseen)
        running = Running(chat, message, answer, len(prompt), arrived, growing, notice, windows)
        self._running[chat] = running
        if windows:
            self.windows.watch(watcher, chat)
        else:  # it was closed meanwhile
            answer.stream.cancel()
        try:
            self.windows.tell(chat, {"event": "shown", **await self.show(chat)})
        finally:
            running.task = asyncio.ensure_future(self._read(running))
        self.windows.tell_all({"event": "chats"})
        return {"chat": chat, "message": message}

    async def write_the_unwritten(self) -> None:
        """Try again what the disk did not take."""
        for message, running in list(self._unwritten.items()):
            with suppress(ApiError):
                await self._write_end(running)
                del self._unwritten[message]
                self.windows.tell(running.chat, {"event": "shown", **await self.show(running.chat)})

    async def _read(self, running: Running) -> None:
        """Read an answer to its end, show it and write it down."""
        finish: Finish | None = None
        error = ""
        try:
            async for chunk in self.service.read(running.answer, (), running.arrived):
                now = time.monotonic()
                running.first, running.last = running.first or now, now
                finish = chunk.finish
                running.pieces += chunk.pieces
                if running.pieces and running.showing is None:
                    running.showing = asyncio.ensure_future(self._keep_and_show(running))
        except ApiError as failed:
            error = failed.message
        except Exception as bug:
            LOG.error("a bug", exc_info=bug)
            error = f"{type(bug).__name__}: {bug}"
        finally:
            if running.showing is not None:
                await running.showing
            await self._end(running, finish, error)

    async def _keep_and_show(self, running: Running) -> None:
        """Write what came and show it then: a kill loses nothing that was seen. As often as the disk lets it."""
        while running.pieces:
            pieces, running.pieces = running.pieces, []
            started = time.monotonic()
            changes = running.growing.feed(pieces)
            parts = list(running.growing.parts)
            with suppress(ApiError):  # a disk that is full is said at the end
                await self.kept.do(lambda parts=parts: self.kept.store.write(running.message, parts))
            if changes and not running.is_deleted:
                event = {"event": "grew", "chat": running.chat, "message": running.message, "changes": changes}
                self.windows.tell(running.chat, event)
            await asyncio.sleep(max(0.0, started + FLUSH_SECONDS - time.monotonic()))
        running.showing = None

    async def _end(self, running: Running, finish: Finish | None, error: str) -> None:
        chat = running.chat
        if finish == "cancelled" and not running.is_stopped:
            is_late = time.monotonic() - running.arrived >= self.service.limits.deadline_seconds
            if self.service.is_stopping:
                running.notice = "The server is stopping. You can continue this answer later."
            elif is_late:
                running.notice = f"The answer was cut off after {self.service.limits.deadline_seconds:g} seconds."

        running.finish = finish
        try:
            await self._write_end(running)
        except ApiError as failed:
            error = error or failed.message
            self._unwritten[running.message] = running
        self._running.pop(chat, None)
        ended: dict[str, Any] = {"event": "ended", "chat": chat, "message": running.message, "stats": running.stats}
        if running.is_deleted:
            return
        try:
            shown = await self.show(chat)
        except ApiError:  # deleted by another program
            shown = {}
        self.windows.tell(chat, {**ended, "shown": shown, "notice": running.notice, "error": error})
        self.windows.tell_all({"event": "chats"})

    async def _write_end(self, running: Running) -> None:
        """Raises ApiError where the disk does not take it; then it is tried again, and the page has it meanwhile."""

        def write() -> None:
            self.kept.store.write(running.message, running.growing.parts, running.finish)
            self.kept.store.locks.release(running.message)

        await self.kept.do(write)
