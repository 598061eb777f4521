"""The machine: device, dtype, threads, compiler and World; every rank question is answered here.

Knows neither models nor settings. Peak rates are the makers' dense bf16 figures (data sheets).
"""

import contextlib
import os
import re
import shlex
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.errors import NanochatError, UsageError
from nanochat.machine import Rank, usable_cores

T = TypeVar("T")
ALONE = Rank()

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
}
"""Dense bf16 FLOPs a second by words of the device's name; of several that match the longest counts."""
OTHER_RATES = frozenset({"D", "Laptop", "MIG", "Max", "SUPER", "Ti"})
"""Words of devices that are slower or faster than the one whose name they add to."""


@dataclass(frozen=True)
class World:
    """The processes that train together; alone by default."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for the others. Collective: every rank calls this."""
        if self.world_size > 1:
            dist.barrier()

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks, in place. Collective: every rank calls this."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers. Collective: every rank calls this."""
        if self.world_size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def smallest(self, number: int) -> int:
        """The smallest of all ranks' numbers. Collective: every rank calls this."""
        return -self.largest(-number)

    def all_gather(self, value: T) -> list[T]:
        """Every rank's small picklable value, in the order of the ranks. Collective: every rank calls this."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def ask_main(self, question: Callable[[], T]) -> T:
        """Rank 0's answer, on every rank; where it raises a NanochatError, all do. Collective: every rank calls this.

        What lies on a disk is asked so: a network file system shows the same folder at different times.
        """
        answer: T | NanochatError | None = None
        if self.is_main:
            try:
                answer = question()
            except NanochatError as error:
                answer = error
        answer = self.all_gather(answer)[0]
        if isinstance(answer, NanochatError):
            raise answer
        return cast(T, answer)

    def close(self) -> None:
        """Leave the process group. Collective: every rank calls this."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def pick_device(wish: str = "auto") -> torch.device:
    """Turn auto, cpu, cuda or mps into a device. Raises UsageError where the machine has no such device."""
    has_mps = torch.backends.mps.is_available()
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    if wish == "cuda" and not torch.cuda.is_available():
        raise UsageError("runtime.device = cuda, but PyTorch sees no CUDA device here", "nanochat doctor")
    if wish == "mps" and not has_mps:
        raise UsageError("runtime.device = mps, but PyTorch sees no Metal device here", "nanochat doctor")
    if wish not in ("cpu", "cuda", "mps"):
        raise UsageError(f"runtime.device = {wish!r} is none of auto, cpu, cuda, mps", "nanochat doctor")
    return torch.device(wish)


def list_devices(wish: str, count: int) -> list[torch.device]:
    """So many devices of a kind. Raises UsageError where there are fewer; there is one CPU, and one Metal device."""
    first = pick_device(wish)
    here = torch.cuda.device_count() if first.type == "cuda" else 1
    if count > here:
        raise UsageError(f"--gpus {count} is more than the {here} of {first.type} here", f"--gpus {here}")
    return [torch.device("cuda", number) for number in range(count)] if first.type == "cuda" else [first]


