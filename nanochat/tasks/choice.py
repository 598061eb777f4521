"""Multiple choice: MMLU and ARC. The question, one lettered choice a line; the answer is the letter alone.

Sources: Hendrycks et al. 2021 (MMLU), Clark et al. 2018 (ARC).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nanochat.conversation import Conversation, assistant, user
from nanochat.download.sources import TASK_SOURCES
from nanochat.tasks.hub import HubTask
from nanochat.tasks.task import EvalType, Split

LETTERS = "ABCDEFGHIJ"
SAID = re.compile(r"\W*([A-J])(?!\w)")


class Question(NamedTuple):
    """right: index of the right choice."""

    text: str
    choices: tuple[str, ...]
    right: int


class ChoiceTask(HubTask):
    """Choose a letter. A model is scored by its most likely letter; a written answer by the letter it begins with."""

    eval_type: EvalType = "categorical"
    max_new_tokens = 8

    def __init__(self, name: str, split: Split, folder: Path | None = None) -> None:
        super().__init__(name, TASK_SOURCES[name], split, folder)

    def question(self, index: int) -> Question:
        """Raises DataError for a row whose answer is none of its choices."""
        found: Question = self.read(index)
        return found

    def letters(self, index: int) -> Sequence[str]:
        return LETTERS[: len(self.question(index).choices)]

    def example(self, index: int) -> Conversation:
        question = self.question(index)
        return Conversation((user(write_question(question)), assistant(LETTERS[question.right])))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        said = SAID.match(completion)
        return said is not None and said[1] == conversation.messages[-1].text


class MMLUTask(ChoiceTask):
    """57 subjects from abstract algebra to world religions, four choices each."""

    columns = ("question", "choices", "answer")

    def __init__(self, split: Split, folder: Path | None = None) -> None:
        super().__init__("mmlu", split, folder)

    def read_row(self, row: dict[str, Any]) -> Question:
        return check_question(row["question"], row["choices"], int(row["answer"]))


class ARCTask(ChoiceTask):
    """Science questions of schools, easy or challenging: three to five choices, labelled A to E or 1 to 5."""

    columns = ("question", "choices", "answerKey")

    def read_row(self, row: dict[str, Any]) -> Question:
        choices, key = row["choices"], row["answerKey"].strip()
        if key not in choices["label"]:
            raise ValueError(f"the answer {key!r} is none of {', '.join(choices['label'])}")
        return check_question(row["question"], choices["text"], choices["label"].index(key))


def check_question(text: str, choices: Sequence[str], right: int) -> Question:
    """Raises ValueError where the answer is none of the choices or there are too few or many."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise ValueError(f"{len(choices)} choices, expected 2 to {len(LETTERS)}")
    if not 0 <= right < len(choices):
        raise ValueError(f"the answer {right} is not in 0..{len(choices) - 1}")
    return Question(text.strip(), tuple(choice.strip() for choice in choices), right)


def write_question(question: Question) -> str:
    """
    >>> print(write_question(Question("What do bees make?", ("milk", "honey"), 1)))
    What do bees make?
    <BLANKLINE>
    A. milk
    B. honey
    <BLANKLINE>
    Answer with the letter only.
    """
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([question.text, "", *lines, "", "Answer with the letter only."])
