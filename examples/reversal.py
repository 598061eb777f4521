"""A task of one's own: say a word backwards. `docs/tasks.md` goes through it.

nanochat runs copy demo trial --until mid
nanochat train sft --run trial --set 'sft.mixture=examples/reversal.py:Reversal:2000,identity*8'
nanochat eval chat trial --tasks examples/reversal.py:Reversal
"""

import random

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.task import Split, Task
from nanochat.tasks.words import sample_word


class Reversal(Task):
    """Say a word backwards: `Say cat backwards.` -> `c-a-t is t-a-c`."""

    name = "reversal"
    max_new_tokens = 64

    def __init__(self, split: Split) -> None:
        self.split: Split = split

    def num_examples(self) -> int:
        return 5_000 if self.split == "train" else 500

    def example(self, index: int) -> Conversation:
        rng = random.Random(f"reversal/{self.split}/{index}")  # the same example for the same number, always
        word = sample_word(rng, self.split)  # no word of a test stands in training
        answer = f"{'-'.join(word)} is {'-'.join(reversed(word))}"
        return Conversation((user(f"Say {word} backwards."), assistant(answer)))

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        right = conversation.messages[-1].text.rpartition(" ")[2]
        words = completion.strip().rstrip(".").split()
        return bool(words) and words[-1] == right
