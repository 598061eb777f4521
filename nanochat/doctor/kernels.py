"""Kernels: which type, which attention and which compiler a training step runs on here, and what is slow and why."""

import shutil
import sys
import warnings
from collections.abc import Sequence

from nanochat.doctor.accelerator import CUDA_INSTALL
from nanochat.doctor.finding import Finding
from nanochat.machine import package_version

FUSED = ("flash", "cuDNN", "efficient")


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


def check_attention() -> Finding:
    from nanochat.runtime import pick_device

    device = pick_device("auto").type
    return judge_attention(device, try_attention() if device == "cuda" else ())


def judge_attention(device: str, working: Sequence[str]) -> Finding:
    """working: which of flash, cuDNN, efficient and math run forward and backward on a CUDA device."""
    if device == "cpu":
        from nanochat.model.attention import CPU_BLOCKS_CONTEXT

        message = f"by blocks up to a context of {CPU_BLOCKS_CONTEXT}, PyTorch's fused CPU kernel beyond"
        return Finding("attention", "ok", message)
    if device != "cuda":
        return Finding("attention", "ok", f"PyTorch's own for {device}")
    fused = [name for name in FUSED if name in working]
    if fused:
        return Finding("attention", "ok", f"fused kernels that run here: {', '.join(fused)}")
    if "math" in working:
        message = "no fused kernel runs: slower, and its memory grows with the square of the context"
        return Finding("attention", "warn", message, CUDA_INSTALL)
    return Finding("attention", "fail", "no attention kernel runs on this GPU", CUDA_INSTALL)


def try_attention() -> list[str]:
    """Run a small causal attention forward and backward with each kernel of a CUDA device; returns what works."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from nanochat.runtime import pick_dtype

    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    device = torch.device("cuda")
    dtype, _ = pick_dtype("auto", device)
    working = []
    for name, backend in backends.items():
        q = torch.randn(1, 2, 128, 128, device=device, dtype=dtype, requires_grad=True)  # (B, H, T, D)
        try:
            with sdpa_kernel(backend), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # each kernel that cannot run says why, at length
                F.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
                torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # this kernel does not know this GPU or this type
            continue
        working.append(name)
    return working


def check_cpu_kernels() -> Finding:
    import torch

    return judge_cpu_kernels(torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.is_available())


def judge_cpu_kernels(capability: str, has_onednn: bool) -> Finding:
    """capability: the vector instructions that PyTorch found, such as AVX512 or DEFAULT."""
    if not has_onednn:
        message = f"{capability}, but this PyTorch is built without oneDNN: matrices are slower on the CPU"
        return Finding("cpu kernels", "warn", message, CUDA_INSTALL)
    if capability in ("NO AVX", "DEFAULT") and not is_arm():
        message = "neither AVX2 nor AVX-512: several times slower on the CPU; a virtual machine may hide them"
        return Finding("cpu kernels", "warn", message, "lscpu  # Flags: avx2, avx512f; choose the host's CPU model")
    return Finding("cpu kernels", "ok", f"{capability}, oneDNN")


def is_arm() -> bool:
    import platform

    return platform.machine().lower() in ("arm64", "aarch64")


def check_triton() -> Finding:
    from nanochat.runtime import pick_device

    return judge_triton(pick_device("auto").type, package_version("triton") or package_version("triton-windows"))


def judge_triton(device: str, version: str | None) -> Finding:
    if version is not None:
        return Finding("triton", "ok", version)
    if device == "cuda":
        message = "not installed: torch.compile cannot build GPU kernels, training is slower"
        return Finding("triton", "warn", message, "pip install triton")
    return Finding("triton", "ok", "not installed; only torch.compile on a GPU needs it")


def _compiler_command(reason: str) -> str:
    """The package that holds the compiler, or Python's headers where those are what is missing."""
    if sys.platform == "darwin":
        return "xcode-select --install"
    headers = "Python.h" in reason
    for tool, compiler, python in (("apt-get", "g++", "python3-dev"), ("dnf", "gcc-c++", "python3-devel")):
        if shutil.which(tool):
            return f"sudo {tool} install {python if headers else compiler}"
    return "install the headers of this Python" if headers else "install a C++ compiler"
