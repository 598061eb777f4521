"""Close the calling process for good: limits, no privileges, no files but Python's library, no network, no processes.

Through ctypes rather than Rust: it is some forty system calls once per process, works without a compiler and is read by
those who read Python. Standard library only; on Linux with a kernel from 5.13 all layers are reached.

Sources: landlock(7), seccomp(2), capabilities(7); numbers of system calls from the kernel's tables.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SIGKILL = 9
EPERM, EACCES, ENOTTY = 1, 13, 25

READ_FILE, READ_DIR = 1 << 2, 1 << 3
FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Landlock's rights to files by version of its interface: so many bits."""
NET_RIGHTS, SCOPES = 0b11, 0b11
"""From version 4: binding and connecting TCP. From version 6: abstract sockets and signals."""
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
NOT_LIBRARY = ("site-packages", "dist-packages")

WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000 | 0o20000000 | 0o10000000
"""Flags of open that write, create, truncate, append, make a nameless file or a mere reference."""
PROT_EXEC = 4
FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
"""Copy a descriptor, read and write its close-on-exec flag, read its status. Not the ones that send signals."""

# Reading, memory, time, its own signals and its own end: what Python needs for computing and importing.
ALLOWED = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "munmap": 11,
        "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "readv": 19,
        "writev": 20, "select": 23, "sched_yield": 24, "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33,
        "nanosleep": 35, "getpid": 39, "exit": 60, "uname": 63, "getcwd": 79, "gettimeofday": 96, "getrlimit": 97,
        "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108,
        "getppid": 110, "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202, "sched_getaffinity": 204,
        "getdents64": 217, "restart_syscall": 219, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230,
        "exit_group": 231, "newfstatat": 262, "pselect6": 270, "set_robust_list": 273, "dup3": 292, "getrandom": 318,
        "membarrier": 324, "rseq": 334,
    },
    "aarch64": {
        "getcwd": 17, "dup": 23, "dup3": 24, "close": 57, "getdents64": 61, "lseek": 62, "read": 63, "write": 64,
        "readv": 65, "writev": 66, "pread64": 67, "pselect6": 72, "ppoll": 73, "newfstatat": 79, "fstat": 80,
        "exit": 93, "exit_group": 94, "futex": 98, "set_robust_list": 99, "nanosleep": 101, "clock_gettime": 113,
        "clock_getres": 114, "clock_nanosleep": 115, "sched_getaffinity": 123, "sched_yield": 124,
        "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139,
        "times": 153, "uname": 160, "getrlimit": 163, "getrusage": 165, "gettimeofday": 169, "getpid": 172,
        "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "sysinfo": 179,
        "brk": 214, "munmap": 215, "mremap": 216, "madvise": 233, "getrandom": 278, "membarrier": 283, "rseq": 293,
    },
}  # fmt: skip
CHECKED = {
    "x86_64": {"open": 2, "mmap": 9, "mprotect": 10, "ioctl": 16, "fcntl": 72, "openat": 257},
    "aarch64": {"fcntl": 25, "ioctl": 29, "openat": 56, "mmap": 222, "mprotect": 226},
}
"""Allowed with some arguments only."""
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SECCOMP = {"x86_64": 317, "aarch64": 277}
X32 = 0x40000000
"""Bit of the x32 interface, whose calls have numbers of their own."""


def close_process(cpu_seconds: int, memory_bytes: int) -> list[str]:
    """Apply every layer that this machine has, and return their names; what is applied can never be undone.

    cpu_seconds: of this process, then it is ended. memory_bytes: of address space, then allocations fail.
    """
    layers = ["rlimits"] if limit_resources(cpu_seconds, memory_bytes) else []
    if sys.platform != "linux":
        return layers
    libc = ctypes.CDLL(None, use_errno=True)
    steps = {
        "capabilities": lambda: drop_capabilities(libc),
        "no_new_privs": lambda: libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0,
        "landlock": lambda: restrict_files(libc, sys.path),
        "seccomp": lambda: filter_calls(libc, platform.machine()),
    }
    return layers + [name for name, apply in steps.items() if apply()]


