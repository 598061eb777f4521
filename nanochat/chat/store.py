"""The file of conversations. Several programs may use it at once, and a kill loses nothing that was written.

A message knows the one before it. Whoever edits a question or asks for another answer adds a sibling; nothing is
destroyed. Of each conversation one leaf is current, and the way from its root to there is what is shown. SQLite in WAL
mode: readers never wait, writers wait for each other.
"""

import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.chat.database import Database
from nanochat.chat.locks import AnswerLocks
from nanochat.conversation import Conversation, Message, Part
from nanochat.errors import DataError, MissingError, UsageError

MAX_TITLE = 60

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class StoredMessage:
    """A message with its place. siblings: ids of all that share its parent, itself among them, oldest first.

    finish: of an answer; None while it is being written, or where its program was killed. is_elsewhere: another program
    is writing it now. sampling: what it was drawn with.
    """

    id: int
    parent: int | None
    message: Message
    model: str = ""
    sampling: dict[str, Any] | None = None
    finish: str | None = None
    created: float = 0.0
    siblings: tuple[int, ...] = ()
    is_elsewhere: bool = False


@dataclass(frozen=True)
class ChatInfo:
    """A conversation in a list. num_messages: of the branch that is shown."""

    id: str
    title: str
    system: str
    created: float
    updated: float
    num_messages: int = 0


