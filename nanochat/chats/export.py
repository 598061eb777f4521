"""A stored conversation as Markdown, JSON or a line of training data, and back."""

import json
import time
from collections.abc import Sequence
from typing import Any

from nanochat.chats.store import ChatInfo, StoredMessage
from nanochat.conversation import Conversation, Message, Part, dump_conversation, parse_conversation
from nanochat.errors import DataError, UsageError

FORMATS = ("markdown", "json", "jsonl")


def export_chat(chat: ChatInfo, path: Sequence[StoredMessage], form: str) -> str:
    """The current branch of a conversation. jsonl: one line that `nanochat data check` and custom tasks read.

    Raises UsageError where a training example would have no answer.
    """
    messages = [stored.message for stored in path]
    if form == "markdown":
        return _write_markdown(chat, path)
    if form == "jsonl":
        if len(messages) % 2:
            messages = messages[:-1]  # a question without an answer teaches nothing
        if not messages:
            raise UsageError(f"conversation {chat.id} has no answer yet", f"nanochat chats show {chat.id}")
        return json.dumps(_with_system(chat.system, messages), ensure_ascii=False) + "\n"
    about = {"id": chat.id, "title": chat.title, "created": chat.created, "updated": chat.updated}
    answers = [
        {"model": stored.model, "sampling": stored.sampling, "finish": stored.finish}
        for stored in path
        if stored.message.role == "assistant"
    ]
    return (
        json.dumps(about | _with_system(chat.system, messages) | {"answers": answers}, indent=2, ensure_ascii=False)
        + "\n"
    )


def parse_chats(text: str, name: str) -> list[tuple[Conversation, str]]:
    """Conversations with their titles, from json or jsonl as `export_chat` writes it. Raises DataError."""
    try:
        whole = json.loads(text)
        rows: list[tuple[int, Any]] = [(1, row) for row in (whole if _is_many(whole) else [whole])]
    except ValueError:
        rows = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    rows.append((number, json.loads(line)))
                except ValueError as error:
                    raise DataError(f"{name}:{number}: no JSON: {error}", f"nanochat data check {name}") from error
    found = []
    for number, row in rows:
        try:
            title = row.get("title", "") if isinstance(row, dict) else ""
            found.append((parse_conversation(row), title if isinstance(title, str) else ""))
        except ValueError as error:
            raise DataError(f"{name}:{number}: {error}", f"nanochat data check {name}") from error
    if not found:
        raise DataError(f"{name} holds no conversation", f"nanochat data check {name}")
    return found


def _is_many(value: Any) -> bool:
    """A list of conversations, not of messages."""
    return isinstance(value, list) and bool(value) and not (isinstance(value[0], dict) and "role" in value[0])


def _with_system(system: str, messages: Sequence[Message]) -> dict[str, Any]:
    found = dump_conversation(Conversation(tuple(messages)))
    if system:
        found["messages"].insert(0, {"role": "system", "content": system})
    return found


def _write_markdown(chat: ChatInfo, path: Sequence[StoredMessage]) -> str:
    day = time.strftime("%Y-%m-%d %H:%M", time.localtime(chat.created))
    lines = [f"# {chat.title or chat.id}", "", f"{day}, conversation {chat.id}", ""]
    if chat.system:
        lines += ["## System", "", chat.system, ""]
    for stored in path:
        who = "You" if stored.message.role == "user" else stored.model or "Assistant"
        lines += [f"## {who}", "", write_parts(stored.message.parts), ""]
        if stored.message.role == "assistant" and stored.finish != "stop":
            lines += [
                "*"
                + {"length": "cut at its limit", "cancelled": "stopped"}.get(stored.finish or "", "unfinished")
                + "*",
                "",
            ]
    return "\n".join(lines)


def write_parts(parts: Sequence[Part]) -> str:
    """Text with tool calls as `2+2 = 4`, for people.

    >>> write_parts([Part("python", "2+2"), Part("python_output", "4"), Part("text", " It is 4.")])
    '`2+2 = 4` It is 4.'
    """
    out = ""
    for number, part in enumerate(parts):
        if part.kind == "text":
            out += part.text
        elif part.kind == "python":
            has_result = number + 1 < len(parts) and parts[number + 1].kind == "python_output"
            out += f"`{part.text} = {parts[number + 1].text}`" if has_result else f"`{part.text}`"
    return out
