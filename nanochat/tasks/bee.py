"""SpellingBee and SimpleSpelling: count a letter by going through the word, and spell; train and test words differ.

Both write a word as its letters in the same way, so that the easier task teaches the first half of the harder one.
Each letter follows a space, which makes it one token.
"""

import re

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks import letters, spelling
from nanochat.tasks.generated import GeneratedTask
from nanochat.tasks.words import sample_word

SEPARATORS = re.compile(r"[\s,.;-]+")


def write_spelling(word: str) -> str:
    """
    >>> write_spelling("apple")
    'apple: a, p, p, l, e'
    """
    return f"{word}: {', '.join(word)}"


def write_count(word: str, letter: str) -> str:
    """Go through a word and number the letter that is counted.

    >>> write_count("apple", "p")
    'apple: a, p (1), p (2), l, e'
    """
    count, pieces = 0, []
    for piece in word:
        count += piece == letter
        pieces.append(f"{piece} ({count})" if piece == letter else piece)
    return f"{word}: {', '.join(pieces)}"


class SpellingBeeTask(letters.LettersTask):
    """Count a letter by hand, check it with the calculator, say the number."""

    name = "spelling-bee"
    max_new_tokens = 256

    def example(self, index: int) -> Conversation:
        rng = self.draw(index)
        word, letter = letters.sample_count(rng, self.split)
        return Conversation(
            (
                user(letters.write_question(rng, word, letter)),
                assistant(
                    f"I go through {write_count(word, letter)}. That makes {word.count(letter)}. I check it: ",
                    ("python", letters.write_call(word, letter)),
                    ("python_output", str(word.count(letter))),
                    f"\n\n{letters.write_answer(word, letter)}",
                ),
            )
        )


class SimpleSpellingTask(GeneratedTask):
    """Spell a word: `Spell apple.` -> `apple: a, p, p, l, e`."""

    name = "simple-spelling"
    max_new_tokens = 128

    def example(self, index: int) -> Conversation:
        rng = self.draw(index)
        word = sample_word(rng, self.split)
        return Conversation((user(spelling.write_question(rng, word)), assistant(write_spelling(word))))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Right where the letters stand one by one, whatever is between them and before a colon."""
        word = conversation.messages[-1].text.partition(":")[0]
        said = completion.rpartition(":")[2].strip().strip(".").lower()
        return SEPARATORS.split(said) == list(word)
