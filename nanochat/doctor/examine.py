"""Every check in the order in which it is shown."""

from collections.abc import Callable
from pathlib import Path

from nanochat.doctor.accelerator import check_accelerator, check_driver, check_gpu_memory
from nanochat.doctor.finding import Finding, guard
from nanochat.doctor.kernels import check_attention, check_compile, check_cpu_kernels, check_dtype, check_triton
from nanochat.doctor.machine import (
    check_cores,
    check_disk,
    check_home,
    check_memory,
    check_network,
    check_open_files,
    check_python,
    check_sandbox,
    check_shared_memory,
    check_temporary,
    check_tokenizer,
    check_torch,
    check_variables,
)


def examine_machine(home: Path) -> tuple[Finding, ...]:
    """Run every check. home: $NANOCHAT_HOME, which need not exist yet."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("python", check_python),
        ("cores", check_cores),
        ("memory", check_memory),
        ("shared memory", check_shared_memory),
        ("open files", check_open_files),
        ("home", lambda: check_home(home)),
        ("disk", lambda: check_disk(home)),
        ("temporary files", check_temporary),
        ("network", check_network),
        ("variables", check_variables),
        ("sandbox", check_sandbox),
        ("tokenizer", check_tokenizer),
        ("gpu memory", check_gpu_memory),  # before torch takes some itself
        ("torch", check_torch),
        ("accelerator", check_accelerator),
        ("driver", check_driver),
        ("dtype", check_dtype),
        ("attention", check_attention),
        ("cpu kernels", check_cpu_kernels),
        ("compile", check_compile),
        ("triton", check_triton),
    )
    return tuple(guard(name, check) for name, check in checks)
