"""Text for people: cleaned for a terminal, sizes and times in words."""

import os
import re
from typing import TextIO

# ECMA-48: ESC [ ... letter; ESC ] and its kin up to BEL or ESC \; ESC with one or two more bytes.
ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
)
# C0 but tab and line feed, DEL, C1; direction marks and overrides; line separators; the byte order mark.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff]")


def plain_text(text: str) -> str:
    """Take away what could steer a terminal: escape sequences, control characters, direction overrides.

    >>> plain_text("a\\x1b[31mred\\x1b[0m\\r\\n\\u202eb")
    'ared\\nb'
    """
    return CONTROL.sub("", ANSI.sub("", text))


def format_size(size: float) -> str:
    """
    >>> format_size(71_234_000_000), format_size(83_400_000), format_size(4_250_000)
    ('71.2 GB', '83 MB', '4.2 MB')
    """
    if size >= 1e9:
        return f"{size / 1e9:,.1f} GB"
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e6:,.1f} MB"


def format_seconds(seconds: float) -> str:
    """
    >>> format_seconds(59), format_seconds(3700)
    ('0:59', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def can_rewrite(stream: TextIO) -> bool:
    """Whether a stream is a terminal that takes escapes, so that a line may be drawn again and again."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def escape_hidden(text: str) -> str:
    """Make control characters and text-direction overrides visible, and keep line breaks and tabs.

    >>> escape_hidden("a" + chr(27) + "[2Jb" + chr(0x202E))
    'a\\\\x1b[2Jb\\\\u202e'
    """
    text = text.replace("\r\n", "\n")
    return "".join(char if char in "\n\t" or not _is_hidden(ord(char)) else _escape(ord(char)) for char in text)


def _is_hidden(code: int) -> bool:
    if code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000:
        return True
    return code in (0x061C, 0x200E, 0x200F, 0x2028, 0x2029) or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
