"""What a client sends as JSON, of a shape that is cheap to look at: all of this happens in the event loop.

A body of 8 MB can hold a text, which costs nothing, or two million lists, which the validation took minutes for.
"""

import json
from typing import Any

from nanochat.web.errors import ApiError

MAX_BRACKETS = 200_000
"""Of lists and objects, those in texts included: 200,000 are read in 0.05 s, and no prompt needs as many."""
MAX_ENTRIES = 20_000
"""Lists, objects and their names: a conversation of 1,000 messages has 5,000."""
MAX_DEPTH = 20


def parse_json(data: bytes | str) -> Any:
    """Raises ApiError for what is no JSON, and for what has too many parts.

    >>> parse_json(b'{"n": 1}')
    {'n': 1}
    """
    num_brackets = data.count("[") + data.count("{") if isinstance(data, str) else data.count(b"[") + data.count(b"{")
    if num_brackets > MAX_BRACKETS:
        raise ApiError(400, f"the request holds more than {MAX_BRACKETS:,} lists and objects")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ApiError(400, "the request is no JSON") from None
    _check_shape(value)
    return value


def _check_shape(value: Any) -> None:
    waiting = [(value, 1)] if isinstance(value, (dict, list)) else []
    num_entries = 0
    while waiting:
        inner, depth = waiting.pop()
        is_object = isinstance(inner, dict)
        num_entries += 1 + (len(inner) if is_object else 0)
        values = inner.values() if is_object else inner
        waiting += [(each, depth + 1) for each in values if isinstance(each, (dict, list))]
        if depth > MAX_DEPTH:
            raise ApiError(400, f"the request has lists or objects in each other, more than {MAX_DEPTH} deep")
        if num_entries + len(waiting) > MAX_ENTRIES:
            raise ApiError(400, f"the request holds more than {MAX_ENTRIES:,} lists, objects and names")
