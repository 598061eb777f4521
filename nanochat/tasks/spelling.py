"""Spelling a word letter by letter, without tools; train and test words differ."""

import random

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.generated import GeneratedTask
from nanochat.tasks.letters import loosen
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


class SpellingTask(GeneratedTask):
    """Spell a word: `Spell cat.` -> `c-a-t`."""

    name = "spelling"
    max_new_tokens = 64

    SIZES = {"train": 10_000, "test": 1_000}

    def example(self, index: int) -> Conversation:
        rng = self.draw(index)
        word = sample_word(rng, self.split)
        return Conversation((user(write_question(rng, word)), assistant(spell(word))))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion.strip().rstrip(".").lower() == conversation.messages[-1].text
