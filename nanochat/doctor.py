"""What this machine can do: findings with the command that mends each. Prints nothing; loads torch only when asked.

Every check is a function of its own, so that one broken driver does not hide the other findings.
"""

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.report.environment import cpu_name, gpu_names, memory_bytes, package_version, usable_cores

Status = Literal["ok", "warn", "fail"]

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 9)
DEMO_DISK_BYTES = 2 * 10**9
"""The demo run with its checkpoints takes well under this."""
DEMO_MEMORY_BYTES = 4 * 10**9
CUDA_INSTALL = "pip install --upgrade torch"
MEND_TOKENIZER = "pip install --force-reinstall --no-deps -e .  # in the folder of the project; needs Rust"


@dataclass(frozen=True)
class Finding:
    """One fact about the machine. fix: the command that mends it, "" where nothing needs mending."""

    name: str
    status: Status
    message: str
    fix: str = ""


def examine_machine(home: Path) -> tuple[Finding, ...]:
    """Run every check. home: $NANOCHAT_HOME, which need not exist yet."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("python", check_python),
        ("cores", check_cores),
        ("memory", check_memory),
        ("home", lambda: check_home(home)),
        ("disk", lambda: check_disk(home)),
        ("tokenizer", check_tokenizer),
        ("torch", check_torch),
        ("accelerator", check_accelerator),
        ("dtype", check_dtype),
        ("compile", check_compile),
    )
    return tuple(_guard(name, check) for name, check in checks)


def worst_status(findings: tuple[Finding, ...]) -> Status:
    """ "fail" where anything failed, else "warn" where anything is slower than it could be, else "ok"."""
    order: tuple[Status, ...] = ("ok", "warn", "fail")
    return order[max((order.index(finding.status) for finding in findings), default=0)]


def check_python(version: tuple[int, int, int] | None = None) -> Finding:
    version = version or sys.version_info[:3]
    shown = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Finding("python", "fail", f"{shown} is older than {oldest}", f"install Python {oldest} or newer")
    return Finding("python", "ok", shown)


def check_cores() -> Finding:
    cores = usable_cores()
    if cores < 2:
        return Finding("cores", "warn", f"{cores} core ({cpu_name()}): the demo takes about twice as long as on two")
    return Finding("cores", "ok", f"{cores} cores ({cpu_name()})")


def check_memory() -> Finding:
    size = memory_bytes()
    if size is None:
        return Finding("memory", "warn", "the system does not say how much memory there is")
    if size < DEMO_MEMORY_BYTES:
        fix = "nanochat plan --preset demo  # shows what fits; lower batch.device_batch_size with --set"
        return Finding("memory", "warn", f"{_gigabytes(size)}: the demo wants {_gigabytes(DEMO_MEMORY_BYTES)}", fix)
    return Finding("memory", "ok", _gigabytes(size))


def check_home(home: Path) -> Finding:
    """Writable, or its nearest existing parent is; nothing is created."""
    parent, fix = _existing(home), "nanochat doctor --home DIR  # or set NANOCHAT_HOME"
    if not parent.is_dir():
        return Finding("home", "fail", f"{parent} is not a folder", fix)
    if not os.access(parent, os.W_OK | os.X_OK):
        return Finding("home", "fail", f"{parent} is not writable", fix)
    return Finding("home", "ok", f"{home}" if parent == home else f"{home} (will be created)")


def check_disk(home: Path) -> Finding:
    free = shutil.disk_usage(_existing(home)).free
    if free < DEMO_DISK_BYTES:
        message = f"{_gigabytes(free)} free at {home}: the demo wants {_gigabytes(DEMO_DISK_BYTES)}"
        return Finding("disk", "fail", message, "nanochat runs rm RUN  # or --home DIR on a larger disk")
    return Finding("disk", "ok", f"{_gigabytes(free)} free")


def check_tokenizer() -> Finding:
    """The Rust extension loads."""
    if importlib.util.find_spec("nanochat._rustbpe") is None:
        return Finding("tokenizer", "fail", "the Rust tokenizer is not built", MEND_TOKENIZER)
    try:
        importlib.import_module("nanochat._rustbpe")
    except ImportError as error:
        return Finding("tokenizer", "fail", f"the Rust tokenizer does not load: {error}", MEND_TOKENIZER)
    return Finding("tokenizer", "ok", "the Rust tokenizer loads")


def check_torch() -> Finding:
    version = package_version("torch")
    if version is None:
        return Finding("torch", "fail", "PyTorch is not installed", "pip install torch")
    if parse_version(version) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return Finding("torch", "fail", f"{version} is older than {oldest}", f"pip install 'torch>={oldest}'")
    import torch  # noqa: F401  (an installation that does not load is a finding)

    return Finding("torch", "ok", version)


def check_accelerator() -> Finding:
    """A GPU machine whose PyTorch cannot use the GPU is the costliest mistake."""
    import torch

    num_usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return judge_accelerator(
        gpus=gpu_names(),
        cuda_build=torch.version.cuda or torch.version.hip,
        usable=[torch.cuda.get_device_name(i) for i in range(num_usable)],
        has_mps=torch.backends.mps.is_available(),
        has_amd=Path("/dev/kfd").exists(),
    )


def judge_accelerator(
    gpus: list[str], cuda_build: str | None, usable: list[str], has_mps: bool = False, has_amd: bool = False
) -> Finding:
    """gpus: what the driver lists. cuda_build: the toolkit PyTorch was built for. usable: what PyTorch can use."""
    if usable:
        return Finding("accelerator", "ok", f"{len(usable)} x {usable[0]}")
    if gpus and cuda_build is None:
        message = f"{len(gpus)} x {gpus[0]}, but this PyTorch is built for the CPU only"
        return Finding("accelerator", "fail", message, CUDA_INSTALL)
    if gpus:
        message = f"{len(gpus)} x {gpus[0]}, but PyTorch (built for {cuda_build}) cannot use it"
        return Finding(
            "accelerator", "fail", message, "nvidia-smi  # the driver may be too old: compare its CUDA version"
        )
    if has_amd:
        fix = "install the ROCm build of PyTorch: see pytorch.org/get-started"
        return Finding("accelerator", "warn", "an AMD GPU that this PyTorch cannot use", fix)
    if has_mps:
        return Finding("accelerator", "ok", "Apple GPU (mps)")
    return Finding(
        "accelerator", "warn", "no GPU: `demo` runs in minutes, larger presets need one", "nanochat run --preset demo"
    )


def check_dtype() -> Finding:
    from nanochat.runtime import pick_device, pick_dtype

    dtype, reason = pick_dtype("auto", pick_device("auto"))
    return Finding("dtype", "ok", f"{str(dtype).removeprefix('torch.')}: {reason}")


def check_compile() -> Finding:
    from nanochat.runtime import can_compile

    able, reason = can_compile()
    if able:
        return Finding("compile", "ok", f"torch.compile has a compiler: {reason}")
    return Finding("compile", "warn", f"torch.compile is off, training is slower: {reason}", _compiler_command(reason))


def parse_version(version: str) -> tuple[int, int]:
    """
    >>> parse_version("2.15.0+cpu"), parse_version("2.9.1rc2")
    ((2, 15), (2, 9))
    """
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int("".join(char for char in minor if char.isdigit()))


def _guard(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except ModuleNotFoundError as error:
        fix = "pip install torch" if error.name == "torch" else ""
        return Finding(name, "fail", f"cannot be checked: {error}", fix)
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # a broken driver or library is a finding
        return Finding(name, "fail", f"cannot be checked: {error}", "")


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _compiler_command(reason: str) -> str:
    """The package that holds the compiler, or Python's headers where those are what is missing."""
    if sys.platform == "darwin":
        return "xcode-select --install"
    headers = "Python.h" in reason
    for tool, compiler, python in (("apt-get", "g++", "python3-dev"), ("dnf", "gcc-c++", "python3-devel")):
        if shutil.which(tool):
            return f"sudo {tool} install {python if headers else compiler}"
    return "install the headers of this Python" if headers else "install a C++ compiler"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
