"""Programs that try to reach out of the sandbox: each defines `probe(given)`, which raises where it is stopped.

given: `secret` (a file of the test), `folder` (writable outside), `port` and `socket` (TCP on loopback and a path,
where the test listens), `victim` (the number of a process of the same user). A probe that returns got through, unless
it returns False. All are harmless outside the sandbox, where the tests run those of HARMLESS to see that they work.
"""

PROLOGUE = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""

FILES = {
    "open reads a file": "def probe(g): open(g['secret']).read()",
    "os.open reads a file": "def probe(g): os.read(os.open(g['secret'], os.O_RDONLY), 9)",
    "a path through ..": "def probe(g): open('/usr/lib/../..' + g['secret']).read()",
    "a path below the library": "def probe(g): open(os.path.dirname(os.__file__) + '/../../../../../../../../..' + g['secret']).read()",
    "a path relative to the working folder": "def probe(g): open(os.path.relpath(g['secret'], os.getcwd())).read()",
    "openat from a folder": "def probe(g): os.open(os.path.basename(g['secret']), 0, dir_fd=os.open(g['folder'], os.O_RDONLY))",
    "a mere reference": "def probe(g): os.open(g['secret'], os.O_PATH)",
    "openat2": (
        "import struct\ndef probe(g): call(437, -100, g['secret'].encode(), struct.pack('QQQ', 0, 0, 0), 24)"
    ),
    "the list of a folder": "def probe(g): os.listdir(g['folder'])",
    "scandir": "def probe(g): list(os.scandir(g['folder']))",
    "the root folder": "def probe(g): os.listdir('/')",
    "changing into a folder": "def probe(g): os.chdir(g['folder'])",
    "writing a file": "def probe(g): open(g['folder'] + '/new', 'w')",
    "appending to a file": "def probe(g): open(g['secret'], 'a')",
    "reading and writing a file": "def probe(g): open(g['secret'], 'r+')",
    "a file without a name": "def probe(g): os.open(g['folder'], os.O_TMPFILE | os.O_RDWR)",
    "a file in memory": "def probe(g): os.memfd_create('x')",
    "truncating a file": "def probe(g): os.truncate(g['folder'] + '/scratch', 0)",
    "removing a file": "def probe(g): os.unlink(g['folder'] + '/scratch')",
    "renaming a file": "def probe(g): os.rename(g['folder'] + '/scratch', g['folder'] + '/moved')",
    "a hard link": "def probe(g): os.link(g['secret'], g['folder'] + '/link')",
    "a symbolic link": "def probe(g): os.symlink(g['secret'], g['folder'] + '/symlink')",
    "a symbolic link in the library": "def probe(g): os.symlink(g['secret'], os.path.dirname(os.__file__) + '/leak.py')",
    "a folder": "def probe(g): os.mkdir(g['folder'] + '/d')",
    "a pipe with a name": "def probe(g): os.mkfifo(g['folder'] + '/fifo')",
    "changing permissions": "def probe(g): os.chmod(g['folder'] + '/scratch', 0o777)",
    "changing times": "def probe(g): os.utime(g['folder'] + '/scratch', (1, 1))",
    "changing the owner": "def probe(g): os.chown(g['folder'] + '/scratch', os.getuid(), -1)",
    "an attribute of a file": "def probe(g): os.setxattr(g['folder'] + '/scratch', 'user.x', b'1')",
    "a module of its own in the library": "def probe(g): open(os.path.dirname(os.__file__) + '/nanochat_leak.py', 'w')",
    "compiled code in the library": "def probe(g): open(os.path.dirname(os.__file__) + '/__pycache__/nanochat_leak.pyc', 'wb')",
    "a temporary file": "import tempfile\ndef probe(g): tempfile.NamedTemporaryFile(delete=True)",
    "a file in shared memory": "def probe(g): os.close(os.open('/dev/shm/nanochat-leak', os.O_CREAT | os.O_RDWR))",
    "shared memory of multiprocessing": "from multiprocessing import shared_memory\ndef probe(g): shared_memory.SharedMemory(create=True, size=9).unlink()",
    "the accounts": "def probe(g): open('/etc/passwd').read()",
    "the host's name": "def probe(g): open('/etc/hostname').read()",
    "its own memory": "def probe(g): open('/proc/self/mem', 'rb')",
    "its own maps": "def probe(g): open('/proc/self/maps').read()",
    "its own environment": "def probe(g): open('/proc/self/environ').read()",
    "its own descriptors": "def probe(g): os.listdir('/proc/self/fd')",
    "a descriptor by its name": "def probe(g): open('/proc/self/fd/0')",
    "its parent's memory": "def probe(g): open(f'/proc/{os.getppid()}/mem', 'rb')",
    "its parent's environment": "def probe(g): open(f'/proc/{os.getppid()}/environ', 'rb').read()",
    "its parent's command line": "def probe(g): open(f'/proc/{os.getppid()}/cmdline', 'rb').read()",
    "the root of another process": "def probe(g): open(f\"/proc/{g['victim']}/root{g['secret']}\").read()",
    "the list of processes": "def probe(g): os.listdir('/proc')",
    "a device": "def probe(g): open('/dev/null')",
    "the terminal": "def probe(g): open('/dev/tty')",
    "the disk": "def probe(g): __import__('glob').glob('/dev/[sv]d*') and open('/dev/vda', 'rb') or os.listdir('/dev')",
    "the graphics card": "def probe(g): os.listdir('/dev/dri') if os.path.exists('/dev/dri') else os.listdir('/sys')",
    "installed packages": "def probe(g): [os.listdir(p) for p in sys.path if 'packages' in p] or __import__('torch')",
    "this project": "def probe(g): __import__('nanochat.config.settings')",
    "sending a file": "def probe(g): os.sendfile(1, os.open(g['secret'], 0), 0, 9)",
    "copying between files": "def probe(g): os.copy_file_range(os.open(g['secret'], 0), 1, 9)",
    "a file by its handle": "def probe(g): call(303, -100, g['secret'].encode(), bytes(128), bytes(8), 0)",
    "watching a folder": "def probe(g): call(294, 0)",
    "the root folder changed": "def probe(g): os.chroot(g['folder'])",
    "an inherited descriptor": (
        "def probe(g):\n    import stat\n    kinds = []\n    for fd in range(3, 64):\n"
        "        try: kinds.append(stat.S_ISREG(os.fstat(fd).st_mode) or stat.S_ISSOCK(os.fstat(fd).st_mode))\n"
        "        except OSError: pass\n    return any(kinds)"
    ),
    "secrets in the environment": "def probe(g): return bool(set(os.environ) - {'PYTHONHASHSEED', 'LANG', 'LC_CTYPE', 'PWD', 'OLDPWD'})",
    "writing a trace of itself": "import cProfile\ndef probe(g): cProfile.run('1', g['folder'] + '/trace')",
    "a database": "def probe(g): __import__('sqlite3').connect(g['folder'] + '/db').execute('create table t(x)')",
}  # fmt: skip

