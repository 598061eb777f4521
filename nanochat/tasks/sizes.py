"""How many training examples the downloaded tasks have, as published: what a plan counts with before they are there."""

from collections.abc import Mapping, Sequence

from nanochat.tasks.catalog import TASKS, build_task
from nanochat.tasks.entry import parse_spec

TRAIN_EXAMPLES: Mapping[str, int] = {
    "mmlu": 99_842,
    "arc-easy": 2_251,
    "arc-challenge": 1_119,
    "gsm8k": 7_473,
    "smoltalk": 460_341,
}
"""Hendrycks et al. 2021 (auxiliary_train), Clark et al. 2018, Cobbe et al. 2021, the card of smol-smoltalk."""


def count_conversations(mixture: Sequence[str]) -> int | None:
    """Conversations of one epoch; None where an entry is a file or a class of the user's, which a plan does not open.

    >>> count_conversations(["gsm8k", "arc-easy:0:2000:2", "letters:500*2"]), count_conversations(["custom:a.jsonl"])
    (9473, None)
    """
    total = 0
    for spec in mixture:
        entry = parse_spec(spec)
        if entry.name in TRAIN_EXAMPLES:
            size = TRAIN_EXAMPLES[entry.name]
        elif entry.name in TASKS:
            size = len(build_task(entry.name, "train", entry.part.stop))
        else:
            return None
        total += len(range(size)[entry.part]) * entry.times
    return total