class ChatStore:
    """The conversations of one file, which is made where it is missing. path: None keeps them in memory only.

    One thread at a time. Raises DataError where the file is damaged or from a newer version, and where it cannot be
    written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self._db = path, Database(path)
        self.locks = AnswerLocks(path)

    def close(self) -> None:
        self._db.close()

    @property
    def version(self) -> int:
        """Another number after another program wrote to the file."""
        return self._db.version

    def create(self, system: str = "", title: str = "") -> str:
        """Begin a conversation; returns its id. It has no title until its first question gives it one."""
        with self._db.writing():
            return self._create(system, title)

    def add(
        self,
        chat: str,
        parent: int | None,
        message: Message,
        *,
        model: str = "",
        sampling: dict[str, Any] | None = None,
        finish: Finish | None = None,
    ) -> int:
        """Add a message after another (None: at the root) and make it the current leaf; returns its id."""
        with self._db.writing():
            return self._add(chat, parent, message, model, sampling, finish)

    def ask(
        self,
        chat: str | None,
        parent: int | None,
        question: Message,
        *,
        system: str = "",
        model: str = "",
        sampling: dict[str, Any] | None = None,
    ) -> tuple[str, int, int]:
        """Add a question and an answer without words behind it, both or none; returns the ids of the conversation, of
        the first new message and of the answer.

        chat: None begins one with the system prompt. A parent that is a question gets an empty answer first.
        """
        empty = Message("assistant", ())
        with self._db.writing():
            chat = self._create(system, "") if chat is None else chat
            first = None
            if self._db.one("SELECT role FROM messages WHERE id = ?", parent) == ("user",):
                first = parent = self._add(chat, parent, empty, "", None, None)
            asked = self._add(chat, parent, question, "", None, None)
            answer = self._add(chat, asked, empty, model, sampling, None)
        return chat, asked if first is None else first, answer

    def write(self, message: int, parts: Sequence[Part], finish: Finish | None = None) -> None:
        """Replace what an answer says so far. Quietly nothing where its conversation was deleted meanwhile."""
        # A kill loses nothing of it without waiting for the disk; a power cut may take the last words of an answer that
        # is being said, never the end of one.
        with self._db.writing(is_safe=finish is not None):
            row = (_dump(parts), finish, message)
            self._db.execute("UPDATE messages SET parts = ?, finish = ? WHERE id = ?", row)
            chat = "(SELECT chat FROM messages WHERE id = ?)"
            self._db.execute(f"UPDATE chats SET updated = ? WHERE id = {chat}", (time.time(), message))

    def discard(self, chat: str, message: int, leaf: int | None) -> None:
        """Take back a message that was never answered, and show another leaf; a conversation without any goes too."""
        with self._db.writing():
            self._db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (leaf, chat))
            self._db.execute("DELETE FROM messages WHERE id = ?", (message,))
            if self._db.one("SELECT 1 FROM messages WHERE chat = ?", chat) is None:
                self._db.execute("DELETE FROM chats WHERE id = ?", (chat,))

    def read(self, chat: str, leaf: int | None = None) -> tuple[StoredMessage, ...]:
        """The messages from the root to the current leaf, or to another message."""
        with self._db.reading():
            rows = {row[0]: row for row in self._db.execute(f"{_MESSAGES} WHERE chat = ? ORDER BY id", (chat,))}
            found = (leaf,) if leaf is not None else self._db.one("SELECT leaf FROM chats WHERE id = ?", chat)
        children: dict[int | None, list[int]] = {}
        for number, row in rows.items():
            children.setdefault(row[1], []).append(number)
        path: list[StoredMessage] = []
        place = found[0] if found else None
        while place is not None and place in rows:
            row = rows[place]
            path.append(self._build(chat, row, tuple(children[row[1]])))
            place = row[1]
        return tuple(reversed(path))

    def count_answers(self, question: int) -> int:
        with self._db.reading():
            return self._db.one("SELECT count(*) FROM messages WHERE parent = ?", question)[0]

    def choose(self, chat: str, message: int) -> None:
        """Show the branch of a message, down to the newest leaf behind it."""
        with self._db.writing():
            rows = self._db.execute("SELECT id, parent FROM messages WHERE chat = ? ORDER BY id", (chat,)).fetchall()
            if message not in {number for number, _ in rows}:
                raise UsageError(f"conversation {chat} has no message {message}", f"nanochat chats show {chat}")
            newest = {parent: number for number, parent in rows}  # the last child wins
            while message in newest:
                message = newest[message]
            self._db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (message, chat))

    def list(self, search: str = "", limit: int | None = None) -> list[ChatInfo]:
        """Conversations, the newest first. search: words in titles or messages, in any case."""
        found = []
        with self._db.reading():
            rows = self._db.execute(
                f"SELECT id, title, system, created, updated, ({_COUNT}) FROM chats ORDER BY updated DESC, id"
            ).fetchall()
            for row in rows:
                if limit is not None and len(found) == limit:
                    break
                if not search or self._holds(row[0], row[1], search.casefold()):
                    found.append(ChatInfo(*row))
        return found

    def list_one(self, chat: str) -> ChatInfo | None:
        """One conversation as the list has it, without the number of its messages; None where it is deleted."""
        with self._db.reading():
            row = self._db.one("SELECT id, title, system, created, updated FROM chats WHERE id = ?", chat)
        return ChatInfo(*row) if row else None

    def find(self, name: str) -> ChatInfo:
        """A conversation by the beginning of its id, `latest` for the newest. Raises MissingError or UsageError."""
        chats = self.list()
        if name == "latest" and chats:
            return chats[0]
        found = [chat for chat in chats if chat.id.startswith(name)] if name else []
        if not found:
            raise MissingError(f"there is no conversation {name!r}", "nanochat chats ls")
        if len(found) > 1:
            raise UsageError(f"{name!r} begins {len(found)} conversations", f"nanochat chats show {found[0].id}")
        return found[0]

    def rename(self, chat: str, title: str) -> None:
        """Raises UsageError for an empty title."""
        if not title.strip():
            raise UsageError("the title is empty", f"nanochat chats rename {chat} 'A title'")
        with self._db.writing():
            self._db.execute("UPDATE chats SET title = ? WHERE id = ?", (make_title(title), chat))

    def delete(self, chat: str) -> None:
        """Remove a conversation and all of its branches, from the file too."""
        with self._db.writing():
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.execute("DELETE FROM chats WHERE id = ?", (chat,))

    def load(self, conversation: Conversation, system: str = "", title: str = "", answers: Sequence[Any] = ()) -> str:
        """Store a whole conversation as a new one, or nothing of it; returns its id.

        answers: of each answer a dictionary of model, sampling and finish; without them they are whole.
        """
        (chat,) = self.load_all([(conversation, system, title, answers)])
        return chat

    def load_all(self, chats: Iterable[tuple[Conversation, str, str, Sequence[Any]]]) -> tuple[str, ...]:
        """Store conversations, each with the arguments of `load`; all of them or none."""
        with self._db.writing():
            return tuple(self._load(*each) for each in chats)

    def _load(self, conversation: Conversation, system: str, title: str, answers: Sequence[Any]) -> str:
        chat, parent, number = self._create(system, title), None, 0
        for message in conversation.messages:
            about: dict[str, Any] = {}
            if message.role == "assistant":
                about = answers[number] if number < len(answers) else {"finish": "stop"}
                number += 1
            model, sampling, finish = about.get("model", ""), about.get("sampling"), about.get("finish")
            parent = self._add(chat, parent, message, model, sampling, finish)
        return chat

    def _create(self, system: str, title: str) -> str:
        chat, now = secrets.token_hex(5), time.time()
        row = (chat, make_title(title), _storable(system), now, now)
        self._db.execute("INSERT INTO chats VALUES (?, ?, ?, ?, ?, NULL)", row)
        return chat

    def _add(self, chat: str, parent: int | None, message: Message, model: str, sampling: Any, finish: Any) -> int:
        if self._db.one("SELECT 1 FROM chats WHERE id = ?", chat) is None:
            raise MissingError(f"conversation {chat} was deleted", "nanochat chats ls")
        if (
            parent is not None
            and self._db.one("SELECT 1 FROM messages WHERE id = ? AND chat = ?", parent, chat) is None
        ):
            raise MissingError(f"conversation {chat} has no message {parent}", f"nanochat chats show {chat}")
        now, said = time.time(), _dump(message.parts)
        row = (chat, parent, message.role, said, _storable(model), json.dumps(sampling or {}), finish, now)
        columns = "chat, parent, role, parts, model, sampling, finish, created"
        cursor = self._db.execute(f"INSERT INTO messages ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._db.execute(
            "UPDATE chats SET leaf = ?, updated = ?, title = CASE title WHEN '' THEN ? ELSE title END WHERE id = ?",
            (cursor.lastrowid, now, make_title(message.text), chat),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _holds(self, chat: str, title: str, words: str) -> bool:
        if words in title.casefold():
            return True
        texts = self._db.execute("SELECT parts FROM messages WHERE chat = ?", (chat,))
        return any(words in part["text"].casefold() for (text,) in texts for part in _parse(text))

    def _build(self, chat: str, row: Sequence[Any], siblings: tuple[int, ...]) -> StoredMessage:
        number, parent, role, parts, model, sampling, finish, created = row
        try:
            message = Message(role, tuple(Part(part["type"], part["text"]) for part in json.loads(parts)))
            known = json.loads(sampling)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"message {number} of conversation {chat} is damaged: {error}",
                f"nanochat chats rm {chat}  # or leave it: the others are whole",
            ) from error
        is_open = role == "assistant" and finish is None
        elsewhere = is_open and self.locks.is_elsewhere(number)
        return StoredMessage(number, parent, message, model, known, finish, created, siblings, elsewhere)


_COUNT = """
WITH RECURSIVE shown(id) AS (
  SELECT chats.leaf UNION ALL
  SELECT messages.parent FROM messages JOIN shown ON messages.id = shown.id
)
SELECT count(id) FROM shown
"""
_MESSAGES = "SELECT id, parent, role, parts, model, sampling, finish, created FROM messages"


def make_title(text: str) -> str:
    """The first line of a text, shortened at a word.

    >>> make_title("Tell me about  ducks\\nplease")
    'Tell me about ducks'
    """
    line = " ".join(next(iter(_storable(text).strip().splitlines()), "").split())
    if len(line) <= MAX_TITLE:
        return line
    return line[: MAX_TITLE - 3].rsplit(" ", 1)[0] + "..."


def _parse(parts: str) -> list[Any]:
    """Parts as they were stored; none where they are damaged, which `read` says."""
    try:
        return [part for part in json.loads(parts) if isinstance(part["text"], str)]
    except (ValueError, KeyError, TypeError):
        return []


def _storable(text: str) -> str:
    """Without half characters (lone surrogates), which UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _dump(parts: Sequence[Part]) -> str:
    return json.dumps([{"type": part.kind, "text": _storable(part.text)} for part in parts])
