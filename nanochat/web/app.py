"""The web application: routes, errors in one envelope, health and metrics."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from nanochat import __version__
from nanochat.chat.store import ChatStore
from nanochat.web.errors import ApiError, describe_error
from nanochat.web.guard import Access, Guard
from nanochat.web.openai import build_router
from nanochat.web.openapi import describe_api
from nanochat.web.pages import build_page_router
from nanochat.web.service import Service
from nanochat.web.socket import build_socket_router
from nanochat.web.talks import Talks

COUNTED_PATHS = ("/", "/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")


def build_app(service: Service, access: Access | None = None, store: ChatStore | None = None) -> FastAPI:
    """The application over a service, whose engines start and end with it.

    store: of the page's conversations; None keeps them in memory only.
    """
    access = access or Access()
    talks = Talks(service, store or ChatStore(None))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await service.pool.start()
        except Exception as error:
            service.failure = error
            raise
        await talks.start()
        yield
        await talks.stop()
        await service.pool.stop()

    app = FastAPI(title="nanochat", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.talks = talks
    app.openapi = lambda: describe_api(app)
    app.include_router(build_router(service))
    app.include_router(build_socket_router(talks, access.api_key))
    app.include_router(build_page_router())
    app.add_middleware(Guard, access=access, report=lambda path, status: count(service, path, status))

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> JSONResponse:
        state = {
            "status": "stopping" if service.is_stopping else "broken" if service.pool.is_broken else "ok",
            "model": service.name,
            "running": service.pool.num_active - service.pool.num_waiting,
            "waiting": service.pool.num_waiting,
        }
        return JSONResponse(state, 200 if state["status"] == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(write_metrics(service), media_type="text/plain; version=0.0.4")

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.to_dict(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path[:200]}"
        message = f"there is no {what} here" if error.status_code in (404, 405) else str(error.detail)
        return JSONResponse(describe_error(error.status_code, message), error.status_code, error.headers)

    return app


def count(service: Service, path: str, status: int) -> None:
    """Count an answer, with one label for all paths that are not there."""
    service.count(path if path in COUNTED_PATHS else "other", status)


def write_metrics(service: Service) -> str:
    """Prometheus' text format (version 0.0.4)."""
    counters, pool = service.counters, service.pool
    rows: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
        (
            "requests_total",
            "counter",
            "HTTP answers by path and status.",
            [(f'{{path="{path}",status="{code}"}}', n) for (path, code), n in sorted(counters.requests.items())],
        ),
        ("answers_total", "counter", "Answers that got a first token.", [("", counters.num_answers)]),
        ("tokens_total", "counter", "Tokens of answers.", [("", pool.num_tokens)]),
        ("engine_failures_total", "counter", "Engines that broke and were started again.", [("", pool.num_failures)]),
        (
            "first_token_seconds",
            "summary",
            "From a request to its first token.",
            [("_sum", f"{counters.first_token_seconds:.6f}"), ("_count", counters.num_answers)],
        ),
        ("requests_running", "gauge", "Requests in a slot.", [("", pool.num_active - pool.num_waiting)]),
        ("requests_waiting", "gauge", "Requests without a slot.", [("", pool.num_waiting)]),
        ("uptime_seconds", "gauge", "Since the start.", [("", f"{time.time() - counters.started:.1f}")]),
    ]
    lines = []
    for name, kind, help, values in rows:
        lines += [f"# HELP nanochat_{name} {help}", f"# TYPE nanochat_{name} {kind}"]
        lines += [f"nanochat_{name}{label} {value}" for label, value in values]
    return "\n".join(lines) + "\n"
