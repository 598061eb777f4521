"""The windows that are open and what each of them shows. Knows neither sockets nor answers."""

from collections.abc import Callable
from typing import Any

Watcher = Callable[[dict[str, Any]], None]
"""A window: takes an event, at once."""


class Windows:
    """Who is told what. A window shows one conversation or none."""

    def __init__(self) -> None:
        self._shown: dict[Watcher, str | None] = {}

    def __len__(self) -> int:
        return len(self._shown)

    def __contains__(self, watcher: Watcher) -> bool:
        return watcher in self._shown

    def enter(self, watcher: Watcher) -> None:
        """A window opens, which shows no conversation yet."""
        self._shown[watcher] = None

    def leave(self, watcher: Watcher) -> None:
        self._shown.pop(watcher, None)

    def watch(self, watcher: Watcher, chat: str | None) -> None:
        """A window that is open shows a conversation, and no other one any more."""
        self._shown[watcher] = chat

    def shown_in(self, watcher: Watcher) -> str | None:
        """The conversation that a window shows; None where it shows none or is closed."""
        return self._shown.get(watcher)

    def tell(self, chat: str, event: dict[str, Any]) -> None:
        """Hand an event to the windows that show a conversation."""
        for watcher, shown in list(self._shown.items()):
            if shown == chat:
                watcher(event)

    def tell_all(self, event: dict[str, Any]) -> None:
        for watcher in list(self._shown):
            watcher(event)
