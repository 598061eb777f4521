"""Conversations: the only chat types. Knows neither tokens nor files.

Roles alternate, user first; a leading `system` message is merged into the first user message.
"""

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

PartKind = Literal["text", "python", "python_output"]
PART_KINDS = ("text", "python", "python_output")
ABOUT = ("id", "title", "created", "updated", "model", "server", "sampling", "answers")
"""What our exports say about a conversation, which training does not use."""
MESSAGE_KEYS = ("role", "content", "weight", "train")
ELSEWHERE = {
    "tool_calls": 'a tool call is a part of the content: {"type": "python", "text": ...}',
    "function_call": 'a tool call is a part of the content: {"type": "python", "text": ...}',
    "tool_call_id": 'what a tool answers is a part of the assistant\'s content: {"type": "python_output", "text": ...}',
    "tools": "the model has one tool, python, which needs no description",
}
"""Keys of other programs' files, and what says the same here."""


@dataclass(frozen=True)
class Part:
    """A piece of a message: text, a tool call (python) or what the tool answered (python_output)."""

    kind: PartKind
    text: str


@dataclass(frozen=True)
class Message:
    """role is "user" or "assistant"; a user message has text parts only. is_learnt: if the assistant says it."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]
    is_learnt: bool = True

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

    Beside them `system` is read, and a message's `weight` (0 or 1) or `train` (true or false). Raises ValueError, with
    the place in the message, if the shape is wrong or a key is not known.
    """
    system: object = None
    if isinstance(value, dict):
        check_keys(value, ("messages", "system", *ABOUT))
        value, system = value.get("messages"), value.get("system")
    return parse_messages(value, system)


def parse_messages(messages: object, system: object = None, name: str = "messages") -> Conversation:
    """Read a list of messages. system: of the whole; None or "" if there is none. name: of the list, in errors.

    Raises ValueError like parse_conversation.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError('expected {"messages": [...]} with at least one message')
    if system is not None and not isinstance(system, str):
        raise ValueError("system is not text")
    parsed: list[Message] = []
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        if not isinstance(message, dict):
            raise ValueError(f'{where} needs "role" and "content"')
        check_keys(message, MESSAGE_KEYS, where)
        if "role" not in message or "content" not in message:
            raise ValueError(f'{where} needs "role" and "content"')
        role = message["role"]
        if role == "system":
            if index != 0 or not isinstance(message["content"], str):
                raise ValueError(f"{where}: a system message stands first and is text")
            if system:
                raise ValueError(f"{where} is a system message, and the conversation has a system of its own")
            system = message["content"]
            _read_learnt(message, where, role)
            continue
        if role in ("tool", "function"):
            raise ValueError(f"{where}.role = {role!r}: {ELSEWHERE['tool_call_id']}")
        expected = "user" if len(parsed) % 2 == 0 else "assistant"
        if role != expected:
            raise ValueError(f"{where}.role = {role!r}, expected {expected!r}: roles alternate, user first")
        parts = _parse_parts(message["content"], where, role)
        parsed.append(Message(role, parts, _read_learnt(message, where, role)))
    if not parsed:
        raise ValueError("a conversation needs a user message")
    if system:
        parsed[0] = user(f"{system}\n\n{parsed[0].text}")
    return Conversation(tuple(parsed))


def check_keys(value: dict, known: Collection[str], where: str = "") -> None:
    """Raise ValueError for the first key that is not known, unless it says nothing (null or an empty list).

    >>> check_keys({"role": "user", "wieght": 0}, ("role", "weight"), "messages[0]")
    Traceback (most recent call last):
    ValueError: messages[0]: the key 'wieght' is not known: did you mean 'weight'?
    """
    for key, content in value.items():
        if key in known or content is None or content == [] or content == {}:
            continue
        near = difflib.get_close_matches(key, known, n=1)
        advice = ELSEWHERE.get(key) or (f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}")
        raise ValueError(f"{where}{': ' if where else ''}the key {key!r} is not known: {advice}")


def _read_learnt(message: dict, where: str, role: str) -> bool:
    """Whether the message is to be learnt, from `weight` or `train`. Raises ValueError for what neither can say."""
    weight, train = message.get("weight"), message.get("train")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise ValueError(f"{where}.weight = {json.dumps(weight)} is neither 0 nor 1")
    if train is not None and not isinstance(train, bool):
        raise ValueError(f"{where}.train = {json.dumps(train)} is neither true nor false")
    wishes = {bool(wish) for wish in (weight, train) if wish is not None}
    if len(wishes) > 1:
        raise ValueError(f"{where}: weight and train contradict each other")
    if role != "assistant" and True in wishes:
        raise ValueError(f"{where}: only what the assistant says can be learnt")
    return False not in wishes


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
        check_keys(part, ("type", "text"), place)
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
        learnt = {} if message.is_learnt or message.role == "user" else {"weight": 0}
        messages.append({"role": message.role, "content": content, **learnt})
    return {"messages": messages}


def hash_conversations(conversations: Iterable[Conversation]) -> str:
    """SHA-256 of what conversations say, in their order."""
    digest = hashlib.sha256()
    for conversation in conversations:
        digest.update(json.dumps(dump_conversation(conversation), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
