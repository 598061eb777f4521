"""`nanochat download`: what training and scoring read, fetched, made here or brought by you."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat.cli.archive import pack_downloads, unpack_downloads, verify_downloads
from nanochat.cli.config import resolve
from nanochat.cli.fetching import describe_order, describe_text, fetch, show_facts, show_records
from nanochat.cli.importing import find_folder, import_text
from nanochat.cli.needs import Needs, list_needs, list_tasks, order_tasks, order_text
from nanochat.cli.options import Config, Invocation, Overrides, Preset, RunName, command, new_group
from nanochat.cli.target import target_options
from nanochat.download.sources import CORE_URL, TASK_SOURCES, TEXT_SOURCES
from nanochat.errors import MissingError, UsageError

if TYPE_CHECKING:
    from nanochat.download.fetch import Order
    from nanochat.download.record import Record

app = new_group("Get what training and scoring read; nothing else opens a socket.")

Update = Annotated[bool, typer.Option("--update", help="Ask which commit `main` is now, and fetch what differs.")]
CoreFrom = Annotated[
    str | None, typer.Option("--core-from", metavar="URL|FILE", help="The bundle: an address, a zip or a folder.")
]
For = Annotated[str | None, typer.Option("--for", "--preset", help="A preset by name: nanochat presets ls.")]


@command(app, "data", "nanochat download data --preset d20")
def download_data(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", metavar="NAME", help="The data set; default: the preset's.")
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", metavar="N", help="Files of it; default: what the plan reads.")
    ] = None,
    update: Update = False,
) -> None:
    """Fetch the shards of text that a preset reads, make the demo's text, or check a data set that is there."""
    name, num_shards = choose_text(invocation, preset, config, overrides, run, dataset, shards)
    folder = find_folder(invocation, name)
    options = target_options(preset, config, run, overrides)
    options += [*(["--dataset", name] if dataset else []), *(["--shards", str(shards)] if shards else [])]
    if name in TEXT_SOURCES and (num_shards is not None or not (folder / "shards.json").is_file()):
        if num_shards is None:
            raise UsageError(f"neither --preset nor --shards says how much of {name} is wanted", "--preset d20")
        order = order_text(invocation.workspace, name, num_shards)
        if invocation.dry_run:
            return invocation.would(describe_order(order))
        records = fetch(invocation, [order], again=["data", *options], update=update, finish=adopt)
        facts = describe_text(name, folder) | {"commit": records[folder].commit}
    else:
        if not (folder / "shards.json").is_file():
            if name != "demo":
                raise MissingError(
                    f"data set {name!r} is not in {folder}, and it is none that is fetched from the hub",
                    f"nanochat download import DIR --name {name}",
                )
            if invocation.dry_run:
                return invocation.would(f"make {folder}")
            from nanochat.stages.dataset import make_demo

            invocation.console.say(f"making the demo text in {folder}")
            make_demo(folder)
        from nanochat.data.shards import verify_dataset

        verify_dataset(folder)
        facts = describe_text(name, folder)
    show_facts(invocation, facts)
    chosen = target_options(preset, config, run, overrides) or ["--preset", "demo", "--set", f"data.dataset={name}"]
    invocation.console.suggest(f"nanochat tokenize train {shlex.join(chosen)}")
    return None


@command(app, "tasks", "nanochat download tasks gsm8k humaneval")
def download_tasks(
    invocation: Invocation,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help=f"Of {', '.join(TASK_SOURCES)}; default: all.")
    ] = None,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    update: Update = False,
) -> None:
    """Fetch the questions and conversations of tasks, all splits."""
    options = target_options(preset, config, run, overrides)
    wanted: Sequence[str] = names or tuple(TASK_SOURCES)
    if options:
        settings = resolve(invocation, preset, config, overrides, run)[0]  # a misspelt key is an error, names or not
        wanted = names or list_tasks(settings)
        if not wanted:
            invocation.console.say("these settings name no task that has to be downloaded")
    orders = order_tasks(invocation.workspace, wanted)
    if invocation.dry_run:
        return invocation.would(*map(describe_order, orders))
    records = fetch(invocation, orders, again=["tasks", *(names or ()), *options], update=update)
    show_records(invocation, records)
    return None


