"""HumanEval: complete a Python function from its docstring. Source: Chen et al. 2021.

Graded by the tests of the data set, in the sandbox: a right answer is one whose function does what they ask.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.conversation import Conversation, assistant, user
from nanochat.download.sources import TASK_SOURCES
from nanochat.errors import UsageError
from nanochat.tasks.hub import HubTask
from nanochat.tasks.task import Split
from nanochat.tools.sandbox.grading import Program, grade_programs
from nanochat.tools.sandbox.probe import require_isolation

FENCE = re.compile(r"^```[^\n`]*\n(.*?)(?:^```|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """A row: prompt is imports, helpers, a signature and its docstring; solution is the body that follows."""

    prompt: str
    solution: str
    test: str
    entry_point: str


class HumanEvalTask(HubTask):
    """Complete a function. Graded by running it.

    allow_weak_isolation: also where this machine cannot close off what a model wrote; else grading raises UsageError
    there.
    """

    columns = ("prompt", "canonical_solution", "test", "entry_point")
    max_new_tokens = 512

    def __init__(self, split: Split, folder: Path | None = None, allow_weak_isolation: bool = False) -> None:
        super().__init__("humaneval", TASK_SOURCES["humaneval"], split, folder)
        self.allow_weak_isolation = allow_weak_isolation
        self._places = {row["prompt"]: index for index, row in enumerate(self.rows)}

    def read_row(self, row: dict[str, Any]) -> Problem:
        problem = Problem(*(row[name] for name in self.columns))
        if not problem.entry_point.isidentifier():
            raise ValueError(f"the function's name is {problem.entry_point!r}")
        return problem

    def example(self, index: int) -> Conversation:
        problem: Problem = self.read(index)
        return Conversation(
            (user(problem.prompt), assistant(f"```python\n{problem.prompt}{problem.solution.rstrip()}\n```"))
        )

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return self.evaluate_all([(conversation, completion)])[0]

    def evaluate_all(
        self, items: Sequence[tuple[Conversation, str]], progress: Callable[[int, int], None] | None = None
    ) -> Sequence[bool | None]:
        """None: no verdict, because the machine or the data failed, not the answer."""
        if not items:
            return []
        isolation = require_isolation(self.allow_weak_isolation)
        programs = [self.build_program(conversation, completion) for conversation, completion in items]
        return [verdict.passed for verdict in grade_programs(programs, isolation, progress=progress)]

    def build_program(self, conversation: Conversation, completion: str) -> Program:
        """What is run for an answer. Raises UsageError where the question is none of this task."""
        place = self._places.get(conversation.messages[0].text)
        if place is None:
            raise UsageError("this question is not one of HumanEval", "grade it with the task that it came from")
        problem: Problem = self.read(place)
        code = complete_program(problem.prompt, problem.entry_point, completion)
        return Program(code, problem.entry_point, problem.prompt, problem.test)


def complete_program(prompt: str, entry_point: str, completion: str) -> str:
    """The whole program: an answer may be the function again, with or without prose, or just its body.

    >>> prompt = "import math\\n\\ndef area(r):\\n    '''of a circle'''\\n"
    >>> print(complete_program(prompt, "area", "    return math.pi * r * r"))
    import math
    <BLANKLINE>
    def area(r):
        '''of a circle'''
        return math.pi * r * r
    >>> print(complete_program(prompt, "area", "Like this:\\n```\\ndef area(r):\\n    return 3 * r * r\\n```"))
    import math
    <BLANKLINE>
    def area(r):
        return 3 * r * r
    <BLANKLINE>
    """
    defines = re.compile(rf"^(?:async )?def {entry_point}\b|^{entry_point} *[:=]", re.MULTILINE)
    blocks = [match[1] for match in FENCE.finditer(completion)]
    whole = [block for block in blocks if defines.search(block)]
    code = whole[-1] if whole else blocks[0] if blocks else completion
    if not defines.search(code):
        return prompt + code
    start = defines.search(prompt)
    return prompt[: start.start() if start else 0] + code
