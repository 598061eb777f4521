"""Documents in random order, and a share of their text held out for validation; neither needs the whole text in memory.

Knows neither files of text nor shards. Sizes are bytes of UTF-8.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from nanochat.data.documents import find_break

BUCKET_BYTES = 64_000_000
"""Text that is shuffled in memory at once; more of it passes through files on disk."""
MAX_BUCKETS = 256
"""Files that are open at once: systems allow 1,024, some 256 less."""
VAL_SHARE = 0.01
"""Of the text that is held out for validation, and of a short text more: ..."""
VAL_BYTES = 50_000
"""... so much, but no more than ..."""
MAX_VAL_SHARE = 0.1
SHORT_BYTES = 2_000
SHORT_SHARE = 0.1
"""Documents of so many bytes, or of this share of all that is held out, are held out whole or not at all."""
STRETCH_CHARS = 10_000
"""Of a long document as much at a time is held out, at equal distances."""


@dataclass
class HeldOut:
    """A part of the text in two. num_cut: long documents of which only stretches are held out.

    num_repeated: left out of both, because they stand word for word in the validation text.
    """

    train: list[bytes] = field(default_factory=list)
    val: list[bytes] = field(default_factory=list)
    num_cut: int = 0
    num_repeated: int = 0


def hold_out(documents: list[bytes], num_bytes: int) -> HeldOut:
    """Hold out about num_bytes of documents in random order: whole ones, and of a long one stretches.

    Text to train on is left wherever there is text of two characters; nothing in it repeats a held-out document.

    >>> hold_out([b"a note", b"another", b"a third"], 5).val
    [b'a note']
    >>> hold_out([b"word " * 1_000], 20).val
    [b'word word word word ']
    """
    parts = HeldOut()
    seen: set[bytes] = set()
    left, short = sum(map(len, documents)), max(SHORT_BYTES, num_bytes * SHORT_SHARE)
    for data in documents:
        left -= len(data)
        digest = digest_text(data)
        if digest in seen:
            parts.num_repeated += 1
        elif num_bytes <= 0:
            parts.train.append(data)
        elif left and len(data) <= max(num_bytes, short):
            parts.val.append(data)
            seen.add(digest)
            num_bytes -= len(data)
        elif len(text := data.decode()) < 2:
            parts.train.append(data)
        else:
            kept, held = cut_stretches(text, round(num_bytes * len(text) / len(data)))
            parts.train += [piece.encode() for piece in kept]
            parts.val += [piece.encode() for piece in held]
            parts.num_cut += 1
            seen.add(digest)
            num_bytes = 0
    return parts


def cut_stretches(text: str, num_chars: int) -> tuple[list[str], list[str]]:
    """Cut about num_chars out of a text, at equal distances; returns what stays and what was cut out.

    >>> cut_stretches("one two three four", 5)
    (['one two '], ['three four'])
    """
    num_chars = min(max(1, num_chars), len(text) // 2)
    num_stretches = max(1, num_chars // STRETCH_CHARS)
    places = [find_break(text, len(text) * index // num_stretches) for index in range(1, num_stretches)]
    kept, held = [], []
    for start, end in zip([0, *places], [*places, len(text)], strict=True):
        section = text[start:end]
        place = find_break(section, len(section) - num_chars // num_stretches)
        kept.append(section[:place])
        held.append(section[place:])
    return kept, held


def plan_val_bytes(num_bytes: int, share: float | None, text_share: float = 1.0) -> int:
    """How much of num_bytes is held out. share: asked for; text_share: of the whole text that num_bytes are.

    >>> plan_val_bytes(100_000, None), plan_val_bytes(900_000, None), plan_val_bytes(10**9, None)
    (10000, 50000, 10000000)
    """
    if share is not None:
        return max(1, int(num_bytes * share))
    return max(1, int(num_bytes * VAL_SHARE), int(min(VAL_BYTES * text_share, num_bytes * MAX_VAL_SHARE)))


def iter_buckets(documents: Iterable[str], num_bytes: int, seed: int, folder: Path) -> Iterator[list[bytes]]:
    """Deal documents at random into buckets that fit in memory, and yield them shuffled, one at a time.

    The same text always falls into the same bucket. num_bytes: of all documents, about; folder: for files that come and
    go.
    """
    rng = random.Random(f"import/{seed}")
    num_buckets = min(MAX_BUCKETS, -(-num_bytes // BUCKET_BYTES))
    encoded = (text.encode() for text in documents)
    if num_buckets <= 1:
        bucket = list(encoded)
        rng.shuffle(bucket)
        yield bucket
        return
    paths = [folder / f"bucket_{index}" for index in range(num_buckets)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for data in encoded:
            write_text(files[int.from_bytes(digest_text(data, seed)[:4], "big") % num_buckets], data)
    for path in paths:
        bucket = list(read_texts(path))
        path.unlink()
        rng.shuffle(bucket)
        yield bucket


def write_text(file: BinaryIO, data: bytes) -> None:
    """Append a text to a file that `read_texts` reads."""
    file.write(len(data).to_bytes(8, "big"))
    file.write(data)


def read_texts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while size := file.read(8):
            yield file.read(int.from_bytes(size, "big"))


def digest_text(data: bytes, seed: int = 0) -> bytes:
    return hashlib.blake2b(data, digest_size=16, salt=(seed % 2**64).to_bytes(8, "big")).digest()
