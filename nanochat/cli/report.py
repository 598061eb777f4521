"""`nanochat report`: report.md and report.html of a run."""

from pathlib import Path
from typing import Annotated

import typer

from nanochat.cli.options import Invocation, command
from nanochat.cli.target import choose_run
from nanochat.files import write_atomically
from nanochat.paths import RunPaths


def register(app: typer.Typer) -> None:
    command(app, "report", "nanochat report demo")(report)


def report(
    invocation: Invocation,
    run: Annotated[str | None, typer.Argument(help="The run; default: the newest.")] = None,
) -> None:
    """Write report.md and report.html from what the run has left so far."""
    paths = choose_run(invocation, run)
    if invocation.dry_run:
        invocation.would(f"write {paths.report_md} and {paths.report_html}")
        return
    written = write_report(paths)
    if invocation.as_json:
        invocation.console.show_json([str(path) for path in written])
    else:
        for path in written:
            invocation.console.show(str(path))
    if paths.stage("sft").steps():
        invocation.console.suggest(f"nanochat chat {paths.name}")


def write_report(run: RunPaths) -> list[Path]:
    """Collect, render and write; returns the two files. Where the disk fails, the old ones are kept."""
    from nanochat.report.collect import collect_report
    from nanochat.report.html import render_html
    from nanochat.report.markdown import render_markdown

    data = collect_report(run)
    write_atomically(run.report_md, render_markdown(data).rstrip("\n"))
    write_atomically(run.report_html, render_html(data).rstrip("\n"))
    return [run.report_md, run.report_html]
