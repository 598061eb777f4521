"""What stands before every route: who may ask, from which page, and how much.

Host and Origin are checked against DNS rebinding and pages of other sites (OWASP, "Cross-Site WebSocket Hijacking"): a
browser sends both, and neither can be forged by a page. Pages that may ask are told so as a browser expects it (WHATWG
Fetch, "CORS protocol"; WICG, "Private Network Access").
"""

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.web.errors import ApiError
from nanochat.web.sse import within

LOG = logging.getLogger("nanochat.web")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
BODY_SECONDS = 30.0
"""For a client to send the next part of a body."""
OPEN_PATHS = ("/", "/health", "/talk")
"""Answered without a key, as all below /page/ is: the page asks for one and sends it in its socket's first frame."""

MOST_TOLD = 20
"""Refusals of hosts and pages that are logged, each once."""
PREFLIGHT_SECONDS = 7200
"""For which a browser need not ask again whether it may ask: as long as Chromium takes."""

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
    """hosts: names that a Host header may have; None allows all. origins: pages of other sites that may ask; "*" all.

    root_path: what stands before the paths of this server behind a proxy, such as /llm; the proxy may leave it there.
    """

    hosts: Collection[str] | None = LOOPBACK
    origins: Collection[str] = ()
    api_key: str = ""
    max_body_bytes: int = 8 << 20
    root_path: str = ""

    def lets_in(self, origin: str | None) -> bool:
        """Whether a page of another site may ask."""
        return origin is not None and (origin in self.origins or "*" in self.origins)


class Guard:
    """Middleware that refuses before a route sees anything. report: told the path and status of every answer."""

    def __init__(self, app: ASGIApp, access: Access, report: Callable[[str, int], None]) -> None:
        self.app, self.access, self.report = app, access, report
        self._told: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        path = self._find_path(scope)
        scope = {**scope, "root_path": self.access.root_path, "path": self.access.root_path + path}
        asked = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        is_http = scope["type"] == "http"
        is_preflight = is_http and scope["method"] == "OPTIONS" and "access-control-request-method" in asked
        more = self._tell_browser(asked, is_preflight)
        started = False

        async def send_and_tell(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.report(path, message["status"])
                headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in (HEADERS | more).items()]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        received, is_whole = 0, not is_http

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
            self._check_page(path, asked)
            if is_preflight:  # a browser asks whether a page may ask, and sends no key
                await _answer(send_and_tell, 204, {}, b"")
            elif is_http and not path:
                await _answer(send_and_tell, 308, {"location": f"{self.access.root_path}/"}, b"")
            else:
                self._check_request(path, asked)
                await self.app(scope, receive_some, send_and_tell)
        except ApiError as error:
            if started:
                raise
            if error.status == 403 and error.message not in self._told and len(self._told) < MOST_TOLD:
                self._told.add(error.message)  # a browser tells its page nothing of why a socket was refused
                LOG.warning("refused: %s", error.message)
            await _refuse(scope, error, send_and_tell)
        except ClientDisconnect:
            pass
        except Exception as bug:
            LOG.error("a bug", exc_info=bug)
            if started or scope["type"] == "websocket":
                raise
            await _refuse(scope, ApiError(500, f"a bug of the server: {type(bug).__name__}"), send_and_tell)

    def _find_path(self, scope: Scope) -> str:
        """The path without what stands before it behind a proxy; "" where a slash is missing."""
        root, path = self.access.root_path, scope["path"]
        if path.startswith(("http://", "https://")):  # as a client of a proxy asks (RFC 9112, 3.2.2)
            path = "/" + path.split("/", 3)[3] if path.count("/") > 2 else "/"
        return path.removeprefix(root) if root and (path == root or path.startswith(f"{root}/")) else path

    def _tell_browser(self, asked: dict[str, str], is_preflight: bool) -> dict[str, str]:
        """Headers for a browser, whose page of another site may read the answer."""
        origin = asked.get("origin")
        found = {"Vary": "Origin"} if self.access.origins else {}
        if not self.access.lets_in(origin) or origin is None:
            return found
        found |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": "Retry-After"}
        if is_preflight:
            found["Access-Control-Allow-Methods"] = "GET, HEAD, POST"
            found["Access-Control-Allow-Headers"] = asked.get("access-control-request-headers", "")
            found["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
            if asked.get("access-control-request-private-network") == "true":
                found["Access-Control-Allow-Private-Network"] = "true"
        return found

    def _check_page(self, path: str, headers: dict[str, str]) -> None:
        """Raises ApiError for a host or a page that may not ask.

        The files of the page hold nothing secret: behind a proxy that changes Host they load, and say nobody answers.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _name_of(f"//{host}")
        if self.access.hosts is not None and name not in self.access.hosts:
            said = f"this server does not answer for the host {host[:100]!r}"
            raise ApiError(403, said + _suggest("--allow-host", name), code="host_not_allowed")
        if (
            origin is not None
            and not path.startswith("/page/")
            and not self.access.lets_in(origin)
            and origin not in (f"http://{host}", f"https://{host}")
        ):
            said = f"pages of {origin[:100]!r} may not use this server"
            raise ApiError(403, said + _suggest("--allow-origin", origin), code="origin_not_allowed")

    def _check_request(self, path: str, headers: dict[str, str]) -> None:
        """Raises ApiError for a key that is missing or wrong, and for a body that is too large."""
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


def _suggest(option: str, value: str | None) -> str:
    """How whoever runs the server lets it in, such as a container that reaches it as host.docker.internal.

    >>> _suggest("--allow-host", "host.docker.internal")
    ': nanochat serve --allow-host host.docker.internal'
    """
    return (
        f": nanochat serve {option} {value}" if value and re.fullmatch(r"[\w.:/\[\]-]{1,200}", value, re.ASCII) else ""
    )


async def _refuse(scope: Scope, error: ApiError, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.message[:100]})
        return
    headers = {"content-type": "application/json", **error.headers}
    await _answer(send, error.status, headers, json.dumps(error.to_dict()).encode())


async def _answer(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    length = {} if status == 204 else {"content-length": str(len(body))}
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers | length).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
