"""Messages as the page shows them: blocks of HTML and tool calls, and what changes in them while an answer grows."""

from collections.abc import Iterable, Sequence
from typing import Any

from nanochat.chat.decoding import Piece
from nanochat.chat.store import ChatInfo, StoredMessage
from nanochat.chat.turns import add_piece
from nanochat.conversation import Part
from nanochat.text import plain_text
from nanochat.web.markdown import GrowingMarkdown, render_blocks


class GrowingAnswer:
    """The parts of an answer that is being said. parts: of a beginning that is there already."""

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self.parts: list[Part] = []
        self._texts: dict[int, GrowingMarkdown] = {}
        self._shown: list[dict[str, Any]] = []
        self.feed([Piece(part.kind, part.text) for part in parts])

    @property
    def shown(self) -> list[dict[str, Any]]:
        """All of it so far, in the form of `show_parts`."""
        return [dict(part) for part in self._shown]

    def feed(self, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
        """Add pieces; returns the changes.

        A change has the place of its `part`, and either a whole `tool` or `blocks` that follow the first `keep`.
        """
        tools: set[int] = set()
        texts: dict[int, str] = {}
        for piece in pieces:
            is_same = bool(self.parts) and piece.kind == "text" == self.parts[-1].kind
            add_piece(self.parts, piece)
            if piece.kind == "text":
                if not is_same:
                    self._texts[len(self._shown)] = GrowingMarkdown()
                    self._shown.append({"blocks": []})
                place = len(self._shown) - 1
                texts[place] = texts.get(place, "") + piece.text
            elif piece.kind == "python_output" and self._shown and self._shown[-1].get("result", "") is None:
                self._shown[-1]["result"] = piece.text
                tools.add(len(self._shown) - 1)
            elif piece.kind == "python":
                self._shown.append({"expression": piece.text, "result": None})
                tools.add(len(self._shown) - 1)
        changes: list[dict[str, Any]] = [{"part": place, "tool": dict(self._shown[place])} for place in tools]
        for place, text in texts.items():
            keep, blocks = self._texts[place].feed(text)
            self._shown[place]["blocks"] = list(self._texts[place].blocks)
            changes.append({"part": place, "keep": keep, "blocks": blocks})
        return sorted(changes, key=lambda change: change["part"])


def show_parts(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """An answer that is whole.

    >>> show_parts([Part("python", "1+1"), Part("python_output", "2"), Part("text", "*Two*")])
    [{'expression': '1+1', 'result': '2'}, {'blocks': ['<p><em>Two</em></p>']}]
    """
    shown: list[dict[str, Any]] = []
    for part in parts:
        text = plain_text(part.text)  # another program may have written it
        if part.kind == "text":
            shown.append({"blocks": list(render_blocks(text))})
        elif part.kind == "python":
            shown.append({"expression": text, "result": None})
        elif shown and shown[-1].get("result", "") is None:
            shown[-1]["result"] = text
    return shown


def show_message(stored: StoredMessage) -> dict[str, Any]:
    message = stored.message
    return {
        "id": stored.id,
        "role": message.role,
        "text": plain_text(message.text),
        "parts": show_parts(message.parts) if message.role == "assistant" else [],
        "siblings": list(stored.siblings),
        "finish": stored.finish,
        "elsewhere": stored.is_elsewhere,
        "model": plain_text(stored.model),
    }


def show_chat(info: ChatInfo, path: Sequence[StoredMessage]) -> dict[str, Any]:
    """A conversation with its current branch."""
    return {"chat": show_info(info), "messages": [show_message(stored) for stored in path], "running": None}


def show_info(info: ChatInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "title": plain_text(info.title) or info.id,
        "system": plain_text(info.system),
        "updated": info.updated,
    }
