"""An OpenAI-compatible server over HTTP: its models, and an answer as events that any thread can break off.

Knows no conversation and loads no torch. Source: OpenAI's API reference.
"""

import asyncio
import json
import re
import shlex
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from nanochat.errors import DataError, MissingError, NanochatError, UsageError
from nanochat.network import client_errors
from nanochat.text import plain_text
from nanochat.tui.events import MAX_EVENT_BYTES, Event, EventReader

CONNECT_SECONDS = 10.0
LIST_SECONDS = 30.0
SILENT_SECONDS = 300.0
"""Without a word of the server, in which it may read a long prompt or wait for a free slot."""
MAX_SAID = 300
"""Characters of a server's own error that are shown."""
EXAMPLE = "nanochat chat --url http://localhost:8000"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServedModel:
    """A model of a server. max_context: in tokens; 0 where the server does not say."""

    id: str
    max_context: int = 0


class Refusal(Exception):
    """What a server answered instead of 200. said: its own words, cleaned. retry_after: seconds, or ""."""

    def __init__(self, status: int, said: str, code: str = "", retry_after: str = "") -> None:
        super().__init__(said)
        self.status, self.said, self.code, self.retry_after = status, said, code, retry_after

    @property
    def is_too_long(self) -> bool:
        """Whether the conversation does not fit into the context; few servers say it with OpenAI's code."""
        words = re.search(r"context (length|size|window)|too many tokens|prompt is too long", self.said, re.IGNORECASE)
        return self.code == "context_length_exceeded" or (self.status in (400, 413, 422) and words is not None)


