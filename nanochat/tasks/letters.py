"""Counting letters of a word with a tool call; train and test words differ.

The word stands after a space in the question and inside the quotes of the call (`" strawberry".count("r")`), so that
it is cut into the same tokens in both places and the model only has to copy them.
"""

import random
import re

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.generated import GeneratedTask
from nanochat.tasks.task import Split
from nanochat.tasks.words import LETTERS, sample_word

TEMPLATES = (
    "How many {letter} are in {word}?",
    "How many {letter} are in the word {word}?",
    "How many {letter} are there in {word}?",
    "How many {letter}'s are in {word}?",
    "How many {letter}'s are there in the word {word}?",
    "How many times does {letter} appear in {word}?",
    'How many times does "{letter}" appear in the word {word}?',
    "How many times does the letter {letter} occur in {word}?",
    "How often does the letter {letter} appear in the word {word}?",
    "How many letters {letter} does {word} have?",
    "How many letters {letter} are in {word}?",
    "Count the letter {letter} in {word}.",
    "Count the letter {letter} in the word {word}.",
    "Count the {letter} in {word}.",
    "In the word {word}, how many {letter} are there?",
    "Tell me how many {letter} the word {word} has.",
)


def loosen(rng: random.Random, question: str) -> str:
    """Write a question as hurried people do, now and then: no capital, no final mark."""
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.15:
        question = question.rstrip(".?")
    return question


def last_number(text: str) -> str | None:
    """The last whole number of text, without thousands separators.

    >>> last_number("12 + 1,988 is 2,000."), last_number("It is -07."), last_number("None.")
    ('2000', '-7', None)
    """
    found = re.findall(r"(?<![\w.])-?\d[\d,]*", text)
    return str(int(found[-1].replace(",", ""))) if found else None


def sample_count(rng: random.Random, split: Split) -> tuple[str, str]:
    """A word and a letter, which usually is one of the word's."""
    word = sample_word(rng, split)
    return word, rng.choice(word if rng.random() < 0.85 else LETTERS)


def write_question(rng: random.Random, word: str, letter: str) -> str:
    return loosen(rng, rng.choice(TEMPLATES).format(word=word, letter=letter))


def write_call(word: str, letter: str) -> str:
    return f'" {word}".count("{letter}")'


def write_answer(word: str, letter: str) -> str:
    count = word.count(letter)
    return f"The letter {letter} appears {count} time{'' if count == 1 else 's'}."


class LettersTask(GeneratedTask):
    """Count a letter of a word by calling the calculator."""

    name = "letters"
    max_new_tokens = 80

    def example(self, index: int) -> Conversation:
        rng = self.draw(index)
        word, letter = sample_count(rng, self.split)
        return Conversation(
            (
                user(write_question(rng, word, letter)),
                assistant(
                    ("python", write_call(word, letter)),
                    ("python_output", str(word.count(letter))),
                    write_answer(word, letter),
                ),
            )
        )

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return last_number(completion) == last_number(conversation.messages[-1].text)
