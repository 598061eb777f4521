"""A conversation with a model: text in, pieces of text out, history kept. One for every face.

Knows a model and a tokenizer; it loads neither and knows no widget, terminal or protocol.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace

import torch

from nanochat.conversation import Conversation, Message, Part, dump_conversation, user
from nanochat.engine.decoding import Piece, PieceDecoder, plain_text
from nanochat.engine.engine import Engine, Finish, Request
from nanochat.engine.prompts import describe_unseen, fit_prompt
from nanochat.engine.sampling import SamplingParams
from nanochat.engine.tool_loop import ToolLoop
from nanochat.tokenizer.chat import render
from nanochat.tools.calculator import calculate

CHAT_SAMPLING = SamplingParams(temperature=0.8, top_k=50, max_new_tokens=512)
"""What a chat starts with: a little below the training distribution, and no very unlikely tokens."""

PREFILL_TOKENS = 256
"""Of a prompt, read at once: between two such parts an answer can be stopped."""


class ChatSession:
    """One conversation. One thread iterates over an answer at a time; `stop` may come from any thread.

    device: where to compute; None leaves the model where it is. system: prepended to the first message that
    the model sees. stop_strings end an answer and are not part of it. name: the model's, for people.
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
        self.name, self.params, self.system, self.stop_strings = name, params, system, tuple(stop_strings)
        self.notice = ""
        """What the user should know about the last answer, such as turns that no longer fit; else ""."""
        self.finish: Finish | None = None
        """Why the last answer ended: "stop", "length" or "cancelled"."""
        self.context_used = 0
        """Tokens of the prompt and the answer so far."""
        self._tokenizer = tokenizer
        self._engine = Engine(
            model,
            num_slots=1,
            max_context=max_context,
            tool_loop=ToolLoop.from_tokenizer(tokenizer, tool),
            eos_ids=(special["<|assistant_end|>"], special["<|bos|>"]),
            prefill_tokens=PREFILL_TOKENS,
        )
        self._messages: list[Message] = []
        self._num_unseen = 0  # oldest messages that no longer fit
        self._num_retries = 0
        self._num_new, self._seconds = 0, 0.0
        self._answering = False
        self._stopped = threading.Event()

    @property
    def history(self) -> Conversation:
        """All finished turns, also those that the model no longer sees."""
        return Conversation(tuple(self._messages))

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    @property
    def tokens_per_second(self) -> float:
        """Speed of the last answer after its first token; 0 before there is one."""
        return (self._num_new - 1) / self._seconds if self._num_new > 1 and self._seconds > 0 else 0.0

    @property
    def is_answering(self) -> bool:
        return self._answering

    def send(self, text: str) -> Iterator[Piece]:
        """Answer a message. The turn enters the history when the iterator ends, is closed or is interrupted.

        Raises UsageError, from the first step of the iterator, where the message alone does not fit.
        """
        return self.edit(len(self._messages) // 2, text)

    def regenerate(self) -> Iterator[Piece]:
        """Answer the last message again, with other random numbers. Raises ValueError where there is none."""
        if not self._messages:
            raise ValueError("there is nothing to answer again")
        self._check_idle()
        self._num_retries += 1
        return self.edit(len(self._messages) // 2 - 1, self._messages[-2].text)

    def edit(self, turn: int, text: str) -> Iterator[Piece]:
        """Put another message in place of the user's turn 0, 1, ... and forget everything after it."""
        if not 0 <= turn <= len(self._messages) // 2:
            raise ValueError(f"turn = {turn} is not in 0 .. {len(self._messages) // 2}")
        self._check_idle()
        self._stopped.clear()  # here, not when the iterator starts: a stop in between counts
        return self._answer(user(text), 2 * turn)

    def stop(self) -> None:
        """End the running answer after its current token; what there is of it is kept."""
        self._stopped.set()

    def clear(self) -> None:
        """Start a new conversation."""
        self._check_idle()
        self._messages.clear()
        self._num_unseen = self._num_retries = self._num_new = self.context_used = 0
        self._seconds, self.notice, self.finish = 0.0, "", None

    def load(self, conversation: Conversation) -> None:
        """Continue a conversation of whole turns. Raises ValueError where the last message has no answer."""
        if len(conversation.messages) % 2:
            raise ValueError("the last message has no answer: send it instead")
        self.clear()
        self._messages.extend(conversation.messages)

    def raw(self) -> str:
        """The conversation as the model reads it, special tokens written out; "" before the first turn."""
        seen = self._messages[self._num_unseen :]
        if not seen:
            return ""
        if self.system:
            seen[0] = user(f"{self.system}\n\n{seen[0].text}")
        ids, _ = render(self._tokenizer, Conversation(tuple(seen)))
        return plain_text(self._tokenizer.decode(ids))

    def export(self) -> dict:
        """The conversation as JSON types, in the shape that parse_conversation reads."""
        messages = dump_conversation(self.history)["messages"]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        return {"model": self.name, "sampling": asdict(self.params), "messages": messages}

    def _check_idle(self) -> None:
        if self._answering:
            raise ValueError("the last answer is not finished: stop it or read it to its end")

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
                if parts and piece.kind == "text" == parts[-1].kind:
                    parts[-1] = Part("text", parts[-1].text + piece.text)
                else:
                    parts.append(Part(piece.kind, piece.text))
                yield piece
        finally:
            if self._engine.cancel("answer"):
                self._engine.step()
                self.finish = self.finish or "cancelled"
            if started:
                self._messages[num_kept:] = [message, Message("assistant", tuple(parts) or (Part("text", ""),))]
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
        yield from decoder.flush()

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
