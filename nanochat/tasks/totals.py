"""Totals of three numbers with a tool call: one step beyond `arithmetic`, and what the demo practises.

Fine-tuning shows the demo's model a few of them, so that it gets some right and some wrong: what practice needs.
"""

import random

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.generated import GeneratedTask
from nanochat.tasks.letters import last_number, loosen
from nanochat.tasks.task import Split
from nanochat.tasks.words import is_held_out

TEMPLATES = ("What is {sum}?", "{sum}", "{sum} = ?", "How much is {sum}?", "Compute {sum}.", "Calculate {sum}.")


def sample_terms(rng: random.Random, split: Split) -> tuple[str, str, int]:
    """A total as it is asked, as it is called, and its value; the numbers decide the split.

    >>> sample_terms(random.Random(1), "train")
    ('19 + 74 + 99', '19+74+99', 192)
    """
    while True:
        a, b, c = (rng.randint(2, 99) for _ in range(3))
        first, second = rng.choice("++-"), rng.choice("++-")
        total = a + (b if first == "+" else -b) + (c if second == "+" else -c)
        if total >= 0 and is_held_out(f"{a} {b} {c}") == (split == "test"):
            spaced = f"{a} {first} {b} {second} {c}"
            return spaced, spaced.replace(" ", ""), total


class TotalsTask(GeneratedTask):
    """Add and subtract three whole numbers by calling the calculator."""

    name = "totals"
    max_new_tokens = 48

    def example(self, index: int) -> Conversation:
        rng = self.draw(index)
        spaced, call, total = sample_terms(rng, self.split)
        question = rng.choice(TEMPLATES).format(sum=spaced if rng.random() < 0.7 else call)
        return Conversation(
            (
                user(question if question[0].isdigit() else loosen(rng, question)),
                assistant(("python", call), ("python_output", str(total)), f"The answer is {total}."),
            )
        )

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return last_number(completion) == last_number(conversation.messages[-1].text)
