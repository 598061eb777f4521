"""Tasks: numbered conversations with a grader, and the ways to slice and mix them. Knows neither tokens nor models."""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

from nanochat.conversation import Conversation, hash_conversations

EvalType = Literal["generative", "categorical"]
Split = Literal["train", "test"]


class Task(ABC):
    """Conversations by number, the same for the same number every time; also a sequence of them."""

    name: str
    eval_type: EvalType = "generative"
    max_new_tokens: int | None = None
    """Longest right answer with room to spare; None: the caller decides."""

    @abstractmethod
    def num_examples(self) -> int: ...

    @abstractmethod
    def example(self, index: int) -> Conversation:
        """A whole conversation, 0 <= index < num_examples(); its last message is the right answer."""

    @abstractmethod
    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        """Grade what a model said in place of the last message; None where the task is not graded."""

    def evaluate_all(
        self, items: Sequence[tuple[Conversation, str]], progress: Callable[[int, int], None] | None = None
    ) -> Sequence[bool | None]:
        """Grade (conversation, completion) pairs, in their order; a task may grade many side by side.

        progress(done, all): called as it goes by a task that takes its time.
        """
        return [self.evaluate(conversation, completion) for conversation, completion in items]

    def letters(self, index: int) -> Sequence[str]:
        """The choices of a categorical example."""
        return ("A", "B", "C", "D")

    def notes(self) -> tuple[str, ...]:
        """What is said before anything is learnt from it, a sentence each: how it was read, what was held out."""
        return ()

    def source_hash(self) -> str | None:
        """SHA-256 of the files that the examples come from, if hashing those is cheaper than hashing each example."""
        return None

    def content_hash(self) -> str:
        """SHA-256 of what the examples are, in their order: with one hash two tasks teach the same.

        It goes through all examples (30 us each) unless the task has a `source_hash`.
        """
        return self.source_hash() or hash_conversations(self[index] for index in range(len(self)))

    def __len__(self) -> int:
        return self.num_examples()

    def __getitem__(self, index: int) -> Conversation:
        if not 0 <= index < self.num_examples():
            raise IndexError(index)  # ends `for conversation in task`
        return self.example(index)


class TaskSlice(Task):
    """Examples start:stop:step of another task, as in Python.

    >>> from nanochat.tasks.arithmetic import ArithmeticTask
    >>> len(TaskSlice(ArithmeticTask("train"), 10, 20, 3))
    4
    """

    def __init__(self, task: Task, start: int | None = None, stop: int | None = None, step: int | None = None) -> None:
        self.task = task
        self.name, self.eval_type, self.max_new_tokens = task.name, task.eval_type, task.max_new_tokens
        self._indices = range(task.num_examples())[start:stop:step]

    def num_examples(self) -> int:
        return len(self._indices)

    def example(self, index: int) -> Conversation:
        return self.task.example(self._indices[index])

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return self.task.evaluate(conversation, completion)

    def evaluate_all(
        self, items: Sequence[tuple[Conversation, str]], progress: Callable[[int, int], None] | None = None
    ) -> Sequence[bool | None]:
        return self.task.evaluate_all(items, progress)

    def letters(self, index: int) -> Sequence[str]:
        return self.task.letters(self._indices[index])

    def notes(self) -> tuple[str, ...]:
        return self.task.notes()

    def source_hash(self) -> str | None:
        source = self.task.source_hash()
        return source and _hash_lines(source, str(self._indices))


class TaskSequence(Task):
    """Tasks one after the other, in order; a task that stands twice is seen twice."""

    name = "sequence"

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tuple(tasks)
        self._places = [(task, index) for task in self.tasks for index in range(task.num_examples())]

    def num_examples(self) -> int:
        return len(self._places)

    def example(self, index: int) -> Conversation:
        task, place = self._places[index]
        return task.example(place)

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        """None: a conversation does not say which task it came from; grade with that task."""
        return None

    def notes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(note for task in self.tasks for note in task.notes()))

    def content_hash(self) -> str:
        hashes = {task: task.content_hash() for task in dict.fromkeys(self.tasks)}  # a repeated task is hashed once
        return _hash_lines(*(hashes[task] for task in self.tasks))


class TaskMixture(TaskSequence):
    """Tasks interleaved by one fixed shuffle of all their examples; a task that stands twice is seen twice."""

    name = "mixture"

    def __init__(self, tasks: Sequence[Task], seed: int = 42) -> None:
        super().__init__(tasks)
        self._order = f"mixture/{seed}"
        random.Random(self._order).shuffle(self._places)

    def content_hash(self) -> str:
        return _hash_lines(self._order, super().content_hash())


def _hash_lines(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
