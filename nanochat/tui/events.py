"""Server-sent events out of a stream of bytes, wherever it is cut. Knows no connection and no JSON.

Source: WHATWG HTML, 9.2.6, "Interpreting an event stream". The library httpx-sse loses the first event behind a byte
order mark, and sets no bound to an event.
"""

import re
from dataclasses import dataclass

from nanochat.errors import DataError

MAX_EVENT_BYTES = 8 << 20
_END_OF_LINE = re.compile(rb"\r\n|\r|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Event:
    """name: its type; "" for the usual one."""

    name: str
    data: str


class EventReader:
    """Reads one stream. What follows its last empty line is no event: it was cut."""

    def __init__(self) -> None:
        self._line = bytearray()  # without its end yet
        self._data: list[bytes] = []
        self._name = ""
        self._is_first, self._ended_in_cr = True, False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in these bytes. Raises DataError for one that does not end.

        >>> EventReader().feed(b"event: note\\r\\ndata:1\\r\\ndata: 2\\r\\n\\r\\n: a comment\\n\\ndata: half of ")
        [Event(name='note', data='1\\n2')]
        """
        if not chunk:
            return []
        rest = chunk.removeprefix(b"\n") if self._ended_in_cr else chunk
        self._ended_in_cr = chunk.endswith(b"\r")
        events: list[Event] = []
        *ends, rest = _END_OF_LINE.split(rest)
        for end in ends:
            line = bytes(self._line + end)
            self._line.clear()
            events += self._take(line.removeprefix(_BYTE_ORDER_MARK) if self._is_first else line)
            self._is_first = False
        self._line += rest
        if len(self._line) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise DataError("the server sends an event without an end", "is it an OpenAI-compatible API?")
        return events

    def _take(self, line: bytes) -> list[Event]:
        """The event that ends with a line, if one does."""
        if not line:
            data, name = self._data, self._name
            self._data, self._name = [], ""
            return [Event(name, b"\n".join(data).decode("utf-8", "replace"))] if data else []
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"data":
            self._data.append(value)
        elif field == b"error":  # older versions of llama.cpp, instead of an event of that name
            self._name, self._data = "error", [value]
        return []
