"""All-reduce between the devices of this machine: who takes part, and what the ranks' reports mean.

Starts nothing: cli/doctor.py runs stages/bandwidth.py. Source of the bus bandwidth: nccl-tests, doc/PERFORMANCE.md.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat.doctor.finding import Finding, Status
from nanochat.errors import UsageError

SLOW_GPU_BUS = 5e9
"""Bytes a second at 64 MiB and more: a sixth of what one PCIe 4.0 x16 link carries by its standard (31.5 GB/s)."""
LARGE_BYTES = 64 << 20
FEW_PROCESSES = 2
"""Of a check on the CPU: enough to see that processes find each other."""


def choose_processes(gpus: str, device: str, found: int) -> tuple[int, str]:
    """How many processes and on what: "cpu" or "cuda". gpus: a number or "all". found: GPUs that PyTorch can use.

    Raises UsageError where that many are not there.

    >>> choose_processes("all", "auto", 8), choose_processes("all", "auto", 1), choose_processes("4", "cpu", 8)
    ((8, 'cuda'), (2, 'cpu'), (4, 'cpu'))
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device!r} is none of auto, cpu, cuda", "nanochat doctor --distributed")
    if gpus != "all" and not gpus.isdecimal():
        raise UsageError(f"--gpus {gpus!r} is neither a number nor all", "nanochat doctor --distributed --gpus all")
    if gpus == "all":
        if device == "cuda" and found < 2:
            raise UsageError(
                f"PyTorch can use {found} GPUs here, and a sum over them needs two",
                "nanochat doctor --distributed --device cpu",
            )
        on_gpus = device != "cpu" and found >= 2
        return (found, "cuda") if on_gpus else (FEW_PROCESSES, "cpu")
    number = int(gpus)
    if number < 2:
        raise UsageError(
            f"--gpus {gpus}: a sum over devices needs two or more", "nanochat doctor --distributed --gpus 2"
        )
    on_gpus = device == "cuda" or (device == "auto" and found > 0)
    if on_gpus and number > found:
        raise UsageError(
            f"--gpus {number}, but PyTorch can use {found} here",
            f"nanochat doctor --distributed --gpus {number} --device cpu",
        )
    return number, "cuda" if on_gpus else "cpu"


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """What the ranks have written, whether they came to an end or not."""
    reports = []
    for path in sorted(folder.glob("rank_*.json")):
        try:
            reports.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return reports


def judge_all_reduce(
    reports: Sequence[Mapping[str, Any]], num_processes: int, device: str, code: int | None, seconds: float, again: str
) -> list[Finding]:
    """Turn the ranks' reports into findings: one where something went wrong, else one a size.

    code: of the launcher; None: it was ended after `seconds`. again: the command that was given, for hints.
    """
    states = {report["rank"]: report["state"] for report in reports}
    where = f"{num_processes} processes ({_backend(device)})"
    failed = [report for report in reports if report["state"] == "failed"]
    if failed:
        first = min(failed, key=lambda report: report["time"])  # the others fail because it is gone
        message = f"{where}: rank {first['rank']}: {first['error']}"
        return [Finding("all-reduce", "fail", message, _mend(device, again))]
    if code != 0 or len(reports) < num_processes:
        return [
            Finding(
                "all-reduce", "fail", f"{where}: {_blame(states, num_processes, code, seconds)}", _mend(device, again)
            )
        ]
    findings = []
    for index, measured in enumerate(reports[0]["sums"]):
        wrong = [report["rank"] for report in reports if not report["sums"][index]["right"]]
        slowest = max(report["sums"][index]["seconds"] for report in reports)
        findings.append(_judge_size(measured["bytes"], slowest, wrong, num_processes, device, again))
    return findings


def bus_bandwidth(num_bytes: int, seconds: float, num_processes: int) -> float:
    """Bytes a second over the slowest link, which does not depend on the number of ranks.

    >>> bus_bandwidth(8_000, seconds=1.0, num_processes=4)
    12000.0
    """
    return 2 * (num_processes - 1) / num_processes * num_bytes / seconds


def _judge_size(
    num_bytes: int, seconds: float, wrong: Sequence[int], num_processes: int, device: str, again: str
) -> Finding:
    name = f"all-reduce {num_bytes >> 20} MiB"
    if wrong:
        ranks = ", ".join(map(str, wrong))
        return Finding(name, "fail", f"the sum is wrong on rank {ranks}: do not train on this", _mend(device, again))
    bus = bus_bandwidth(num_bytes, seconds, num_processes)
    status: Status = "ok"
    fix = note = ""
    if device == "cuda" and num_bytes >= LARGE_BYTES and bus < SLOW_GPU_BUS:
        status, note = "warn", ": slow, the GPUs may talk through the CPU's memory"
        fix = "nvidia-smi topo -m  # NV: NVLink, PIX: one PCIe switch, SYS: across CPUs"
    return Finding(
        name,
        status,
        f"{bus / 1e9:.2f} GB/s on the bus, {1000 * seconds:.2f} ms, right on {num_processes} ranks "
        f"({_backend(device)}){note}",
        fix,
        {"bytes": num_bytes, "seconds": seconds, "bus_bytes_per_second": bus},
    )


def _blame(states: Mapping[int, str], num_processes: int, code: int | None, seconds: float) -> str:
    """Name the ranks that are behind the others."""
    came = {rank: states.get(rank, "never started") for rank in range(num_processes)}
    order = ("never started", "started", "joined", "done")
    behind = min(came.values(), key=order.index)
    ranks = ", ".join(str(rank) for rank, state in came.items() if state == behind)
    phrase = {
        "never started": "did not start",
        "started": "did not reach the others",
        "joined": "did not finish a sum",
        "done": "did not leave",
    }[behind]
    end = f"within {seconds:.0f} s" if code is None else f"(exit code {code})"
    return f"rank {ranks} {phrase} {end}"


def _mend(device: str, again: str) -> str:
    """The next thing to try: another way between the devices, then the library's own words."""
    if device == "cuda":
        return f"NCCL_P2P_DISABLE=1 {again}  # if that works, P2P is broken; else NCCL_DEBUG=INFO {again} -v"
    return f"GLOO_SOCKET_IFNAME=lo {again}"


def _backend(device: str) -> str:
    return "NCCL" if device == "cuda" else "gloo"
