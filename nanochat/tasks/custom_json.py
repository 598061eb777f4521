"""Conversations from a JSONL file of yours (identity, style): one `{"messages": [...]}` or bare list a line."""

import json
from collections.abc import Iterator
from pathlib import Path

from nanochat.conversation import Conversation, parse_conversation
from nanochat.errors import DataError, MissingError
from nanochat.tasks.task import Task


class CustomJSONTask(Task):
    """Every line is one example. Not graded; train and test are the same file."""

    def __init__(self, path: Path) -> None:
        self.name = f"custom:{path}"
        self._conversations = load_conversations(path)

    def num_examples(self) -> int:
        return len(self._conversations)

    def example(self, index: int) -> Conversation:
        return self._conversations[index]

    def evaluate(self, conversation: Conversation, completion: str) -> None:
        return None


def load_conversations(path: Path) -> list[Conversation]:
    """Read a JSONL file whole; blank lines are skipped.

    Raises MissingError where there is no such file, and DataError, with the line number, where a line is not a
    conversation that ends with the assistant.
    """
    conversations = []
    for _, value in iter_lines(path):
        if isinstance(value, DataError):
            raise value
        conversations.append(value)
    if not conversations:
        raise DataError(f"{path} has no conversations", 'one {"messages": [...]} a line')
    return conversations


def iter_lines(path: Path) -> Iterator[tuple[int, Conversation | DataError]]:
    """Line numbers from 1 with what stands there: a conversation, or the error that says why there is none.

    Raises MissingError where there is no such file and DataError where it cannot be read.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"there is no file {path}", f"ls {path.parent}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", f"ls -l {path}") from error
    for number, line in enumerate(raw.splitlines(), start=1):
        if line.strip():
            yield number, _parse_line(path, number, line)


def _parse_line(path: Path, number: int, line: bytes) -> Conversation | DataError:
    hint = f"sed -n {number}p {path}"
    try:
        conversation = parse_conversation(json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        return DataError(f"{path}:{number} is not UTF-8 ({error.reason} at byte {error.start})", hint)
    except json.JSONDecodeError as error:
        return DataError(f"{path}:{number} is not JSON: {error.msg} at column {error.colno}", hint)
    except (ValueError, RecursionError) as error:
        return DataError(f"{path}:{number}: {error}", hint)
    if conversation.messages[-1].role != "assistant":
        return DataError(f"{path}:{number} ends with the user: there is no answer to learn from", hint)
    for place, message in enumerate(conversation.messages):
        if message.role == "assistant" and message.is_empty:
            return DataError(f"{path}:{number}: answer {place // 2 + 1} is empty: it would teach to say nothing", hint)
    return conversation
