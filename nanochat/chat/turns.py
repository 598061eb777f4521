"""Turns of a conversation that is answered piece by piece: what is the same wherever the model runs. Loads no torch."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

from nanochat.chat.decoding import Piece
from nanochat.conversation import Conversation, Message, Part, dump_conversation, user


class TurnSession(ABC):
    """One conversation. One thread iterates over an answer at a time; `stop` may come from any thread.

    name: the model's, for people. system: prepended to the first message that the model sees.
    """

    def __init__(self, name: str, system: str) -> None:
        self.name, self.system = name, system
        self.notice = ""
        """What the user should know about the last answer, such as turns that no longer fit; else ""."""
        self.finish: Literal["stop", "length", "cancelled"] | None = None
        """Why the last answer ended."""
        self.context_used = 0
        """Tokens of the prompt and the answer so far."""
        self._messages: list[Message] = []
        self._num_unseen = 0  # oldest messages that no longer fit
        self._num_retries = 0
        self._num_new, self._seconds = 0, 0.0
        self._answering = False
        self._stopped = threading.Event()

    @property
    def history(self) -> Conversation:
        """All finished turns, also those that the model no longer sees."""
        return Conversation(tuple(self._messages))

    @property
    def tokens_per_second(self) -> float:
        """Speed of the last answer after its first token; 0 before there is one."""
        return (self._num_new - 1) / self._seconds if self._num_new > 1 and self._seconds > 0 else 0.0

    @property
    def is_answering(self) -> bool:
        return self._answering

    @property
    @abstractmethod
    def max_context(self) -> int:
        """Tokens that the model can see."""

    @abstractmethod
    def raw(self) -> str:
        """The conversation as the model, or the server, reads it; "" before the first turn."""

    @abstractmethod
    def export(self) -> dict[str, Any]:
        """The conversation as JSON types, in the shape that parse_conversation reads."""

    @abstractmethod
    def _answer(self, message: Message, num_kept: int) -> Iterator[Piece]:
        """Answer a message behind the first num_kept ones; the turn replaces all that follow those."""

    def send(self, text: str) -> Iterator[Piece]:
        """Answer a message. The turn enters the history when the iterator ends, is closed or is interrupted.

        Raises NanochatError, from the iterator, where there can be no answer; the history is then as it was.
        """
        return self.edit(len(self._messages) // 2, text)

    def regenerate(self) -> Iterator[Piece]:
        """Answer the last message again, with other random numbers. Raises ValueError where there is none."""
        if not self._messages:
            raise ValueError("there is nothing to answer again")
        self._check_idle()
        self._num_retries += 1
        return self.edit(len(self._messages) // 2 - 1, self._messages[-2].text)

    def edit(self, turn: int, text: str) -> Iterator[Piece]:
        """Put another message in place of the user's turn 0, 1, ... and forget everything after it."""
        if not 0 <= turn <= len(self._messages) // 2:
            raise ValueError(f"turn = {turn} is not in 0 .. {len(self._messages) // 2}")
        self._check_idle()
        self._stopped.clear()  # here, not when the iterator starts: a stop in between counts
        return self._answer(user(text), 2 * turn)

    def stop(self) -> None:
        """End the running answer; what there is of it is kept."""
        self._stopped.set()

    def clear(self) -> None:
        """Start a new conversation."""
        self._check_idle()
        self._messages.clear()
        self._num_unseen = self._num_retries = self._num_new = self.context_used = 0
        self._seconds, self.notice, self.finish = 0.0, "", None

    def load(self, conversation: Conversation) -> None:
        """Continue a conversation of whole turns. Raises ValueError where the last message has no answer."""
        if len(conversation.messages) % 2:
            raise ValueError("the last message has no answer: send it instead")
        self.clear()
        self._messages.extend(conversation.messages)

    def _check_idle(self) -> None:
        if self._answering:
            raise ValueError("the last answer is not finished: stop it or read it to its end")

    def _keep_turn(self, message: Message, num_kept: int, parts: list[Part]) -> None:
        answer = Message("assistant", tuple(parts) or (Part("text", ""),))
        if self.finish == "stop" and answer.is_empty:
            self.notice = "\n".join(filter(None, (self.notice, "The answer is empty: it ended at once.")))
        self._messages[num_kept:] = [message, answer]

    def _dump_messages(self) -> list[dict[str, Any]]:
        """The history, behind the system prompt where there is one."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + dump_conversation(self.history)["messages"]


def add_piece(parts: list[Part], piece: Piece) -> None:
    """Append a piece to what an answer says so far; text goes on with the text before it."""
    if parts and piece.kind == "text" == parts[-1].kind:
        parts[-1] = Part("text", parts[-1].text + piece.text)
    else:
        parts.append(Part(piece.kind, piece.text))
