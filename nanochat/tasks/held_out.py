"""Conversations that are kept from training to validate with: a share of a file, the same ones in every run.

Each conversation has a number by its hash and the smallest numbers are held out, so that a line that is added or
removed moves no other one, and copies of one conversation stay together.
"""

import hashlib
from collections.abc import Sequence

from nanochat.conversation import Conversation, hash_conversations

SHARE = 0.05
LEAST, MOST = 8, 512
"""Fewer measure nothing; more cost time and are missed in training."""
SMALLEST_FILE = 80
"""Different conversations from which on a part is held out: never more than a tenth."""
SEED = "held out 0"


def select_held_out(conversations: Sequence[Conversation]) -> frozenset[int]:
    """Indices of the conversations to hold out: those of the SHARE with the smallest hashes; none of a small file."""
    places: dict[str, list[int]] = {}
    for index, conversation in enumerate(conversations):
        number = hashlib.sha256(f"{SEED}/{hash_conversations([conversation])}".encode()).hexdigest()
        places.setdefault(number, []).append(index)
    if len(places) < SMALLEST_FILE:
        return frozenset()
    count = min(max(round(SHARE * len(places)), LEAST), MOST)
    return frozenset(index for number in sorted(places)[:count] for index in places[number])


def describe_held_out(num_held_out: int, num_all: int) -> str:
    """What validation of a file measures.

    >>> describe_held_out(20, 400)
    '20 of them (5.0%, chosen by their hash, the same in every run) are held out for validation'
    >>> describe_held_out(0, 42)
    'too few to hold some out: validation measures what is trained on'
    """
    if not num_held_out:
        return "too few to hold some out: validation measures what is trained on"
    share = f"{num_held_out / num_all:.1%}"
    return (
        f"{num_held_out:,} of them ({share}, chosen by their hash, the same in every run) are held out for validation"
    )
