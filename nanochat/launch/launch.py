"""Start stages: the one door from the command line to the work, as a child process that inherits the terminal.

The child gets the run's settings.json and nothing else; this process loads no torch. Reads the environment.
"""

import os
import re
import shlex
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from nanochat.errors import CapacityError, InterruptError, StoppedError, UsageError
from nanochat.launch.cluster import Cluster, find_interface, find_local_address
from nanochat.launch.torchrun import Launch, name_terminal, run_ranks, torchrun_command
from nanochat.machine import RANK_VARIABLES, drop_rank_variables, end_with_parent, module_command
from nanochat.paths import RunPaths

ALONE = Cluster()
STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")

OFFLINE_VARIABLES = ("NANOCHAT_OFFLINE", "HF_HUB_OFFLINE")
DEFAULT_HOME = "~/.cache/nanochat"
MALLOC = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=8589934592:glibc.malloc.hugetlb=1"
"""Keep freed memory for the next step, in huge pages: 5,900 -> 7,500 tokens/s on two cores, no page faults left."""

KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""Of oneDNN and torch on a CPU, in shapes (default 1,024): rl and scoring have another shape every time and use none of
them again. The demo's rl grew by 0.6 instead of 1.1 GB, as fast as before."""

SPIN = {"GOMP_SPINCOUNT": "1000"}
"""How long a waiting thread of GNU's OpenMP holds its core before it sleeps (default 300,000 turns). With the default a
second program on the same cores slows both far below a half: two demo runs on two cores had 5,900 tokens/s each instead
of the 22,800 of one alone, and with this 11,300. A run that is alone loses 2 to 7 % by it."""

LAST_INTERRUPT = 3
GRACE_SECONDS = 40.0
"""From SIGTERM to SIGKILL: torchrun, whose workers have sessions of their own, kills them after 30 s."""


def read_environ() -> Mapping[str, str]:
    """The environment."""
    return os.environ


def choose_spin(environ: Mapping[str, str]) -> dict[str, str]:
    """SPIN, if nobody has said how threads are to wait."""
    return {} if "OMP_WAIT_POLICY" in environ else {key: SPIN[key] for key in SPIN if key not in environ}


@contextmanager
def threads_that_sleep() -> Iterator[None]:
    """Import torch in it, if it computes in this process: its OpenMP reads SPIN as it is loaded, and never again."""
    added = choose_spin(os.environ)
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def switch_colors_off() -> None:
    """Do what NO_COLOR does, for libraries that read only the variable."""
    os.environ["NO_COLOR"] = "1"


def resolve_home(option: str | None, environ: Mapping[str, str]) -> Path:
    """$NANOCHAT_HOME, the option first; absolute, and not necessarily there.

    Raises UsageError for "", and for `~` where the system knows no home folder of this user, as in many containers.
    """
    if option == "":  # of a variable that is not set; Path would take it for the current folder
        raise UsageError("--home is empty", "--home DIR")
    wish = Path(option or environ.get("NANOCHAT_HOME") or DEFAULT_HOME)
    try:
        return wish.expanduser().absolute()
    except RuntimeError:
        raise UsageError(
            f"{wish}: this user has no home folder", "export NANOCHAT_HOME=DIR  # a folder that can be written"
        ) from None


def count_gpus(wish: str, device: str, environ: Mapping[str, str]) -> int:
    """Devices of `--gpus N|all`. Raises UsageError for another word, and for `all` where there is nothing to count."""
    if wish != "all":
        try:
            return int(wish)
        except ValueError:
            raise UsageError(f"--gpus {wish!r} is neither a number nor all", "--gpus 1") from None
    from nanochat.machine import gpu_names

    visible = environ.get("CUDA_VISIBLE_DEVICES")
    found = len(gpu_names()) if visible is None else count_visible(visible)
    if device == "cpu" or not found:
        raise UsageError("--gpus all, but there is no GPU to count", "--device cpu --gpus 2")
    return found


def count_visible(value: str) -> int:
    """Devices of CUDA_VISIBLE_DEVICES: CUDA sees none behind the first that is no device.

    >>> [count_visible(value) for value in ("0,1", "-1", "1,-1,0", "GPU-8932f937", "")]
    [2, 0, 1, 1, 0]
    """
    count = 0
    for name in value.split(","):
        if not re.fullmatch(r"\s*(\d+|(GPU|MIG)-\S+)\s*", name):
            break
        count += 1
    return count


def is_offline(option: bool, environ: Mapping[str, str]) -> bool:
    """Whether no socket may be opened."""
    return option or any(environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE_VARIABLES)


def stage_command(
    stage: str, settings: Path, cluster: Cluster = ALONE, options: Sequence[str] = (), local_address: str = ""
) -> list[str]:
    """The command line of a stage's worker, under torchrun where there are several processes.

    >>> stage_command("base", Path("s.json"))[2:]
    ['nanochat.stages', 'base', 's.json']
    """
    command = module_command("nanochat.stages", stage, str(settings), *options)
    if cluster.is_alone:
        return command
    return torchrun_command(command[1:], cluster, f"{settings.absolute().parent.name}-{stage}", local_address)


def bandwidth_command(num_processes: int, device: str, folder: Path) -> list[str]:
    """The command line that measures all-reduce between processes of this machine (stages/bandwidth.py)."""
    worker = module_command("nanochat.stages.bandwidth", str(folder), device)[1:]
    return torchrun_command(worker, Cluster(num_processes))


