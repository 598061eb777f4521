"""The pretraining text of a run: found, or, for the demo, made on the spot."""

from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.data.shards import MANIFEST, Manifest, load_manifest, replace_manifest, write_shard_files
from nanochat.download.sources import TEXT_SOURCES
from nanochat.errors import MissingError
from nanochat.files import await_path, disk_errors
from nanochat.paths import Workspace
from nanochat.tasks.demo import generate_documents

if TYPE_CHECKING:
    from nanochat.runtime import World
    from nanochat.stages.display import Display

DEMO = "demo"
DEMO_CHARS = {"train": 12_000_000, "val": 300_000}
"""Three times what the demo preset reads, made in a few seconds: 4M characters a second on one core."""


def find_dataset(workspace: Workspace, name: str) -> Path:
    """The folder of a data set that is there. Raises MissingError with the command that brings it."""
    folder = workspace.dataset(name)
    if not (folder / MANIFEST).is_file():
        command = "nanochat download data --preset d20" if name in TEXT_SOURCES else ""
        hint = command or f"nanochat download import DIR --name {name}"
        if name == DEMO:
            hint = "nanochat tokenize train --preset demo"
        raise MissingError(f"data set {name!r} is not in {folder}", hint)
    load_manifest(folder)
    return folder


def open_dataset(workspace: Workspace, name: str, display: "Display", world: "World | None" = None) -> Path:
    """find_dataset, after making the demo's text if that is asked for and absent.

    Collective: every rank of `world` calls this; rank 0 looks and makes, the others wait for it.
    """

    def find() -> Path:
        folder = workspace.dataset(name)
        if name == DEMO and not (folder / MANIFEST).is_file():
            display.say(f"making the demo text: {sum(DEMO_CHARS.values()) / 1e6:.1f}M characters")
            make_demo(folder)
        return find_dataset(workspace, name)

    if world is None:
        return find()
    folder = world.ask_main(find)
    await_path(folder / MANIFEST)
    return folder


def make_demo(folder: Path) -> None:
    """Write the demo's shards; the folder becomes a data set only when both splits are there."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shards = []
        for split in ("train", "val"):
            shards += write_shard_files(folder, generate_documents(DEMO_CHARS[split], split=split), split)
        replace_manifest(folder, Manifest(tuple(shards)))
