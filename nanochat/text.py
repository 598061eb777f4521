"""Text for people: where it goes."""

import os
from typing import TextIO


def can_rewrite(stream: TextIO) -> bool:
    """Whether a stream is a terminal that takes escapes, so that a line may be drawn again and again."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"
