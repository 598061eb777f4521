"""The Rust extension: a deterministic byte-level BPE trainer."""

from collections.abc import Callable, Sequence
from typing import Any

GPT4_STYLE_PATTERN: str

class Trainer:
    """Counts the pieces of texts on num_threads threads (default: all cores), then learns merges."""

    def __init__(self, pattern: str, num_threads: int | None = None) -> None: ...
    def feed(self, texts: Sequence[str]) -> None:
        """Count the pieces of texts, borrowed without a copy. Raises KeyboardInterrupt on Ctrl-C."""
    def feed_arrow(self, array: Any) -> None:
        """Count the pieces of an Arrow array of strings (`__arrow_c_array__`), without a copy."""
    @property
    def num_pieces(self) -> int:
        """Distinct pieces so far, counted once per thread that met them."""
    def train(self, num_merges: int, progress: Callable[[int], object] | None = None) -> list[tuple[int, int]]:
        """Learn up to num_merges merges, fewer where no pair is left; merge i makes id 256 + i."""

def split(text: str, pattern: str) -> list[str]:
    """The pieces of text that merges never cross."""
