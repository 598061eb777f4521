"""Spelling a word letter by letter, without tools; train and test words differ."""

import random

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.letters import loosen
from nanochat.tasks.task import Split, Task
from nanochat.tasks.words import sample_word

TEMPLATES = (
    "Spell {word}.",
    "Spell the word {word}.",
    "How do you spell {word}?",
    "How is {word} spelled?",
    "Please spell {word}.",
)


def spell(word: str) -> str:
    """
    >>> spell("cat")
    'c-a-t'
    """
    return "-".join(word)


def write_question(rng: random.Random, word: str) -> str:
    return loosen(rng, rng.choice(TEMPLATES).format(word=word))


class SpellingTask(Task):
    """Spell a word: `Spell cat.` -> `c-a-t`."""

    name = "spelling"
    max_new_tokens = 64

    def __init__(self, split: Split, size: int | None = None, seed: int = 0) -> None:
        self.split: Split = split
        self.seed = seed
        self.size = size if size is not None else (10_000 if split == "train" else 1_000)

    def num_examples(self) -> int:
        return self.size

    def example(self, index: int) -> Conversation:
        rng = random.Random(f"spelling/{self.split}/{self.seed}/{index}")
        word = sample_word(rng, self.split)
        return Conversation((user(write_question(rng, word)), assistant(spell(word))))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip().rstrip(".").lower() == conversation.messages[-1].text
