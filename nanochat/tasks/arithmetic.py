"""Sums, differences and products of small numbers with a tool call; no pair of a test is ever trained on."""

import random

from nanochat.conversation import Conversation, assistant, user
from nanochat.tasks.generated import GeneratedTask
from nanochat.tasks.letters import last_number, loosen
from nanochat.tasks.task import Split
from nanochat.tasks.words import is_held_out

TEMPLATES = {
    "+": (
        "What is {a} + {b}?",
        "What is {a}+{b}?",
        "{a}+{b}",
        "{a} + {b}",
        "{a} + {b} = ?",
        "{a}+{b}=",
        "What is {a} plus {b}?",
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "How much is {a} + {b}?",
        "Compute {a} + {b}.",
        "Calculate {a}+{b}.",
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        "There are {a} {things} in one box and {b} in another. How many {things} are there?",
    ),
    "-": (
        "What is {a} - {b}?",
        "What is {a}-{b}?",
        "{a}-{b}",
        "{a} - {b}",
        "{a} - {b} = ?",
        "{a}-{b}=",
        "What is {a} minus {b}?",
        "How much is {a} - {b}?",
        "Compute {a} - {b}.",
        "Calculate {a}-{b}.",
        "{name} has {a} {things} and gives away {b}. How many {things} are left?",
    ),
    "*": (
        "What is {a} * {b}?",
        "What is {a}*{b}?",
        "{a}*{b}",
        "{a} * {b}",
        "{a} * {b} = ?",
        "{a}*{b}=",
        "What is {a} times {b}?",
        "Multiply {a} by {b}.",
        "What is the product of {a} and {b}?",
        "How much is {a} * {b}?",
        "Compute {a} * {b}.",
        "Calculate {a}*{b}.",
        "There are {a} boxes with {b} {things} each. How many {things} are there?",
    ),
}
NAMES = "Tom Anna Ben Mia Sam Lily Max Ella Leo Nora".split()
THINGS = "apples books coins stones cards nuts shells stamps cookies pencils".split()
COMPUTE = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


def sample_sum(rng: random.Random, split: Split) -> tuple[int, str, int]:
    """Two operands and the operator between them; the unordered pair decides the split."""
    while True:
        operator = rng.choice("++-*")
        low, high = (10, 99) if rng.random() < 0.85 else (0, 9) if rng.random() < 0.4 else (100, 999)
        a, b = rng.randint(low, high), rng.randint(low, high)
        if high == 9 and split == "test":
            continue  # the 55 one-digit pairs are known by heart; a test of them proves nothing
        if high == 999:
            operator = "+"
        if operator == "-" and a < b and rng.random() < 0.75:
            a, b = b, a
        if is_held_out(f"{min(a, b)} {max(a, b)}") == (split == "test"):
            return a, operator, b


def write_question(rng: random.Random, a: int, operator: str, b: int) -> str:
    template = rng.choice(TEMPLATES[operator])
    if operator == "-" and a < b and "{name}" in template:
        template = "What is {a} - {b}?"  # nobody gives away more than they have
    question = template.format(a=a, b=b, name=rng.choice(NAMES), things=rng.choice(THINGS))
    return question if question[0].isdigit() else loosen(rng, question)


def write_answer(a: int, operator: str, b: int) -> str:
    return f"The answer is {COMPUTE[operator](a, b)}."


class ArithmeticTask(GeneratedTask):
    """Compute with small whole numbers by calling the calculator."""

    name = "arithmetic"
    max_new_tokens = 48

    def example(self, index: int) -> Conversation:
        rng = self.draw(index)
        a, operator, b = sample_sum(rng, self.split)
        return Conversation(
            (
                user(write_question(rng, a, operator, b)),
                assistant(
                    ("python", f"{a}{operator}{b}"),
                    ("python_output", str(COMPUTE[operator](a, b))),
                    write_answer(a, operator, b),
                ),
            )
        )

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return last_number(completion) == last_number(conversation.messages[-1].text)
