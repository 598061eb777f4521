"""`nanochat doctor`: what this machine can do, what is slow and why, and the command that fixes it."""

import shlex
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat.cli.console import format_table
from nanochat.cli.options import Invocation, command
from nanochat.errors import CheckError, UsageError
from nanochat.launch.launch import bandwidth_command, measure_all_reduce

if TYPE_CHECKING:
    from nanochat.doctor.finding import Finding

LIMIT_SECONDS = 120.0
"""Of the all-reduce check: two processes on two cores take 6 s, many that load CUDA may take a minute."""


def register(app: typer.Typer) -> None:
    command(app, "doctor", "nanochat doctor --distributed")(doctor)


def doctor(
    invocation: Invocation,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Also sum over the GPUs: is it right, and how fast.")
    ] = False,
    gpus: Annotated[
        str | None, typer.Option("--gpus", metavar="N|all", help="With --distributed: how many; default: all.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="With --distributed: auto, cpu or cuda.")
    ] = None,
) -> None:
    """Examine this machine; exits with 7 where something would stop a run."""
    if not distributed and (gpus or device):
        raise UsageError("--gpus and --device say where to sum: they go with --distributed", "--distributed")
    from nanochat.doctor.examine import examine_machine
    from nanochat.doctor.finding import worst_status

    processes = _choose_processes(gpus or "all", device or "auto") if distributed else None
    if processes and invocation.dry_run:
        invocation.console.show(shlex.join(bandwidth_command(*processes, Path("FOLDER"))))
        return
    findings = [*examine_machine(invocation.home)]
    if processes:
        findings += examine_all_reduce(invocation, *processes)
    if invocation.as_json:
        invocation.console.show_json([asdict(finding) for finding in findings])
    else:
        rows = [(finding.status, finding.name, finding.message) for finding in findings]
        invocation.console.show(format_table(rows))
        for finding in findings:
            if finding.fix:
                invocation.console.say(f"{finding.name}: {finding.fix}")
    if worst_status(findings) == "fail":
        failed = [finding for finding in findings if finding.status == "fail"]
        raise CheckError(f"{', '.join(finding.name for finding in failed)} failed", failed[0].fix)
    invocation.console.suggest("nanochat run --preset demo")


def examine_all_reduce(invocation: Invocation, num_processes: int, device: str) -> "list[Finding]":
    """Start the processes, wait for at most LIMIT_SECONDS, and judge what they leave."""
    from nanochat.doctor.distributed import judge_all_reduce, read_reports

    again = f"nanochat doctor --distributed --gpus {num_processes} --device {device}"
    invocation.console.say(f"all-reduce between {num_processes} processes on {device}, {LIMIT_SECONDS:.0f} s at most")
    with tempfile.TemporaryDirectory(prefix="nanochat-doctor-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        code = measure_all_reduce(num_processes, device, folder, LIMIT_SECONDS)
        findings = judge_all_reduce(read_reports(folder), num_processes, device, code, LIMIT_SECONDS, again)
        if invocation.verbose or not read_reports(folder):  # nothing came: the launcher itself says why
            invocation.console.say((folder / "log.txt").read_text(encoding="utf-8", errors="replace"))
    return findings


def _choose_processes(gpus: str, device: str) -> tuple[int, str]:
    import torch

    from nanochat.doctor.distributed import choose_processes

    return choose_processes(gpus, device, torch.cuda.device_count() if torch.cuda.is_available() else 0)
