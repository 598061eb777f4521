"""Questions with lettered choices: MMLU and ARC. Graded by the letter.

Sources: Hendrycks et al. 2021, `cais/mmlu`; Clark et al. 2018, `allenai/ai2_arc`, both on the hub.
"""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.conversation import Conversation, assistant, user
from nanochat.errors import DataError
from nanochat.tasks.hub import HubRows
from nanochat.tasks.task import EvalType, Split, Task

ALPHABET = "ABCDEFGHIJ"


class ChoiceTask(Task):
    """A question, its choices, and the place of the right one, from rows of a hub data set."""

    eval_type: EvalType = "categorical"
    max_new_tokens = 4
    rows: HubRows

    @abstractmethod
    def parse_row(self, row: dict[str, Any]) -> tuple[str, Sequence[str], int]:
        """The question, its choices, and the index of the right one. Raises ValueError, KeyError or TypeError."""

    def num_examples(self) -> int:
        return len(self.rows)

    def example(self, index: int) -> Conversation:
        question, choices, right = self._read(index)
        return Conversation((user(render_question(question, choices)), assistant(ALPHABET[right])))

    def letters(self, index: int) -> Sequence[str]:
        return tuple(ALPHABET[: len(self._read(index)[1])])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip() == conversation.messages[-1].text

    def _read(self, index: int) -> tuple[str, Sequence[str], int]:
        try:
            question, choices, right = self.parse_row(self.rows[index])
            if not 2 <= len(choices) <= len(ALPHABET) or not 0 <= right < len(choices):
                raise ValueError(f"answer {right} of {len(choices)} choices")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"row {index} of {self.name} is no question with choices: {error}", "nanochat download verify --repair"
            ) from error
        return question, choices, right


class MMLUTask(ChoiceTask):
    """Knowledge of 57 subjects; train is the auxiliary training split."""

    name = "mmlu"

    def __init__(self, split: Split, folder: Path | None = None) -> None:
        self.rows = HubRows("mmlu", split, ("question", "choices", "answer"), folder)

    def parse_row(self, row: dict[str, Any]) -> tuple[str, Sequence[str], int]:
        return row["question"].strip(), row["choices"], int(row["answer"])


class ARCTask(ChoiceTask):
    """School science; its choices are labelled A to E or 1 to 5 in the data, and A to E here."""

    def __init__(self, name: str, split: Split, folder: Path | None = None) -> None:
        self.name = name
        self.rows = HubRows(name, split, ("question", "choices", "answerKey"), folder)

    def parse_row(self, row: dict[str, Any]) -> tuple[str, Sequence[str], int]:
        choices = row["choices"]
        return row["question"].strip(), choices["text"], choices["label"].index(row["answerKey"].strip())


def render_question(question: str, choices: Sequence[str]) -> str:
    """
    >>> print(render_question("What is 2 + 2?", ["3", "4"]))
    What is 2 + 2?
    <BLANKLINE>
    A. 3
    B. 4
    <BLANKLINE>
    Answer with the letter only.
    """
    listed = "\n".join(f"{letter}. {choice.strip()}" for letter, choice in zip(ALPHABET, choices, strict=False))
    return f"{question}\n\n{listed}\n\nAnswer with the letter only."
