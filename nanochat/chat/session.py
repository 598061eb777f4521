"""A conversation with a model: text in, pieces of text out, history kept. One for every face.

Knows a model and a tokenizer; it loads neither and knows no widget, terminal or protocol.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from nanochat.chat.decoding import Piece, PieceDecoder
from nanochat.chat.prompts import describe_unseen, fit_prompt
from nanochat.chat.turns import TurnSession, add_piece
from nanochat.conversation import Conversation, Message, Part, user
from nanochat.engine.engine import Engine, Request
from nanochat.engine.sampling import SamplingParams
from nanochat.engine.tool_loop import ToolLoop
from nanochat.text import plain_text
from nanochat.tokenizer.chat import render
from nanochat.tools.calculator import calculate

CHAT_SAMPLING = SamplingParams(temperature=0.8, top_k=50, max_new_tokens=512)
"""What a chat starts with: a little below the training distribution, and no very unlikely tokens."""

PREFILL_TOKENS = 256
"""Of a prompt, read at once: between two such parts an answer can be stopped."""


class ChatSession(TurnSession):
    """A conversation with a model in this process; an answer is stopped after its current token.

    device: where to compute; None leaves the model where it is. stop_strings end an answer and are not part of it.
    """

    def __init__(
        self,
        model,
        tokenizer,
        device: torch.device | str | None = None,
        *,
        name: str = "nanochat",
        params: SamplingParams = CHAT_SAMPLING,
        max_context: int | None = None,
        system: str = "",
        stop_strings: Sequence[str] = (),
        tool: Callable[[str], str | None] = calculate,
    ) -> None:
        if any(not string for string in stop_strings):
            raise ValueError("an empty stop string would end every answer")
        if device is not None:
            model.to(device)
        special = tokenizer.special_ids
        super().__init__(name, system)
        self.params, self.stop_strings = params, tuple(stop_strings)
        self._tokenizer = tokenizer
        self._engine = Engine(
            model,
            num_slots=1,
            max_context=max_context,
            tool_loop=ToolLoop.from_tokenizer(tokenizer, tool),
            eos_ids=(special["<|assistant_end|>"], special["<|bos|>"]),
            prefill_tokens=PREFILL_TOKENS,
        )

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    def raw(self) -> str:
        """Special tokens are written out."""
        seen = self._messages[self._num_unseen :]
        if not seen:
            return ""
        if self.system:
            seen[0] = user(f"{self.system}\n\n{seen[0].text}")
        ids, _ = render(self._tokenizer, Conversation(tuple(seen)))
        return plain_text(self._tokenizer.decode(ids))

    def export(self) -> dict[str, Any]:
        return {"model": self.name, "sampling": asdict(self.params), "messages": self._dump_messages()}

    def _answer(self, message: Message, num_kept: int) -> Iterator[Piece]:
        self._answering = True
        self.notice, self.finish = "", None
        parts: list[Part] = []
        started = False
        try:
            prompt = self._fit(message, num_kept)
            seed = (self.params.seed + self._num_retries) % 2**63
            self._engine.add(Request("answer", prompt, replace(self.params, seed=seed)))
            started = True
            for piece in self._decode(len(prompt)):
                add_piece(parts, piece)
                yield piece
        finally:
            if self._engine.cancel("answer"):
                self._engine.step()
                self.finish = self.finish or "cancelled"
            if started:
                self._keep_turn(message, num_kept, parts)
            self._answering = False

    def _decode(self, num_prompt: int) -> Iterator[Piece]:
        decoder = PieceDecoder(self._tokenizer, self.stop_strings)
        self._num_new, self._seconds, first = 0, 0.0, 0.0
        self.context_used = num_prompt
        while self.finish is None:
            if self._stopped.is_set():
                break
            for event in self._engine.step():  # none while a long prompt is being read
                assert event.token is not None
                self._num_new += 1
                self.context_used = num_prompt + self._num_new
                first = first or time.perf_counter()
                self._seconds = time.perf_counter() - first
                yield from decoder.feed(event.token, event.forced)
                self.finish = "stop" if decoder.stopped else event.finish
        if self.finish == "length":
            self.notice = "\n".join(filter(None, (self.notice, f"The answer was cut after {self._num_new} tokens.")))
        yield from decoder.flush(is_cut=self.finish != "stop")

    def _fit(self, message: Message, num_kept: int) -> list[int]:
        """The prompt's ids, with as many of the newest whole turns as leave room for an answer."""
        if num_kept < len(self._messages):
            self._num_unseen = 0
        prompt, self._num_unseen = fit_prompt(
            self._tokenizer,
            [*self._messages[:num_kept], message],
            self.system,
            self.max_context,
            min(self.params.max_new_tokens, self.max_context // 4),
            self._num_unseen,
        )
        self.notice = describe_unseen(self._num_unseen)
        return prompt