def child_environ(environ: Mapping[str, str], offline: bool = False, color: bool = True) -> dict[str, str]:
    """The environment of a child: offline and colours carried over, and nothing that makes it a rank of another launch.

    Nor what lets modules of the current folder in: an empty part of PYTHONPATH means that folder.
    """
    values = {"GLIBC_TUNABLES": MALLOC, **KERNEL_CACHES, **choose_spin(environ), **drop_rank_variables(environ)}
    if offline:
        values |= dict.fromkeys(OFFLINE_VARIABLES, "1")
    if not color:
        values["NO_COLOR"] = "1"
    if "PYTHONPATH" in values:
        values["PYTHONPATH"] = os.pathsep.join(filter(None, values["PYTHONPATH"].split(os.pathsep)))
    values["PYTHONSAFEPATH"] = "1"  # for the processes that libraries start
    return values


def run_child(
    command: Sequence[str],
    environ: Mapping[str, str] | None = None,
    launch: Launch | None = None,
    resume: str = "nanochat resume",
) -> int:
    """Run a command to its end and return its exit code; 128 + the signal where one ended it.

    Ctrl-C reaches the child through the terminal, other requests to stop are handed on: the child saves and stops. The
    second Ctrl-C makes it leave at once; one that still lives at the third, stuck in a library, is killed.
    launch: notes that there was a request. resume: the command that continues. Raises CapacityError where the system
    killed the child, and InterruptError where we did.
    """
    launch = launch or Launch()
    process = subprocess.Popen(
        command, env=dict(environ) if environ is not None else None, preexec_fn=partial(end_with_parent, os.getpid())
    )
    came: list[int] = []

    def hand_on(number: int, _frame: object) -> None:
        launch.is_stopping = True
        came.append(number)
        if number != signal.SIGINT:  # Ctrl-C reaches the child through the terminal
            process.send_signal(number)
        elif came.count(number) >= LAST_INTERRUPT:
            process.kill()

    with _catching(hand_on):
        code = process.wait()
    if code == -signal.SIGKILL and came.count(signal.SIGINT) >= LAST_INTERRUPT:
        raise InterruptError("the worker did not hear Ctrl-C and was killed; what it had saved is kept", resume)
    if code == -signal.SIGKILL:
        raise CapacityError(
            "the system killed the worker, most likely because memory ran out",
            "nanochat resume  # after lowering batch.device_batch_size with --set",
        )
    return 130 if code == -signal.SIGINT else 128 - code if code < 0 else code


def run_limited(command: Sequence[str], environ: Mapping[str, str], log: Path, seconds: float) -> int | None:
    """Run a command whose output goes to a file; returns its exit code, or None where it was ended for its time.

    A launcher that is told to end passes it on to its workers; whatever is left after that is killed.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, os.getpid()),
        )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also on Ctrl-C, which does not reach a session of its own
        _end_session(process)


def measure_all_reduce(num_processes: int, device: str, folder: Path, seconds: float) -> int | None:
    """Let each rank leave its report in a folder; returns the exit code, None where time ran out."""
    command = bandwidth_command(num_processes, device, folder)
    return run_limited(command, child_environ(os.environ), folder / "log.txt", seconds)


def launch_stage(
    stage: str,
    settings: Path,
    *,
    cluster: Cluster = ALONE,
    options: Sequence[str] = (),
    again: Sequence[str] = (),
    following: str = "",
    offline: bool = False,
    color: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Run one stage of a run to its end; returns its exit code.

    again: the arguments of nanochat that continue it, for hints; default: resume. One process has shown its own errors.
    Where several were started, the error of the one that failed first is raised. following: what the caller starts
    next; a request to stop that came too late for this stage raises StoppedError before that.
    """
    tempfile.gettempdir()  # raises where there is none: libraries of the worker need one
    environ = child_environ(os.environ, offline, color)
    if left := [name for name in RANK_VARIABLES if name in os.environ]:
        say(f"{', '.join(left)} of the environment: ignored, --gpus and --nodes say how many processes there are")
    run = RunPaths(settings.absolute().parent)
    resume = shlex.join(["nanochat", *(again or ("resume", run.name)), *cluster.options()])
    options, launch = [*options, "--resume", resume], Launch()
    if cluster.is_alone:
        code = run_child(stage_command(stage, settings, cluster, options), environ, launch, resume)
    else:
        code = _launch_ranks(stage, run, cluster, options, environ, resume, say, launch)
    if not code and following and launch.is_stopping:
        hint = shlex.join(["nanochat", "run", "--run", run.name, *cluster.options()])
        raise StoppedError(f"{stage} is done; stopped before {following}", hint)
    return code


def _launch_ranks(
    stage: str,
    run: RunPaths,
    cluster: Cluster,
    options: Sequence[str],
    environ: dict[str, str],
    resume: str,
    say: Callable[[str], None],
    launch: Launch,
) -> int:
    address = ""
    if cluster.nodes > 1:
        address = find_local_address(cluster.rdzv_endpoint)
        environ.setdefault("GLOO_SOCKET_IFNAME", find_interface(address))
        say(f"node {cluster.node_rank} of {cluster.nodes}: meeting the others at {cluster.rdzv_endpoint}")
    terminal = name_terminal() if cluster.nodes == 1 else ""
    options = [*options, "--launch", launch.word, "--terminal", terminal]
    command = stage_command(stage, run.settings, cluster, options, address)
    return run_ranks(command, environ, run.logs(stage), stage, resume, say, cluster, launch)


def _end_session(process: subprocess.Popen) -> None:
    """End a session in order; another Ctrl-C, which it does not hear either, ends the patience."""
    for number, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(seconds)


@contextmanager
def stopping_before(describe: Callable[[], str], hint: str) -> Iterator[None]:
    """Let a request to stop that comes between two stages raise StoppedError. describe: what comes next.

    While a stage runs the request is the stage's.
    """

    def stop(_number: int, _frame: object) -> None:
        raise StoppedError(f"stopped before {describe()}; everything is saved", hint)

    with _catching(stop):
        yield


@contextmanager
def _catching(handle: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
