"""Values between two processes that do not trust each other: plain data in tagged JSON, and nothing else.

What arrives is rebuilt from exact built-in types, so that no object brings a method of its own: a value that claims to
equal everything arrives as an Opaque, which equals nothing. Standard library only.
"""

import json
import os
from typing import Any

MAX_MESSAGE_BYTES = 16 << 20
MAX_DEPTH = 64
MAX_SMALL_INT = 1 << 53
"""Beyond it integers travel in hexadecimal, which takes linear time."""

TAGS: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "z", dict: "d"}


class WireError(Exception):
    """The other side does not keep to the protocol, or has ended."""


class Opaque:
    """A value that is no plain data; equal to itself only.

    >>> Opaque("range") == Opaque("range")
    False
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<a {self.name}>"


def encode(value: Any, depth: int = MAX_DEPTH) -> Any:
    """JSON values for plain data; subclasses travel as their built-in type. Raises ValueError where it is too deep.

    >>> encode([1, (2.5, "x"), {3: None}])
    ['l', [1, ['t', [2.5, 'x']], ['d', [[3, None]]]]]
    """
    if depth == 0:
        raise ValueError(f"deeper than {MAX_DEPTH} levels")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        whole = int.__int__(value)
        return whole if abs(whole) < MAX_SMALL_INT else ["i", f"{whole:x}"]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, bytes):
        return ["b", value.hex()]
    if isinstance(value, dict):
        return ["d", [[encode(key, depth - 1), encode(item, depth - 1)] for key, item in value.items()]]
    for kind, tag in TAGS.items():
        if isinstance(value, kind):
            return [tag, [encode(item, depth - 1) for item in value]]
    return ["o", type(value).__name__[:100]]


def decode(value: Any, depth: int = MAX_DEPTH) -> Any:
    """The plain data that `encode` was given. Raises WireError for anything that it never makes.

    >>> decode(encode([1, (2.5, "x"), {3: None}, 1 << 80]))
    [1, (2.5, 'x'), {3: None}, 1208925819614629174706176]
    """
    if depth == 0:
        raise WireError(f"deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, (bool, str, float, int)):
        return value
    try:
        tag, *rest = value
        if tag == "c":
            real, imag = rest
            return complex(float(real), float(imag))
        (content,) = rest
        if tag == "i":
            return int(content, 16)
        if tag == "b":
            return bytes.fromhex(content)
        if tag == "o" and isinstance(content, str):
            return Opaque(content)
        if not isinstance(content, list):
            raise TypeError
        if tag == "d":
            return {decode(key, depth - 1): decode(item, depth - 1) for key, item in content}
        kind = next(kind for kind, own in TAGS.items() if own == tag)
        return kind(decode(item, depth - 1) for item in content)
    except (TypeError, ValueError, KeyError, StopIteration) as error:
        raise WireError(f"no plain value: {str(value)[:80]}") from error


def send(fd: int, message: dict[str, Any]) -> None:
    """Write a message: 4 bytes of length and its JSON. Raises WireError where it is too long or nobody reads."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data):,} bytes")
    view = memoryview(len(data).to_bytes(4, "big") + data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise WireError("the other side has ended") from error


def receive(fd: int) -> dict[str, Any] | None:
    """The next message, or None at the end. Raises WireError for anything else."""
    head = _read(fd, 4)
    if not head:
        return None
    length = int.from_bytes(head, "big")
    if len(head) < 4 or length > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {length:,} bytes")
    data = _read(fd, length)
    if len(data) < length:
        raise WireError("the other side has ended in the middle of a message")
    try:
        message = json.loads(data, parse_int=_parse_small)
    except (ValueError, RecursionError) as error:
        raise WireError("no JSON") from error
    if not isinstance(message, dict):
        raise WireError("no message")
    return message


def _parse_small(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a long integer that is not in hexadecimal")
    return int(digits)


def _read(fd: int, length: int) -> bytes:
    parts = []
    while length and (part := os.read(fd, min(length, 1 << 20))):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