NETWORK = {
    "TCP": "import socket\ndef probe(g): socket.create_connection(('127.0.0.1', g['port']), 2)",
    "TCP by IPv6": "import socket\ndef probe(g): socket.socket(socket.AF_INET6)",
    "UDP": "import socket\ndef probe(g): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', g['port']))",
    "raw packets": "import socket\ndef probe(g): socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "packets of the card": "import socket\ndef probe(g): socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "a local socket": "import socket\ndef probe(g): socket.socket(socket.AF_UNIX).connect(g['socket'])",
    "a local socket without a path": "import socket\ndef probe(g): socket.socket(socket.AF_UNIX).bind('\\0nanochat-probe')",
    "a pair of sockets": "import socket\ndef probe(g): socket.socketpair()",
    "netlink": "import socket\ndef probe(g): socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "the machine below": "import socket\ndef probe(g): socket.socket(40, socket.SOCK_STREAM)",
    "the kernel's ciphers": "import socket\ndef probe(g): socket.socket(38, socket.SOCK_SEQPACKET)",
    "a name looked up": "import socket\ndef probe(g): socket.getaddrinfo('localhost', 80)",
    "a web page": "import urllib.request\ndef probe(g): urllib.request.urlopen(f\"http://127.0.0.1:{g['port']}\", timeout=2)",
    "a listening socket": "import socket\ndef probe(g): socket.create_server(('127.0.0.1', 0))",
    "a raw socket call": "def probe(g): call(41, 2, 1, 0)",
}  # fmt: skip

