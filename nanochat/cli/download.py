"""`nanochat download data | import`: pretraining text, made here or brought by you."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat.cli.options import Invocation, command, new_group
from nanochat.errors import MissingError, UsageError
from nanochat.paths import RUN_NAME

app = new_group("Get pretraining text: the demo's, or your own.")


@command(app, "data", "nanochat download data --dataset demo")
def download_data(
    invocation: Invocation,
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="The data set.")] = "demo",
) -> None:
    """Make the demo's text, or check a data set that is already there."""
    folder = find_folder(invocation, dataset)
    if not (folder / "shards.json").is_file():
        if dataset != "demo":
            raise MissingError(
                f"data set {dataset!r} is not in {folder}, and this version fetches no text from the network",
                f"nanochat download import DIR --name {dataset}",
            )
        if invocation.dry_run:
            invocation.console.show(f"would make {folder}")
            return
        from nanochat.stages.dataset import make_demo

        invocation.console.say(f"making the demo text in {folder}")
        make_demo(folder)
    from nanochat.data.shards import verify_dataset

    manifest = verify_dataset(folder)
    facts: dict[str, Any] = {
        "dataset": dataset,
        "folder": str(folder),
        "shards": len(manifest.shards),
        "train_documents": manifest.num_rows("train"),
        "val_documents": manifest.num_rows("val"),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "hash": manifest.hash,
    }
    show_facts(invocation, facts)
    invocation.console.suggest(f"nanochat tokenize train --preset demo --set data.dataset={dataset}")


@command(app, "import", "nanochat download import ~/texts --name mine")
def import_text(
    invocation: Invocation,
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A folder or file: txt, md, jsonl, parquet.")],
    name: Annotated[str | None, typer.Option("--name", help="Of the data set; default: the folder's name.")] = None,
    column: Annotated[str, typer.Option("--column", help="The text column of parquet files.")] = "text",
    key: Annotated[str, typer.Option("--key", help="The text key of JSONL lines.")] = "text",
    val: Annotated[Path | None, typer.Option("--val", help="Validation text; default: 1 % is held out.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the shuffle.")] = 42,
) -> None:
    """Make a data set of your own text."""
    from nanochat.data.folder import import_folder

    source = source.expanduser()
    dataset = name or source.resolve().stem
    folder = find_folder(invocation, dataset)
    if (folder / "shards.json").is_file() and not invocation.yes and not invocation.dry_run:
        if not sys.stdin.isatty():
            raise UsageError(f"there already is a data set {dataset!r} in {folder}", "--yes  # or another --name")
        if not invocation.console.ask(f"replace the data set {dataset!r}?"):
            raise UsageError(f"data set {dataset!r} is kept", "--name OTHER")
    if invocation.dry_run:
        invocation.console.show(f"would make {folder} from {source}")
        return
    report = import_folder(source, folder, column, key, val.expanduser() if val else None, seed)
    if report.ignored_files:
        invocation.console.say(f"files of other kinds, ignored: {report.ignored_files}")
    if report.skipped_documents:
        invocation.console.say(f"documents without text, skipped: {report.skipped_documents}")
    if report.repeated_documents:
        invocation.console.say(f"documents that repeat in the validation text, skipped: {report.repeated_documents}")
    facts = {
        "dataset": dataset,
        "folder": str(folder),
        "files": report.num_files,
        "train_documents": report.train_documents,
        "val_documents": report.val_documents,
        "chars": report.num_chars,
        "hash": report.manifest.hash,
    }
    show_facts(invocation, facts)
    invocation.console.suggest(f"nanochat run --preset demo --run {dataset} --set data.dataset={dataset}")


def find_folder(invocation: Invocation, dataset: str) -> Path:
    """The folder of a data set that may not exist yet. Raises UsageError where the name is no folder name."""
    if not RUN_NAME.fullmatch(dataset):
        raise UsageError(
            f"data set {dataset!r} is not a name: letters, digits, '.', '_' and '-' only, a letter or digit first",
            "--name mine",
        )
    return invocation.workspace.dataset(dataset)


def show_facts(invocation: Invocation, facts: dict[str, Any]) -> None:
    """Names and values, as lines or as JSON."""
    if invocation.as_json:
        invocation.console.show_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else json.dumps(value)
        invocation.console.show(f"{name.ljust(width)}  {shown}")
