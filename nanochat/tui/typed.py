"""What was typed into a terminal before anybody read it."""

import contextlib
import os
import termios
from typing import TextIO

from nanochat.text import plain_text

MOST_BYTES = 65_536


def take_typed(stream: TextIO) -> str:
    """Text that waits in a terminal, also without an Enter; "" if nothing does, or the stream is none.

    A full screen that starts throws it away.
    """
    with contextlib.suppress(termios.error, OSError):
        terminal = stream.fileno()
        before = termios.tcgetattr(terminal)
        now = termios.tcgetattr(terminal)
        now[3] &= ~(termios.ICANON | termios.ECHO)
        now[6][termios.VMIN] = now[6][termios.VTIME] = 0
        try:
            termios.tcsetattr(terminal, termios.TCSANOW, now)
            typed = os.read(terminal, MOST_BYTES)
        finally:
            termios.tcsetattr(terminal, termios.TCSANOW, before)
        return plain_text(typed.decode("utf-8", "replace").replace("\r", "\n"))
    return ""
