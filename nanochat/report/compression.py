"""How well the tokenizer of a run compresses, as plain values, from its compression.json."""

from dataclasses import dataclass
from typing import Any

from nanochat.values import read_count, read_number, read_table, read_tables, read_text


@dataclass(frozen=True)
class KindReport:
    """One kind of text: its bytes, and bytes per token by vocabulary."""

    kind: str
    num_bytes: int | None
    ratios: tuple[tuple[str, float], ...]


def parse_compression(value: dict[str, Any]) -> tuple[KindReport, ...]:
    return tuple(
        KindReport(
            read_text(item.get("kind")),
            read_count(item.get("bytes")),
            tuple(
                (name, ratio)
                for name, share in read_table(item.get("bytes_per_token")).items()
                if (ratio := read_number(share)) is not None
            ),
        )
        for item in read_tables(value.get("kinds"))
    )
