"""What was typed into a terminal before anybody read it."""

import contextlib
import os
import termios

from nanochat.text import plain_text

MOST_BYTES = 65_536


def take_typed(terminal: int) -> str:
    """Text that waits in a terminal, also without an Enter; "" if nothing does. terminal: its descriptor.

    A full screen that starts throws it away.
    """
    with contextlib.suppress(termios.error, OSError):
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
