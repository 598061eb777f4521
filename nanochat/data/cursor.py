"""What a data cursor points into, compared with what is there now. Knows no loader."""

from collections.abc import Mapping
from typing import Any

HASH = "data_hash"
"""Of the data that a cursor points into; cursors of older versions have none, and then the other keys decide."""


def name_changes(saved: Mapping[str, Any], now: Mapping[str, Any], other: str) -> str:
    """What differs between the identity that a cursor was saved with and the one of now; "" if nothing does.

    other: what another hash means. Raises KeyError if a key other than the hash is missing.

    >>> name_changes({"data_hash": "0b5f", "row_tokens": 65}, {"data_hash": "93ac", "row_tokens": 65}, "other text")
    'other text'
    >>> name_changes({"row_tokens": 65}, {"data_hash": "93ac", "row_tokens": 33}, "other text")
    'row_tokens was 65, now 33'
    """
    if saved.get(HASH, now[HASH]) != now[HASH]:
        return other
    return ", ".join(f"{key} was {saved[key]}, now {now[key]}" for key in now if key != HASH and saved[key] != now[key])
