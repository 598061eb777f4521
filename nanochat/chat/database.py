"""A SQLite file that several programs use at once: opened, made, checked, its transactions and its errors.

Knows the tables of conversations and nothing of what is in them.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from nanochat.chat.faults import find_inode, name_fault
from nanochat.errors import DataError

VERSION = 1
WAIT_SECONDS = 15.0
"""For another program's write to end."""

# Ids are never used again (AUTOINCREMENT): whoever still writes an answer that was deleted must not hit another one.
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
  id INTEGER PRIMARY KEY AUTOINCREMENT,
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


class Database:
    """The tables, which are made where they are missing. path: None keeps them in memory only.

    One thread at a time. Raises DataError where the file is damaged or from a newer version, and where it cannot be
    written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._inode: tuple[int, int] | None = None
        try:
            self._connection = self._open()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                with self.writing():
                    (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                    if version == 0:
                        for statement in filter(str.strip, SCHEMA.split(";")):
                            self._connection.execute(statement)
                        self._connection.execute(f"PRAGMA user_version = {VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise name_fault(error, path) from error
        self._inode = find_inode(path) if path is not None else None
        if version > VERSION:
            raise DataError(f"{path} was written by a newer nanochat (version {version})", "pip install -U nanochat")

    def _open(self) -> sqlite3.Connection:
        path, options = self.path, {"timeout": WAIT_SECONDS, "isolation_level": None, "check_same_thread": False}
        if path is not None:
            if path.exists() and not os.access(path.parent, os.W_OK):
                return _read_only(path, options)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # nobody else is to read them
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(path or ":memory:", **options)
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        return db

    def close(self) -> None:
        self._connection.close()

    def one(self, query: str, *values: Any) -> Any:
        """The first row that a query finds; None where it finds none."""
        return self._connection.execute(query, values).fetchone()

    def execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Inside `reading` or `writing`."""
        return self._connection.execute(query, values)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All that is read inside belongs to one moment. Raises DataError where it fails."""
        with self._transaction("BEGIN"):
            yield

    @contextmanager
    def writing(self, is_safe: bool = True) -> Iterator[None]:
        """All that is written inside is kept, or nothing. is_safe: from power cuts too, for which the disk is waited.

        Raises DataError where it fails.
        """
        if is_safe:
            with self._transaction("BEGIN IMMEDIATE"):
                yield
            return
        self._connection.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._transaction("BEGIN IMMEDIATE"):
                yield
        finally:
            self._connection.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        if self._inode is not None and self.path is not None and find_inode(self.path) != self._inode:
            raise DataError(
                f"{self.path} was moved or removed while this program had it open; nothing more is kept",
                "end it and start it again",
            )
        try:
            self._connection.execute(begin)
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise name_fault(error, self.path) from error

    @property
    def version(self) -> int:
        """Another number after another program wrote to the file."""
        try:
            return self.one("PRAGMA data_version")[0]
        except sqlite3.Error as error:
            raise name_fault(error, self.path) from error


def _read_only(path: Path, options: dict[str, Any]) -> sqlite3.Connection:
    """A store in a folder that cannot be written, and SQLite's log beside it: copied, for SQLite reads no log there."""
    log = path.with_name(f"{path.name}-wal")
    if not (log.exists() and log.stat().st_size):
        return sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, **options)
    db = sqlite3.connect(":memory:", **options)
    with tempfile.TemporaryDirectory() as folder:
        for file in (path, log):
            shutil.copyfile(file, Path(folder, file.name))
        with closing(sqlite3.connect(Path(folder, path.name))) as copy:
            copy.backup(db)
    db.execute("PRAGMA query_only = ON")
    return db
