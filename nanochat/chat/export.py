"""A stored conversation as Markdown, JSON or a line of training data, and back."""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.chat.store import ChatInfo, StoredMessage
from nanochat.conversation import Conversation, Message, Part, dump_conversation, parse_messages
from nanochat.errors import DataError, UsageError
from nanochat.tasks.dialects import is_many, read_conversation, read_json

FORMATS = ("markdown", "json", "jsonl")


def export_chat(chat: ChatInfo, path: Sequence[StoredMessage], form: str) -> str:
    """The current branch of a conversation. jsonl: one line that `nanochat data check` and custom tasks read.

    A training example ends before the first answer that was stopped, cut or empty: it would teach to stop there.
    Raises UsageError where nothing is left of it.
    """
    messages = [stored.message for stored in path]
    if form == "markdown":
        return _write_markdown(chat, path)
    if form == "jsonl":
        messages = messages[: count_whole(path)]
        if not messages:
            raise UsageError(f"conversation {chat.id} has no whole answer yet", f"nanochat chats show {chat.id}")
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


def count_whole(path: Sequence[StoredMessage]) -> int:
    """Messages of whole turns: those before the first question without an answer that says something to its end."""
    for place, stored in enumerate(path):
        if stored.message.role == "assistant" and (stored.finish != "stop" or stored.message.is_empty):
            return place - 1
    return len(path) - len(path) % 2


@dataclass(frozen=True)
class ReadChat:
    """A conversation from a file, with what `export_chat` says about it; system: its system prompt.

    answers: of each answer its model, sampling and finish, where the file has them.
    """

    conversation: Conversation
    title: str = ""
    system: str = ""
    answers: tuple[dict[str, Any], ...] = ()

    @property
    def stored(self) -> tuple[Conversation, str, str, Sequence[Any]]:
        """As ChatStore.load_all takes it."""
        return self.conversation, self.system, self.title, self.answers


STDIN = "stdin"
"""The name of what comes through a pipe, which no command can open again."""


def parse_chats(text: str, name: str) -> list[ReadChat]:
    """Conversations from json or jsonl as `export_chat` writes it, or as training data is. Raises DataError."""
    again = f"nanochat data check {'FILE' if name == STDIN else shlex.quote(name)}"
    text = text.removeprefix("\ufeff")
    try:
        whole = read_json(text)
        rows: list[tuple[int, Any]] = [(1, row) for row in (whole if is_many(whole) else [whole])]
    except RecursionError:
        raise DataError(f"{name}: nested too deep", again) from None
    except json.JSONDecodeError:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append((number, read_json(line)))
                except json.JSONDecodeError as error:
                    raise DataError(f"{name}:{number}: no JSON: {error}", again) from error
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{name}:{number}: {error}", again) from error
    except ValueError as error:
        raise DataError(f"{name}: {error}", again) from error
    found = []
    for number, row in rows:
        try:
            found.append(_read_chat(row))
        except ValueError as error:
            raise DataError(f"{name}:{number}: {error}", again) from error
    if not found:
        raise DataError(f"{name} holds no conversation", again)
    return found


def _read_chat(row: Any) -> ReadChat:
    """Raises ValueError."""
    conversation, _ = read_conversation(row)
    if not isinstance(row, dict):
        row = {"messages": row}
    system, messages = row.get("system") or "", row.get("messages")
    if system:
        conversation, _ = read_conversation({**row, "system": ""})
    elif messages and messages[0]["role"] == "system":
        system, conversation = messages[0]["content"], parse_messages(messages[1:])
    title, answers = row.get("title"), row.get("answers")
    known = tuple(_read_answer(answer) for answer in answers) if isinstance(answers, list) else ()
    return ReadChat(conversation, title if isinstance(title, str) else "", system, known)


def _read_answer(value: Any) -> dict[str, Any]:
    """What a file says about an answer; what is of another kind is left out."""
    value = value if isinstance(value, dict) else {}
    finish, model, sampling = (value.get(name) for name in ("finish", "model", "sampling"))
    return {
        "finish": finish if finish in ("stop", "length", "cancelled", None) else "stop",
        "model": model if isinstance(model, str) else "",
        "sampling": sampling if isinstance(sampling, dict) else {},
    }


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
        if end := describe_end(stored):
            lines += [f"*{end}*", ""]
    return "\n".join(lines)


def describe_end(stored: StoredMessage) -> str:
    """What is to be said about how an answer ended; "" where it ended by itself, and for questions."""
    if stored.message.role == "user" or stored.finish == "stop":
        return ""
    if stored.is_elsewhere:
        return "being answered in another program"
    return {"length": "cut at its limit", "cancelled": "stopped"}.get(stored.finish or "", "never finished")


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