@command(app, "core", "nanochat download core")
def download_core(invocation: Invocation, core_from: CoreFrom = None, update: Update = False) -> None:
    """Fetch and unpack the CORE bundle: the tasks that base models are compared by."""
    if invocation.dry_run:
        return invocation.would(f"unpack {core_from or CORE_URL} into {invocation.workspace.core}")
    again = ["core", *(["--core-from", core_from] if core_from else [])]
    records = fetch(invocation, [], again=again, update=update, core=True, core_from=core_from)
    show_records(invocation, records)
    invocation.console.suggest("nanochat eval core")


@command(app, "all", "nanochat download all --for d20")
def download_all(
    invocation: Invocation,
    preset: For = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    core_from: CoreFrom = None,
    update: Update = False,
) -> None:
    """Fetch everything that a preset will ever read: text, tasks, the CORE bundle. Then it runs without a network."""
    options = target_options(preset, config, run, overrides)
    if not (preset or config or run):
        raise UsageError("neither --for nor --config nor --run says for what", "--for d20")
    settings = resolve(invocation, preset, config, overrides, run)[0]
    needs = list_needs(settings)
    orders = order_all(invocation, needs)
    if invocation.dry_run:
        core = [f"unpack {core_from or CORE_URL} into {invocation.workspace.core}"] if needs.has_core else []
        return invocation.would(*map(describe_order, orders), *core)
    text = settings.data.dataset
    again = ["all", *options, *(["--core-from", core_from] if core_from else [])]
    records = fetch(
        invocation, orders, again=again, update=update, core=needs.has_core, core_from=core_from, finish=adopt
    )
    if not records:
        invocation.console.say("these settings need nothing from the network")
    show_records(invocation, records)
    if text != "demo" and not (invocation.workspace.dataset(text) / "shards.json").is_file():
        raise MissingError(
            f"the rest is here; data set {text!r} is yours to bring", f"nanochat download import DIR --name {text}"
        )
    invocation.console.suggest(f"nanochat run {shlex.join(options)}")


command(app, "verify", "nanochat download verify --repair")(verify_downloads)
command(app, "pack", "nanochat download pack downloads.tar")(pack_downloads)
command(app, "unpack", "nanochat download unpack downloads.tar")(unpack_downloads)


command(app, "import", "nanochat download import ~/texts --name mine")(import_text)


def choose_text(
    invocation: Invocation,
    preset: str | None,
    config: Path | None,
    overrides: list[str] | None,
    run: str | None,
    dataset: str | None,
    shards: int | None,
) -> tuple[str, int | None]:
    """The data set that is meant, and how many shards of it; None: nobody says."""
    if shards is not None and shards < 2:
        raise UsageError(f"--shards {shards} is less than 2: one to train on, one for validation", "--shards 2")
    if not (preset or config or run):
        if dataset is None:
            raise UsageError("neither --preset nor --dataset says which text", "--preset d20")
        return dataset, shards
    settings = resolve(invocation, preset, config, overrides, run)[0]
    if dataset is not None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"dataset": dataset})})
    name = settings.data.dataset
    return name, shards or list_needs(settings).num_shards


def order_all(invocation: Invocation, needs: Needs) -> list["Order"]:
    """All orders of what is needed."""
    text = [order_text(invocation.workspace, needs.dataset, needs.num_shards)] if needs.dataset else []
    return [*text, *order_tasks(invocation.workspace, needs.tasks)]


def adopt(order: "Order", record: "Record") -> None:
    """Make shards that are in place a data set; other orders need nothing more."""
    if order.num_files is None:
        return
    from nanochat.data.corpus import adopt_shards

    names = [path for path in order.choose(list(record.files)) if record.files[path].is_here]
    here = {path: entry.sha256 for path, entry in record.here.items()}
    adopt_shards(order.folder, here, names[-1] if names else "")
