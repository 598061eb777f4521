"""How answers look in OpenAI's API: a whole body, or the events of a stream.

Source of the shapes: OpenAI's API reference. A tool's call and result are no part of `content`; they stand beside it in
`nanochat.tools`, a field of ours.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.chat.decoding import Piece
from nanochat.engine.engine import TokenEvent
from nanochat.engine.sampling import TokenLogprob
from nanochat.web.schema import ChatRequest, CompletionRequest
from nanochat.web.service import Answer, Chunk, Service


@dataclass
class Choice:
    """One answer as it grows."""

    answer: Answer
    prompt: list[int] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    finish: str | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if piece.kind == "text")

    @property
    def tools(self) -> list[dict[str, Any]]:
        return list_tools(self.pieces)


def list_tools(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Calls with their results, and before which character of the text each was made; a refused one has no result.

    >>> list_tools([Piece("text", "So: "), Piece("python", "1+1"), Piece("python_output", "2"), Piece("text", "Two.")])
    [{'expression': '1+1', 'at': 4, 'result': '2'}]
    """
    calls: list[dict[str, Any]] = []
    num_chars = 0
    for piece in pieces:
        if piece.kind == "python":
            calls.append({"expression": piece.text, "at": num_chars})
        elif piece.kind == "python_output" and calls:
            calls[-1]["result"] = piece.text
        elif piece.kind == "text":
            num_chars += len(piece.text)
    return calls


