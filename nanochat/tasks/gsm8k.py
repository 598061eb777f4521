"""GSM8K: word problems whose calculations become tool calls. Source: Cobbe et al. 2021, `openai/gsm8k` on the hub.

A solution marks each calculation, `48/2 = <<48/2=24>>24`, and ends with `#### 72`.
"""

import re
from decimal import Decimal, InvalidOperation
from pathlib import Path

from nanochat.conversation import Conversation, PartKind, assistant, user
from nanochat.tasks.hub import HubRows
from nanochat.tasks.task import Split, Task

CALCULATION = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
FINAL = re.compile(r"####\s*\$?\s*(-?\$?[\d,]*\.?\d+)")


class GSM8KTask(Task):
    """Solve a word problem with the calculator; graded by the number after `####`."""

    name = "gsm8k"

    def __init__(self, split: Split, folder: Path | None = None) -> None:
        self.rows = HubRows("gsm8k", split, ("question", "answer"), folder)

    def num_examples(self) -> int:
        return len(self.rows)

    def example(self, index: int) -> Conversation:
        row = self.rows[index]
        return Conversation((user(row["question"].strip()), assistant(*parse_solution(row["answer"].strip()))))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        right = final_number(conversation.messages[-1].text)
        return right is not None and final_number(completion) == right


def parse_solution(text: str) -> list[str | tuple[PartKind, str]]:
    """Turn the marked calculations of a solution into tool calls and their answers.

    >>> parse_solution("It is 48/2 = <<48/2=24>>24.")
    ['It is 48/2 = ', ('python', '48/2'), ('python_output', '24'), '24.']
    """
    parts: list[str | tuple[PartKind, str]] = []
    end = 0
    for match in CALCULATION.finditer(text):
        if match.start() > end:
            parts.append(text[end : match.start()])
        parts.append(("python", match[1].strip()))
        parts.append(("python_output", match[2].strip()))
        end = match.end()
    return parts + ([text[end:]] if end < len(text) else [])


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`; None where there is none.

    >>> final_number("#### 1,200"), final_number("#### $-7.50."), final_number("so it is 12")
    (Decimal('1200'), Decimal('-7.50'), None)
    """
    found = FINAL.findall(text)
    try:
        return Decimal(found[-1].replace(",", "").replace("$", "")) if found else None
    except InvalidOperation:
        return None
