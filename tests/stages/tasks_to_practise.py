"""Tasks whose rewards a model that knows nothing earns by chance, always or never."""

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.task import Split, Task


class Even(Task):
    """Right is whatever has an even number of characters."""

    name = "even"

    def __init__(self, split: Split) -> None:
        self.split = split

    def num_examples(self) -> int:
        return 40 if self.split == "train" else 10

    def example(self, index: int) -> Conversation:
        return Conversation((user(f"Say {self.split} {index}."), assistant("ok")))

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return len(completion) % 2 == 0


class Always(Even):
    name = "always"

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return True


class Never(Even):
    name = "never"

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return completion == "ok"


class Ungraded(Even):
    name = "ungraded"

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return None


class Wrong(Even):
    """Its own answers are wrong."""

    name = "wrong"

    def evaluate(self, conversation: Conversation, completion: str) -> bool | None:
        return False


class Long(Even):
    """No question fits a small context."""

    name = "long"

    def example(self, index: int) -> Conversation:
        return Conversation((user("Say it. " * 100), assistant("ok")))
