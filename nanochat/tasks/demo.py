"""The demo's pretraining text, made on the spot: stories, and the demo's tasks written out as plain text.

About half of it is about copying words, in the very words of the letter-counting task, because copying is what a small
model needs longest to learn and what its tool calls rest on. The tool call's delimiters are special tokens, which plain
text cannot hold, so the call stands between the question and its answer as text.
"""

import random
from collections.abc import Iterator
from typing import Literal

from nanochat.tasks import arithmetic, identity, letters, spelling, stories
from nanochat.tasks.task import Split
from nanochat.tasks.words import sample_word

KINDS = {"letters": 30, "copies": 20, "arithmetic": 18, "spelling": 10, "stories": 20, "identity": 2}
"""Shares of the characters, in percent."""

EXERCISES = {"letters": (1, 4), "copies": (1, 3), "arithmetic": (1, 5), "spelling": (1, 4), "identity": (1, 3)}
"""Fewest and most exercises of one document."""


def generate_documents(num_chars: int, seed: int = 0, split: Literal["train", "val"] = "train") -> Iterator[str]:
    """Yield documents until they hold num_chars characters; the same ones for the same seed and split.

    Both splits take their words and operands from the training half of the tasks: a validation document is new, and
    what the tasks test stays unseen.
    """
    rng = random.Random(f"demo/{split}/{seed}")
    written = dict.fromkeys(KINDS, 0)
    total = 0
    while total < num_chars:
        # The kind that is furthest behind its share, so that any stretch of the text has the shares above.
        kind = min(KINDS, key=lambda kind: (written[kind] + rng.random() * 200) / KINDS[kind])
        document = write_document(rng, kind)
        written[kind] += len(document)
        total += len(document)
        yield document


def write_document(rng: random.Random, kind: str) -> str:
    """One document of a kind of KINDS."""
    if kind == "stories":
        return stories.write_story(rng, stories.sample_hero(rng))
    write = {"letters": _letters, "copies": _copies, "arithmetic": _arithmetic, "spelling": _spelling}.get(
        kind, _identity
    )
    return "\n".join(write(rng) for _ in range(rng.randint(*EXERCISES[kind])))


TRAIN: Split = "train"


def _letters(rng: random.Random) -> str:
    word, letter = letters.sample_count(rng, TRAIN)
    question, call = letters.write_question(rng, word, letter), letters.write_call(word, letter)
    return f"{question} {call} = {word.count(letter)} {letters.write_answer(word, letter)}"


def _copies(rng: random.Random) -> str:
    words = [sample_word(rng, TRAIN) for _ in range(rng.randint(1, 6))]
    again = " ".join(words)
    kind = rng.randrange(4)
    if kind == 0:
        return f"Copy {again}: {again}"
    if kind == 1:
        return f"Say {again} again. {again}. {again}."
    if kind == 2:
        return f'The word {words[0]} in quotes: " {words[0]}"'
    return f'Write {again} in quotes. " {again}"'


def _arithmetic(rng: random.Random) -> str:
    a, operator, b = arithmetic.sample_sum(rng, TRAIN)
    question = arithmetic.write_question(rng, a, operator, b)
    result = arithmetic.COMPUTE[operator](a, b)
    return f"{question} {a}{operator}{b} = {result} {arithmetic.write_answer(a, operator, b)}"


def _spelling(rng: random.Random) -> str:
    word = sample_word(rng, TRAIN)
    if rng.random() < 0.5:
        return f"{spelling.write_question(rng, word)} {spelling.spell(word)}"
    return f"The word {word} is spelled {spelling.spell(word)}."


def _identity(rng: random.Random) -> str:
    answer = rng.choice(identity.ANSWERS)
    return f"{rng.choice(answer.questions)} {answer.text}"
