"""What a file of conversations becomes: every error of its lines, lengths, and what is learnt. Prints nothing."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.conversation import Conversation
from nanochat.errors import DataError
from nanochat.tasks.custom_json import JSONL, describe_format, read_file
from nanochat.tasks.held_out import describe_held_out, select_held_out
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat import render

NUM_SAMPLES = 3


@dataclass(frozen=True)
class Measured:
    """A conversation as the loader sees it: its number, its tokens, those that are learnt, its masked answers."""

    number: int
    num_tokens: int
    num_trained: int
    num_answers: int
    num_masked: int


@dataclass(frozen=True)
class FileCheck:
    """Numbers count lines in JSONL, else conversations: `unit` says which. format: layout and shape, in words.

    too_long: numbers of those with more than context + 1 tokens; empty if no context is known. samples: number, pieces.
    """

    unit: str
    format: str
    num_held_out: int
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

    @property
    def num_answers(self) -> int:
        return sum(item.num_answers for item in self.measured)

    @property
    def num_masked(self) -> int:
        """Answers that are not learnt, by weight 0 or train false."""
        return sum(item.num_masked for item in self.measured)

    @property
    def validation(self) -> str:
        return describe_held_out(self.num_held_out, len(self.measured))

    def longest(self) -> Measured:
        return max(self.measured, key=lambda item: item.num_tokens)

    def length(self, share: float) -> int:
        """The length that this share of the conversations does not exceed."""
        lengths = sorted(item.num_tokens for item in self.measured)
        return lengths[min(len(lengths) - 1, int(share * len(lengths)))]


def check_file(path: Path, tokenizer: Tokenizer, context: int | None = None) -> FileCheck:
    """Read all conversations of a file. Raises MissingError or DataError where it cannot be read at all."""
    errors: list[DataError] = []
    found: list[tuple[int, Conversation]] = []
    measured: list[Measured] = []
    layout, entries = read_file(path)
    shapes: Counter[str] = Counter()
    for entry in entries:
        if isinstance(entry.value, DataError):
            errors.append(entry.value)
            continue
        shapes[entry.shape] += 1
        ids, mask = render(tokenizer, entry.value)
        found.append((entry.number, entry.value))
        answers = [message for message in entry.value.messages if message.role == "assistant"]
        masked = sum(not message.is_learnt for message in answers)
        measured.append(Measured(entry.number, len(ids), sum(mask), len(answers), masked))
    too_long = tuple(item.number for item in measured if context is not None and item.num_tokens > context + 1)
    places = sorted({place * (len(found) - 1) // (NUM_SAMPLES - 1) for place in range(NUM_SAMPLES)}) if found else []
    samples = tuple((found[place][0], split_by_mask(found[place][1], tokenizer)) for place in places)
    unit = "line" if layout == JSONL else "conversation"
    held_out = select_held_out([conversation for _, conversation in found])
    told = describe_format(layout, shapes) if found else layout
    return FileCheck(unit, told, len(held_out), tuple(errors), tuple(measured), too_long, samples)


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
