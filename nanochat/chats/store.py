"""The file of conversations. Several programs may use it at once, and a kill loses nothing that was written.

A message knows the one before it. Whoever edits a question or asks for another answer adds a sibling; nothing is
destroyed. Of each conversation one leaf is current, and the way from its root to there is what is shown. SQLite in WAL
mode: readers never wait, writers wait for each other.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.conversation import Conversation, Message, Part
from nanochat.errors import DataError, MissingError, UsageError

VERSION = 1
WAIT_SECONDS = 15.0
"""For another program's write to end."""
MAX_TITLE = 60

Finish = Literal["stop", "length", "cancelled"]

SCHEMA = """
CREATE TABLE chats (
  id TEXT PRIMARY KEY,
  title TEXT NOT NULL,
  system TEXT NOT NULL,
  created REAL NOT NULL,
  updated REAL NOT NULL,
  leaf INTEGER
);
CREATE TABLE messages (
  id INTEGER PRIMARY KEY,
  chat TEXT NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
  parent INTEGER REFERENCES messages(id) ON DELETE CASCADE,
  role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
  parts TEXT NOT NULL,
  model TEXT NOT NULL,
  sampling TEXT NOT NULL,
  finish TEXT,
  created REAL NOT NULL
);
CREATE INDEX messages_of_chat ON messages(chat, parent);
"""


@dataclass(frozen=True)
class StoredMessage:
    """A message with its place. siblings: ids of all that share its parent, itself among them, oldest first.

    finish: of an answer; None while it is being written, or where its program was killed. sampling: what it was drawn
    with.
    """

    id: int
    parent: int | None
    message: Message
    model: str = ""
    sampling: dict[str, Any] | None = None
    finish: str | None = None
    created: float = 0.0
    siblings: tuple[int, ...] = ()