def die_with_parent(parent: int) -> None:
    """Let the kernel end this process when the one that started it ends, be it by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(1)


def limit_resources(cpu_seconds: int, memory_bytes: int) -> bool:
    """Whether all limits that this platform has could be set."""
    import resource

    limits = {
        "RLIMIT_CPU": (cpu_seconds, cpu_seconds + 1),  # SIGXCPU may be handled, so SIGKILL follows
        "RLIMIT_AS": (memory_bytes, memory_bytes),
        "RLIMIT_FSIZE": (0, 0),
        "RLIMIT_NOFILE": (32, 32),
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_NPROC": (0, 0),
        "RLIMIT_MEMLOCK": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
    }
    if sys.platform == "darwin":  # counts the whole user there, and has no limit of the address space
        del limits["RLIMIT_NPROC"], limits["RLIMIT_AS"]
    try:
        for name, pair in limits.items():
            if hasattr(resource, name):
                resource.setrlimit(getattr(resource, name), pair)
    except (OSError, ValueError):
        return False
    return True


def drop_capabilities(libc: ctypes.CDLL) -> bool:
    """Give up all of root's privileges in this process."""
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    return libc.capset(header, bytes(24)) == 0


def restrict_files(libc: ctypes.CDLL, library: Iterable[str]) -> bool:
    """Landlock: nothing is readable but the standard library, nothing writable, executable or connectable."""
    version = libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    attributes = struct.pack("Q", (1 << FS_RIGHTS[min(version, 5)]) - 1)
    if version >= 4:
        attributes += struct.pack("Q", NET_RIGHTS)
    if version >= 6:
        attributes += struct.pack("Q", SCOPES)
    ruleset = libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        for folder in filter(os.path.isdir, library):
            _allow(libc, ruleset, folder, READ_DIR)  # names, which importing lists
            for entry in os.scandir(folder):
                if entry.name not in NOT_LIBRARY:
                    _allow(libc, ruleset, entry.path, READ_FILE)
        return libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        place = os.open(path, getattr(os, "O_PATH", 0) | os.O_CLOEXEC)
    except OSError:
        return  # unreadable before, unreadable after
    try:
        libc.syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, place), 0)
    finally:
        os.close(place)


def filter_calls(libc: ctypes.CDLL, machine: str) -> bool:
    """seccomp: system calls that are not on the list fail; False where the machine has no list or no filters."""
    if machine not in ALLOWED:
        return False
    program = build_filter(machine)
    block = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions and their address, aligned
    fprog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(block))
    return libc.syscall(SECCOMP[machine], 1, 0, fprog) == 0


def build_filter(machine: str) -> bytes:
    """The BPF program: 8 bytes an instruction (code, jump if true, jump if false, operand)."""
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, fail, allow = 0x80000000, 0x00050000, 0x7FFF0000
    code: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),  # the architecture of the call
        (equal, 1, 0, AUDIT_ARCH[machine]),
        (end, 0, 0, kill),
        (load, 0, 0, 0),  # its number
    ]
    if machine == "x86_64":
        code += [(at_least, 0, 1, X32), (end, 0, 0, kill)]
    for number in ALLOWED[machine].values():
        code += [(equal, 0, 1, number), (end, 0, 0, allow)]

    def argument(place: int) -> tuple[int, int, int, int]:
        return (load, 0, 0, 16 + 8 * place)  # its low half: what the kernel reads of these

    refuse = {
        "open": [argument(1), (any_bit, 0, 1, WRITING), (end, 0, 0, fail | EACCES), (end, 0, 0, allow)],
        "openat": [argument(2), (any_bit, 0, 1, WRITING), (end, 0, 0, fail | EACCES), (end, 0, 0, allow)],
        "mmap": [argument(2), (any_bit, 0, 1, PROT_EXEC), (end, 0, 0, fail | EPERM), (end, 0, 0, allow)],
        "mprotect": [argument(2), (any_bit, 0, 1, PROT_EXEC), (end, 0, 0, fail | EPERM), (end, 0, 0, allow)],
        "ioctl": [(end, 0, 0, fail | ENOTTY)],
        "fcntl": [
            argument(1),
            *(step for command in FCNTL_COMMANDS for step in ((equal, 0, 1, command), (end, 0, 0, allow))),
            (end, 0, 0, fail | EPERM),
        ],
    }
    for name, number in CHECKED[machine].items():
        code += [(equal, 0, len(refuse[name]), number), *refuse[name]]
    code.append((end, 0, 0, fail | EPERM))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
