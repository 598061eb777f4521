"""GPUs: whether PyTorch can use them, whether the driver is new enough, and who else is on them.

Asks the driver's own tool. Source of the driver's rules: NVIDIA, CUDA compatibility guide, minor version compatibility.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nanochat.doctor.finding import Finding
from nanochat.machine import gpu_names

CUDA_INSTALL = "pip install --upgrade torch"
BUSY_SHARE = 0.05
"""Of a GPU's memory: a driver keeps less than this for itself."""
TOOL_SECONDS = 15.0


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi sees it; sizes in MiB, pids of other processes that hold its memory."""

    index: int
    total: int
    used: int
    pids: tuple[int, ...] = ()


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


def check_driver() -> Finding:
    import torch

    return judge_driver(read_driver_cuda(_ask("nvidia-smi")), torch.version.cuda, torch.cuda.is_available())


def read_driver_cuda(text: str) -> tuple[int, int] | None:
    """The newest CUDA that the driver speaks, from the head of nvidia-smi; None where it does not say.

    >>> read_driver_cuda("| NVIDIA-SMI 570.86   Driver Version: 570.86   CUDA Version: 12.8  |")
    (12, 8)
    """
    match = re.search(r"CUDA(?: \w+)? Version\s*:\s*(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def judge_driver(driver: tuple[int, int] | None, build: str | None, usable: bool) -> Finding:
    """driver: the newest CUDA that it speaks. build: the CUDA that PyTorch was built for, None without CUDA."""
    if driver is None:
        return Finding("driver", "ok", "no NVIDIA driver" if not usable else "works; its version is not told")
    shown = ".".join(map(str, driver))
    if build is None:
        return Finding("driver", "ok", f"speaks CUDA {shown}; this PyTorch has no CUDA")
    major = int(build.split(".")[0])
    if driver[0] < major and not usable:
        message = f"speaks CUDA {shown}, but this PyTorch is built for {build}"
        wheel = "cu126" if driver[0] == 12 else ""  # the oldest CUDA 12 that PyTorch 2.9 and newer are built for
        fix = f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{wheel}"
        return Finding("driver", "fail", message, f"{fix}  # or update it" if wheel else "update the NVIDIA driver")
    older = driver < tuple(int(part) for part in build.split(".")[:2])
    note = ": older, but the same major version, which is enough" if older and driver[0] == major else ""
    return Finding("driver", "ok", f"speaks CUDA {shown}, PyTorch is built for {build}{note}")


def check_gpu_memory() -> Finding:
    gpus = parse_gpus(
        _ask("nvidia-smi", "--query-gpu=index,uuid,memory.total,memory.used", "--format=csv,noheader,nounits"),
        _ask("nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader,nounits"),
        os.getpid(),
    )
    return judge_gpu_memory(gpus)


def parse_gpus(gpus: str, processes: str, own: int = 0) -> tuple[Gpu, ...]:
    """Join the two lists of nvidia-smi; a GPU that shares the machine's memory has no sizes and is left out.

    >>> parse_gpus("0, GPU-a, 81559, 1024", "GPU-a, 4711")
    (Gpu(index=0, total=81559, used=1024, pids=(4711,)),)
    """
    holders: dict[str, list[int]] = {}
    for line in processes.splitlines():
        uuid, _, pid = (part.strip() for part in line.partition(","))
        if pid.isdigit() and int(pid) != own:
            holders.setdefault(uuid, []).append(int(pid))
    found = []
    for line in gpus.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and all(parts[i].isdigit() for i in (0, 2, 3)):
            found.append(Gpu(int(parts[0]), int(parts[2]), int(parts[3]), tuple(holders.get(parts[1], ()))))
    return tuple(found)


def judge_gpu_memory(gpus: tuple[Gpu, ...]) -> Finding:
    if not gpus:
        return Finding("gpu memory", "ok", "no GPU memory of its own to share")
    busy = [gpu for gpu in gpus if gpu.used > BUSY_SHARE * gpu.total]
    total = sum(gpu.total for gpu in gpus)
    if not busy:
        free = ", free" if len(gpus) == 1 else f" on {len(gpus)} GPUs, all free"
        return Finding("gpu memory", "ok", f"{total / 1024:.0f} GiB{free}")
    parts, pids = [], []
    for gpu in busy:
        by = f" by process {', '.join(map(str, gpu.pids))}" if gpu.pids else " by a process that is not told"
        parts.append(f"GPU {gpu.index}: {gpu.used / 1024:.0f} of {gpu.total / 1024:.0f} GiB in use{by}")
        pids += [pid for pid in gpu.pids if pid not in pids]
    others = [gpu.index for gpu in gpus if gpu not in busy]
    if pids:
        fix = f"ps -o user,etime,args -p {','.join(map(str, pids))}  # then kill what is yours and forgotten"
    elif others:
        fix = f"CUDA_VISIBLE_DEVICES={','.join(map(str, others))} nanochat doctor  # only the free GPUs"
    else:
        fix = "nvidia-smi"
    return Finding("gpu memory", "warn", "; ".join(parts), fix)


def _ask(tool: str, *options: str) -> str:
    """What a tool prints; "" where it is not there or does not answer."""
    path = shutil.which(tool)
    if path is None:
        return ""
    try:
        done = subprocess.run([path, *options], capture_output=True, text=True, timeout=TOOL_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