@dataclass(frozen=True)
class ChatInfo:
    """A conversation in a list."""

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
        self.path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            options = {"timeout": WAIT_SECONDS, "isolation_level": None, "check_same_thread": False}
            self._db = sqlite3.connect(path or ":memory:", **options)
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            with self._writing():
                (version,) = self._db.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    for statement in filter(str.strip, SCHEMA.split(";")):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise self._refuse(error) from error
        if version > VERSION:
            raise DataError(f"{path} was written by a newer nanochat (version {version})", "pip install -U nanochat")

    def close(self) -> None:
        self._db.close()

    def create(self, system: str = "", title: str = "") -> str:
        """Begin a conversation; returns its id. It has no title until its first question gives it one."""
        chat, now = secrets.token_hex(5), time.time()
        with self._writing():
            self._db.execute("INSERT INTO chats VALUES (?, ?, ?, ?, ?, NULL)", (chat, title, system, now, now))
        return chat

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
        now = time.time()
        row = (chat, parent, message.role, _dump(message.parts), model, json.dumps(sampling or {}), finish, now)
        with self._writing():
            if self._one("SELECT 1 FROM chats WHERE id = ?", chat) is None:
                raise MissingError(f"conversation {chat} was deleted", "nanochat chats ls")
            columns = "chat, parent, role, parts, model, sampling, finish, created"
            cursor = self._db.execute(f"INSERT INTO messages ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            title = make_title(message.text)
            self._db.execute(
                "UPDATE chats SET leaf = ?, updated = ?, title = CASE title WHEN '' THEN ? ELSE title END WHERE id = ?",
                (cursor.lastrowid, now, title, chat),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def write(self, message: int, parts: Sequence[Part], finish: Finish | None = None) -> None:
        """Replace what an answer says so far. Quietly nothing where its conversation was deleted meanwhile."""
        with self._writing():
            self._db.execute("UPDATE messages SET parts = ?, finish = ? WHERE id = ?", (_dump(parts), finish, message))

    def discard(self, chat: str, message: int, leaf: int | None) -> None:
        """Take back a message that was never answered, and show another leaf; a conversation without any goes too."""
        with self._writing():
            self._db.execute("UPDATE chats SET leaf = ? WHERE id = ?", (leaf, chat))
            self._db.execute("DELETE FROM messages WHERE id = ?", (message,))
            if self._one("SELECT 1 FROM messages WHERE chat = ?", chat) is None:
                self._db.execute("DELETE FROM chats WHERE id = ?", (chat,))

    def read(self, chat: str, leaf: int | None = None) -> tuple[StoredMessage, ...]:
        """The messages from the root to the current leaf, or to another message."""
        with self._reading():
            rows = {row[0]: row for row in self._db.execute(f"{_MESSAGES} WHERE chat = ? ORDER BY id", (chat,))}
            found = (leaf,) if leaf is not None else self._one("SELECT leaf FROM chats WHERE id = ?", chat)
        children: dict[int | None, list[int]] = {}
        for number, row in rows.items():
            children.setdefault(row[1], []).append(number)
        path: list[StoredMessage] = []
        place = found[0] if found else None
        while place is not None and place in rows:
            row = rows[place]
            path.append(self._build(row, tuple(children[row[1]])))
            place = row[1]
        return tuple(reversed(path))

    def count_answers(self, question: int) -> int:
        return self._one("SELECT count(*) FROM messages WHERE parent = ?", question)[0]

    def choose(self, chat: str, message: int) -> None:
        """Show the branch of a message, down to the newest leaf behind it."""
        with self._writing():
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
        with self._reading():
            rows = self._db.execute(
                "SELECT id, title, system, created, updated, (SELECT count(*) FROM messages WHERE chat = chats.id)"
                " FROM chats ORDER BY updated DESC, id"
            ).fetchall()
            for row in rows:
                if limit is not None and len(found) == limit:
                    break
                if not search or self._holds(row[0], row[1], search.casefold()):
                    found.append(ChatInfo(*row))
        return found

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
        with self._writing():
            self._db.execute("UPDATE chats SET title = ? WHERE id = ?", (make_title(title), chat))

    def delete(self, chat: str) -> None:
        """Remove a conversation and all of its branches, from the file too."""
        with self._writing():
            self._db.execute("PRAGMA secure_delete = ON")
            self._db.execute("DELETE FROM chats WHERE id = ?", (chat,))

    def load(self, conversation: Conversation, system: str = "", title: str = "", model: str = "") -> str:
        """Store a whole conversation as a new one; returns its id."""
        chat = self.create(system, title)
        parent = None
        for message in conversation.messages:
            finish: Finish | None = "stop" if message.role == "assistant" else None
            parent = self.add(chat, parent, message, model=model, finish=finish)
        return chat

    def _holds(self, chat: str, title: str, words: str) -> bool:
        if words in title.casefold():
            return True
        texts = self._db.execute("SELECT parts FROM messages WHERE chat = ?", (chat,))
        return any(words in part["text"].casefold() for (text,) in texts for part in json.loads(text))

    def _build(self, row: Sequence[Any], siblings: tuple[int, ...]) -> StoredMessage:
        number, parent, role, parts, model, sampling, finish, created = row
        try:
            message = Message(role, tuple(Part(part["type"], part["text"]) for part in json.loads(parts)))
            return StoredMessage(number, parent, message, model, json.loads(sampling), finish, created, siblings)
        except (ValueError, KeyError, TypeError) as error:
            raise self._refuse(error) from error

    def _one(self, query: str, *values: Any) -> Any:
        return self._db.execute(query, values).fetchone()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._transaction("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._transaction("BEGIN"):
            yield

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        try:
            self._db.execute(begin)
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._refuse(error) from error

    @property
    def version(self) -> int:
        """Another number after another program wrote to the file."""
        return self._one("PRAGMA data_version")[0]

    def _refuse(self, error: Exception) -> DataError:
        hint = f"mv {self.path} {self.path}.old  # a new one is made; or nanochat chat --no-history"
        return DataError(f"the conversations in {self.path} cannot be used: {error}", hint)


_MESSAGES = "SELECT id, parent, role, parts, model, sampling, finish, created FROM messages"


def make_title(text: str) -> str:
    """The first line of a text, shortened at a word.

    >>> make_title("Tell me about  ducks\\nplease")
    'Tell me about ducks'
    """
    line = " ".join(next(iter(text.strip().splitlines()), "").split())
    if len(line) <= MAX_TITLE:
        return line
    return line[: MAX_TITLE - 3].rsplit(" ", 1)[0] + "..."


def _dump(parts: Sequence[Part]) -> str:
    # A lone surrogate cannot be stored as UTF-8; escaped it can.
    return json.dumps([{"type": part.kind, "text": part.text} for part in parts])
