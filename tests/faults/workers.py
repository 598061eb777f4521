"""Real training workers at a tenth of a second each: one process imports torch, then forks a worker per attempt.

A worker is `nanochat.stages` in a process of its own that may be killed, sent a signal, or have its k-th write fail
(inject.c). One thread a worker: a fork may not inherit a pool of threads.
"""

import ctypes
import errno
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILL = -1  # instead of an errno: the worker dies in the middle of the k-th call
STAGE = "nanochat.stages.__main__:main"
LASTING = 1000  # added to an errno: every later call fails too


@dataclass(frozen=True)
class Fault:
    """What goes wrong: the k-th call that changes a path with `part` in it; k = 0: nothing, the calls are counted."""

    part: str
    k: int
    error: int = errno.EIO


@dataclass(frozen=True)
class Ended:
    """How a worker ended. status: the exit code, or minus the signal; calls: counted for its Fault."""

    status: int
    said: str
    calls: int


class Workers:
    """The process that forks workers. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(build_shim(folder))}
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *details: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def start(self, arguments: Sequence[str], fault: Fault | None = None, function: str = STAGE) -> int:
        """Call a function with arguments in a new process; returns its id. One at a time: wait before the next."""
        faults = [fault.part, fault.k, fault.error] if fault else None
        order = {"function": function, "arguments": list(arguments), "fault": faults}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> Ended:
        """Wait for the worker's end."""
        answer = self._answer()
        said = (self.folder / "said").read_text(errors="replace")
        return Ended(answer["status"], said, answer["calls"])

    def run(self, arguments: Sequence[str], fault: Fault | None = None, function: str = STAGE) -> Ended:
        """A worker from its start to its end."""
        self.start(arguments, fault, function)
        return self.wait()

    def run_and_kill(self, arguments: Sequence[str], seconds: float) -> Ended:
        """A worker that is killed some seconds after its start, where it has not ended before."""
        pid = self.start(arguments)
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        return self.wait()

    def _answer(self) -> dict:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, f"the process that starts workers ended: {(self.folder / 'said').read_text(errors='replace')}"
        return json.loads(line)


def build_shim(folder: Path) -> Path:
    """Compile inject.c. Raises where there is no compiler."""
    shim = folder / "inject.so"
    compiler = find_compiler()
    assert compiler is not None, "there is no C compiler"
    source = Path(__file__).with_name("inject.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return shim


def find_compiler() -> str | None:
    """A C compiler on PATH."""
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def can_inject() -> bool:
    """Whether faults can be injected here: Linux and a C compiler."""
    return sys.platform == "linux" and find_compiler() is not None


def serve(folder: Path) -> None:
    """Fork a worker per line of stdin; answer with its id and then with its end."""
    from nanochat.machine import end_with_parent

    importlib.import_module(STAGE.partition(":")[0])
    importlib.import_module("torch._dynamo")  # what the first optimizer imports, and the slowest part of a start

    shim = ctypes.CDLL(None)
    shim.inject_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
    shim.inject_count.restype = ctypes.c_long
    calls = folder / "calls"
    for line in sys.stdin:
        order = json.loads(line)
        calls.write_text("0")
        pid = os.fork()
        if pid == 0:
            end_with_parent()
            descriptor = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            status = 1
            try:
                module, _, name = order["function"].partition(":")
                function = getattr(importlib.import_module(module), name)
                if order["fault"]:
                    part, k, error = order["fault"]
                    shim.inject_arm(part.encode(), k, error)
                status = function(order["arguments"])
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                count = shim.inject_count()
                shim.inject_arm(b"", 0, 0)
                calls.write_text(str(count))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(json.dumps({"pid": pid}), flush=True)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"status": status, "calls": int(calls.read_text())}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    serve(Path(sys.argv[1]))