class ChatFormat:
    """How chat completions look."""

    is_clean = True

    def __init__(self, service: Service, wish: ChatRequest) -> None:
        self.service, self.wish = service, wish
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return self._head("chat.completion") | {
            "choices": [
                {
                    "index": choice.answer.index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None}
                    | ({"nanochat": {"tools": choice.tools}} if choice.tools else {}),
                    "logprobs": self._logprobs(choice.events),
                    "finish_reason": choice.finish,
                }
                for choice in choices
            ],
            "usage": count_usage(choices),
        }

    def first(self, choice: Choice) -> list[dict[str, Any]]:
        return [self._chunk(choice, {"role": "assistant", "content": "", "refusal": None})]

    def some(self, choice: Choice, pieces: Sequence[Piece], events: Sequence[TokenEvent]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        if num := sum(piece.kind == "python" for piece in pieces):  # they come whole, and before the text
            tools = [{"index": index, **call} for index, call in enumerate(choice.tools)]
            deltas.append({"nanochat": {"tools": tools[-num:]}})
        if text := "".join(piece.text for piece in pieces if piece.kind == "text"):
            deltas.append({"content": text})
        if logprobs := self._logprobs(events):
            *deltas, last = deltas or [{}]
            return [*(self._chunk(choice, delta) for delta in deltas), self._chunk(choice, last, logprobs)]
        return [self._chunk(choice, delta) for delta in deltas]

    def last(self, choice: Choice) -> list[dict[str, Any]]:
        return [self._chunk(choice, {}, None, choice.finish)]

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return self._head("chat.completion.chunk") | {"choices": [], "usage": count_usage(choices)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.service.name}

    def _chunk(self, choice: Choice, delta: dict, logprobs: dict | None = None, finish: str | None = None) -> dict:
        row = {"index": choice.answer.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._head("chat.completion.chunk") | {"choices": [row]}

    def _logprobs(self, events: Sequence[TokenEvent]) -> dict[str, Any] | None:
        if not self.wish.logprobs:
            return None
        rows = []
        for event in events:
            if event.logprob is not None and event.finish != "stop":
                top = [self._describe(*pair) for pair in event.logprob.top]
                rows.append(self._describe(event.logprob.token, event.logprob.logprob) | {"top_logprobs": top})
        return {"content": rows, "refusal": None} if rows else None

    def _describe(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.service.token_text(token),
            "logprob": max(logprob, -9999.0),
            "bytes": self.service.token_bytes(token),
        }


class CompletionFormat:
    """How completions look: every character counts, for offsets point at them."""

    is_clean = False

    def __init__(self, service: Service, wish: CompletionRequest) -> None:
        self.service, self.wish = service, wish
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        rows = []
        for choice in choices:
            events = [] if self.wish.max_tokens == 0 else choice.events
            text = "" if self.wish.max_tokens == 0 else choice.text
            finish = "length" if self.wish.max_tokens == 0 else choice.finish
            rows.append(self._row(choice, self._echo(choice) + text, self._logprobs(choice, events, True), finish))
        return self._head() | {"choices": rows, "usage": count_usage(choices, self.wish.max_tokens == 0)}

    def first(self, choice: Choice) -> list[dict[str, Any]]:
        return []

    def some(self, choice: Choice, pieces: Sequence[Piece], events: Sequence[TokenEvent]) -> list[dict[str, Any]]:
        is_first = len(events) == len(choice.events)
        text = "" if self.wish.max_tokens == 0 else "".join(piece.text for piece in pieces if piece.kind == "text")
        text = (self._echo(choice) if is_first else "") + text
        logprobs = self._logprobs(choice, [] if self.wish.max_tokens == 0 else events, is_first)
        return [self._head() | {"choices": [self._row(choice, text, logprobs, None)]}] if text or logprobs else []

    def last(self, choice: Choice) -> list[dict[str, Any]]:
        finish = "length" if self.wish.max_tokens == 0 else choice.finish
        return [self._head() | {"choices": [self._row(choice, "", None, finish)]}]

    def usage(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return self._head() | {"choices": [], "usage": count_usage(choices, self.wish.max_tokens == 0)}

    def _head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.service.name}

    def _row(self, choice: Choice, text: str, logprobs: dict | None, finish: str | None) -> dict[str, Any]:
        return {"index": choice.answer.index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _echo(self, choice: Choice) -> str:
        if not self.wish.echo:
            return ""
        return self.service.tokenizer.decode(self._shown_prompt(choice))

    def _shown_prompt(self, choice: Choice) -> list[int]:
        """Without the document's beginning, where it was ours."""
        is_text = isinstance(self.wish.prompts[0], str)
        return choice.prompt[1:] if is_text else choice.prompt

    def _logprobs(self, choice: Choice, events: Sequence[TokenEvent], with_prompt: bool) -> dict[str, Any] | None:
        """Of every new token, a stop token included: who scores a text asks for one token more, and cuts it off."""
        if self.wish.logprobs is None:
            return None
        found: list[TokenLogprob | None] = []
        tokens: list[int] = []
        if with_prompt and self.wish.echo and choice.events and choice.events[0].prompt is not None:
            tokens = self._shown_prompt(choice)
            found = list(choice.events[0].prompt[-len(tokens) :]) if tokens else []
        for event in events:
            if event.token is not None:
                tokens = [*tokens, event.token]
                found.append(event.logprob)
        texts = [self.service.token_text(token) for token in tokens]
        before = (
            0
            if with_prompt
            else len(self._echo(choice))
            + sum(
                len(self.service.token_text(event.token))
                for event in choice.events[: -len(events) or None]
                if event.token is not None
            )
        )
        offsets = []
        for text in texts:
            offsets.append(before)
            before += len(text)
        tops = [
            item and {self.service.token_text(token): max(value, -9999.0) for token, value in item.top}
            for item in found
        ]
        return {
            "tokens": texts,
            "token_logprobs": [item and max(item.logprob, -9999.0) for item in found],
            "top_logprobs": tops if self.wish.logprobs else None,
            "text_offset": offsets,
        }


Format = ChatFormat | CompletionFormat


def count_usage(choices: Sequence[Choice], is_echo_only: bool = False) -> dict[str, int]:
    """Tokens: of a prompt once for all answers to it, special ones included."""
    prompts = {id(choice.prompt): len(choice.prompt) for choice in choices}
    num_prompt = sum(prompts.values())
    num_new = 0 if is_echo_only else sum(choice.answer.num_tokens for choice in choices)
    return {"prompt_tokens": num_prompt, "completion_tokens": num_new, "total_tokens": num_prompt + num_new}


def take(choice: Choice, chunk: Chunk) -> None:
    choice.pieces += chunk.pieces
    choice.events += chunk.tokens
    if chunk.finish is not None:
        choice.finish = "stop" if chunk.finish == "stop" else "length"
