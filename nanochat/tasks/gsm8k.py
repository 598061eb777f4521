"""GSM8K: word problems of primary school, solved in steps with a calculator. Source: Cobbe et al. 2021.

`Natalia sold 48/2 = <<48/2=24>>24 clips.` becomes the text `Natalia sold 48/2 = `, a call of the calculator with
`48/2`, its output `24` and the text `24 clips.`; the last line `#### 72` is the answer.
"""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from nanochat.conversation import Conversation, Message, Part, user
from nanochat.download.sources import TASK_SOURCES
from nanochat.tasks.hub import HubTask
from nanochat.tasks.task import Split

CALL = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
NUMBER = re.compile(
    "(?P<minus>(?<![\\w.)])[-\u2212])?(?:\\$ ?(?P<inner>[-\u2212])?)?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\d)\.\d+)"
)


class GSM8KTask(HubTask):
    """Solve a word problem by calling the calculator. Graded by the final number."""

    columns = ("question", "answer")
    max_new_tokens = 512

    def __init__(self, split: Split, folder: Path | None = None) -> None:
        super().__init__("gsm8k", TASK_SOURCES["gsm8k"], split, folder)

    def read_row(self, row: dict[str, Any]) -> Conversation:
        return Conversation((user(row["question"].strip()), Message("assistant", split_calls(row["answer"].strip()))))

    def example(self, index: int) -> Conversation:
        return self.read(index)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        said = final_number(completion)
        return said is not None and said == final_number(conversation.messages[-1].text)


def split_calls(answer: str) -> tuple[Part, ...]:
    """Turn the annotations of an answer into parts.

    >>> [(part.kind, part.text) for part in split_calls("It is 6*7 = <<6*7=42>>42. #### 42")]
    [('text', 'It is 6*7 = '), ('python', '6*7'), ('python_output', '42'), ('text', '42. #### 42')]
    """
    parts: list[Part] = []
    end = 0
    for match in CALL.finditer(answer):
        if match.start() > end:
            parts.append(Part("text", answer[end : match.start()]))
        parts += [Part("python", match[1].strip()), Part("python_output", match[2].strip())]
        end = match.end()
    return (*parts, Part("text", answer[end:])) if end < len(answer) else tuple(parts)


def final_number(text: str) -> Decimal | None:
    """The number after the last `####`, or the last number of text where none stands there.

    >>> final_number("so 3 are left. #### $1,234.50."), final_number("That makes -$12."), final_number("none")
    (Decimal('1234.50'), Decimal('-12'), None)
    """
    _, marker, after = text.rpartition("####")
    found = list(NUMBER.finditer(after))[:1] if marker else []
    found = found or list(NUMBER.finditer(text))[-1:]
    if not found:
        return None
    value = Decimal(found[0]["digits"].replace(",", ""))
    return -value if found[0]["minus"] or found[0]["inner"] else value