PROCESSES = {
    "fork": (
        "def probe(g):\n    pid = os.fork()\n    if pid == 0: os._exit(0)\n    os.waitpid(pid, 0)"
    ),
    "fork by its number": (
        "def probe(g):\n    pid = call(57)\n    if pid == 0: os._exit(0)\n    os.waitpid(pid, 0)"
    ),
    "a shell": "def probe(g): return os.system('true') == 0",
    "a program": "import subprocess\ndef probe(g): subprocess.run(['/bin/true'], check=True)",
    "a program by spawn": "def probe(g): os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "another Python": "import subprocess\ndef probe(g): subprocess.run([sys.executable, '-c', '1'], check=True)",
    "exec": "def probe(g): os.execv('/nonexistent' if g is None else sys.executable, [sys.executable, '-c', 'import os; os._exit(77)'])",
    "a thread": "import threading\ndef probe(g): t = threading.Thread(target=int); t.start(); t.join()",
    "a pool": "from concurrent.futures import ThreadPoolExecutor\ndef probe(g): ThreadPoolExecutor(1).submit(int).result()",
    "multiprocessing": "import multiprocessing\ndef probe(g): p = multiprocessing.get_context('fork').Process(target=int); p.start(); p.join()",
    "asyncio": "import asyncio\ndef probe(g): asyncio.run(asyncio.sleep(0))",
    "a signal to the parent": "def probe(g): os.kill(os.getppid(), 0)",
    "a signal to another process": "def probe(g): os.kill(g['victim'], 0)",
    "a signal to the group": "def probe(g): os.killpg(0, 0)",
    "a signal to all": "def probe(g): os.kill(-1, 0)",
    "a signal by a descriptor": "def probe(g): os.pidfd_open(g['victim'])",
    "a signal to a thread": "def probe(g): call(234, g['victim'], g['victim'], 0)",
    "signals from a descriptor": (
        "import fcntl\ndef probe(g):\n    for fd in range(3, 16):\n"
        "        try: os.fstat(fd)\n        except OSError: continue\n"
        "        fcntl.fcntl(fd, fcntl.F_SETOWN, g['victim'])\n        return True\n    return False"
    ),
    "signals asked of a descriptor": (
        "import fcntl\ndef probe(g):\n    for fd in range(3, 16):\n"
        "        try: os.fstat(fd)\n        except OSError: continue\n"
        "        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC)\n        return True\n    return False"
    ),
    "a session of its own": "def probe(g): os.setsid()",
    "another group": "def probe(g): os.setpgid(0, 0)",
    "living on without the parent": "def probe(g): call(157, 1, 0, 0, 0, 0)",
    "tracing another process": "def probe(g): call(101, 16, g['victim'], 0, 0)",
    "being traced": "def probe(g): call(101, 0, 0, 0, 0)",
    "another process's memory": "def probe(g): call(310, g['victim'], bytes(16), 1, bytes(16), 1, 0)",
    "another process's descriptors": "def probe(g): call(438, 3, 0, 0)",
    "comparing processes": "def probe(g): call(312, os.getpid(), g['victim'], 0, 0, 0)",
    "priority of another process": "def probe(g): os.setpriority(os.PRIO_PROCESS, g['victim'], 5)",
    "cores of another process": "def probe(g): os.sched_setaffinity(g['victim'], {0})",
    "limits of another process": "import resource\ndef probe(g): resource.prlimit(g['victim'], resource.RLIMIT_CORE)",
    "raising its own limits": "import resource\ndef probe(g): resource.setrlimit(resource.RLIMIT_CPU, (999, 999))",
    "another user": "def probe(g): os.setuid(os.getuid())",
    "another group of users": "def probe(g): os.setgroups([])",
    "namespaces of its own": "def probe(g): call(272, 0x10000000)",
    "namespaces of another": "def probe(g): call(308, 0, 0)",
    "privileges": "import struct\ndef probe(g): call(126, struct.pack('Ii', 0x20080522, 0), struct.pack('6I', 1, 1, 0, 0, 0, 0))",
    "another filter": "def probe(g): call(317, 1, 0, bytes(16))",
    "another ruleset": "def probe(g): call(444, bytes(8), 8, 0)",
    "a timer that signals": "import signal\ndef probe(g): signal.setitimer(signal.ITIMER_REAL, 9)",
    "a thread by its number": "def probe(g): call(56, 0x10f00, 0, 0, 0, 0)",
    "machine code in new memory": "import mmap\ndef probe(g): mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
    "machine code in old memory": (
        "import mmap\ndef probe(g):\n    m = mmap.mmap(-1, 4096)\n"
        "    address = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "    if libc.mprotect(ctypes.c_void_p(address), 4096, 5): raise OSError(ctypes.get_errno(), 'mprotect')"
    ),
    "a callback in machine code": "def probe(g): return ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)() == 7 and False",
    "another library": "import sysconfig\ndef probe(g): ctypes.CDLL(sysconfig.get_path('stdlib') + '/lib-dynload/' + next(n for n in os.listdir(sysconfig.get_path('stdlib') + '/lib-dynload') if n.startswith('_lsprof')))",
    "calls by x32 numbers": "def probe(g): return call(0x40000000 | 39) > 0",
}  # fmt: skip

