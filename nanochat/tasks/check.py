"""What a file of conversations becomes: every error of its lines, lengths, and what is learnt. Prints nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.conversation import Conversation
from nanochat.errors import DataError
from nanochat.tasks.custom_json import iter_lines
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat import render

NUM_SAMPLES = 3


@dataclass(frozen=True)
class Measured:
    """A conversation as the loader sees it: its line, its tokens, those that are learnt, and its text by the mask."""

    line: int
    num_tokens: int
    num_trained: int


@dataclass(frozen=True)
class FileCheck:
    """too_long: lines with more than context + 1 tokens; empty where no context is known. samples: line and pieces."""

    errors: tuple[DataError, ...]
    measured: tuple[Measured, ...]
    too_long: tuple[int, ...]
    samples: tuple[tuple[int, tuple[tuple[str, bool], ...]], ...]

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.measured)

    @property
    def trained_share(self) -> float:
        return sum(item.num_trained for item in self.measured) / max(1, self.num_tokens)

    def longest(self) -> Measured:
        return max(self.measured, key=lambda item: item.num_tokens)

    def length(self, share: float) -> int:
        """The length that this share of the conversations does not exceed."""
        lengths = sorted(item.num_tokens for item in self.measured)
        return lengths[min(len(lengths) - 1, int(share * len(lengths)))]


def check_file(path: Path, tokenizer: Tokenizer, context: int | None = None) -> FileCheck:
    """Read all lines of a JSONL file. Raises MissingError or DataError where it cannot be read at all."""
    errors: list[DataError] = []
    found: list[tuple[int, Conversation]] = []
    measured: list[Measured] = []
    for number, value in iter_lines(path):
        if isinstance(value, DataError):
            errors.append(value)
            continue
        ids, mask = render(tokenizer, value)
        found.append((number, value))
        measured.append(Measured(number, len(ids), sum(mask)))
    too_long = tuple(item.line for item in measured if context is not None and item.num_tokens > context + 1)
    places = sorted({place * (len(found) - 1) // (NUM_SAMPLES - 1) for place in range(NUM_SAMPLES)}) if found else []
    samples = tuple((found[place][0], split_by_mask(found[place][1], tokenizer)) for place in places)
    return FileCheck(tuple(errors), tuple(measured), too_long, samples)


def split_by_mask(conversation: Conversation, tokenizer: Tokenizer) -> tuple[tuple[str, bool], ...]:
    """The rendered text in pieces, each with whether it is learnt; together they are the whole."""
    ids, mask = render(tokenizer, conversation)
    pieces: list[tuple[str, bool]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start]:
            pieces.append((tokenizer.decode(ids[start:end]), bool(mask[start])))
            start = end
    return tuple(pieces)


def mark_pieces(pieces: Sequence[tuple[str, bool]], opening: str = "[", closing: str = "]") -> str:
    """
    >>> mark_pieces([("Hi", False), ("Hello", True)])
    'Hi[Hello]'
    """
    return "".join(f"{opening}{text}{closing}" if learnt else text for text, learnt in pieces)
