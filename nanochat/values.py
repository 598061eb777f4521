"""Plain values out of JSON that may hold anything: what is not of the expected kind is nothing, never an error."""

import json
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T")


def read_table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def read_tables(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def parse_count(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 9 else None


def read_text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def read_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def first_number(*values: object) -> float | None:
    return next((number for value in values if (number := read_number(value)) is not None), None)


def read_count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


READERS: dict[Any, Callable[[object], Any]] = {
    str: read_text,
    int: lambda value: read_count(value) or 0,
    int | None: read_count,
    float | None: read_number,
    bool | None: lambda value: value if isinstance(value, bool) else None,
}
"""By the type of a field."""


def read_fields(kind: type[T], table: dict[str, Any], /, **others: Any) -> T:
    """A dataclass from a table with the names of its fields. others: fields that are not read so."""
    readers = {field.name: READERS[field.type] for field in fields(kind) if field.type in READERS}  # type: ignore[arg-type]
    return kind(**{name: read(table.get(name)) for name, read in readers.items()} | others)
