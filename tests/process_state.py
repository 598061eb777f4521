"""Every test leaves the process as it found it, and this says which one did not: `tests/conftest.py` takes it over.

Looks at the environment, the folder, signal handlers, the flags of torch (once it is loaded), threads and children.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_SECONDS

WRITTEN_BY_OTHERS = ("PYTEST_CURRENT_TEST", "COLUMNS", "LINES", "TORCHINDUCTOR_CACHE_DIR", "_TORCHINDUCTOR_")
"""How variables begin that pytest, a terminal and torch (at its first optimizer, and as it compiles) set themselves."""
SHARED_BY_DESIGN = ("multiprocessing.resource_tracker", "torch/_inductor/compile_worker")
"""Commands of children that a library starts once for a process and ends with it."""
SHARED_THREADS = ("tqdm_monitor", "TMonitor", "SubprocPool", "InductorSubproc", "asyncio_")
"""Parts of the names of such threads; those of an event loop's pool, which begin at need, end with their loop."""

Running = tuple[str, int | None]
"""`thread` or `child`, and its number."""
HELD = pytest.StashKey[set[Running]]()
"""Threads and children that fixtures of more than one test have started, and will end."""

FLAGS: dict[str, Callable[[Any], object]] = {
    "torch.get_num_threads": lambda torch: torch.get_num_threads(),
    "torch.get_default_dtype": lambda torch: torch.get_default_dtype(),
    "torch.get_default_device": lambda torch: torch.get_default_device(),
    "torch.is_grad_enabled": lambda torch: torch.is_grad_enabled(),
    "torch.is_autocast_enabled": lambda torch: torch.is_autocast_enabled("cpu"),
    "torch.get_float32_matmul_precision": lambda torch: torch.get_float32_matmul_precision(),
    "torch.get_deterministic_debug_mode": lambda torch: torch.get_deterministic_debug_mode(),
    "torch.utils.deterministic.fill_uninitialized_memory": lambda torch: (
        torch.utils.deterministic.fill_uninitialized_memory
    ),
    "torch.backends.mkldnn.enabled": lambda torch: torch.backends.mkldnn.enabled,
    "torch.backends.cudnn.benchmark": lambda torch: torch.backends.cudnn.benchmark,
    "torch.backends.cudnn.deterministic": lambda torch: torch.backends.cudnn.deterministic,
    "torch.backends.cuda.flash_sdp_enabled": lambda torch: torch.backends.cuda.flash_sdp_enabled(),
    "torch.backends.cuda.math_sdp_enabled": lambda torch: torch.backends.cuda.math_sdp_enabled(),
    "torch.distributed.is_initialized": lambda torch: torch.distributed.is_initialized(),
}


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """A fixture of several tests may hold threads and children. What is set for all it leaves as it is, too."""
    if fixturedef.scope == "function":
        return (yield)
    settings, running = read_settings(), read_running()
    value = yield
    request.config.stash.setdefault(HELD, set()).update(read_running().keys() - running.keys())
    changes = describe_changes(settings, read_settings())
    assert not changes, f"the fixture {fixturedef.argname!r} changes the process: " + "; ".join(changes)
    return value


@pytest.fixture(autouse=True)
def _leaves_the_process_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that changed what the process shares, or that left something running, with what it was."""
    seed_everything()
    settings, running = read_settings(), read_running()
    yield
    changes = describe_changes(settings, read_settings())
    end = time.monotonic() + (0 if changes else PATIENCE_SECONDS)  # what has done its work takes a moment to end
    while left := read_running().keys() - running.keys() - request.config.stash.get(HELD, set()):
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    changes += [text for key, text in read_running().items() if key in left]
    assert not changes, "the test does not leave the process as it found it: " + "; ".join(changes)


def seed_everything() -> None:
    """The same random numbers for a test, whatever ran before it."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


def read_settings() -> dict[str, object]:
    """What is set for the whole process, by a name to show."""
    found: dict[str, object] = {
        f"the variable {name}": value for name, value in os.environ.items() if not name.startswith(WRITTEN_BY_OTHERS)
    }
    for number in sorted(signal.valid_signals()):
        found[f"the handler of {_name_signal(number)}"] = signal.getsignal(number)
    places = tuple(place for place in sys.path if not place.endswith("_vendor"))  # setuptools adds its own to the end
    found |= {"the working directory": _read_folder(), "sys.path": places, "sys.argv": tuple(sys.argv)}
    if torch := sys.modules.get("torch"):
        found |= {name: read(torch) for name, read in FLAGS.items()}
    return found


def read_running() -> dict[Running, str]:
    """Threads and children of this process, with words to show."""
    found: dict[Running, str] = {}
    for thread in set(threading.enumerate()) - _compiler_threads():
        if not any(part in thread.name or part in type(thread).__name__ for part in SHARED_THREADS):
            found["thread", thread.ident] = f"the thread {thread.name!r}{' (daemon)' * thread.daemon} still runs"
    for pid, command in _list_children():
        if not any(part in command for part in SHARED_BY_DESIGN):
            state = f"{command} still runs" if command else "has ended, but was not waited for"
            found["child", pid] = f"the child {pid} {state}"
    return found


def _compiler_threads() -> set[threading.Thread]:
    """Threads that torch's compiler starts with its first kernel and keeps: a pool without a name of its own."""
    module = sys.modules.get("torch._inductor.async_compile")
    pool = getattr(getattr(module, "AsyncCompile", None), "pool", None)
    return set(pool()._threads) if pool is not None and pool.cache_info().currsize else set()


def describe_changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """A line for each setting that differs. Torch may have been loaded between the two.

    >>> describe_changes({"a": 1, "b": 2}, {"b": 3, "c": 4})
    ['a was 1 and is not there', 'b was 2 and is 3', 'c was not there and is 4']
    """

    def show(values: Mapping[str, object], name: str) -> str:
        return repr(values[name])[:200] if name in values else "not there"

    names = sorted(name for name in before.keys() | after.keys() if name in before or name not in FLAGS)
    return [
        f"{name} was {show(before, name)} and is {show(after, name)}"
        for name in names
        if (name in before) != (name in after) or before.get(name) != after.get(name)
    ]


def _read_folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "a folder that is gone"


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _list_children() -> Iterator[tuple[int, str]]:
    """Process ids and commands, where the system tells (Linux)."""
    for task in Path("/proc/self/task").glob("*/children"):
        try:
            pids = task.read_text().split()
        except OSError:  # the thread has ended
            continue
        for pid in pids:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            yield int(pid), command.strip()[:200]
