"""Where a key stands in TOML text, for error messages. Knows no settings."""

import re


def describe_place(text: str, name: str, key: str) -> str:
    """`my.toml:12`, the line where a dotted key stands, or its table where it stands inside an inline table."""
    line = find_line(text, key) or find_line(text, key.partition(".")[0])
    return f"{name}:{line}" if line else name


def find_line(text: str, key: str) -> int | None:
    """The line, from 1, of a dotted key or a table in TOML text.

    >>> find_line("[base]\\nflops = 1e18\\n", "base.flops"), find_line("base.flops = 1", "base.flops")
    (2, 1)
    """
    table, closing = "", ""
    for number, line in enumerate(text.splitlines(), start=1):
        if closing:  # inside a string of several lines
            if closing in line:
                closing = ""
            continue
        if header := re.match(r"\s*\[\[?([^\[\]]+)\]", line):
            table = _normal_key(header[1])
            if table == key:
                return number
        elif entry := re.match(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*[A-Za-z0-9_"'-]+)*)\s*=""", line):
            full = _normal_key(entry[1]) if not table else f"{table}.{_normal_key(entry[1])}"
            if full == key or full.startswith(f"{key}."):
                return number
        for quotes in ('"""', "'''"):
            if line.count(quotes) % 2:
                closing = quotes
    return None


def _normal_key(text: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in text.split("."))
