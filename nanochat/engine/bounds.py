"""What the numbers of sampling may be, for every face and without torch."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

MAX_FLOAT = sys.float_info.max
"""An integer above it is less than infinity, and yet no number to compute with."""

BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda x: 0 <= x <= MAX_FLOAT, "0 or more, and finite"),
    "top_k": (lambda x: x >= 1, "1 or more"),
    "top_p": (lambda x: 0 < x <= 1, "in (0, 1]"),
    "min_p": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "repetition_penalty": (lambda x: 0 < x <= MAX_FLOAT, "above 0, and finite"),
    "seed": (lambda x: 0 <= x < 2**63, "in [0, 2^63)"),
    "max_new_tokens": (lambda x: x >= 1, "1 or more"),
    "logprobs": (lambda x: x >= 0, "0 or more"),
}


def check_bounds(values: Mapping[str, Any]) -> None:
    """Raise ValueError for a number out of its range; None is none.

    >>> check_bounds({"top_k": 0})
    Traceback (most recent call last):
    ValueError: top_k = 0 is not 1 or more
    """
    for name, (is_good, expected) in BOUNDS.items():
        value = values.get(name)
        if value is not None and not is_good(value):
            raise ValueError(f"{name} = {value} is not {expected}")
