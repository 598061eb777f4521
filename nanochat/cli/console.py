"""What the command line prints: results on stdout, everything else on stderr. The only module that may print."""

import codecs
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.text import plain_text

BOLD_RED, BOLD, RESET = "\x1b[1;31m", "\x1b[1m", "\x1b[0m"
_escaped: list[str] = []
"""Characters that standard output could not take and that were written as escapes."""


def prepare_streams() -> None:
    """Send a standard stream that was closed (`>&-`) nowhere, and let no character that it cannot take end a command.

    Otherwise the next file that is opened takes the stream's number, and what a library prints goes into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))
    codecs.register_error("nanochat", _escape)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="nanochat")


def count_escaped() -> int:
    """How many characters were escaped since the last call."""
    number = len(_escaped)
    _escaped.clear()
    return number


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """An error handler of codecs: bytes of a file's name as they are, and any other character as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char, after = error.object[error.start], error.start + 1
    if "\udc80" <= char <= "\udcff":  # what Python makes of a byte that is not UTF-8
        return bytes([ord(char) & 0xFF]), after
    _escaped.append(char)
    return char.encode("ascii", "backslashreplace"), after


@dataclass(frozen=True)
class Console:
    """The voice of one command. quiet silences what is neither a result nor an error."""

    quiet: bool = False
    color: bool = True

    def show(self, text: str) -> None:
        """A result, to stdout."""
        print(text)

    def write(self, text: str) -> None:
        """A piece of a result, to stdout at once, without a line break."""
        print(text, end="", flush=True)

    def show_json(self, value: Any) -> None:
        print(json.dumps(value, indent=2, default=str))

    def say(self, text: str) -> None:
        """News, to stderr."""
        if not self.quiet:
            print(plain_text(text), file=sys.stderr, flush=True)

    def rewrite(self, text: str) -> None:
        """Replace the terminal's last line, on stderr; an empty text leaves it empty."""
        if not self.quiet:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{plain_text(text)[:width]}", end="", file=sys.stderr, flush=True)

    def suggest(self, command: str) -> None:
        """The next useful command."""
        self.say(f"next:  {command}")

    def fail(self, message: str, hint: str = "") -> None:
        """An error, shown even when quiet."""
        colored = self.color and sys.stderr.isatty()
        for word, text, style in (("error:", message, BOLD_RED), ("hint: ", hint, BOLD)):
            if text:
                label = f"{style}{word}{RESET}" if colored else word
                print(f"{label} {plain_text(text)}", file=sys.stderr, flush=True)

    def ask(self, question: str) -> bool:
        """A yes or no on the terminal; an empty answer is no."""
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def format_table(rows: Sequence[Sequence[object]], header: Sequence[str] = (), right: Sequence[int] = ()) -> str:
    """Align columns with two spaces between them. right: indices of columns that hold numbers.

    >>> print(format_table([("base", 300), ("sft", 20)], right=[1]))
    base  300
    sft    20
    """
    cells = [[plain_text(str(cell)) for cell in row] for row in ([header] if header else []) + list(rows)]
    if not cells:
        return ""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
