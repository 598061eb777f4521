"""A conversation with a model behind an OpenAI-compatible API; no face sees a difference to one in this process.

Loads no torch. Numbers of sampling are sent only where they were chosen: another server may not know all of them.
"""

import difflib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from nanochat.chat.decoding import Piece
from nanochat.chat.turns import TurnSession, add_piece
from nanochat.conversation import Message, Part, PartKind
from nanochat.engine.bounds import check_bounds
from nanochat.errors import DataError, MissingError, UsageError
from nanochat.tui.client import MAX_SAID, Refusal, ServedModel, Server, clean, read_error

MAX_NAME = 100
"""Characters of a model's name that are shown."""
MAX_LISTED = 10


@dataclass(frozen=True)
class RemoteParams:
    """How a server is asked to sample; None leaves it to the server. Raises ValueError for a number out of range."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        check_bounds(vars(self))


class RemoteSession(TurnSession):
    """A conversation with a model of a server; a stop closes the connection.

    Tool calls of earlier answers are not sent back: the API has no place for them.
    """

    def __init__(
        self, server: Server, model: ServedModel, *, params: RemoteParams | None = None, system: str = ""
    ) -> None:
        super().__init__(clean(model.id, MAX_NAME), system)
        self.server, self.model, self.params = server, model, params or RemoteParams()
        self._started = 0.0
        self._counts, self._limit_name = True, "max_tokens"  # until the server says that it knows no such field
        self._is_answered = False  # whether a choice has come, which may be empty
        self._tools: list[bool] = []  # of each call of this answer whether its result is there

    @property
    def max_context(self) -> int:
        """0 where the server does not say."""
        return self.model.max_context

    def stop(self) -> None:
        super().stop()
        self.server.stop()

    def raw(self) -> str:
        """The messages as the server gets them: how its model reads them is not known here."""
        if not self._messages:
            return ""
        body = self._body(self._messages[-2], len(self._messages) - 2)
        answer = {"role": "assistant", "content": self._messages[-1].text}
        return json.dumps([*body["messages"], answer], ensure_ascii=False, indent=1)

    def export(self) -> dict[str, Any]:
        chosen = {name: value for name, value in asdict(self.params).items() if value is not None}
        about = {"model": self.name, "server": self.server.url, "sampling": chosen}
        return about | {"messages": self._dump_messages()}

    def _answer(self, message: Message, num_kept: int) -> Iterator[Piece]:
        self._answering = True
        self.notice, self.finish = "", None
        self._num_new, self._started, self._seconds = 0, 0.0, 0.0
        if num_kept < len(self._messages):
            self.context_used = 0  # the server tells that of the other branch at the end
        self._is_answered, self._tools = False, []
        parts: list[Part] = []
        is_kept = False  # a question that was refused is no part of the conversation
        try:
            for event in self._ask(message, num_kept):
                is_kept = True
                for piece in self._read(event):
                    add_piece(parts, piece)
                    yield piece
            if self._stopped.is_set():
                is_kept, self.finish = True, self.finish or "cancelled"
            elif not self._is_answered:
                is_kept = False
                raise DataError(f"{self.server.url} sent no answer", "ask again, or see its own output")
            self.finish = self.finish or "stop"
        except (GeneratorExit, KeyboardInterrupt):
            is_kept = True
            raise
        finally:
            if is_kept:
                self.finish = self.finish or "cancelled"
                self._keep_turn(message, num_kept, parts)
            self._answering = False

    def _ask(self, message: Message, num_kept: int) -> Iterator[dict[str, Any]]:
        """Events; what a server does not know of our own fields, or of old turns, is left out and asked again."""
        if num_kept < len(self._messages):
            self._num_unseen = 0
        self._is_unlimited = False
        while True:
            body = self._body(message, num_kept)
            try:
                yield from self.server.stream(body, self._stopped)
            except Refusal as refusal:
                if not self._adapt(refusal, body, num_kept):
                    raise self._explain(refusal, body) from None
                continue
            except DataError:
                if self.finish is None:  # else only the end mark is missing
                    raise
            break
        if self._num_unseen:
            turns = f"{self._num_unseen // 2} oldest turn{'s' if self._num_unseen > 2 else ''}"
            said = f"The conversation is longer than the context: the model no longer sees the {turns}."
            self.notice = "\n".join(filter(None, (said, self.notice)))

    def _adapt(self, refusal: Refusal, body: dict[str, Any], num_kept: int) -> bool:
        """Whether the next body is another one."""
        if refusal.is_too_long and self.params.max_new_tokens and not self._is_unlimited:
            self._is_unlimited = True  # the prompt may fit, and the answer ends with the context
            return True
        num_seen = num_kept - self._num_unseen
        if refusal.is_too_long and num_seen > 0:
            self._num_unseen += 2 * max(1, num_seen // 16)  # a long conversation is not asked about turn by turn
            return True
        if refusal.status not in (400, 422):
            return False
        if "stream_options" in refusal.said and self._counts:
            self._counts = False
            return True
        if "max_completion_tokens" in refusal.said and "max_tokens" in body:
            self._limit_name = "max_completion_tokens"
            return True
        return False

    def _explain(self, refusal: Refusal, body: dict[str, Any]) -> Exception:
        if refusal.is_too_long:
            return UsageError(f"the message is too long for the server: {refusal.said}", "send a shorter message")
        names = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
        for sent in body:
            name = names.get(sent, sent)
            if hasattr(self.params, name) and refusal.status in (400, 422) and sent in refusal.said:
                return UsageError(f"the server refuses {name}: {refusal.said}", f"in the chat: /set {name} off")
        return self.server.explain(refusal)

    def _body(self, message: Message, num_kept: int) -> dict[str, Any]:
        seen = [*self._messages[self._num_unseen : num_kept], message]
        messages = [{"role": each.role, "content": each.text} for each in seen]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        body: dict[str, Any] = {"model": self.model.id, "messages": messages, "stream": True}
        if self._counts:
            body["stream_options"] = {"include_usage": True}
        for name, value in asdict(self.params).items():
            if value is not None and not (name == "max_new_tokens" and self._is_unlimited):
                body[self._limit_name if name == "max_new_tokens" else name] = value
        if "seed" in body:
            body["seed"] = (body["seed"] + self._num_retries) % 2**63
        return body

    def _read(self, event: dict[str, Any]) -> Iterator[Piece]:
        """Pieces of an event, whatever a server puts into it. Raises DataError where it is an error."""
        is_error = event.get("object") == "error" or bool(event.get("error_code"))  # older vLLM; FastChat
        if error := event if is_error else event.get("error"):
            said = clean(read_error(error), MAX_SAID) or "it does not say why"
            raise DataError(f"{self.server.url} gave up: {said}", "the same question again; in the chat: /again")
        now = time.perf_counter()
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta", choice.get("message"))
        reason = choice.get("finish_reason")
        self._is_answered = self._is_answered or isinstance(delta, dict) or isinstance(reason, str)
        pieces = list(self._read_delta(delta)) if isinstance(delta, dict) else []
        if pieces:
            self._num_new += 1  # nearly a token each; the count comes with the end
            self._started = self._started or now
            self._seconds = now - self._started
        yield from pieces
        if isinstance(reason, str) and self.finish is None:
            self.finish = "length" if reason == "length" else "stop"
            if reason != "stop":
                self.notice = "The answer was cut." if reason == "length" else f"It ended with {clean(reason, 60)}."
        usage = event.get("usage")
        if isinstance(usage, dict):
            self.context_used = _count(usage.get("total_tokens"), self.context_used)
            self._num_new = _count(usage.get("completion_tokens"), self._num_new)

    def _read_delta(self, delta: dict[str, Any]) -> Iterator[Piece]:
        text = clean(_read_content(delta.get("content")) or _read_content(delta.get("refusal")))
        if text and (not self._tools or self._tools[-1]):  # no call is open
            yield Piece("text", text)
            text = ""
        ours = delta.get("nanochat")
        calls = ours.get("tools") if isinstance(ours, dict) else None
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            if not isinstance(call, dict) or not isinstance(call.get("expression"), str):
                break
            place = call.get("index", number)  # without it all calls come each time, as from older versions
            if type(place) is not int or not 0 <= place <= len(self._tools):
                break
            if place == len(self._tools):
                self._tools.append(False)
                yield _piece("python", call["expression"])
            if not self._tools[place] and isinstance(call.get("result"), str):
                self._tools[place] = True
                yield _piece("python_output", call["result"])
        if text:
            yield Piece("text", text)


def _read_content(content: Any) -> str:
    """Text, or a list of parts as Mistral's models send it."""
    if isinstance(content, list):
        content = "".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else ""