class Server:
    """Where requests go, and with which key. One thread reads a stream at a time; `stop` may come from any."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url = read_url(url)
        self.host = httpx.URL(self.url).host
        if not (key.isascii() and key.isprintable()):
            raise UsageError("the API key has characters that no header may have", "copy it once more")
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._has_key = bool(key)
        self._task: tuple[asyncio.AbstractEventLoop, asyncio.Task] | None = None

    @property
    def is_local(self) -> bool:
        return self.host in LOOPBACK

    @property
    def leaks_key(self) -> bool:
        """Whether the key goes over a network as it is."""
        return self._has_key and not self.is_local and self.url.startswith("http://")

    def list_models(self) -> list[ServedModel]:
        """What it serves. Raises NanochatError."""
        try:
            with client_errors():
                client = httpx.Client(**self._options())
            with client:
                response = client.get(f"{self.url}/models", timeout=LIST_SECONDS)
        except httpx.HTTPError as error:
            raise self._explain_transport(error) from error
        if response.status_code != 200:
            raise self.explain(read_refusal(response, response.content))
        try:
            rows = response.json()["data"]
            found = [ServedModel(row["id"], read_context(row)) for row in rows if isinstance(row["id"], str)]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._explain_foreign(response) from None
        if not found:
            raise MissingError(f"{self.url} serves no model", "start it with one")
        return found

    def stream(self, body: dict[str, Any], stopped: threading.Event) -> Iterator[dict[str, Any]]:
        """The events of an answer, until it ends or `stop` is called; the connection is closed then.

        Raises Refusal before the first event; NanochatError where the connection cannot be made or is cut.
        """
        loop = asyncio.new_event_loop()  # so that waiting, in whatever state, can be broken off
        events = self._events(body)

        async def step() -> dict[str, Any] | None:
            return await anext(events, None)

        try:
            while True:
                task = loop.create_task(step())
                self._task = loop, task
                if stopped.is_set():
                    task.cancel()
                try:
                    event = loop.run_until_complete(task)
                except asyncio.CancelledError:
                    return
                if event is None:
                    return
                yield event
        finally:
            self._task = None
            for task in asyncio.all_tasks(loop):  # one, where Ctrl-C came while it waited
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    loop.run_until_complete(task)
            loop.run_until_complete(events.aclose())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def stop(self) -> None:
        """Break the running stream off."""
        if (running := self._task) is not None:
            with suppress(RuntimeError):  # it has ended meanwhile
                running[0].call_soon_threadsafe(running[1].cancel)

    def explain(self, refusal: Refusal) -> NanochatError:
        """A refusal as an error with what to do about it."""
        said = f": {refusal.said}" if refusal.said else ""
        if refusal.status in (401, 403):
            what = "does not take this API key" if self._has_key else "wants an API key"
            return UsageError(f"{self.url} {what}{said}", f"NANOCHAT_API_KEY=... nanochat chat --url {self.url}")
        if refusal.status == 404:
            return MissingError(f"{self.url} does not know this{said}", "is it an OpenAI-compatible API? /model lists")
        if refusal.status == 429:
            wait = f"wait {refusal.retry_after} s" if refusal.retry_after else "wait a little"
            return DataError(f"{self.url} is busy or has had enough{said}", f"{wait}, then ask again")
        if 300 <= refusal.status < 400:
            return UsageError(f"{self.url} sends to another address{said}", "give that address with --url")
        if refusal.status >= 500:
            return DataError(
                f"{self.url} failed with status {refusal.status}{said}", "ask again, or see its own output"
            )
        hint = "in the chat, /set shows what is sent with it"
        if "base model" in said:  # of ours
            hint = "nanochat serve RUN/sft  # a model that has learned to chat; or: nanochat chat RUN/base"
        return UsageError(f"{self.url} refused with status {refusal.status}{said}", hint)

    def _options(self) -> dict[str, Any]:
        timeout = httpx.Timeout(30.0, connect=CONNECT_SECONDS, read=SILENT_SECONDS)
        return {"headers": self._headers, "timeout": timeout, "trust_env": not self.is_local}

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        try:
            async with httpx.AsyncClient(**self._options()) as client:
                address = f"{self.url}/chat/completions"
                async with client.stream("POST", address, content=data, headers=headers) as response:
                    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                    if response.status_code != 200:
                        raise read_refusal(response, await self._read_whole(response))
                    if kind == "application/json":  # it streams nothing
                        whole = (await self._read_whole(response)).decode("utf-8-sig", "replace")
                        yield self._parse(Event("", whole))
                        return
                    if kind != "text/event-stream":
                        raise self._explain_foreign(response)
                    reader = EventReader()
                    async for chunk in response.aiter_bytes():
                        for event in reader.feed(chunk):
                            if event.data.strip() == "[DONE]":
                                return
                            if event.data and not event.data.startswith(":"):  # else it keeps the connection open
                                yield self._parse(event)
        except httpx.HTTPError as error:
            raise self._explain_transport(error) from error
        raise DataError(
            f"{self.url} broke off in the middle of the answer", "the same question again; in the chat: /again"
        )

    async def _read_whole(self, response: httpx.Response) -> bytes:
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_EVENT_BYTES:
                raise DataError(f"{self.url} sends an answer without an end", "is it an OpenAI-compatible API?")
        return body

    def _parse(self, event: Event) -> dict[str, Any]:
        try:
            found = json.loads(event.data)
        except (ValueError, RecursionError):
            found = event.data if event.name == "error" else None
        if event.name == "error":
            return found if isinstance(found, dict) and found.get("error") else {"error": found}
        if not isinstance(found, dict):
            raise DataError(f"{self.url} sent an event that is no JSON object", "is it an OpenAI-compatible API?")
        return found

    def _explain_foreign(self, response: httpx.Response) -> NanochatError:
        kind = clean(response.headers.get("content-type", "nothing"), 60)
        return UsageError(
            f"{self.url} is no OpenAI-compatible API: it answers with {kind}", "its address mostly ends with /v1"
        )

    def _explain_transport(self, error: httpx.HTTPError) -> NanochatError:
        reason = clean(str(error) or type(error).__name__, MAX_SAID)
        reason = reason.replace("All connection attempts failed", "nothing answers there")  # several addresses
        name, proxy = ("", "") if self.is_local else find_proxy(self.url)
        is_plain = "WRONG_VERSION_NUMBER" in reason
        if (
            proxy
            and isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError))
            and (proxy.startswith("https://") or not is_plain)  # else the server said it, through the proxy
        ):
            return DataError(
                f"cannot reach {self.url} through the proxy {proxy} of ${name}: {reason}",
                f"no_proxy={self.host} nanochat chat --url {shlex.quote(self.url)}  # without it; or mend ${name}",
            )
        if isinstance(error, httpx.TimeoutException):
            return DataError(f"{self.url} says nothing ({type(error).__name__})", "ask again, or see what it logged")
        if isinstance(error, httpx.ConnectError):
            if is_plain:
                plain = shlex.quote(self.url.replace("https://", "http://", 1))
                return DataError(f"{self.url} does not speak https", f"nanochat chat --url {plain}")
            port = httpx.URL(self.url).port or (443 if self.url.startswith("https") else 80)
            start = f"nanochat serve --port {port}  # in another terminal" if self.is_local else "check the address"
            return DataError(f"cannot reach {self.url}: {reason}", start)
        return DataError(
            f"the connection to {self.url} broke: {reason}", "the same question again; in the chat: /again"
        )


def read_url(text: str) -> str:
    """The address under which /models and /chat/completions lie. Raises UsageError.

    >>> read_url("http://localhost:8000"), read_url("https://a.b/api/v1/chat/completions")
    ('http://localhost:8000/v1', 'https://a.b/api/v1')
    """
    shown = plain_text(text)
    try:
        url = httpx.URL(text.strip())
    except (httpx.InvalidURL, ValueError, TypeError):
        raise UsageError(f"--url {shown!r} is no address", EXAMPLE) from None
    if url.scheme not in ("http", "https") or not url.host:
        guess = "http://localhost:8000" if "://" in shown or not shown.strip() else f"http://{shown.strip()}"
        raise UsageError(f"--url {shown!r} does not begin with http:// or https://", f"nanochat chat --url {guess}")
    if re.search(r"[\s%]", url.host):
        raise UsageError(f"--url {shown!r} is no address", EXAMPLE)
    if url.userinfo:
        raise UsageError("--url has a name or a password in it", "NANOCHAT_API_KEY=... nanochat chat --url URL")
    path = url.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/models")
    path = path if path.endswith("/v1") or path.count("/") > 1 else f"{path}/v1"
    return str(url.copy_with(path=path, query=None, fragment=None))


def find_proxy(url: str) -> tuple[str, str]:
    """The variable (it may be written in capitals) whose proxy an HTTP client takes for an address, and that proxy
    without user and password; two empty strings if it takes none."""
    address, proxies = httpx.URL(url), getproxies()
    if not (proxy_bypass(address.host) or proxy_bypass(address.netloc.decode())):
        for scheme in (address.scheme, "all"):
            if proxies.get(scheme):
                kind, _, place = proxies[scheme].rpartition("://")
                return f"{scheme}_proxy", f"{kind.lower() or 'http'}://{place.rpartition('@')[2]}"
    return "", ""


def read_refusal(response: httpx.Response, content: bytes) -> Refusal:
    """OpenAI's envelope, or whatever stands in its place."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    error = body.get("error", body) if isinstance(body, dict) else None
    said = read_error(error)
    code = error.get("code") if isinstance(error, dict) else None
    if 300 <= response.status_code < 400:
        said = response.headers.get("location", "")
    said = said or response.reason_phrase
    seconds = response.headers.get("retry-after", "")
    return Refusal(
        response.status_code,
        clean(said, MAX_SAID),
        code if isinstance(code, str) else "",
        seconds if re.fullmatch(r"\d{1,6}", seconds) else "",
    )


def read_error(error: Any) -> str:
    """What an error of a server says: OpenAI's `message`, FastAPI's `detail`, FastChat's `text`, or a bare sentence.

    >>> read_error({"message": "no memory"}), read_error("overloaded"), read_error({"detail": [1]}), read_error(None)
    ('no memory', 'overloaded', '[1]', '')
    """
    if isinstance(error, dict):
        error = next((error[name] for name in ("message", "detail", "text") if error.get(name)), "")
    return error if isinstance(error, str) else json.dumps(error) if error else ""


def read_context(row: dict[str, Any]) -> int:
    """How long a served model's context is, under the names that servers use (ours, vLLM, OpenRouter); 0: unknown."""
    for name in ("max_context", "max_model_len", "context_length"):
        value = row.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**40:
            return value
    return 0


def clean(text: str, limit: int | None = None) -> str:
    """Text of a server that is safe to show and to store: no escape sequences, no half surrogate pairs.

    >>> clean("a\\x1b[31mb\\ud800")
    'ab\\ufffd'
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return plain_text(whole)[:limit]
