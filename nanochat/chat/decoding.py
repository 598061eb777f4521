"""Ids of an answer become pieces of text that are safe to show. Knows a tokenizer and no engine.

UTF-8 goes over the borders of tokens, a tool call comes whole and with its output, and what may be the beginning of a
stop string or of an escape sequence is held back.
"""

import codecs
from dataclasses import dataclass

from nanochat.conversation import PartKind
from nanochat.text import ANSI, plain_text
from nanochat.tools.calculator import MAX_EXPRESSION_CHARS

MAX_HELD_ESCAPE = 64
"""Characters of an unfinished escape sequence that are held back; its ESC never gets out in any case."""


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, safe for a terminal. Tool calls and their output come whole, text in bits."""

    kind: PartKind
    text: str


class PieceDecoder:
    """Turns tokens into pieces. stopped: whether a stop string has come; nothing follows it.

    clean: whether control characters and escape sequences are taken out.
    """

    def __init__(self, tokenizer, stop_strings: tuple[str, ...] = (), clean: bool = True) -> None:
        special = tokenizer.special_ids
        self._tokenizer, self._special_ids = tokenizer, frozenset(special.values())
        self._stop_strings, self._clean = stop_strings, clean
        self._kinds: dict[int, PartKind] = {
            special["<|python_start|>"]: "python",
            special["<|python_end|>"]: "text",
            special["<|output_start|>"]: "python_output",
            special["<|output_end|>"]: "text",
        }
        self._output_ids = (special["<|output_start|>"], special["<|output_end|>"])
        self._kind: PartKind = "text"
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._calls: list[Piece] = []  # whole ones, until it is known whether a tool answers
        self.stopped = False

    def feed(self, token: int, forced: bool) -> list[Piece]:
        """Output that the model makes up itself, unforced, stays text: only a tool's answer counts as one."""
        if token in self._special_ids:
            if token not in self._kinds or (token in self._output_ids and not forced):
                return []
            pieces, is_call = self._release_all(), self._kind == "python"
            self._kind = self._kinds[token]
            if is_call or self._kind == "python_output":
                self._calls += pieces
                return []
            return [*self._take_calls(), *pieces]
        self._held += self._bytes.decode(self._tokenizer.decode_bytes([token]))
        if self._kind != "text":
            return []
        calls = self._take_calls()
        ends = [self._held.find(string) for string in self._stop_strings if string in self._held]
        if ends:
            self._held, self.stopped = self._held[: min(ends)], True
            return calls
        return [*calls, *self._release(len(self._held) - self._num_pending())]

    def flush(self, is_cut: bool = False) -> list[Piece]:
        """Everything held back.

        is_cut: the answer did not end by itself. Then a call that no tool has answered is dropped, so that whoever
        continues the answer has the model call again; one that is longer than a tool takes stays.
        """
        pieces = self._release_all()
        if not is_cut or (self._kind == "text" and pieces):
            return [*self._take_calls(), *pieces]
        return [piece for piece in pieces if self._kind == "python" and len(piece.text) > MAX_EXPRESSION_CHARS]

    def _take_calls(self) -> list[Piece]:
        calls, self._calls = self._calls, []
        return calls

    def _release_all(self) -> list[Piece]:
        if not self.stopped:
            self._held += self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return self._release(len(self._held))

    def _num_pending(self) -> int:
        """Characters at the end that may be the beginning of a stop string or of an escape sequence."""
        pending = max((_overlap(self._held, string) for string in self._stop_strings), default=0)
        escape = self._held.rfind("\x1b") if self._clean else -1
        if escape >= 0 and len(self._held) - escape <= MAX_HELD_ESCAPE and not ANSI.match(self._held, escape):
            pending = max(pending, len(self._held) - escape)
        return pending

    def _release(self, num_chars: int) -> list[Piece]:
        text, self._held = self._held[:num_chars], self._held[num_chars:]
        text = plain_text(text) if self._clean else text
        return [Piece(self._kind, text)] if text else []


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of text begin the string: "abc st", "stop" -> 2."""
    return next((n for n in range(min(len(string) - 1, len(text)), 0, -1) if text.endswith(string[:n])), 0)
