"""Conversations from a file of yours (identity, style): JSONL or a JSON array, in any shape of `dialects`."""

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.conversation import Conversation
from nanochat.errors import DataError, MissingError
from nanochat.tasks.dialects import is_many, iter_values, read_conversation, read_json
from nanochat.tasks.held_out import describe_held_out, select_held_out
from nanochat.tasks.task import Split, Task

JSONL = "JSONL"
JSON = "JSON"


@dataclass(frozen=True)
class Entry:
    """What stands at a place of the file. number: of the line in JSONL, of the conversation in JSON; from 1.

    value: the conversation, or the error that says why there is none. shape: of `dialects`; "" beside an error.
    """

    number: int
    value: Conversation | DataError
    shape: str = ""


class CustomJSONTask(Task):
    """Every conversation of the file is one example, not graded. Of a large file a part is held out for tests."""

    def __init__(self, path: Path, split: Split = "train") -> None:
        self.name = f"custom:{path}"
        layout, entries = read_file(path)
        found: list[Conversation] = []
        shapes: Counter[str] = Counter()
        for entry in entries:
            if isinstance(entry.value, DataError):
                raise entry.value
            found.append(entry.value)
            shapes[entry.shape] += 1
        if not found:
            raise DataError(f"{path} has no conversations", 'one {"messages": [...]} a line')
        held_out = select_held_out(found)
        self._notes = (
            f"{path.name}: {len(found):,} conversations, {describe_format(layout, shapes)}{describe_masked(found)}",
            f"{path.name}: {describe_held_out(len(held_out), len(found))}",
        )
        if held_out:
            found = [value for index, value in enumerate(found) if (index in held_out) == (split == "test")]
        self._conversations = found

    def num_examples(self) -> int:
        return len(self._conversations)

    def example(self, index: int) -> Conversation:
        return self._conversations[index]

    def evaluate(self, conversation: Conversation, completion: str) -> None:
        return None

    def notes(self) -> tuple[str, ...]:
        return self._notes


def describe_format(layout: str, shapes: Counter[str]) -> str:
    """
    >>> describe_format("JSON", Counter({"messages": 3}))
    'JSON in the shape of messages'
    """
    return f"{layout} in the shape of {' and '.join(shapes)}"


def describe_masked(conversations: list[Conversation]) -> str:
    """`; 2 of 300 answers are not learnt (weight 0 or train false)`, or "" if all are."""
    answers = [message for talk in conversations for message in talk.messages if message.role == "assistant"]
    masked = sum(not message.is_learnt for message in answers)
    return f"; {masked:,} of {len(answers):,} answers are not learnt (weight 0 or train false)" if masked else ""


def read_file(path: Path) -> tuple[str, Iterator[Entry]]:
    """The layout of a file, JSONL or JSON, and what stands in it.

    JSON is an array of conversations, or conversations of several lines each. Raises MissingError if there is no such
    file and DataError if it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"there is no file {path}", f"ls {shlex.quote(str(path.parent))}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", f"ls -l {shlex.quote(str(path))}") from error
    text = _decode_json(raw)
    return (JSONL, _iter_lines(path, raw)) if text is None else (JSON, _iter_array(path, text))


def _decode_json(raw: bytes) -> str | None:
    """The text of a file that is not JSONL; None if it is, or is best explained line by line."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    first = next((line for line in text.splitlines() if line.strip()), "")
    try:
        return text if is_many(json.loads(first)) else None
    except RecursionError:
        return None
    except ValueError:
        pass
    if first.lstrip().startswith("["):
        return text
    try:
        next(iter_values(text), None)
    except (ValueError, RecursionError):
        return None
    return text if first.lstrip().startswith("{") else None


def _iter_lines(path: Path, raw: bytes) -> Iterator[Entry]:
    for number, line in enumerate(raw.splitlines(), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                yield _read_value(path, number, number, read_json(line.decode("utf-8-sig")), where)
            except UnicodeDecodeError as error:
                fault = f"{where} is not UTF-8 ({error.reason} at byte {error.start})"
                yield Entry(number, DataError(fault, _show_line(path, number)))
            except json.JSONDecodeError as error:
                fault = f"{where} is not JSON: {error.msg} at column {error.colno}"
                yield Entry(number, DataError(fault, _show_line(path, number)))
            except (ValueError, RecursionError) as error:
                yield Entry(number, DataError(f"{where}: {error}", _show_line(path, number)))


def _iter_array(path: Path, text: str) -> Iterator[Entry]:
    number = 0
    try:
        for number, (line, value) in enumerate(iter_values(text), start=1):
            yield _read_value(path, number, line, value, f"{path}:{line}, conversation {number}")
    except json.JSONDecodeError as error:
        fault = f"{path}:{error.lineno} is not JSON: {error.msg} at column {error.colno}"
        yield Entry(number + 1, DataError(fault, _show_line(path, error.lineno)))
    except RecursionError as error:
        yield Entry(
            number + 1, DataError(f"{path}, conversation {number + 1}: {error}", f"ls -l {shlex.quote(str(path))}")
        )


def _read_value(path: Path, number: int, line: int, value: object, where: str) -> Entry:
    try:
        if isinstance(value, ValueError):
            raise value
        conversation, shape = read_conversation(value)
        check_answers(conversation)
        check_text(conversation)
    except (ValueError, RecursionError) as error:
        return Entry(number, DataError(f"{where}: {error}", _show_line(path, line)))
    return Entry(number, conversation, shape)


def check_answers(conversation: Conversation) -> None:
    """Raise ValueError if there is no answer to learn from, or an empty one that is to be learnt."""
    messages = conversation.messages
    if messages[-1].role != "assistant":
        raise ValueError("it ends with the user: there is no answer to learn from")
    for place, message in enumerate(messages):
        if message.role == "assistant" and message.is_learnt and message.is_empty:
            raise ValueError(f"answer {place // 2 + 1} is empty: it would teach to say nothing")
    if not any(message.role == "assistant" and message.is_learnt for message in messages):
        raise ValueError("no answer is learnt: each has weight 0 or train false")


def check_text(conversation: Conversation) -> None:
    """Raise ValueError if a text holds what UTF-8 cannot: "\\ud83d" alone is half of a character."""
    for place, message in enumerate(conversation.messages):
        for part in message.parts:
            try:
                part.text.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"messages[{place}] holds half a surrogate pair, which no UTF-8 text can hold"
                ) from None


def _show_line(path: Path, number: int) -> str:
    return f"sed -n {number}p {shlex.quote(str(path))}"
