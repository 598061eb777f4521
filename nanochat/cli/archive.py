"""`nanochat download verify | pack | unpack`: downloads checked, and carried to machines without a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat.cli.fetching import fetch, show_facts
from nanochat.cli.options import Invocation
from nanochat.cli.progress import ProgressLine
from nanochat.errors import CheckError, DataError, MissingError

if TYPE_CHECKING:
    from nanochat.download.verify import Damage

NAMED = 6


def verify_downloads(
    invocation: Invocation,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch again what is damaged or missing.")] = False,
) -> None:
    """Read every file that was downloaded, made or imported, and compare it with its hash."""
    from nanochat.download.verify import find_damage, find_folders

    workspace = invocation.workspace
    folders = find_folders(workspace)
    own = [path.parent for path in sorted((workspace.home / "data").glob("*/shards.json"))]
    own = [folder for folder in own if folder not in folders]
    if not folders and not own:
        raise MissingError(f"nothing was downloaded to {workspace.home}", "nanochat download all --for d20")
    with ProgressLine(invocation.console) as line:
        damages = find_damage(folders, lambda done, total: line.show_bytes("verifying downloads", done, total))
        for damage in damages:
            line.say(f"damaged: {damage}")
        bad = [folder for folder in own if not is_whole(folder, line)]
    names = [Path(damage.path).name for damage in damages] + [folder.name for folder in bad]
    if names and not repair:
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        raise CheckError(f"not what it was: {', '.join(names[:NAMED])}{more}", "nanochat download verify --repair")
    if names:
        repair_damage(invocation, damages, bad)
    show_facts(invocation, {"folders": len(folders) + len(own), "damaged": len(names), "repaired": len(names)})


def is_whole(folder: Path, line: ProgressLine) -> bool:
    """Whether a data set that was made or imported is what its manifest says; says what is not."""
    from nanochat.data.shards import verify_dataset

    try:
        verify_dataset(folder, lambda done, total: line.show_bytes(f"verifying {folder.name}", done, total))
    except DataError as error:
        line.say(f"damaged: {error.message}")
        return False
    return True


def repair_damage(invocation: Invocation, damages: list["Damage"], own: list[Path]) -> None:
    """Fetch damaged files from where they came; make the demo's text again. own: data sets that were not downloaded.

    Raises DataError offline, before anything is deleted, and where somebody has to bring it again.
    """
    from nanochat.download.bundle import BY_HAND
    from nanochat.download.record import load_record
    from nanochat.download.verify import set_aside

    if damages and invocation.offline:
        raise DataError("what is damaged cannot be fetched again: this is offline", "nanochat download verify --repair")
    core = invocation.workspace.core
    hub = [damage for damage in damages if damage.folder != core]
    record = load_record(core) if len(hub) < len(damages) else None
    source = None if record is None else record.repo
    if source == BY_HAND:
        raise DataError(
            f"the bundle in {core} was put there by hand and is damaged",
            f"mv -n {core} {core}-before; nanochat download core",
        )
    orders = set_aside(hub, invocation.console.say)
    if orders or source:
        for damage in damages:
            if damage.folder == core:
                (core / damage.path).unlink(missing_ok=True)
        fetch(invocation, orders, again=["verify", "--repair"], core=source is not None, core_from=source)
    for folder in own:
        if folder.name != "demo":
            raise DataError(
                f"{folder} is damaged, and it is yours to bring",
                f"nanochat download import DIR --name {folder.name}  # --yes puts it in the place of what is damaged",
            )
        from nanochat.stages.dataset import make_demo

        invocation.console.say(f"making the demo text in {folder}")
        make_demo(folder)


def pack_downloads(
    invocation: Invocation, file: Annotated[Path, typer.Argument(metavar="FILE", help="The tar to write.")]
) -> None:
    """Write all downloads into one file, for a machine without a network."""
    from nanochat.download.pack import list_units, pack

    file = file.expanduser().absolute()
    if invocation.dry_run:
        return invocation.would(*(f"pack {unit}" for unit in list_units(invocation.workspace)))
    with ProgressLine(invocation.console) as line:
        packed = pack(invocation.workspace, file, lambda done, total: line.show_bytes("packing", done, total))
    show_facts(invocation, {"file": str(file), "files": len(packed), "bytes": sum(item.size for item in packed)})
    invocation.console.suggest(f"nanochat download unpack {file}  # on the other machine")


def unpack_downloads(
    invocation: Invocation, file: Annotated[Path, typer.Argument(metavar="FILE", help="What `pack` wrote.")]
) -> None:
    """Put what `download pack` wrote into place; every file is compared with its hash."""
    from nanochat.download.pack import unpack

    file = file.expanduser().absolute()
    if invocation.dry_run:
        return invocation.would(f"unpack {file} into {invocation.home}")
    with ProgressLine(invocation.console) as line:
        packed, kept = unpack(
            *(invocation.workspace, file, line.say, lambda done, total: line.show_bytes("unpacking", done, total)),
            replace=invocation.yes,
        )
    show_facts(invocation, {"file": str(file), "files": len(packed), "were_here": kept, "home": str(invocation.home)})
    invocation.console.suggest("nanochat download verify")