def pick_dtype(wish: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Choose the compute type; the second value is the reason, a phrase to print."""
    if wish == "float32":
        return torch.float32, "asked for"
    if wish == "bfloat16":
        return torch.bfloat16, "asked for"
    if wish != "auto":
        raise UsageError(f"runtime.dtype = {wish!r} is none of auto, float32, bfloat16", "nanochat config schema")
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) >= (8, 0):
            return torch.bfloat16, f"compute capability {major}.{minor} has bf16"
        return torch.float32, f"compute capability {major}.{minor} has no bf16"
    if device.type == "cpu":
        flags = read_cpu_flags()
        for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 bf16")):
            if flag in flags:
                return torch.bfloat16, f"this CPU has {name}"
        return torch.float32, "this CPU has neither AMX nor AVX-512 bf16"
    return torch.float32, f"float32 is the safe choice on {device.type}"


def read_cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The feature flags of the first CPU; empty where the system has no such file."""
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def name_device(device: torch.device) -> str:
    """The device in words, for people: `NVIDIA H100 80GB HBM3`, `cpu, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOPs a second for the MFU; None where the accelerator or its rate at this dtype is unknown."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    return find_peak(torch.cuda.get_device_name(device))


def find_peak(name: str) -> float | None:
    """The entry of PEAK_FLOPS whose words stand in a device's name; None if there is none.

    >>> find_peak("NVIDIA A100-SXM4-80GB"), find_peak("NVIDIA RTX A1000")
    (312000000000000.0, None)
    """
    words = re.split(r"[^A-Za-z0-9]+", name)
    if not OTHER_RATES.isdisjoint(words):
        return None
    told = f" {' '.join(words)} "
    found = [part for part in PEAK_FLOPS if f" {part} " in told]
    return PEAK_FLOPS[max(found, key=len)] if found else None


@contextlib.contextmanager
def prepared_process(cache: Path, deterministic: bool, rank: Rank) -> Iterator[None]:
    """Set what counts for a whole worker, and put it back at its end: threads, precision and environment.

    cache: of compiled kernels. deterministic: whether steps will ask for `deterministic_kernels`.
    """
    threads, precision, environ = torch.get_num_threads(), torch.get_float32_matmul_precision(), dict(os.environ)
    torch.set_float32_matmul_precision("high")
    use_all_cores(rank)
    prepare_compile(cache)
    os.environ.setdefault("RAYON_NUM_THREADS", str(torch.get_num_threads()))  # of the tokenizers library
    if deterministic:
        prepare_determinism()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        for name in os.environ.keys() - environ.keys():
            del os.environ[name]
        os.environ.update(environ)


def can_compile() -> tuple[bool, str]:
    """Say whether torch.compile can build kernels here, and why (or why not)."""
    compiler = next((name for name in (os.environ.get("CXX"), "g++", "clang++") if name and shutil.which(name)), None)
    if compiler is None:
        return False, "no C++ compiler (g++ or clang++) on PATH"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return False, f"{header.name} of this Python is not installed"
    if torch.cuda.is_available():  # its kernels take another way
        return True, compiler
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()
    for path in (cache, tempfile.gettempdir(), str(header.parent), str(Path(torch.__file__).parent)):
        if not is_plain_word(path):
            return False, f"the path {path} has a space or a quote, which torch cannot hand to {compiler}"
    return True, compiler


def is_plain_word(path: str) -> bool:
    """Whether a path survives torch, which writes the compiler's command as one text and splits it at spaces.

    >>> is_plain_word("/home/me/.cache"), is_plain_word("/home/me/my models"), is_plain_word("/home/o'neill")
    (True, False, False)
    """
    try:
        return shlex.split(path) == [path]
    except ValueError:  # a quote that does not end
        return False


def prepare_compile(cache: Path) -> None:
    """Keep everything that torch.compile writes in one folder, and point it to the compiler that is there.

    If the compiler cannot be told of the folder, kernels lie where torch puts them by itself: below that of temporary
    files.
    Must run before torch's compiler is imported, which the first optimizer does: it settles its folder then.
    """
    if is_plain_word(str(cache)):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    # The compiler is not asked whether it can do what the CPU can: 5 s of a cold start; where it cannot, we run eager.
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
    compiler = can_compile()[1]
    if "CXX" not in os.environ and compiler == "clang++":
        os.environ["CXX"] = compiler


def prepare_determinism() -> None:
    """Give cuBLAS what `deterministic_kernels` asks of it. Must run before CUDA is used."""
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):  # the two that its manual allows
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"


@contextlib.contextmanager
def deterministic_kernels(wanted: bool = True) -> Iterator[None]:
    """Only kernels that give the same bits every time; an operation that has none raises RuntimeError.

    For a step of training, not for all that a stage does: sampling needs operations that have none.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    # A help against bugs that would cost a pass over memory; a property of the module, which pyright does not see.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def any_kernels() -> Iterator[None]:
    """Within `deterministic_kernels`: all kernels again, for sampling, which needs some that have no other."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


MOST_THREADS = 1024
"""More than any machine has cores; OpenMP dies of numbers like 99,999."""
PRODUCTS_PER_THREAD = 1 << 24
"""Multiplications of a step of inference that are worth one more thread (benchmarks/threads.py)."""


@contextlib.contextmanager
def threads_for(products: int) -> Iterator[None]:
    """As many of torch's threads as a step of inference keeps busy, afterwards as many as before.

    Threads that share a small product spend their time waiting for each other, and beside another program each wait is
    a turn of that program. products: multiplications of the step. The number follows from sizes alone, never from a
    clock: the same seed gives the same text.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 1 + products // PRODUCTS_PER_THREAD))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_all_cores(rank: Rank = ALONE) -> int:
    """Give torch this process's share of the cores; returns the threads.

    OMP_NUM_THREADS wins if set to at most MOST_THREADS; torchrun sets it to 1 by itself, so it says nothing there.
    """
    chosen = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if chosen.isdecimal() and 0 < int(chosen) <= MOST_THREADS and not rank.is_managed:
        torch.set_num_threads(int(chosen))
    else:
        torch.set_num_threads(max(1, usable_cores() // rank.local_world_size))
    return torch.get_num_threads()


def read_environ() -> dict[str, str]:
    """A copy of the environment, for a child process to start from."""
    return dict(os.environ)


def redirect_output(path: Path) -> None:
    """Append what this process prints from now on to a file, whoever prints it: Python, NCCL, a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


def open_terminal(path: str) -> TextIO | None:
    """A stream onto the terminal (or pipe, or file) of the launcher; None where there is none any more."""
    with contextlib.suppress(OSError, ValueError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        return open(descriptor, "w", encoding="utf-8", errors="replace")
    return None


MOST_SECONDS = 1e7  # torch keeps a timeout in nanoseconds of 64 bits


def open_world(device: torch.device, rank: Rank = ALONE, hang_seconds: float = 600) -> World:
    """Join the processes that torchrun started, or be alone. Collective: every rank calls this.

    hang_seconds: after so long the ranks that are waited for are named (launch/watch.py). torch's own limit for a
    collective, which names nobody and aborts, comes later.
    """
    if rank.world_size == 1:
        return World(device=device)
    timeout = timedelta(seconds=min(max(2 * hang_seconds, hang_seconds + 600), MOST_SECONDS))
    if device.type == "cuda":
        if rank.local_rank >= torch.cuda.device_count():
            raise UsageError(
                f"{rank.local_world_size} processes on {torch.cuda.device_count()} GPUs: each process needs its own",
                "nanochat doctor",
            )
        device = torch.device("cuda", rank.local_rank)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    return World(rank.rank, rank.local_rank, rank.world_size, device, rank.local_world_size)
