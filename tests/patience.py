"""How long tests wait: for what must happen, and as long as a busy machine may need. A benchmark measures speed."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 120.0
"""A limit on hanging. Whatever is waited for comes much sooner, so a larger number costs nothing."""


def wait_until(is_true: Callable[[], object], why: Callable[[], object] = lambda: "") -> None:
    """Return once it is true. why: what to show where it never was."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < end, f"it never happened {why()}"
        time.sleep(0.01)
