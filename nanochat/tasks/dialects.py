"""Conversations as JSON in the shapes that people have: ours, ShareGPT's and Alpaca's. Knows no files and no tokens."""

import json
from collections.abc import Iterator
from typing import Any

from nanochat.conversation import ABOUT, Conversation, check_keys, parse_conversation, parse_messages

MESSAGES = "messages"
SHAREGPT = "ShareGPT (conversations, from, value)"
ALPACA = "Alpaca (instruction, input, output)"
EXPECTED = 'expected {"messages": [...]}, {"conversations": [...]} or {"instruction": ..., "output": ...}'
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Roles of ShareGPT and ours."""


class _Reader:
    """JSON in which a key that stands twice in an object is an error, not the last one of them."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._build)
        self._twice: str | None = None

    def _build(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            self._twice = next(key for key in keys if keys.count(key) > 1)
        return found

    def read(self, text: str, start: int) -> tuple[Any, int, str | None]:
        """The value that begins there, where it ends, and a key of it that stands twice."""
        self._twice = None
        value, end = self._decoder.raw_decode(text, start)
        return value, end, self._twice


def read_json(text: str) -> Any:
    """One JSON value. Raises ValueError if it is none or has a key twice.

    >>> read_json('{"weight": 1, "weight": 0}')
    Traceback (most recent call last):
    ValueError: the key 'weight' stands twice
    """
    start = _skip(text, 0)
    value, end, twice = _Reader().read(text, start)
    if (end := _skip(text, end)) < len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    _refuse_twice(twice)
    return value


def iter_values(text: str) -> Iterator[tuple[int, Any | ValueError]]:
    """The elements of a JSON array, or JSON values one after the other, each with the line on which it begins.

    A value in which a key stands twice is a ValueError; the values after it follow. Raises ValueError where the text is
    no JSON.

    >>> list(iter_values('[{"a": 1},\\n [2]]')), list(iter_values('{"a":\\n1} {}'))
    ([(1, {'a': 1}), (2, [2])], [(1, {'a': 1}), (2, {})])
    """
    reader, place, line, counted = _Reader(), _skip(text, 0), 1, 0
    is_array = text.startswith("[", place)
    place = _skip(text, place + is_array)
    is_open = is_array and not text.startswith("]", place)
    if is_array and not is_open:
        place = _skip(text, place + 1)
    while is_open or (not is_array and place < len(text)):
        line, counted = line + text.count("\n", counted, place), place
        value, place, twice = reader.read(text, place)
        yield line, ValueError(f"the key {twice!r} stands twice") if twice is not None else value
        place = _skip(text, place)
        if is_array:
            is_open = text.startswith(",", place)
            if not is_open and not text.startswith("]", place):
                raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
            place = _skip(text, place + 1)
    if place < len(text):
        raise json.JSONDecodeError("Extra data", text, place)


def is_many(value: Any) -> bool:
    """Whether this is a list of conversations, not of the messages of one."""
    first = value[0] if isinstance(value, list) and value else None
    return first is not None and not (isinstance(first, dict) and ("role" in first or "from" in first))


def read_conversation(value: Any) -> tuple[Conversation, str]:
    """A conversation and the shape that it was in.

    Raises ValueError, with the place in the message, if it is in none of the shapes or has a key that is not known.

    >>> conversation, shape = read_conversation({"instruction": "Add.", "input": "1, 2", "output": "3"})
    >>> [message.text for message in conversation.messages], shape
    (['Add.\\n\\n1, 2', '3'], 'Alpaca (instruction, input, output)')
    """
    if isinstance(value, list) and value and isinstance(value[0], dict) and "from" in value[0]:
        value = {"conversations": value}
    if isinstance(value, list):
        return parse_conversation(value), MESSAGES
    if not isinstance(value, dict):
        raise ValueError(EXPECTED)
    if "messages" in value:
        return parse_conversation(value), MESSAGES
    if "conversations" in value:
        check_keys(value, ("conversations", "system", *ABOUT))
        turns = value["conversations"]
        if not isinstance(turns, list):
            raise ValueError("conversations is not a list of turns")
        messages = [_read_turn(turn, f"conversations[{n}]") for n, turn in enumerate(turns)]
        return parse_messages(messages, value.get("system"), "conversations"), SHAREGPT
    if "instruction" in value and "output" in value:
        check_keys(value, ("instruction", "input", "output", "system", *ABOUT))
        asked, given, answer = (value.get(key) or "" for key in ("instruction", "input", "output"))
        for key, text in (("instruction", asked), ("input", given), ("output", answer)):
            if not isinstance(text, str):
                raise ValueError(f"{key} is not text")
        question = "\n\n".join(text for text in (asked, given) if text)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return parse_messages(messages, value.get("system")), ALPACA
    raise ValueError(f"{EXPECTED}; the keys are {', '.join(map(repr, value)) or 'none'}")


def _read_turn(turn: Any, where: str) -> Any:
    """A turn of ShareGPT as a message; one that has a role already stays as it is."""
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    check_keys(turn, ("from", "value", "weight", "train"), where)
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise ValueError(f"{where}.from = {speaker!r} is none of {', '.join(SPEAKERS)}")
    learnt = {key: turn[key] for key in ("weight", "train") if key in turn}
    return {"role": SPEAKERS[speaker], "content": turn.get("value"), **learnt}


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _refuse_twice(key: str | None) -> None:
    if key is not None:
        raise ValueError(f"the key {key!r} stands twice")
