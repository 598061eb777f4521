"""How well this machine can close a process: measured by closing one and letting it try."""

import functools
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nanochat
from nanochat.errors import UsageError
from nanochat.machine import usable_cores
from nanochat.tools.sandbox.process import ClosedProcess, Limits

Level = Literal["strong", "weak", "none"]
BWRAP_SECONDS = 10


@dataclass(frozen=True)
class Isolation:
    """level: strong where a closed process can do nothing of what is tried, weak where it can and its time and memory
    are limited, none where not even that. layers: what closes it. gaps: what it can do all the same. wrapper: the
    command line that goes before the child's.

    >>> print(Isolation("weak", ("rlimits",), ("read files", "open sockets")))
    weak (rlimits; it can read files, open sockets)
    """

    level: Level
    layers: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()

    @property
    def rank(self) -> int:
        """More is stronger."""
        return ("none", "weak", "strong").index(self.level)

    def __str__(self) -> str:
        gaps = f"; it can {', '.join(self.gaps)}" if self.gaps else ""
        return f"{self.level} ({', '.join(self.layers) or 'no layer'}{gaps})"


@functools.cache
def measure_isolation() -> Isolation:
    """Close a process and let it try. Once per process of ours; 0.1 s."""
    wrapper = find_bubblewrap()
    if wrapper and (found := _measure(wrapper)).level == "strong":
        return found
    return _measure(())


def require_isolation(allow_weak: bool) -> Isolation:
    """What model-written code is run under. Raises UsageError below the strong level, unless that is allowed."""
    return check_isolation(measure_isolation(), allow_weak)


def check_isolation(found: Isolation, allow_weak: bool) -> Isolation:
    """Raise UsageError below the strong level, unless that is allowed."""
    if found.level != "strong" and not allow_weak:
        raise UsageError(
            f"code that a model wrote cannot be closed off well enough on this machine: {found}; it takes Linux from "
            "5.13 with seccomp and Landlock, or with seccomp and bubblewrap",
            "--allow-weak-isolation, where there is nothing to lose; or leave humaneval out of eval.tasks",
        )
    return found


def _measure(wrapper: tuple[str, ...]) -> Isolation:
    with tempfile.TemporaryDirectory(prefix="nanochat-sandbox-") as folder:
        secret, new = Path(folder, "secret"), Path(folder, "new")
        secret.write_text("secret", encoding="utf-8")
        try:
            process = ClosedProcess("probe", wrapper, Limits())
            process.hand_over({"secret": str(secret), "new": str(new)})
            could = process.read_report()
            layers = process.layers
            process.end()
        except OSError:
            return Isolation("none")
    if not could:
        return Isolation("none", tuple(layers))
    gaps = tuple(name for name, done in could.items() if done)
    names = (*layers, "bubblewrap") if wrapper else tuple(layers)
    level = "strong" if not gaps and "rlimits" in layers else "weak" if "rlimits" in layers else "none"
    return Isolation(level, names, gaps, wrapper)


def find_bubblewrap() -> tuple[str, ...]:
    """The command line of bubblewrap around a child, where it is installed and may make namespaces here."""
    program = shutil.which("bwrap") if sys.platform == "linux" else None
    if program is None:
        return ()
    package = Path(nanochat.__file__).parent
    seen = [Path("/lib"), Path("/lib64"), Path("/usr/lib"), Path("/usr/lib64"), Path("/etc/ld.so.cache")]
    seen += [Path(sys.base_prefix), Path(sysconfig.get_path("stdlib")), package]
    binds = [part for path in seen if path.exists() for part in ("--ro-bind", str(path), str(path))]
    command = (program, "--unshare-all", "--die-with-parent", "--new-session", *binds, "--chdir", "/", "--")
    try:
        done = subprocess.run([*command, "/nonexistent"], capture_output=True, timeout=BWRAP_SECONDS, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if "execvp" in done.stderr else ()  # it came as far as starting the program


def num_workers() -> int:
    """Programs that are graded side by side: one a core of this process."""
    return usable_cores()
