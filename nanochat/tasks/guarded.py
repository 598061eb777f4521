"""A task of somebody's own code, watched: what it raises is told with its line, and what it returns is looked at.

A wrong type would otherwise be found far from where it was made, or not at all: any string is true.
"""

import contextlib
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nanochat.conversation import Conversation
from nanochat.errors import DataError, NanochatError, UsageError
from nanochat.tasks.task import Task


class GuardedTask(Task):
    """Stands before a task. taken: names that a task of one's own may not have.

    where: how the settings name it; without its folder that is the name of a task that has none.
    Raises DataError and UsageError, here and from every method, for what the code raises or returns.
    """

    def __init__(self, task: Task, where: str, taken: Sequence[str] = ()) -> None:
        self._task, self._where = task, where
        with watch_code(where):
            self.name = getattr(task, "name", Path(where).name)
            self.eval_type, self.max_new_tokens = task.eval_type, task.max_new_tokens
        if not isinstance(self.name, str) or not self.name.strip() or len(self.name) > 100:
            raise self._refuse("name", self.name, "a text of 1 to 100 characters")
        if self.name in taken:
            raise UsageError(
                f"{where} has the name {self.name!r}, which is a built-in task's: their scores would be one file",
                f'name = "my-{self.name}"  # in its class',
            )
        if self.eval_type not in ("generative", "categorical"):
            raise self._refuse("eval_type", self.eval_type, '"generative" or "categorical"')
        if self.max_new_tokens is not None and (type(self.max_new_tokens) is not int or self.max_new_tokens < 1):
            raise self._refuse("max_new_tokens", self.max_new_tokens, "None or an integer from 1 on")
        self._num_examples = self._count()

    def num_examples(self) -> int:
        return self._num_examples

    def hash_code(self) -> str:
        """SHA-256 of the file with the task's class: what its verdicts depend on beside the answers."""
        path = inspect.getsourcefile(type(self._task))
        return hashlib.sha256(Path(path).read_bytes() if path else b"").hexdigest()

    def example(self, index: int) -> Conversation:
        with watch_code(self._where):
            found = self._task.example(index)
        if not isinstance(found, Conversation):
            raise self._refuse(f"example({index})", found, "a Conversation")
        if not found.messages or found.messages[-1].role != "assistant":
            raise self._refuse(f"example({index})", found, "a Conversation that ends with the right answer")
        return found

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        with watch_code(self._where):
            verdict = self._task.evaluate(conversation, completion)
        return self._check_verdict(verdict)

    def evaluate_all(
        self, items: Sequence[tuple[Conversation, str]], progress: Callable[[int, int], None] | None = None
    ) -> Sequence[bool | None]:
        with watch_code(self._where):
            verdicts = list(self._task.evaluate_all(items, progress))
        if len(verdicts) != len(items):
            raise self._refuse("evaluate_all", f"{len(verdicts)} verdicts", f"one for each of {len(items)}")
        return [self._check_verdict(verdict) for verdict in verdicts]

    def letters(self, index: int) -> Sequence[str]:
        with watch_code(self._where):
            found = self._task.letters(index)
        if isinstance(found, str) or len(found) < 2 or not all(isinstance(letter, str) and letter for letter in found):
            raise self._refuse(f"letters({index})", found, "two or more texts")
        return found

    def _count(self) -> int:
        with watch_code(self._where):
            number = self._task.num_examples()
        if type(number) is not int or number < 1:
            raise self._refuse("num_examples()", number, "an integer from 1 on")
        return number

    def _check_verdict(self, verdict: Any) -> bool | None:
        if verdict is None or type(verdict) is bool:
            return verdict
        raise self._refuse("evaluate(...)", verdict, "True, False or None")

    def _refuse(self, what: str, value: object, expected: str) -> DataError:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return DataError(
            f"{self._where}: {what} is {shown}, expected {expected}", "docs/tasks.md says how to write a task"
        )


@contextlib.contextmanager
def watch_code(where: str) -> Iterator[None]:
    """Run somebody's code: its errors are explained, `exit` is one, and what it prints does not mix with results."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except NanochatError:
        raise
    except (Exception, SystemExit) as error:  # the user's code: whatever it raises is theirs
        raise explain(where, error) from error


def explain(where: str, error: BaseException) -> DataError:
    """Say what somebody's code raised, and on which line of it."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}:{frame.lineno}"
    return DataError(
        f"{where} fails: {type(error).__name__}: {error} ({place})", "mend it; the same command with --debug has more"
    )