PROBES: dict[str, str] = {**FILES, **NETWORK, **PROCESSES}

HARMLESS = tuple(
    name
    for name in PROBES
    if name
    not in {
        # need privileges, kernels or devices that a machine may lack, or are stopped everywhere
        "an attribute of a file", "a module of its own in the library", "compiled code in the library",
        "a symbolic link in the library", "the terminal", "the host's name", "a file by its handle",
        "the root folder changed", "an inherited descriptor", "secrets in the environment", "installed packages",
        "sending a file", "copying between files", "openat2", "raw packets", "packets of the card", "TCP by IPv6",
        "the machine below", "the kernel's ciphers", "netlink", "exec", "signals from a descriptor",
        "signals asked of a descriptor", "a session of its own", "another group", "a signal to all",
        "tracing another process", "being traced", "another process's memory", "another process's descriptors",
        "comparing processes", "raising its own limits", "another group of users", "namespaces of its own",
        "namespaces of another", "privileges", "another filter", "another ruleset", "a thread by its number",
        "a callback in machine code", "calls by x32 numbers", "a file without a name", "its parent's environment",
        "its parent's memory", "the disk", "the graphics card", "a database", "changing the owner", "a pool",
        "a name looked up", "this project", "the root of another process",
    }
)  # fmt: skip
"""Those that get through in a plain process of any Linux machine: they show that the probes are no duds."""

SYSCALLS = {
    "creat": 85, "pipe": 22, "pipe2": 293, "ptrace": 101, "clone": 56, "vfork": 58, "clone3": 435, "execve": 59,
    "execveat": 322, "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "pidfd_send_signal": 424, "socket": 41, "connect": 42, "bind": 49, "listen": 50, "accept4": 288, "sendto": 44,
    "sendmsg": 46, "socketpair": 53, "shmget": 29, "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240,
    "memfd_create": 319, "memfd_secret": 447, "userfaultfd": 323, "io_uring_setup": 425, "io_setup": 206, "bpf": 321,
    "perf_event_open": 298, "keyctl": 250, "add_key": 248, "request_key": 249, "mount": 165, "umount2": 166,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
    "swapon": 167, "reboot": 169, "kexec_load": 246, "init_module": 175, "finit_module": 313, "iopl": 172,
    "ioperm": 173, "modify_ldt": 154, "arch_prctl": 158, "prctl": 157, "personality": 135, "settimeofday": 164,
    "clock_settime": 227, "adjtimex": 159, "sethostname": 170, "setdomainname": 171, "acct": 163, "syslog": 103,
    "quotactl": 179, "setuid": 105, "setresuid": 117, "setgroups": 116, "capset": 126, "prlimit64": 302,
    "setrlimit": 160, "setpriority": 141, "sched_setscheduler": 144, "sched_setaffinity": 203, "mbind": 237,
    "move_pages": 279, "migrate_pages": 256, "process_vm_readv": 310, "process_vm_writev": 311, "process_madvise": 440,
    "pidfd_open": 434, "pidfd_getfd": 438, "kcmp": 312, "open_by_handle_at": 304, "name_to_handle_at": 303,
    "fanotify_init": 300, "inotify_init1": 294, "signalfd4": 289, "timerfd_create": 283, "timer_create": 222,
    "eventfd2": 290, "epoll_create1": 291, "seccomp": 317, "landlock_create_ruleset": 444, "openat2": 437,
    "statx": 332, "readlink": 89, "access": 21, "chdir": 80, "truncate": 76, "ftruncate": 77, "fallocate": 285,
    "sendfile": 40, "splice": 275, "tee": 276, "vmsplice": 278, "copy_file_range": 326, "sync": 162, "umask": 95,
    "vhangup": 153, "wait4": 61, "alarm": 37,
}  # fmt: skip
"""x86-64 system calls that no program of this kind needs: each has to be stopped before the kernel looks at it."""
