"""Small stand-ins that obey our protocols."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nanochat.runtime import World
from tests.patience import PATIENCE_SECONDS

SPECIAL_NAMES = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)


class ByteTokenizer:
    """A token a byte, then the nine special tokens: 265 ids."""

    vocab_size = 265
    special_ids = {name: 256 + index for index, name in enumerate(SPECIAL_NAMES)}
    bos_id = 256
    token_bytes = [1] * 256 + [0] * 9
    hash = "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: list[int]) -> bytes:
        return b"".join(bytes([token]) if token < 256 else SPECIAL_NAMES[token - 256].encode() for token in ids)

    def decode(self, ids: list[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


class ThreadWorld(World):
    """A rank that is a thread: its collectives wait for those of the other threads."""

    def all_gather(self, value: Any) -> list[Any]:
        values, barrier = SHARED[self.world_size]
        values[self.rank] = value
        barrier.wait()
        found = list(values)
        barrier.wait()
        return found

    def barrier(self) -> None:
        self.all_gather(None)


SHARED: dict[int, tuple[list[Any], threading.Barrier]] = {}


def run_ranks(work: Callable[[World], Any], world_size: int = 2) -> list[Any]:
    """Do the work as every rank of a world, each in a thread; returns what each returned or raised."""
    SHARED[world_size] = ([None] * world_size, threading.Barrier(world_size, timeout=PATIENCE_SECONDS))

    def attempt(rank: int) -> Any:
        try:
            return work(ThreadWorld(rank, rank, world_size))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(attempt, range(world_size)))
