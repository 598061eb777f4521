"""Tool calls inside an answer: collect the expression, calculate, say which tokens are forced next.

Knows ids and two functions between ids and text; it knows no model and no tokenizer class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat.tools.calculator import MAX_EXPRESSION_CHARS, calculate


@dataclass(frozen=True)
class ToolLoop:
    """What a tool call looks like in tokens; shared by all requests of an engine."""

    python_start: int
    python_end: int
    output_start: int
    output_end: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    tool: Callable[[str], str | None] = calculate
    max_expression_tokens: int = MAX_EXPRESSION_CHARS
    """A longer call is dropped unread: the tool would refuse it (a token is at least a byte)."""

    @classmethod
    def from_tokenizer(cls, tokenizer, tool: Callable[[str], str | None] = calculate) -> "ToolLoop":
        """The loop over a tokenizer's four tool tokens."""
        ids = tokenizer.special_ids
        return cls(
            ids["<|python_start|>"],
            ids["<|python_end|>"],
            ids["<|output_start|>"],
            ids["<|output_end|>"],
            tokenizer.encode,
            tokenizer.decode,
            tool,
        )


class ToolState:
    """Where one answer stands: outside a call, or inside one with the ids collected so far."""

    def __init__(self, loop: ToolLoop) -> None:
        self._loop = loop
        self._expression: list[int] | None = None

    def observe(self, token: int) -> Sequence[int]:
        """Take in one token that the model chose; return the tokens that must follow it (mostly none).

        A call that is refused forces nothing. A second start inside a call starts the call anew.
        """
        loop = self._loop
        if token == loop.python_start:
            self._expression = []
        elif self._expression is None:
            pass
        elif token == loop.python_end:
            expression, self._expression = self._expression, None
            result = loop.tool(loop.decode(expression))
            if result is not None:
                return (loop.output_start, *loop.encode(result), loop.output_end)
        elif len(self._expression) == loop.max_expression_tokens:
            self._expression = None
        else:
            self._expression.append(token)
        return ()
