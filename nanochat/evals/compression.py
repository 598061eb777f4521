"""Compression: bytes of text per token, on several kinds of text, beside published vocabularies.

Knows no files but the rank files that it is given. The samples are written here, so that the numbers of two machines
can be compared; they are short, so a difference of a percent means nothing.
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.errors import DataError

Encode = Callable[[str], list[int]]

SAMPLES: Mapping[str, str] = {
    "english": (
        "The harbour was quiet when the last boat came in. Two fishermen tied it to the wall, counted their boxes and "
        "walked up the hill without a word. Nobody had expected them before Thursday; the storm, people said, would "
        "keep every ship between the islands for at least three more days. But there they were, tired and wet."
    ),
    "code": (
        "def merge(left, right):\n    result = []\n    while left and right:\n"
        "        source = left if left[0] <= right[0] else right\n"
        "        result.append(source.pop(0))\n    return result + left + right\n\n\nif __name__ == "
        '"__main__":\n    assert merge([1, 4], [2, 3]) == [1, 2, 3, 4]\n'
    ),
    "numbers": (
        "In 2021 the town had 48,312 inhabitants, 1.7 % more than in 2020. 365 x 24 = 8760; 3.14159 * 2.5^2 = 19.6349. "
        "Call 555-0199 between 08:30 and 17:45, or write 1000000007, 65536 and 4294967296 on the form 27B/6."
    ),
    "german": (
        "Der Hafen war still, als das letzte Boot einlief. Zwei Fischer banden es an der Mauer fest, z\u00e4hlten ihre "
        "Kisten und gingen wortlos den H\u00fcgel hinauf. Niemand hatte sie vor Donnerstag erwartet."
    ),
    "russian": (
        "\u0413\u0430\u0432\u0430\u043d\u044c \u0431\u044b\u043b\u0430 \u0442\u0438\u0445\u0430, "
        "\u043a\u043e\u0433\u0434\u0430 \u043f\u0440\u0438\u0448\u043b\u0430 "
        "\u043f\u043e\u0441\u043b\u0435\u0434\u043d\u044f\u044f \u043b\u043e\u0434\u043a\u0430."
    ),
    "chat": (
        "User: hi!! can u tell me how many r's are in strawberry?\nAssistant: Sure! Let me count: s-t-r-a-w-b-e-r-r-y. "
        "There are 3.\nUser: thx :)\n"
    ),
}

GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
PUBLISHED: Mapping[str, tuple[str, str]] = {
    "gpt2": ("r50k_base.tiktoken", GPT2_PATTERN),
    "gpt4": ("cl100k_base.tiktoken", GPT4_PATTERN),
}
"""Name of a vocabulary to its rank file and its splitting pattern. Source: the files that tiktoken reads."""


@dataclass(frozen=True)
class Compression:
    """One kind of text: its bytes, and the tokens that each vocabulary makes of it."""

    kind: str
    num_bytes: int
    num_tokens: Mapping[str, int]

    def ratio(self, name: str) -> float:
        """Bytes per token."""
        return self.num_bytes / max(1, self.num_tokens[name])


def measure_compression(encoders: Mapping[str, Encode], texts: Mapping[str, str] = SAMPLES) -> list[Compression]:
    """Bytes per token of every vocabulary on every kind of text.

    >>> (found,) = measure_compression({"bytes": lambda text: list(text.encode())}, {"a": "abc"})
    >>> found.ratio("bytes")
    1.0
    """
    return [
        Compression(kind, len(text.encode()), {name: len(encode(text)) for name, encode in encoders.items()})
        for kind, text in texts.items()
        if text
    ]


def compare_vocabularies(name: str, encode: Encode, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What `tokenizer/compression.json` holds, and a line for each published vocabulary without a good rank file."""
    encoders, missing = {name: encode}, []
    for other, (file, pattern) in PUBLISHED.items():
        try:
            encoders[other] = load_ranks(folder / file, pattern)
        except DataError as error:
            missing.append(f"{other} is not compared: {error.message}")
    kinds = [
        {"kind": found.kind, "bytes": found.num_bytes, "bytes_per_token": {key: found.ratio(key) for key in encoders}}
        for found in measure_compression(encoders)
    ]
    return {"kinds": kinds}, missing


def load_ranks(path: Path, pattern: str) -> Encode:
    """The encoder of a rank file: a line is a token in base64 and its rank.

    Raises DataError if there is none or it is damaged.
    """
    import tiktoken

    if not path.is_file():
        raise DataError(f"there is no {path}", "nanochat tokenize eval")
    try:
        pairs = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        if not ranks or any(bytes([byte]) not in ranks for byte in range(256)):
            raise ValueError("single bytes are missing")
        return tiktoken.Encoding(path.stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary
    except (OSError, ValueError, binascii.Error) as error:
        raise DataError(f"{path} is not a rank file: {error}", f"mv -n {path} {path}.damaged") from error
