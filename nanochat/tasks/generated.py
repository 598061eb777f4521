"""Tasks whose examples are made here, as many as are asked for: each from its number, its split and a seed."""

import random
from typing import ClassVar

from nanochat.tasks.task import Split, Task


class GeneratedTask(Task):
    """SIZES: examples of each split where nobody says how many."""

    SIZES: ClassVar[dict[Split, int]] = {"train": 20_000, "test": 1_000}

    def __init__(self, split: Split, size: int | None = None, seed: int = 0) -> None:
        self.split: Split = split
        self.seed = seed
        self.size = self.SIZES[split] if size is None else size

    def num_examples(self) -> int:
        return self.size

    def draw(self, index: int) -> random.Random:
        """The random numbers of an example, the same every time."""
        return random.Random(f"{self.name}/{self.split}/{self.seed}/{index}")
