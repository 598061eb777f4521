"""Python, cores, memory, disk, the tokenizer and torch itself: what every run needs."""

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from nanochat.doctor.finding import Finding, format_gigabytes
from nanochat.errors import UsageError
from nanochat.files import describe_unsynced
from nanochat.machine import cpu_name, gpu_names, memory_bytes, package_version, usable_cores
from nanochat.tools.sandbox.probe import Isolation, measure_isolation

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 9)
DEMO_DISK_BYTES = 2 * 10**9
"""The demo run with its checkpoints takes well under this."""
DEMO_MEMORY_BYTES = 4 * 10**9
SHARED_MEMORY = Path("/dev/shm")
NCCL_SHARED_BYTES = 10**9
"""NCCL's own advice for containers (docs.nvidia.com/deeplearning/nccl, troubleshooting, shared memory)."""
OPEN_FILES = 1024
"""What Linux gives a process unless told otherwise (systemd's soft limit)."""
MEND_TOKENIZER = (
    "pip install --force-reinstall --no-deps -e .  # in the folder of the project; Rust is fetched where it is not"
)

MEND_TEMPORARY = "export TMPDIR=DIR  # a folder that can be written"


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
        return Finding(
            "memory", "warn", f"{format_gigabytes(size)}: the demo wants {format_gigabytes(DEMO_MEMORY_BYTES)}", fix
        )
    return Finding("memory", "ok", format_gigabytes(size))


def check_sandbox(found: Isolation | None = None) -> Finding:
    """found: as measured, by closing a process and letting it try."""
    found = found or measure_isolation()
    if found.level == "strong":
        return Finding("sandbox", "ok", f"{found}: code that a model wrote is closed off")
    fix = "sudo apt-get install bubblewrap" if sys.platform == "linux" and "seccomp" in found.layers else ""
    return Finding("sandbox", "warn", f"{found}: humaneval wants --allow-weak-isolation", fix)


def check_home(home: Path) -> Finding:
    """Writable, or its nearest existing parent is; nothing is created."""
    parent, fix = _existing(home), "nanochat doctor --home DIR  # or set NANOCHAT_HOME"
    if not parent.is_dir():
        return Finding("home", "fail", f"{parent} is not a folder", fix)
    if not os.access(parent, os.W_OK | os.X_OK):
        return Finding("home", "fail", f"{parent} is not writable", fix)
    if warning := describe_unsynced(parent):
        return Finding(
            "home", "warn", warning, "nanochat doctor --home DIR  # on a local disk, for what is irreplaceable"
        )
    return Finding("home", "ok", f"{home}" if parent == home else f"{home} (will be created)")


def check_network() -> Finding:
    """Whether downloads can use what the environment says of proxies, certificates and the hub. Opens no socket."""
    from nanochat.download.hub import Hub

    try:
        Hub()
    except UsageError as error:
        return Finding("network", "warn", f"nothing can be downloaded: {error.message}", error.hint)
    return Finding("network", "ok", "proxies, certificates and the hub's variables can be used")


def check_temporary() -> Finding:
    try:
        return Finding("temporary files", "ok", tempfile.gettempdir())
    except OSError as error:
        return Finding("temporary files", "fail", f"no folder for them can be written: {error}", MEND_TEMPORARY)


def check_variables(misspelt: dict[str, str] | None = None) -> Finding:
    """misspelt: variables of the environment that mean nothing, each with what was probably meant."""
    from nanochat.config.load import find_misspelt

    misspelt = find_misspelt() if misspelt is None else misspelt
    if not misspelt:
        return Finding("variables", "ok", "no NANOCHAT_ variable looks misspelt")
    said = ", ".join(f"{name} (did you mean {meant}?)" for name, meant in misspelt.items())
    fix = "; ".join(f'export {meant}="${name}"; unset {name}' for name, meant in misspelt.items())
    return Finding("variables", "warn", f"no setting: {said}", fix)


def check_disk(home: Path) -> Finding:
    """What is free, and which presets it is enough for."""
    from nanochat.config.load import list_presets, load_settings
    from nanochat.config.plan import plan_base

    needs = {name: plan_base(load_settings(name, environ={})[0]).disk_bytes for name in list_presets()}
    return judge_disk(shutil.disk_usage(_existing(home)).free, needs, home)


def judge_disk(free: int, needs: dict[str, int], home: Path = Path()) -> Finding:
    """needs: bytes of text and checkpoints of each preset, the smallest first."""
    if free < DEMO_DISK_BYTES:
        message = f"{format_gigabytes(free)} free at {home}: the demo wants {format_gigabytes(DEMO_DISK_BYTES)}"
        return Finding("disk", "fail", message, "nanochat runs rm RUN  # or --home DIR on a larger disk")
    wanted = ", ".join(f"{name} {size / 1e9:.0f}" for name, size in needs.items() if size > free)
    short = f"; too little for the text and checkpoints of {wanted} GB" if wanted else ", enough for every preset"
    return Finding("disk", "ok", f"{format_gigabytes(free)} free{short}")


def check_shared_memory() -> Finding:
    """Processes of one machine hand tensors to each other through /dev/shm, which containers make small."""
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", "ok", "this system has no /dev/shm to run out of")
    return judge_shared_memory(shutil.disk_usage(SHARED_MEMORY).free, len(gpu_names()))


def judge_shared_memory(free: int, num_gpus: int) -> Finding:
    if free >= NCCL_SHARED_BYTES or num_gpus < 2:
        return Finding("shared memory", "ok", f"{format_gigabytes(free)} free in {SHARED_MEMORY}")
    message = f"{format_gigabytes(free)} free in {SHARED_MEMORY}: NCCL between {num_gpus} GPUs may need more"
    return Finding("shared memory", "warn", message, "docker run --shm-size=16g ...  # or --ipc=host")


def check_open_files() -> Finding:
    try:
        import resource
    except ModuleNotFoundError:  # not a Unix
        return Finding("open files", "ok", "this system sets no limit")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return judge_open_files(None if limit == resource.RLIM_INFINITY else limit)


def judge_open_files(limit: int | None) -> Finding:
    if limit is None or limit >= OPEN_FILES:
        return Finding("open files", "ok", "no limit" if limit is None else f"up to {limit:,} in a process")
    return Finding("open files", "warn", f"up to {limit:,} in a process: several GPUs may need more", "ulimit -n 65536")


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


def parse_version(version: str) -> tuple[int, int]:
    """
    >>> parse_version("2.15.0+cpu"), parse_version("2.9.1rc2")
    ((2, 15), (2, 9))
    """
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int("".join(char for char in minor if char.isdigit()))


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())
