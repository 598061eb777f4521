"""`nanochat download import`: a data set of your own text."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat.cli.fetching import show_facts
from nanochat.cli.options import Invocation
from nanochat.cli.progress import ProgressLine
from nanochat.download.sources import TEXT_SOURCES
from nanochat.errors import InterruptError, UsageError
from nanochat.paths import check_name
from nanochat.stages.lock import find_holder

if TYPE_CHECKING:
    from nanochat.data.folder import ImportReport

USEFUL_VAL_CHARS = 20_000
"""Less validation text, some 5,000 tokens, gives bits per byte that differ by several percent from draw to draw."""


def import_text(
    invocation: Invocation,
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A folder or file: txt, md, jsonl, parquet.")],
    name: Annotated[str | None, typer.Option("--name", help="Of the data set; default: the folder's name.")] = None,
    column: Annotated[
        str, typer.Option("--column", "--key", help="Where the text is: column of parquet, key of JSONL.")
    ] = "text",
    val: Annotated[Path | None, typer.Option("--val", help="Validation text; default: a share is held out.")] = None,
    val_share: Annotated[
        float | None,
        typer.Option("--val-share", help="Share held out; default: 0.01, of short texts up to 0.1."),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option("--encoding", help="Of txt, md and jsonl files that are not UTF-8.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out and count what cannot be read.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the shuffle.")] = 42,
) -> None:
    """Make a data set of your own text."""
    from nanochat.data.folder import ImportReport, find_files, import_folder

    source, val = source.expanduser(), val.expanduser() if val else None
    dataset = source.resolve().stem if source.is_file() else source.resolve().name
    dataset = dataset if name is None else name
    folder = find_folder(invocation, dataset)
    if dataset == "demo" or dataset in TEXT_SOURCES:
        raise UsageError(f"{dataset!r} is the name of a data set that nanochat makes or downloads", "--name mine")
    if (folder / "source.json").is_file():
        raise UsageError(f"{folder} holds a downloaded data set, which an import does not replace", "--name mine")
    if invocation.dry_run:
        found = ImportReport()
        find_files(source, found)
        invocation.would(f"make {folder} from {found.num_files:,} files of {source}")
        return say_left_out(invocation, found)
    check_unread(invocation, dataset)
    if (folder / "shards.json").is_file() and not invocation.yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(
                f"there already is a data set {dataset!r} in {folder}", f"--name {dataset}-2  # or --yes: replace it"
            )
        if not invocation.console.ask(f"replace the data set {dataset!r}?"):
            raise UsageError(f"data set {dataset!r} is kept", f"--name {dataset}-2")
    with ProgressLine(invocation.console) as line:
        try:
            report = import_folder(
                source, folder, column, val, seed, val_share, encoding, skip_bad, line.show_bytes, line.say
            )
        except KeyboardInterrupt:
            again = f"--name {dataset}  # the same command again"
            raise InterruptError("the import is stopped; nothing was changed", again) from None
    say_left_out(invocation, report)
    say_what_was_cut(invocation, report, encoding)
    facts = {
        "dataset": dataset,
        "folder": str(folder),
        "files": report.num_files,
        "train_documents": report.documents["train"],
        "train_chars": report.chars["train"],
        "val_documents": report.documents["val"],
        "val_chars": report.chars["val"],
        "hash": report.manifest.hash,
    }
    show_facts(invocation, facts)
    if report.chars["val"] < USEFUL_VAL_CHARS:
        invocation.console.say(
            f"validation text of {report.chars['val']:,} characters is short: bits per byte on it depend on chance  "
            "# give more with --val PATH or --val-share 0.2"
        )
    invocation.console.suggest(f"nanochat run --preset demo --run {dataset} --set data.dataset={dataset}")


def check_unread(invocation: Invocation, dataset: str) -> None:
    """Raise UsageError where a run that is at work may read the data set."""
    from nanochat.config.load import read_saved

    for run in invocation.workspace.list_runs():
        if (holder := find_holder(run)) and read_saved(run.settings)[1].data.dataset == dataset:
            raise UsageError(
                f"run {run.name!r}, at work in process {holder}, reads the data set {dataset!r}",
                f"--name {dataset}-2  # or wait for it to end",
            )


def say_left_out(invocation: Invocation, report: "ImportReport") -> None:
    """What an import leaves out: the count and the reason, a line each."""
    for reason, count in report.left_out.items():
        invocation.console.say(f"left out: {reason}: {count:,}")


def say_what_was_cut(invocation: Invocation, report: "ImportReport", encoding: str | None) -> None:
    if report.num_recoded:
        invocation.console.say(f"read as {encoding}, because they are not UTF-8: {report.num_recoded:,} files or lines")
    if report.num_cut:
        invocation.console.say(f"cut into pieces, because they are long: {report.num_cut:,} documents")
    if report.num_stretches:
        invocation.console.say(
            f"cut, to validate on a part of each and train on the rest: {report.num_stretches:,} documents"
        )


def find_folder(invocation: Invocation, dataset: str) -> Path:
    """The folder of a data set that may not exist yet. Raises UsageError where the name is no folder name."""
    check_name("data set", dataset, "--name mine")
    return invocation.workspace.dataset(dataset)
