"""What stands before every route: who may ask, from which page, and how much.

Host and Origin are checked against DNS rebinding and pages of other sites (OWASP, "Cross-Site WebSocket Hijacking"): a
browser sends both, and neither can be forged by a page.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.web.errors import ApiError
from nanochat.web.sse import within

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BODY_SECONDS = 30.0
"""For a client to send the next part of a body."""
OPEN_PATHS = ("/", "/health", "/talk")
"""Answered without a key, as all below /page/ is: the page asks for one and sends it in its socket's first frame."""

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types nanochat"
    ),
}


@dataclass(frozen=True)
class Access:
    """hosts: names that a Host header may have; None allows all. origins: pages of other sites that may ask."""

    hosts: Collection[str] | None = LOOPBACK
    origins: Collection[str] = ()
    api_key: str = ""
    max_body_bytes: int = 8 << 20


class Guard:
    """Middleware that refuses before a route sees anything. report: told the path and status of every answer."""

    def __init__(self, app: ASGIApp, access: Access, report: Callable[[str, int], None]) -> None:
        self.app, self.access, self.report = app, access, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        started = False

        async def send_and_tell(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.report(path, message["status"])
                headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        received, is_whole = 0, scope["type"] != "http"

        async def receive_some() -> Message:
            nonlocal received, is_whole
            try:
                # Only for the rest of a body: afterwards whoever asks waits for the client to leave.
                message = await (receive() if is_whole else within(BODY_SECONDS, receive()))
            except asyncio.TimeoutError:
                raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
            is_whole = is_whole or not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self.access.max_body_bytes:
                raise _too_large(self.access.max_body_bytes)
            return message

        try:
            self._check(scope)
            await self.app(scope, receive_some, send_and_tell)
        except ApiError as error:
            if started:
                raise
            await _refuse(scope, error, send_and_tell)

    def _check(self, scope: Scope) -> None:
        """Raises ApiError."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.access.hosts is not None and _name_of(f"//{host}") not in self.access.hosts:
            raise ApiError(403, f"this server does not answer for the host {host[:100]!r}", code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and origin not in self.access.origins and urlsplit(origin).netloc != host:
            raise ApiError(403, f"pages of {origin[:100]!r} may not use this server", code="origin_not_allowed")
        path = scope["path"]
        if self.access.api_key and path not in OPEN_PATHS and not path.startswith("/page/"):
            kind, _, key = headers.get("authorization", "").partition(" ")
            good = secrets.compare_digest(key.strip().encode("latin-1"), self.access.api_key.encode())
            if kind.lower() != "bearer" or not good:
                raise ApiError(401, "this server needs an API key: Authorization: Bearer KEY", code="invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.access.max_body_bytes:
            raise _too_large(self.access.max_body_bytes)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit:,} bytes", code="body_too_large")


def _name_of(address: str) -> str | None:
    """
    >>> _name_of("//[::1]:8000"), _name_of("//LOCALHOST:1"), _name_of("//a:b:c")
    ('::1', 'localhost', None)
    """
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises for what is no number
        return parts.hostname
    except ValueError:
        return None


async def _refuse(scope: Scope, error: ApiError, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:100]})
        return
    body = json.dumps(error.to_dict()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
