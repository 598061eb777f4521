"""Conversations: the only chat types. Knows neither tokens nor files.

Roles alternate, user first; a leading `system` message is merged into the first user message.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

PartKind = Literal["text", "python", "python_output"]
PART_KINDS = ("text", "python", "python_output")


@dataclass(frozen=True)
class Part:
    """A piece of a message: text, a tool call (python) or what the tool answered (python_output)."""

    kind: PartKind
    text: str


@dataclass(frozen=True)
class Message:
    """role is "user" or "assistant"; a user message has text parts only."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts joined, without tool calls and their output."""
        return "".join(part.text for part in self.parts if part.kind == "text")

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing, not even to a tool; what a tool answers is not its own."""
        return not any(part.text.strip() for part in self.parts if part.kind != "python_output")


@dataclass(frozen=True)
class Conversation:
    """Alternating messages, the user's first."""

    messages: tuple[Message, ...]


def join_text(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Parts without two texts in a row: the ids of a text depend on where it is cut.

    >>> join_text([Part("text", "a"), Part("text", "b"), Part("python", "1")])
    (Part(kind='text', text='ab'), Part(kind='python', text='1'))
    """
    joined: list[Part] = []
    for part in parts:
        if joined and part.kind == "text" == joined[-1].kind:
            joined[-1] = Part("text", joined[-1].text + part.text)
        else:
            joined.append(part)
    return tuple(joined)


def user(text: str) -> Message:
    return Message("user", (Part("text", text),))


def assistant(*parts: str | tuple[PartKind, str]) -> Message:
    """assistant("Let me see: ", ("python", "2+2"), ("python_output", "4"), " It is 4.")"""
    return Message("assistant", tuple(Part("text", part) if isinstance(part, str) else Part(*part) for part in parts))


def parse_conversation(value: object) -> Conversation:
    """Read `{"messages": [{"role": ..., "content": str or [{"type": ..., "text": ...}]}]}` or its bare list.

    Raises ValueError, with the place in the message, where the shape is wrong.
    """
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages:
        raise ValueError('expected {"messages": [...]} with at least one message')
    system, parsed = "", []
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message or "content" not in message:
            raise ValueError(f'messages[{index}] needs "role" and "content"')
        role = message["role"]
        if role == "system":
            if index != 0 or not isinstance(message["content"], str):
                raise ValueError(f"messages[{index}]: a system message stands first and is text")
            system = message["content"]
            continue
        expected = "user" if len(parsed) % 2 == 0 else "assistant"
        if role != expected:
            raise ValueError(f"messages[{index}].role = {role!r}, expected {expected!r}: roles alternate, user first")
        parsed.append(Message(role, _parse_parts(message["content"], f"messages[{index}]", role)))
    if not parsed:
        raise ValueError("a conversation needs a user message")
    if system:
        parsed[0] = user(f"{system}\n\n{parsed[0].text}")
    return Conversation(tuple(parsed))


def _parse_parts(content: object, where: str, role: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (Part("text", content),)
    if not isinstance(content, list):
        raise ValueError(f"{where}.content is neither text nor a list of parts")
    parts = []
    for index, part in enumerate(content):
        place = f"{where}.content[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise ValueError(f'{place} needs "type" and "text"')
        if part.get("type") not in PART_KINDS:
            raise ValueError(f"{place}.type = {part.get('type')!r} is none of {', '.join(PART_KINDS)}")
        if role == "user" and part["type"] != "text":
            raise ValueError(f"{place}: a user message has text parts only")
        parts.append(Part(part["type"], part["text"]))
    return tuple(parts)


def dump_conversation(conversation: Conversation) -> dict:
    """The inverse of parse_conversation; messages of one text part become plain strings."""
    messages = []
    for message in conversation.messages:
        content: object = [{"type": part.kind, "text": part.text} for part in message.parts]
        if len(message.parts) == 1 and message.parts[0].kind == "text":
            content = message.parts[0].text
        messages.append({"role": message.role, "content": content})
    return {"messages": messages}


def hash_conversations(conversations: Iterable[Conversation]) -> str:
    """SHA-256 of what conversations say, in their order."""
    digest = hashlib.sha256()
    for conversation in conversations:
        digest.update(json.dumps(dump_conversation(conversation), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
