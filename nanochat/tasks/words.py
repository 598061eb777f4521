"""Words to count letters in and to spell: carried English words, pronounceable inventions, random letters.

A word belongs to the training or the test split by its own hash, so the two never share one.
"""

import random
import zlib
from functools import cache
from importlib import resources

from nanochat.tasks.task import Split

HELD_OUT_PERCENT = 12

ONSETS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sl sp st str t th tr v w y z".split()
VOWELS = "a a a e e e i i o o u ai ea ee oo ou".split()
CODAS = ["", "", "", "", *"b ck d g l ll m n nd ng nt p r rd rt s ss st t x".split()]
ENDINGS = "er ing ed ly ness le y able tion ful less berry land man".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def is_held_out(text: str) -> bool:
    """Whether text is for tests only: the same answer on every machine and in every version."""
    return zlib.crc32(text.encode()) % 100 < HELD_OUT_PERCENT


@cache
def load_words() -> tuple[str, ...]:
    """The carried words, both splits, in alphabetical order."""
    text = resources.files("nanochat.tasks").joinpath("words.txt").read_text(encoding="utf-8")
    return tuple(text.split())


@cache
def load_split_words(split: Split) -> tuple[str, ...]:
    """The carried words of one split."""
    return tuple(word for word in load_words() if is_held_out(word) == (split == "test"))


def invent_word(rng: random.Random) -> str:
    """A pronounceable word of one to three syllables that is probably not English."""
    word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((1, 2, 2, 3))))
    return word + rng.choice(ENDINGS) if rng.random() < 0.15 else word


def sample_word(rng: random.Random, split: Split) -> str:
    """A word of the split: half carried, the rest invented; training also sees some strings of random letters."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(load_split_words(split))
    while True:
        if kind < 0.93 or split == "test":
            word = invent_word(rng)
        else:
            word = "".join(rng.choices(LETTERS, k=rng.randint(3, 7)))
        # A word that a test asks for never stands in training, invented or not.
        if is_held_out(word) == (split == "test"):
            return word
