"""Downloads on the command line: the client or none, one progress line, what an interrupt says and a result shows."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.cli.console import format_table
from nanochat.cli.options import Invocation
from nanochat.download.sources import CORE_URL
from nanochat.errors import InterruptError, MissingError
from nanochat.files import describe_unsynced

if TYPE_CHECKING:
    from nanochat.download.fetch import Order
    from nanochat.download.record import Record


def fetch(
    invocation: Invocation,
    orders: Sequence["Order"],
    *,
    again: Sequence[str],
    update: bool = False,
    core: bool = False,
    core_from: str | None = None,
    finish: Callable[["Order", "Record"], None] = lambda order, record: None,
) -> dict[Path, "Record"]:
    """Fill the orders and, where asked for, bring the CORE bundle; return the record of each folder.

    again: the arguments of `nanochat download` that go on. finish: what is done with an order that is filled, while its
    folder is locked. Raises as Fetcher.fetch does, and InterruptError on Ctrl-C.
    """
    from nanochat.cli.progress import ProgressLine
    from nanochat.download.bundle import Bundle
    from nanochat.download.fetch import Fetcher
    from nanochat.download.hub import Hub
    from nanochat.download.work import Face

    command = shlex.join(["nanochat", "download", *again])
    bundles = []
    if core:
        source = core_from or CORE_URL
        if core_from and not core_from.startswith(("http://", "https://")):
            source = str(Path(core_from).expanduser().absolute())
            if not Path(source).exists():
                raise MissingError(f"there is no file {source}", "nanochat download core")
        bundles = [Bundle(source, invocation.workspace.core, is_wish=core_from is not None)]
    with ProgressLine(invocation.console) as line:
        fetcher = Fetcher(
            None if invocation.offline else Hub, Face(line.say, line.show), again=command, update=update, finish=finish
        )
        try:
            records = fetcher.fetch(orders, bundles)
        except KeyboardInterrupt:
            raise InterruptError("the download is stopped; what has come is kept", command) from None
        finally:
            for reason, count in fetcher.progress.problems.most_common():
                line.say(f"tried again {count:,} time{'s' * (count > 1)}: {reason}")
        if warning := describe_unsynced(invocation.home):
            line.say(warning)
    return records


def show_facts(invocation: Invocation, facts: dict[str, Any]) -> None:
    """Names and values, as lines or as JSON."""
    if invocation.as_json:
        invocation.console.show_json(facts)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else json.dumps(value)
        invocation.console.show(f"{name.ljust(width)}  {shown}")


def describe_text(name: str, folder: Path) -> dict[str, Any]:
    from nanochat.data.shards import load_manifest

    manifest = load_manifest(folder)
    return {
        "dataset": name,
        "folder": str(folder),
        "shards": len(manifest.shards),
        "train_documents": manifest.num_rows("train"),
        "val_documents": manifest.num_rows("val"),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "hash": manifest.hash,
    }


def describe_order(order: "Order") -> str:
    """What a dry run would fetch."""
    number = f"{order.num_files:,} of " if order.num_files is not None else ""
    return f"download {number}{order.repo}/{{{','.join(order.patterns)}}} into {order.folder}"


def show_records(invocation: Invocation, records: dict[Path, "Record"]) -> None:
    """What lies where, and from which commit."""
    rows = [
        {
            "source": record.repo,
            "commit": record.commit,
            "files": len(record.here),
            "bytes": sum(entry.size for entry in record.here.values()),
            "folder": str(folder),
        }
        for folder, record in sorted(records.items())
    ]
    if invocation.as_json:
        invocation.console.show_json(rows)
    elif rows:
        shown = [(r["source"], r["commit"][:12], f"{r['files']:,}", f"{r['bytes']:,}", r["folder"]) for r in rows]
        invocation.console.show(format_table(shown, ("source", "commit", "files", "bytes", "folder"), [2, 3]))