def _piece(kind: PartKind, text: str) -> Piece:
    return Piece(kind, clean(text))


def _count(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and 0 <= value < 2**40 else otherwise


class RemoteModels:
    """The models of a server, for `/model`. found: what it listed when the chat began."""

    def __init__(self, server: Server, found: list[ServedModel]) -> None:
        self.server, self._found = server, found

    def list_names(self) -> list[str]:
        self._found = self.server.list_models()
        return self.known_names()

    def known_names(self) -> list[str]:
        return [clean(model.id, MAX_NAME) for model in self._found]

    def open(self, name: str, session: RemoteSession) -> RemoteSession:
        if name not in self.known_names():
            self.list_names()
        return RemoteSession(self.server, find_model(self._found, name), params=session.params, system=session.system)


def find_model(found: list[ServedModel], name: str | None) -> ServedModel:
    """The model of a name, or the first one. Raises MissingError."""
    for model in found:
        if name in (None, model.id, clean(model.id, MAX_NAME)):
            return model
    names = [clean(model.id, MAX_NAME) for model in found]
    near = difflib.get_close_matches(name or "", names, n=1, cutoff=0.4)
    shown = ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
    raise MissingError(
        f"the server has no model {name!r}, but {shown}",
        f"did you mean {near[0]}?" if near else "in the chat, /model lists them",
    )
