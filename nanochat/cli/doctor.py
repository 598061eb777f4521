"""`nanochat doctor`: what this machine can do, what is slow and why, and the command that fixes it."""

from dataclasses import asdict

import typer

from nanochat.cli.console import format_table
from nanochat.cli.options import Invocation, command
from nanochat.errors import CheckError


def register(app: typer.Typer) -> None:
    command(app, "doctor", "nanochat doctor")(doctor)


def doctor(invocation: Invocation) -> None:
    """Examine this machine; exits with 7 where something would stop a run."""
    from nanochat.doctor import examine_machine, worst_status

    findings = examine_machine(invocation.home)
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
