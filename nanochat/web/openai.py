"""The routes of OpenAI's API: models, chat completions, completions."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from nanochat.web.body import parse_json
from nanochat.web.errors import ApiError, describe_error
from nanochat.web.formats import ChatFormat, Choice, CompletionFormat, Format, take
from nanochat.web.schema import ChatRequest, CompletionRequest, parse_request
from nanochat.web.service import Service
from nanochat.web.sse import EventStream


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
        wish: ChatRequest = parse_request(ChatRequest, parse_json(await request.body()))
        service.check_model(wish.model)
        if not service.is_chat:
            raise ApiError(400, f"{service.name} is a base model, which has not learned to chat: use /v1/completions")
        service.check_number(wish.n or 1, "n")
        prompt = await asyncio.to_thread(service.render, wish.messages)
        params = service.plan(wish, len(prompt))
        choices = [Choice(answer, prompt) for answer in service.start(prompt, params, wish.n or 1)]
        return await respond(request, service, ChatFormat(service, wish), choices, wish.stops, arrived)

    @router.post("/completions")
    async def complete(request: Request) -> Response:
        arrived = time.monotonic()
        wish: CompletionRequest = parse_request(CompletionRequest, parse_json(await request.body()))
        service.check_model(wish.model)
        prompts = await asyncio.to_thread(service.encode_all, wish.prompts)
        service.check_number(len(prompts) * (wish.n or 1), "prompt")
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


async def respond(
    request: Request, service: Service, form: Format, choices: list[Choice], stops: Sequence[str], arrived: float
) -> Response:
    """The answers as one body, or as a stream of events."""
    if form.wish.stream:
        options = form.wish.stream_options
        with_usage = options is not None and bool(options.include_usage)
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
