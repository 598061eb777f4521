"""No probe gets out; outside the sandbox the same probes do what they try."""

import json
import os
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.tools.sandbox import probe as isolations
from nanochat.tools.sandbox.grading import Program, Verdict, grade_programs
from nanochat.tools.sandbox.probe import Isolation, measure_isolation
from nanochat.tools.sandbox.process import Limits
from tests.patience import PATIENCE_SECONDS
from tests.tools.sandbox.escapes import HARMLESS, PROBES, PROLOGUE, SYSCALLS
from tests.tools.sandbox.listing import list_sandboxed

pytestmark = pytest.mark.skipif(measure_isolation().level != "strong", reason="this machine cannot close a process")

LIMITS = Limits(cpu_seconds=2, wall_seconds=10)
ATTEMPT = """
def attempt(given):
    try:
        names = {}
        exec(SOURCE, names)
        found = names["probe"](given)
    except BaseException as error:
        return f"stopped: {type(error).__name__}: {error}"[:200]
    return "stopped: nothing was found" if found is False else "got through"
"""
IS_STOPPED = "def check(candidate):\n    assert candidate(GIVEN).startswith('stopped')\n"


@pytest.fixture
def given(tmp_path: Path) -> Iterator[dict]:
    """A world to reach for: a secret, a folder, a server, a local socket, a process."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "scratch").write_text("scratch")
    (folder / "secret").write_text("the secret")
    local = f"/tmp/nanochat-probe-{os.getpid()}"  # short enough for a socket's address
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as near:
        near.bind(local)
        near.listen()
        server.settimeout(0.2)
        stop, visitors = threading.Event(), []

        def answer() -> None:
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                visitors.append(connection.recv(99))
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        values = {"secret": str(folder / "secret"), "folder": str(folder), "socket": local, "victim": victim.pid}
        try:
            yield values | {"port": server.getsockname()[1], "visitors": visitors}
        finally:
            stop.set()
            thread.join()
            victim.kill()
            victim.wait()
            os.unlink(local)


def attempt_of(code: str) -> str:
    return f"SOURCE = {PROLOGUE + code!r}\n{ATTEMPT}"


def run_probes(given: dict, isolation: Isolation) -> dict[str, Verdict]:
    told = {key: value for key, value in given.items() if key != "visitors"}
    programs = [
        Program(attempt_of(code), "attempt", "def attempt(given):\n", IS_STOPPED.replace("GIVEN", repr(told)))
        for code in PROBES.values()
    ]
    return dict(zip(PROBES, grade_programs(programs, isolation, LIMITS), strict=True))


@pytest.mark.parametrize("wrapper", ["by itself", "in bubblewrap"])
def test_no_probe_gets_through(given: dict, wrapper: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(PROBES) >= 120
    if wrapper == "by itself":
        monkeypatch.setattr(isolations, "find_bubblewrap", lambda: ())
    isolation = measure_isolation.__wrapped__()
    if wrapper == "in bubblewrap" and not isolation.wrapper:
        pytest.skip("bubblewrap is not here, or may not make namespaces")
    assert isolation.level == "strong"
    folder, before = Path(given["folder"]), read_folder(Path(given["folder"]))
    verdicts = run_probes(given, isolation)
    # One that the kernel ends is stopped too: for a reason that is not the test's assertion.
    through = {name: v.reason for name, v in verdicts.items() if not v.passed and not v.reason.startswith("was ")}
    assert through == {}
    assert read_folder(folder) == before and not given["visitors"]
    assert not Path("/dev/shm/nanochat-leak").exists()
    os.kill(given["victim"], 0)


def test_outside_the_sandbox_the_harmless_ones_do_get_through(given: dict) -> None:
    told = json.dumps({key: value for key, value in given.items() if key != "visitors"})
    failed = {}
    for name in HARMLESS:
        (Path(given["folder"]) / "scratch").write_text("scratch")
        for made in ("moved", "link", "symlink", "fifo"):
            Path(given["folder"], made).unlink(missing_ok=True)
        code = attempt_of(PROBES[name]) + f"\nimport json\nprint(attempt(json.loads({told!r})))"
        done = subprocess.run(
            [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
        if "got through" not in done.stdout:
            failed[name] = done.stdout + done.stderr[-300:]
    Path("/dev/shm/nanochat-leak").unlink(missing_ok=True)
    assert failed == {}
    assert len(HARMLESS) >= 60 and given["visitors"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86-64's")
def test_system_calls_that_are_not_needed_never_reach_the_kernel() -> None:
    code = PROLOGUE + (
        "def attempt(numbers):\n    reached = []\n    for name, number in numbers.items():\n"
        "        try:\n            call(number, -1, -1, -1, -1, -1, -1)\n            reached.append(name)\n"
        "        except PermissionError: pass\n"
        "        except OSError as error: reached.append(f'{name}: {error}')\n"
        "    return reached\n"
    )
    assert len(SYSCALLS) >= 100
    test = f"def check(candidate):\n    reached = candidate({SYSCALLS!r})\n    assert reached == [], reached\n"
    (verdict,) = grade_programs([Program(code, "attempt", "def attempt(x):\n", test)], measure_isolation(), LIMITS)
    assert verdict.passed, verdict


BOMBS = {
    "memory": "def f(x):\n    held = []\n    while True: held.append(bytearray(1 << 24))",
    "one allocation": "def f(x): return len(bytes(1 << 40))",
    "recursion": "import sys\nsys.setrecursionlimit(1 << 30)\ndef f(x): return f(x)",
    "deep C": "def f(x):\n    v = []\n    for _ in range(10**6): v = [v]\n    return repr(v)",
    "time": "def f(x):\n    while True: pass",
    "time, with every signal ignored": (
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ndef f(x):\n    while True: pass"
    ),
    "output": "def f(x):\n    while True: print('x' * (1 << 20))",
    "replies": "import os\ndef f(x):\n    while True:\n        for fd in range(3, 1024):\n            try: os.write(fd, b'x' * 4096)\n            except OSError: pass",  # noqa: E501
    "processes": "import os\ndef f(x):\n    while True:\n        try: os.fork()\n        except OSError: pass",
    "descriptors": "import os\ndef f(x):\n    while True: os.dup(0)",
    "a number": "def f(x): return 9 ** 9 ** 9",
    "an expression": "import re\ndef f(x): return re.match('(a+)+$', 'a' * 64 + 'b')",
}


def test_bombs_are_contained_and_leave_no_process() -> None:
    test = "def check(candidate):\n    assert candidate(1) == 1\n"
    programs = [Program(code, "f", "def f(x):\n", test) for code in BOMBS.values()]
    before = list_sandboxed()
    verdicts = grade_programs(programs, measure_isolation(), Limits(cpu_seconds=1, wall_seconds=5))
    assert {name: v for name, v in zip(BOMBS, verdicts, strict=True) if v.passed is not False} == {}
    assert list_sandboxed() == before


def read_folder(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mode, path.read_bytes()) for path in folder.iterdir()}
