"""Answers of the small hub of hub_server.py, good and bad."""

import email.utils
import gzip
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tests.patience import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.hub_server import HubServer

FAULTS = (
    "refuse",  # closes before an answer
    "reset",  # half of the body, then a reset
    "cut",  # half of the body, then the end
    "announces_more",  # a length that is never reached
    "announces_less",  # a length that is too short
    "wrong_bytes",
    "more_bytes",  # chunked, longer than it should be
    "rate_limited",  # 429 with Retry-After in seconds
    "rate_limited_date",  # 429 with Retry-After as a date
    "error_500",
    "error_502",
    "error_503",
    "error_504",
    "redirect",  # to the right place: no fault, but a detour
    "redirect_loop",
    "slow",  # drips, and does not end
    "hang",  # no answer at all
    "stall",  # half of the body, then nothing
    "no_headers",  # no ETag, no commit
    "html",  # a page of a captive portal, with 200
    "empty",
    "half_json",  # a listing that is cut but announces its length
    "ignores_range",
    "other_range",
    "no_range",  # 416
    "compressed",
    "garbage",  # not HTTP
    "forbidden_link",  # a redirect to an address that has expired: 403
)
"""Each kind of bad answer. Those of a body leave a listing as it is where they mean nothing there."""
ENDLESS = ("slow", "hang", "stall")
"""Those that a patient client would wait for."""


class Answers(BaseHTTPRequestHandler):
    """One connection: how an answer is sent, or spoilt."""

    protocol_version = "HTTP/1.1"
    server: "HubServer"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def deliver(self, status: int, body: bytes, headers: dict[str, str], fault: str | None) -> None:
        if self.command == "HEAD":
            return self.reply(status, body, headers)
        half = body[: len(body) // 2]
        if fault in (None, "half_json", "no_headers", "ignores_range", "other_range"):
            self.reply(status, body, headers)
        elif fault == "no_range":
            self.reply(416, b"", {})
        elif fault in ("refuse", "garbage"):
            self.connection.sendall(b"" if fault == "refuse" else b"\x16\x03\x01 what is this\r\n\r\n")
            self.close_connection = True
        elif fault in ("reset", "cut", "stall"):
            self.head(status, {**headers, "Content-Length": str(len(body))})
            self.wfile.write(half)
            self.wfile.flush()
            if fault == "stall":
                self.server.closing.wait(PATIENCE_SECONDS)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            self.close_connection = True
        elif fault == "announces_more":
            self.head(status, {**headers, "Content-Length": str(len(body) + 1_000)})
            self.wfile.write(body)
            self.close_connection = True
        elif fault == "announces_less":
            self.reply(status, half, headers)
        elif fault == "wrong_bytes":
            self.reply(status, bytes(byte ^ 1 for byte in body), headers)
        elif fault == "more_bytes":
            self.send_chunked(status, body + b"more", headers)
        elif fault in ("rate_limited", "rate_limited_date"):
            seconds = self.server.retry_after
            date = email.utils.formatdate(time.time() + seconds, usegmt=True)
            self.reply(429, b"", {"Retry-After": str(seconds) if fault == "rate_limited" else date})
        elif fault.startswith("error_"):
            self.reply(int(fault.removeprefix("error_")), b"<h1>sorry</h1>", {"Content-Type": "text/html"})
        elif fault in ("redirect", "redirect_loop"):
            detour = f"{self.path}{'&' if '?' in self.path else '?'}detour=1"
            origin = self.server.elsewhere or self.server.url
            self.reply(302, b"", {"Location": origin + (detour if fault == "redirect" else "/loop")})
        elif fault == "forbidden_link":
            self.reply(302, b"", {"Location": f"{self.server.url}/expired"})
        elif fault == "slow":
            self.head(status, {**headers, "Content-Length": str(len(body))})
            for index in range(len(body)):
                self.wfile.write(body[index : index + 1])
                self.wfile.flush()
                if self.server.closing.wait(self.server.tick_seconds):
                    break
            self.close_connection = True
        elif fault == "hang":
            self.server.closing.wait(PATIENCE_SECONDS)
            self.close_connection = True
        elif fault == "html":
            self.reply(200, b"<html>Sign in to the network</html>", {"Content-Type": "text/html; charset=utf-8"})
        elif fault == "empty":
            self.reply(200, b"", headers)
        elif fault == "compressed":
            self.reply(status, gzip.compress(body), {**headers, "Content-Encoding": "gzip"})
        else:
            raise AssertionError(fault)

    def send_chunked(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.head(status, {**headers, "Transfer-Encoding": "chunked"})
        for start in range(0, len(body), 65_536):
            piece = body[start : start + 65_536]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.head(status, {**headers, "Content-Length": str(len(body))})
        if self.command == "HEAD":
            return
        rate = self.server.bytes_per_second
        piece = max(1, min(65_536, int(rate / 20)))
        for start in range(0, len(body), piece) if rate else ():
            self.wfile.write(body[start : start + piece])
            self.server.closing.wait(piece / rate)
        if not rate:
            self.wfile.write(body)
