"""The routes of OpenAI's API: models, chat completions, completions.

Source of the shapes: OpenAI's API reference. A tool's call and result are no part of `content`; they stand beside it in
`nanochat.tools`, a field of ours.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nanochat.engine.decoding import Piece
from nanochat.engine.engine import TokenEvent
from nanochat.engine.sampling import TokenLogprob
from nanochat.web.errors import ApiError, describe_error
from nanochat.web.schema import ChatRequest, CompletionRequest, parse_request
from nanochat.web.service import Answer, Chunk, Service
from nanochat.web.sse import EventStream


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
    def tools(self) -> list[dict[str, str]]:
        return list_tools(self.pieces)


def list_tools(pieces: Sequence[Piece]) -> list[dict[str, str]]:
    """Calls with their results, as far as they are there.

    >>> list_tools([Piece("python", "1+1"), Piece("python_output", "2"), Piece("text", "Two.")])
    [{'expression': '1+1', 'result': '2'}]
    """
    calls: list[dict[str, str]] = []
    for piece in pieces:
        if piece.kind == "python":
            calls.append({"expression": piece.text})
        elif piece.kind == "python_output" and calls:
            calls[-1]["result"] = piece.text
    return calls


def build_router(service: Service) -> APIRouter:
    """The three routes over a service."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [describe_model(service)]}

    @router.get("/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return describe_model(service)

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        arrived = time.monotonic()
        wish: ChatRequest = parse_request(ChatRequest, await read_json(request))
        service.check_model(wish.model)
        if not service.is_chat:
            raise ApiError(400, f"{service.name} is a base model, which has not learned to chat: use /v1/completions")
        prompt = service.render(wish.messages)
        params = service.plan(wish, len(prompt))
        choices = [Choice(answer, prompt) for answer in service.start(prompt, params, wish.n or 1)]
        return await respond(request, service, ChatFormat(service, wish), choices, wish.stops, arrived)

    @router.post("/completions")
    async def complete(request: Request) -> Response:
        arrived = time.monotonic()
        wish: CompletionRequest = parse_request(CompletionRequest, await read_json(request))
        service.check_model(wish.model)
        prompts = [service.encode(prompt) for prompt in wish.prompts]
        if any(not prompt for prompt in prompts):
            raise ApiError(400, "prompt: a list of ids is empty", "prompt")
        plans = [service.plan(wish, len(prompt)) for prompt in prompts]
        choices: list[Choice] = []
        try:
            for prompt, params in zip(prompts, plans, strict=True):
                answers = service.start(prompt, params, wish.n or 1, len(choices))
                choices += [Choice(answer, prompt) for answer in answers]
        except ApiError:
            for choice in choices:
                choice.answer.stream.cancel()
            raise
        return await respond(request, service, CompletionFormat(service, wish), choices, wish.stops, arrived)

    return router


def describe_model(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "nanochat",
        "max_context": service.max_context,
    }


async def read_json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is no JSON") from None


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
        delta: dict[str, Any] = {}
        if text := "".join(piece.text for piece in pieces if piece.kind == "text"):
            delta["content"] = text
        if any(piece.kind != "text" for piece in pieces):
            delta["nanochat"] = {"tools": choice.tools}
        logprobs = self._logprobs(events)
        return [self._chunk(choice, delta, logprobs)] if delta or logprobs else []

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
        if self.wish.logprobs is None:
            return None
        found: list[TokenLogprob | None] = []
        tokens: list[int] = []
        if with_prompt and self.wish.echo and choice.events and choice.events[0].prompt is not None:
            tokens = self._shown_prompt(choice)
            found = list(choice.events[0].prompt[-len(tokens) :]) if tokens else []
        for event in events:
            if event.token is not None and event.finish != "stop":
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
                if event.token
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


async def respond(
    request: Request, service: Service, form: Format, choices: list[Choice], stops: Sequence[str], arrived: float
) -> Response:
    """The answers as one body, or as a stream of events."""
    if form.wish.stream:
        options = form.wish.stream_options
        with_usage = options is not None and options.include_usage
        return EventStream(stream_events(service, form, choices, stops, arrived, with_usage))

    async def read_all() -> Response:
        async def read(choice: Choice) -> None:
            async for chunk in service.read(choice.answer, stops, arrived, form.is_clean):
                take(choice, chunk)

        await asyncio.gather(*(read(choice) for choice in choices))
        return JSONResponse(form.whole(choices))

    return await unless_gone(request, read_all, choices)


async def unless_gone(request: Request, work: Callable[[], Awaitable[Response]], choices: list[Choice]) -> Response:
    """Do the work, and give it up where the client leaves."""

    async def wait_until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work()), asyncio.ensure_future(wait_until_gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()  # type: ignore[return-value]
        return Response(status_code=499)  # nobody reads it
    finally:
        for task in tasks:
            task.cancel()
        for choice in choices:
            choice.answer.stream.cancel()


def take(choice: Choice, chunk: Chunk) -> None:
    choice.pieces += chunk.pieces
    choice.events += chunk.tokens
    if chunk.finish is not None:
        choice.finish = "stop" if chunk.finish == "stop" else "length"


async def stream_events(
    service: Service, form: Format, choices: list[Choice], stops: Sequence[str], arrived: float, with_usage: bool
) -> AsyncIterator[str]:
    """The `data:` of each event; the last is [DONE], also after an error."""
    queue: asyncio.Queue[list[dict[str, Any]] | ApiError | None] = asyncio.Queue()

    async def read(choice: Choice) -> None:
        try:
            async for chunk in service.read(choice.answer, stops, arrived, form.is_clean):
                take(choice, chunk)
                rows = form.some(choice, chunk.pieces, chunk.tokens)
                queue.put_nowait(rows + (form.last(choice) if chunk.finish else []))
        except ApiError as error:
            queue.put_nowait(error)
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.ensure_future(read(choice)) for choice in choices]
    try:
        for choice in choices:
            for row in form.first(choice):
                yield json.dumps(row)
        num_open = len(tasks)
        while num_open:
            rows = await queue.get()
            if rows is None:
                num_open -= 1
            elif isinstance(rows, ApiError):
                yield json.dumps(describe_error(rows.status, rows.message))
                num_open = 0
            else:
                for row in rows:
                    yield json.dumps(row)
        if with_usage:
            yield json.dumps(form.usage(choices))
        yield "[DONE]"
    finally:
        for task in tasks:
            task.cancel()
        for choice in choices:
            choice.answer.stream.cancel()
