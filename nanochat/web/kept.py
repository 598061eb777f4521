"""The store of conversations behind the event loop: in a thread of its own, its errors as those of a request."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from nanochat.chat.store import ChatInfo, ChatStore, StoredMessage
from nanochat.errors import NanochatError
from nanochat.web.errors import ApiError

T = TypeVar("T")


class KeptChats:
    """All of it is called in the event loop, and what `do` is given in the thread."""

    def __init__(self, store: ChatStore) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1, "chats")  # one, because a write waits for the disk

    async def close(self) -> None:
        """Close the store when all that it was asked for is done."""
        await asyncio.to_thread(self._thread.shutdown)
        self.store.close()

    async def do(self, work: Callable[[], T]) -> T:
        """Work with the store. Raises ApiError where the store refuses."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except NanochatError as error:
            status = {3: 404, 2: 400}.get(error.exit_code, 500)
            raise ApiError(status, error.message) from error

    async def read(self, chat: str, leaf: int | None = None) -> tuple[ChatInfo, tuple[StoredMessage, ...]]:
        """A conversation and its branch down to a message; None: the branch that is shown."""
        return await self.do(lambda: (self.find(chat), self.store.read(chat, leaf)))

    def find(self, chat: str) -> ChatInfo:
        """In the thread. Raises ApiError where no conversation has this whole id."""
        info = self.store.find(chat)
        if info.id != chat:
            raise ApiError(404, f"there is no conversation {chat}")
        return info
