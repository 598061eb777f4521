"""Conversations that are kept, answered by the engine and shown in several windows at once. Knows no socket.

An answer belongs to the windows that asked for it or showed it, and ends when the last of them is closed.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from nanochat.chats.export import export_chat, parse_chats
from nanochat.chats.store import ChatInfo, ChatStore, Finish, StoredMessage
from nanochat.conversation import Message, Part, user
from nanochat.engine.decoding import Piece
from nanochat.engine.prompts import describe_unseen, fit_prompt
from nanochat.errors import NanochatError
from nanochat.web.errors import ApiError
from nanochat.web.service import Answer, Service
from nanochat.web.shown import GrowingAnswer, show_chat, show_info
from nanochat.web.wishes import Sampling

LOG = logging.getLogger("nanochat.web")
FLUSH_SECONDS = 0.04
"""Between two changes of an answer on the page."""
LOOK_SECONDS = 2.0
"""Between two looks at whether another program wrote to the conversations."""
MAX_LISTED = 500

Watcher = Callable[[dict[str, Any]], None]
"""A window: takes an event, at once."""
T = TypeVar("T")


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


class Talks:
    """What the page can do with conversations. All of it is called in the event loop; raises ApiError."""

    def __init__(self, service: Service, store: ChatStore) -> None:
        self.service, self.store = service, store
        self._thread = ThreadPoolExecutor(1, "chats")  # the store's one thread: a write waits for the disk
        self._windows: dict[Watcher, str | None] = {}
        self._running: dict[str, Running] = {}
        self._reserved: set[str] = set()
        self._unwritten: dict[int, Running] = {}
        self._look: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._look = asyncio.ensure_future(self._look_for_others())

    async def stop(self) -> None:
        """Wait until all that was said is written."""
        if self._look is not None:
            self._look.cancel()
        for running in list(self._running.values()):
            running.answer.stream.cancel()
        await asyncio.gather(*(running.task for running in list(self._running.values()) if running.task))
        await self._write_the_unwritten()
        await asyncio.to_thread(self._thread.shutdown)
        self.store.close()

    @property
    def num_windows(self) -> int:
        return len(self._windows)

    @property
    def num_running(self) -> int:
        """Answers that are being said or written down."""
        return len(self._running)

    def enter(self, watcher: Watcher) -> None:
        """A window opens, which shows no conversation yet."""
        self._windows[watcher] = None

    def leave(self, watcher: Watcher) -> None:
        self._windows.pop(watcher, None)
        for running in self._running.values():
            running.windows.discard(watcher)
            if not running.windows:
                running.answer.stream.cancel()

    def watch(self, watcher: Watcher, chat: str | None) -> None:
        """A window shows a conversation, and no other one any more."""
        if watcher in self._windows:
            self._windows[watcher] = chat
            if chat in self._running:
                self._running[chat].windows.add(watcher)

    async def find(self, watcher: Watcher, search: str) -> dict[str, Any]:
        """The newest conversations that hold the words, whether there are more, and the one that the window shows.

        current: of that one what the list says, whatever the words are; None where it is deleted.
        """
        watched = self._windows.get(watcher)
        current = await self._do(lambda: self.store.list_one(watched)) if watched else None
        found = await self._do(lambda: self.store.list(search, MAX_LISTED + 1))
        shown = [show_info(info) | {"running": info.id in self._running} for info in found[:MAX_LISTED]]
        about = {"watched": watched, "current": show_info(current) if current else None}
        return {"chats": shown, "more": len(found) > MAX_LISTED, **about}

    async def show(self, chat: str) -> dict[str, Any]:
        """A conversation with its current branch, and what is being said in it."""
        info, path = await self._do(lambda: self._read(chat))
        shown = await asyncio.to_thread(show_chat, info, path)  # a long text takes a while
        running = self._running.get(chat)
        if running is not None:
            shown["running"] = running.message
            for message in shown["messages"]:
                if message["id"] == running.message:
                    message["parts"] = running.growing.shown
        for message in shown["messages"]:
            if message["id"] in self._unwritten:
                message["parts"] = self._unwritten[message["id"]].growing.shown
        return shown

    async def ask(
        self, watcher: Watcher, chat: str | None, parent: int | None, text: str, system: str, sampling: Sampling
    ) -> dict[str, Any]:
        """Add a question and begin to answer it; returns the conversation's id."""
        if chat is None and parent is not None:
            raise ApiError(400, "a conversation that begins has no message before it")
        async with self._reserve(chat):
            before: Sequence[StoredMessage] = ()
            if chat is not None:
                info, before = await self._do(lambda: self._read(chat, parent) if parent else (self._find(chat), ()))
                system = info.system
                if parent is not None and (not before or before[-1].message.role != "assistant"):
                    raise ApiError(404, "the answer before this question is not there any more")
                if before and before[-1].is_elsewhere:
                    raise ApiError(409, "another program is writing the answer before it", code="answering")

            def add(**about: Any) -> tuple[str, int]:
                name = self.store.create(system) if chat is None else chat
                question = self.store.add(name, parent, user(text))
                return name, self.store.add(name, question, Message("assistant", ()), **about)

            messages = [*(stored.message for stored in before), user(text)]
            return await self._begin(watcher, messages, system, sampling, 0, add)

    async def again(self, watcher: Watcher, chat: str, question: int, sampling: Sampling) -> dict[str, Any]:
        """Another answer to a question."""
        async with self._reserve(chat):
            info, path = await self._do(lambda: self._read(chat, question))
            if not path or path[-1].message.role != "user":
                raise ApiError(404, "the question is not there any more")
            num_answers = await self._do(lambda: self.store.count_answers(question))

            def add(**about: Any) -> tuple[str, int]:
                return chat, self.store.add(chat, question, Message("assistant", ()), **about)

            messages = [stored.message for stored in path]
            return await self._begin(watcher, messages, info.system, sampling, num_answers, add)

    async def go_on(self, watcher: Watcher, chat: str, answer: int, sampling: Sampling) -> dict[str, Any]:
        """Go on with the newest answer of a branch, which was cut off."""
        async with self._reserve(chat):
            info, path = await self._do(lambda: self._read(chat))
            if not path or path[-1].id != answer or path[-1].message.role != "assistant" or path[-1].finish == "stop":
                raise ApiError(400, "only the last answer can be gone on with, and only where it was cut off")
            if path[-1].is_elsewhere:
                raise ApiError(409, "another program is writing this answer", code="answering")
            parts = path[-1].message.parts

            def add(**_: Any) -> tuple[str, int]:
                self.store.write(answer, parts)  # it has no end any more
                return chat, answer

            messages = [*(stored.message for stored in path[:-1]), Message("assistant", parts or (Part("text", ""),))]
            return await self._begin(watcher, messages, info.system, sampling, 0, add, parts)

    def cancel(self, chat: str) -> None:
        """End the answer of a conversation; nothing where there is none."""
        running = self._running.get(chat)
        if running is not None:
            running.is_stopped = True
            running.answer.stream.cancel()

    async def choose(self, chat: str, message: int) -> dict[str, Any]:
        """Show the branch of a message, in all windows."""
        async with self._reserve(chat):
            await self._do(lambda: self.store.choose(chat, message))
        shown = await self.show(chat)
        self._tell(chat, {"event": "shown", **shown})
        return shown

    async def rename(self, chat: str, title: str) -> None:
        await self._do(lambda: self._find(chat) and self.store.rename(chat, title))
        self._tell_all({"event": "chats"})

    async def delete(self, chat: str) -> None:
        self.cancel(chat)
        if chat in self._running:
            self._running[chat].is_deleted = True
        await self._do(lambda: self._find(chat) and self.store.delete(chat))
        self._tell_all({"event": "deleted", "chat": chat})

    async def export(self, chat: str, form: str) -> dict[str, Any]:
        info, path = await self._do(lambda: self._read(chat))
        try:
            text = export_chat(info, path, form)
        except NanochatError as error:
            raise ApiError(400, error.message) from error
        suffix = {"markdown": "md"}.get(form, form)
        return {"name": f"nanochat-{chat}.{suffix}", "text": text}

    async def take_in(self, text: str, name: str) -> list[str]:
        """Store the conversations of a file; returns their ids."""
        try:
            found = await asyncio.to_thread(parse_chats, text, name)
        except NanochatError as error:
            raise ApiError(400, error.message) from error

        chats = await self._do(lambda: self.store.load_all(chat.stored for chat in found))
        self._tell_all({"event": "chats"})
        return list(chats)

    async def _begin(
        self,
        watcher: Watcher,
        messages: Sequence[Message],
        system: str,
        sampling: Sampling,
        num_answers: int,
        add: Callable[..., tuple[str, int]],
        parts: Sequence[Part] = (),
    ) -> dict[str, Any]:
        """Ask the engine, and write down that it was asked. num_answers: that there are to the question already.

        add: writes it and returns the ids of the conversation and of the answer.
        """
        service, arrived = self.service, time.monotonic()
        asked = sampling.max_new_tokens or service.limits.max_new_tokens
        room = min(asked, service.max_context // 4)
        try:
            prompt, num_unseen = await asyncio.to_thread(
                fit_prompt, service.tokenizer, messages, system, service.max_context, room
            )
        except NanochatError as error:
            raise ApiError(400, f"{error.message}: {error.hint}", "text", "context_length_exceeded") from error
        params = service.draw(sampling, min(asked, service.max_context - len(prompt)))
        wished = {**asdict(params), "seed": (params.seed + num_answers) % 2**53}
        (answer,) = service.start(prompt, replace(params, seed=wished["seed"]), 1)

        def add_and_hold() -> tuple[str, int]:
            name, number = add(model=service.name, sampling=wished)
            self.store.locks.hold(number)
            return name, number

        try:
            chat, message = await self._do(add_and_hold)
        except BaseException:
            answer.stream.cancel()
            raise
        windows = {watcher} & self._windows.keys()
        notice = describe_unseen(num_unseen)
        running = Running(chat, message, answer, len(prompt), arrived, GrowingAnswer(parts), notice, windows)
        self._running[chat] = running
        self.watch(watcher, chat)
        if not windows:  # it was closed meanwhile
            answer.stream.cancel()
        try:
            self._tell(chat, {"event": "shown", **await self.show(chat)})
        finally:
            running.task = asyncio.ensure_future(self._answer(running))
        self._tell_all({"event": "chats"})
        return {"chat": chat, "message": message}

    async def _answer(self, running: Running) -> None:
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

    async def _write_end(self, running: Running) -> None:
        """Raises ApiError where the disk does not take it; then it is tried again, and the page has it meanwhile."""

        def write() -> None:
            self.store.write(running.message, running.growing.parts, running.finish)
            self.store.locks.release(running.message)

        await self._do(write)

    async def _write_the_unwritten(self) -> None:
        for message, running in list(self._unwritten.items()):
            with suppress(ApiError):
                await self._write_end(running)
                del self._unwritten[message]
                self._tell(running.chat, {"event": "shown", **await self.show(running.chat)})

    async def _keep_and_show(self, running: Running) -> None:
        """Write what came and show it then: a kill loses nothing that was seen. As often as the disk lets it."""
        while running.pieces:
            pieces, running.pieces = running.pieces, []
            started = time.monotonic()
            changes = running.growing.feed(pieces)
            parts = list(running.growing.parts)
            with suppress(ApiError):  # a disk that is full is said at the end
                await self._do(lambda parts=parts: self.store.write(running.message, parts))
            if changes and not running.is_deleted:
                event = {"event": "grew", "chat": running.chat, "message": running.message, "changes": changes}
                self._tell(running.chat, event)
            await asyncio.sleep(max(0.0, started + FLUSH_SECONDS - time.monotonic()))
        running.showing = None

    async def _end(self, running: Running, finish: Finish | None, error: str) -> None:
        chat = running.chat
        if finish == "cancelled" and not running.is_stopped:
            is_late = time.monotonic() - running.arrived >= self.service.limits.deadline_seconds
            if self.service.is_stopping:
                running.notice = "The server is stopping; the answer can be gone on with later."
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
        self._tell(chat, {**ended, "shown": shown, "notice": running.notice, "error": error})
        self._tell_all({"event": "chats"})

    @asynccontextmanager
    async def _reserve(self, chat: str | None) -> AsyncIterator[None]:
        """Nothing else may begin in this conversation."""
        if chat is not None:
            if chat in self._reserved or chat in self._running:
                raise ApiError(409, "this conversation is being answered", code="answering")
            self._reserved.add(chat)
        try:
            yield
        finally:
            self._reserved.discard(chat or "")

    def _read(self, chat: str, leaf: int | None = None) -> tuple[ChatInfo, tuple[StoredMessage, ...]]:
        return self._find(chat), self.store.read(chat, leaf)

    def _find(self, chat: str) -> ChatInfo:
        info = self.store.find(chat)
        if info.id != chat:
            raise ApiError(404, f"there is no conversation {chat}")
        return info

    async def _do(self, work: Callable[[], T]) -> T:
        """Work with the store, in its thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except NanochatError as error:
            status = {3: 404, 2: 400}.get(error.exit_code, 500)
            raise ApiError(status, error.message) from error

    def _tell(self, chat: str, event: dict[str, Any]) -> None:
        for watcher, shown in list(self._windows.items()):
            if shown == chat:
                watcher(event)

    def _tell_all(self, event: dict[str, Any]) -> None:
        for watcher in list(self._windows):
            watcher(event)

    async def _look_for_others(self) -> None:
        """Tell the windows where another program, such as the terminal chat, wrote to the conversations."""
        version: int | None = None
        while True:
            try:
                found = await self._do(lambda: self.store.version)
            except ApiError:
                found = version
            if version not in (None, found):
                self._tell_all({"event": "chats"})
            version = found
            await self._write_the_unwritten()
            await asyncio.sleep(LOOK_SECONDS)
