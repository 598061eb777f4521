"""What the page can do with conversations: read, ask, edit, choose, rename, delete, export. Knows no socket."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from nanochat.chat.export import export_chat, parse_chats
from nanochat.chat.store import ChatStore, StoredMessage
from nanochat.conversation import Message, Part, user
from nanochat.errors import NanochatError
from nanochat.web.answers import Answers, Beginning
from nanochat.web.errors import ApiError
from nanochat.web.kept import KeptChats
from nanochat.web.service import Service
from nanochat.web.shown import show_info
from nanochat.web.windows import Watcher, Windows
from nanochat.web.wishes import Sampling

LOOK_SECONDS = 2.0
"""Between two looks at whether another program wrote to the conversations."""
MAX_LISTED = 500


class Talks:
    """All of it is called in the event loop; raises ApiError."""

    def __init__(self, service: Service, store: ChatStore) -> None:
        self.service, self.store = service, store
        self.windows = Windows()
        self._kept = KeptChats(store)
        self._answers = Answers(service, self._kept, self.windows)
        self._reserved: set[str] = set()
        self._look: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._look = asyncio.ensure_future(self._look_for_others())

    async def stop(self) -> None:
        """Wait until all that was said is written."""
        if self._look is not None:
            self._look.cancel()
        await self._answers.stop()
        await self._kept.close()

    @property
    def num_running(self) -> int:
        """Answers that are being said or written down."""
        return len(self._answers)

    def leave(self, watcher: Watcher) -> None:
        """A window is closed."""
        self.windows.leave(watcher)
        self._answers.leave(watcher)

    def watch(self, watcher: Watcher, chat: str | None) -> None:
        """A window shows a conversation, and no other one any more."""
        if watcher in self.windows:
            self.windows.watch(watcher, chat)
            if chat is not None:
                self._answers.watch(watcher, chat)

    async def find(self, watcher: Watcher, search: str) -> dict[str, Any]:
        """The newest conversations that hold the words, whether there are more, and the one that the window shows.

        current: of that one what the list says, whatever the words are; None where it is deleted.
        """
        watched = self.windows.shown_in(watcher)
        current = await self._kept.do(lambda: self.store.list_one(watched)) if watched else None
        found = await self._kept.do(lambda: self.store.list(search, MAX_LISTED + 1))
        shown = [show_info(info) | {"running": info.id in self._answers} for info in found[:MAX_LISTED]]
        about = {"watched": watched, "current": show_info(current) if current else None}
        return {"chats": shown, "more": len(found) > MAX_LISTED, **about}

    async def show(self, chat: str) -> dict[str, Any]:
        """A conversation with its current branch, and what is being said in it."""
        return await self._answers.show(chat)

    async def ask(
        self, watcher: Watcher, chat: str | None, parent: int | None, text: str, system: str, sampling: Sampling
    ) -> dict[str, Any]:
        """Add a question and begin to answer it; returns the conversation's id. parent: the answer before it."""
        if chat is None and parent is not None:
            raise ApiError(400, "a conversation that begins has no message before it")
        async with self._reserve(chat):
            before: Sequence[StoredMessage] = ()
            if chat is not None and parent is None:
                system = (await self._kept.do(lambda: self._kept.find(chat))).system
            elif chat is not None:
                info, before = await self._kept.read(chat, parent)
                system = info.system
                if not before or before[-1].message.role != "assistant":
                    raise ApiError(404, "the answer before this question is not there any more")
                if before[-1].is_elsewhere:
                    raise ApiError(409, "another program is writing the answer before it", code="answering")

            def add(**about: Any) -> tuple[str, int]:
                name, _, answer = self.store.ask(chat, parent, user(text), system=system, **about)
                return name, answer

            messages = [*(stored.message for stored in before), user(text)]
            return await self._answers.begin(watcher, Beginning(messages, system, add), sampling)

    async def again(self, watcher: Watcher, chat: str, question: int, sampling: Sampling) -> dict[str, Any]:
        """Another answer to a question."""
        async with self._reserve(chat):
            info, path = await self._kept.read(chat, question)
            if not path or path[-1].message.role != "user":
                raise ApiError(404, "the question is not there any more")
            num_answers = await self._kept.do(lambda: self.store.count_answers(question))

            def add(**about: Any) -> tuple[str, int]:
                return chat, self.store.add(chat, question, Message("assistant", ()), **about)

            messages = [stored.message for stored in path]
            return await self._answers.begin(watcher, Beginning(messages, info.system, add, num_answers), sampling)

    async def go_on(self, watcher: Watcher, chat: str, answer: int, sampling: Sampling) -> dict[str, Any]:
        """Go on with the newest answer of a branch, which was cut off."""
        async with self._reserve(chat):
            info, path = await self._kept.read(chat)
            if not path or path[-1].id != answer or path[-1].message.role != "assistant" or path[-1].finish == "stop":
                raise ApiError(400, "only the last answer can be continued, and only if it was cut off")
            if path[-1].is_elsewhere:
                raise ApiError(409, "another program is writing this answer", code="answering")
            parts = path[-1].message.parts
            if parts and parts[-1].kind == "python":  # no tool has answered: the model calls again
                parts = parts[:-1]

            def add(**_: Any) -> tuple[str, int]:
                self.store.write(answer, parts)  # it has no end any more
                return chat, answer

            begun = Message("assistant", parts or (Part("text", ""),))
            messages = [*(stored.message for stored in path[:-1]), begun]
            return await self._answers.begin(watcher, Beginning(messages, info.system, add, parts=parts), sampling)

    def cancel(self, chat: str) -> None:
        """End the answer of a conversation; nothing where there is none."""
        self._answers.cancel(chat)

    async def choose(self, chat: str, message: int) -> dict[str, Any]:
        """Show the branch of a message, in all windows."""
        async with self._reserve(chat):
            await self._kept.do(lambda: self.store.choose(chat, message))
        shown = await self.show(chat)
        self.windows.tell(chat, {"event": "shown", **shown})
        return shown

    async def rename(self, chat: str, title: str) -> None:
        await self._kept.do(lambda: self._kept.find(chat) and self.store.rename(chat, title))
        self.windows.tell_all({"event": "chats"})

    async def delete(self, chat: str) -> None:
        self._answers.cancel(chat, is_deleted=True)
        await self._kept.do(lambda: self._kept.find(chat) and self.store.delete(chat))
        self.windows.tell_all({"event": "deleted", "chat": chat})

    async def export(self, chat: str, form: str) -> dict[str, Any]:
        """A conversation as a file: its name and text. form: as `export_chat` knows them."""
        info, path = await self._kept.read(chat)
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

        chats = await self._kept.do(lambda: self.store.load_all(chat.stored for chat in found))
        self.windows.tell_all({"event": "chats"})
        return list(chats)

    @asynccontextmanager
    async def _reserve(self, chat: str | None) -> AsyncIterator[None]:
        """Nothing else may begin in this conversation."""
        if chat is not None:
            if chat in self._reserved or chat in self._answers:
                raise ApiError(409, "this conversation is being answered", code="answering")
            self._reserved.add(chat)
        try:
            yield
        finally:
            self._reserved.discard(chat or "")

    async def _look_for_others(self) -> None:
        """Tell the windows where another program, such as the terminal chat, wrote to the conversations."""
        version: int | None = None
        while True:
            found = version
            with suppress(ApiError):
                found = await self._kept.do(lambda: self.store.version)
            if version not in (None, found):
                self.windows.tell_all({"event": "chats"})
            version = found
            await self._answers.write_the_unwritten()
            await asyncio.sleep(LOOK_SECONDS)
