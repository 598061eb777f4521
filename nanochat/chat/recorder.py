"""A conversation with a model that is kept while it happens: a kill in the middle of an answer leaves what was said.

Stands before a ChatSession and has its `send`, `regenerate` and `edit`. Branches that are left stay in the store.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from nanochat.chat.store import ChatStore, StoredMessage
from nanochat.conversation import Conversation, Message, Part, user
from nanochat.errors import UsageError

SAVE_SECONDS = 0.02
"""Between two writes of an answer that is being said, the first of which is at its first piece."""


class Recorder:
    """One conversation of a session and a store. store: None keeps nothing. chat: one to go on with.

    session: an engine.session.ChatSession. The store sees a new conversation with its first question.
    """

    def __init__(self, session: Any, store: ChatStore | None, chat: str | None = None) -> None:
        self.session, self.store, self.chat = session, store, chat
        self.system = session.system
        """The system prompt of conversations that begin from now on."""
        self.path: tuple[StoredMessage, ...] = ()
        """The messages that are shown, whole turns; empty where nothing is kept."""
        if chat is not None:
            self.open(chat)

    def open(self, chat: str) -> None:
        """Go on with a stored conversation, with its own system prompt."""
        assert self.store is not None
        info = self.store.find(chat)
        self.chat = info.id
        self.session.system = info.system
        self._follow()

    def new(self) -> None:
        """Begin another conversation."""
        self.session.clear()
        self.session.system = self.system
        self.chat, self.path = None, ()

    def set_system(self, system: str) -> None:
        """Choose the system prompt of conversations that begin from now on; one that has begun keeps its own."""
        self.system = system
        if not self.session.history.messages:
            self.session.system = system

    def send(self, text: str) -> Iterator[Any]:
        """See ChatSession.send."""
        return self.edit(len(self.session.history.messages) // 2, text)

    def edit(self, turn: int, text: str) -> Iterator[Any]:
        """See ChatSession.edit: the new question is a sibling of the old one."""
        if any(stored.is_elsewhere for stored in self.path[: 2 * turn]):
            raise UsageError("another program is writing the answer before it", "wait for its end, or /new")
        pieces = self.session.edit(turn, text)
        return self._record(pieces, self._find_last(2 * turn), text)

    def regenerate(self) -> Iterator[Any]:
        """See ChatSession.regenerate: the new answer is a sibling of the old one."""
        pieces = self.session.regenerate()
        return self._record(pieces, self._find_last(len(self.session.history.messages) - 1), None)

    def choose(self, message: int) -> None:
        """Show the branch of a sibling."""
        if self.store is not None and self.chat is not None:
            self.store.choose(self.chat, message)
            self._follow()

    def catch_up(self) -> bool:
        """Follow what another program did to this conversation; whether there was anything. Between answers only.

        One that was deleted is left: a new one begins.
        """
        if self.store is None or self.chat is None:
            return False
        found = self.store.read(self.chat)
        if not found:
            self.new()
            return True
        if [_state(one) for one in found] == [_state(one) for one in self.path]:
            return False
        self._follow()
        return True

    def _find_last(self, num_messages: int) -> int | None:
        """The id of the last of the first messages. There is one less where a question at the end has no answer."""
        found = self.path[:num_messages]
        return found[-1].id if found else None

    def _record(self, pieces: Iterator[Any], parent: int | None, text: str | None) -> Iterator[Any]:
        """text: the question behind parent; None answers parent again."""
        parts: list[Part] = []
        before = self.chat, self.path
        self.session.finish = None  # if the question cannot be kept, there is no such turn
        first, answer = self._begin(parent, text)
        saved = float("-inf")
        try:
            for piece in pieces:
                if parts and piece.kind == "text" == parts[-1].kind:
                    parts[-1] = Part("text", parts[-1].text + piece.text)
                else:
                    parts.append(Part(piece.kind, piece.text))
                if self.store is not None and time.monotonic() - saved > SAVE_SECONDS:
                    self.store.write(answer, parts)
                    saved = time.monotonic()
                yield piece
        finally:
            pieces.close()  # type: ignore[attr-defined]  # a generator: its turn enters the session's history
            if self.store is not None:
                self.store.locks.release(answer)
            if self.store is not None and self.chat is not None:
                try:
                    if self.session.finish is None:  # refused, so that there is no such turn
                        self.store.discard(self.chat, first, before[1][-1].id if before[1] else None)
                        self.chat = before[0]
                    else:
                        self.store.write(answer, self.session.history.messages[-1].parts, self.session.finish)
                finally:  # a full disk took less: catch_up would take the rest for another program's
                    self.path = self.store.read(self.chat) if self.chat is not None else ()

    def _begin(self, parent: int | None, text: str | None) -> tuple[int, int]:
        """Write the question, unless it is there, and an answer without words; returns the ids of the first new one
        and of the answer."""
        if self.store is None:
            return 0, 0
        about = {"model": self.session.name, "sampling": asdict(self.session.params)}
        if text is None:
            assert self.chat is not None
            first = answer = self.store.add(self.chat, parent, Message("assistant", ()), **about)
        else:
            asked = self.store.ask(self.chat, parent, user(text), system=self.session.system, **about)
            self.chat, first, answer = asked
        self.store.locks.hold(answer)
        return first, answer

    def _follow(self) -> None:
        """Bring the session to the current branch."""
        assert self.store is not None and self.chat is not None
        self.path = self.store.read(self.chat)
        messages = [stored.message for stored in self.path]
        if len(messages) % 2:  # it was imported so, or its program was killed
            messages.append(Message("assistant", ()))
        whole = [m if m.parts else Message(m.role, (Part("text", ""),)) for m in messages]
        self.session.load(Conversation(tuple(whole))) if whole else self.session.clear()


def _state(stored: StoredMessage) -> tuple[int, str | None, str]:
    """What tells a message from what it was."""
    return stored.id, stored.finish, stored.message.text
