"""What runs in the closed process: a program's function that answers calls, or the test that makes them.

    python -I -S -c BOOT FOLDER ROLE PARENT CPU_SECONDS MEMORY_BYTES [more of the role's]

First the process is closed, then `{"layers": [...]}` goes to standard output, and only then the code is read from
standard input. Standard library only; knows nothing of the package above this folder.
"""

import builtins
import importlib
import io
import json
import os
import random
import sys
from typing import Any

from nanochat.tools.sandbox.lockdown import close_process, die_with_parent
from nanochat.tools.sandbox.wire import WireError, decode, encode, receive, send

PRELOADED = (
    "array", "binascii", "cmath", "math", "select", "unicodedata", "zlib", "_bisect", "_blake2", "_contextvars",
    "_csv", "_datetime", "_decimal", "_hashlib", "_heapq", "_json", "_md5", "_opcode", "_pickle", "_queue", "_random",
    "_sha1", "_sha2", "_sha256", "_sha3", "_sha512", "_socket", "_statistics", "_struct", "_zoneinfo",
)  # fmt: skip
"""Modules in machine code, which cannot be loaded any more once the process is closed."""


def main() -> None:
    """Close this process and play the role that the command line names."""
    role, parent, cpu_seconds, memory_bytes, *rest = sys.argv[2:]
    if int(parent):
        die_with_parent(int(parent))
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            pass  # another version of Python, or built without it: its own fallback serves
    layers = close_process(int(cpu_seconds), int(memory_bytes))
    os.write(1, json.dumps({"layers": layers}).encode() + b"\n")
    report = 1
    if role == "candidate":
        os.dup2(2, 1)  # whoever reads the report sees its end before any foreign code runs
    else:
        report = os.dup(1)
        os.dup2(2, 1)
    source = json.loads(io.FileIO(0, closefd=False).readall())
    os.dup2(2, 0)
    if role == "candidate":
        serve(source, *map(int, rest))
    elif role == "checker":
        os.write(report, json.dumps(check(source, *map(int, rest))).encode())
    else:
        os.write(report, json.dumps(attempt(source)).encode())
    os._exit(0)


def serve(source: dict[str, str], calls: int, answers: int) -> None:
    """Run a program and let the other side call its function. Nothing here is trusted by anyone."""
    namespace: dict[str, Any] = {"__name__": "__candidate__", "__builtins__": builtins}
    try:
        exec(compile(source["code"], "<program>", "exec"), namespace)
        function = namespace[source["entry_point"]]
    except BaseException as error:
        failed = error
    else:
        failed = None
    while (call := receive(calls)) is not None:
        try:
            if failed is not None:
                raise failed
            args, kwargs = decode(call["args"]), decode(call["kwargs"])
            reply = {"value": encode(function(*args, **kwargs))}
        except BaseException as error:
            reply = {"error": [type(error).__name__, f"{error}"[:500]]}
        send(answers, {"id": call["id"]} | reply)


class CandidateGone(BaseException):
    """The program has ended or broken the protocol; no `except Exception` of a test may swallow it."""


class Candidate:
    """The program's function as a test sees it: a callable whose every value came over the wire."""

    def __init__(self, calls: int, answers: int) -> None:
        self._calls, self._answers = calls, answers
        self.num_calls = 0
        self.gone = ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.gone:
            raise CandidateGone
        self.num_calls += 1
        message = {"id": self.num_calls, "args": encode(args), "kwargs": encode(kwargs)}
        try:
            send(self._calls, message)
            reply = receive(self._answers)
            if reply is None:
                raise WireError("ended")
            if reply.get("id") != self.num_calls:
                raise WireError("an answer to another call")
            if "error" not in reply:
                return decode(reply["value"])
            name, text = reply["error"]
            error = _make_error(name, text)
        except (WireError, TypeError, ValueError, KeyError) as broken:
            self.gone = f"{broken}" or type(broken).__name__
            raise CandidateGone from broken
        raise error


def _make_error(name: str, text: str) -> Exception:
    """The built-in exception of that name, or a RuntimeError."""
    kind = getattr(builtins, f"{name}", None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(f"{text}")
        except TypeError:  # UnicodeDecodeError and its like want more
            pass
    return RuntimeError(f"{name}: {text}")


def check(source: dict[str, str], calls: int, answers: int) -> dict[str, Any]:
    """Run a test on the other side's function: passed is True or False, or None where the test itself is broken."""
    random.seed(0)  # some tests draw their inputs
    candidate = Candidate(calls, answers)
    namespace: dict[str, Any] = {"__name__": "__test__"}
    try:
        exec(_compile_open(source["helpers"]), namespace)
        namespace[source["entry_point"]] = candidate
        exec(compile(source["test"], "<test>", "exec"), namespace)
        run = namespace["check"]
    except BaseException as error:
        return {"passed": None, "reason": f"the test cannot be run: {describe(error)}"}
    try:
        run(candidate)
    except CandidateGone:
        pass
    except AssertionError as error:
        return {"passed": False, "reason": f"wrong{f': {error}' if f'{error}' else ''}"[:300]}
    except BaseException as error:
        return {"passed": False, "reason": describe(error)}
    if candidate.gone:
        return {"passed": False, "reason": candidate.gone[:300], "gone": True}
    if not candidate.num_calls:
        return {"passed": None, "reason": "the test never calls the function"}
    return {"passed": True, "reason": ""}


def _compile_open(helpers: str) -> Any:
    """The code of a prompt, whose last function may still lack its body."""
    try:
        return compile(helpers, "<prompt>", "exec")
    except SyntaxError:
        return compile(f"{helpers.rstrip()}\n    pass\n", "<prompt>", "exec")


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def attempt(source: dict[str, str]) -> dict[str, bool]:
    """What this closed process can still do; only harmless things are tried."""
    import _socket

    def execute() -> None:
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)

    attempts = {
        "read files": lambda: os.close(os.open(source["secret"], os.O_RDONLY)),
        "list folders": lambda: os.listdir(os.path.dirname(source["secret"])),
        "write files": lambda: os.close(os.open(source["new"], os.O_WRONLY | os.O_CREAT)),
        "open sockets": lambda: _socket.socket(),
        "start processes": execute,
        "send signals": lambda: os.kill(os.getppid(), 0),
    }
    found = {}
    for name, action in attempts.items():
        try:
            action()
        except OSError:
            found[name] = False
        else:
            found[name] = True
    return found
