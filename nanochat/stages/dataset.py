"""The pretraining text of a run: found, or, for the demo, made on the spot. Loads no torch."""

from collections.abc import Callable
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

DEMO = "demo"
DEMO_CHARS = {"train": 12_000_000, "val": 300_000}
"""Three times what the demo preset reads, made in a few seconds: 4M characters a second on one core."""


def open_dataset(workspace: Workspace, name: str, say: Callable[[str], None], world: "World | None" = None) -> Path:
    """The folder of a data set, whose text is made now if it is the demo's and absent.

    Raises MissingError with the command that downloads it. Collective: every rank of `world` calls this; rank 0 looks
    and makes, the others wait for it.
    """
    folder = workspace.dataset(name)

    def find() -> Path:
        if (folder / MANIFEST).is_file():
            load_manifest(folder)
        elif name == DEMO:
            say(f"making the demo text: {sum(DEMO_CHARS.values()) / 1e6:.1f}M characters")
            make_demo(folder)
        else:
            hint = f"nanochat download import DIR --name {name}"
            raise MissingError(
                f"data set {name!r} is not in {folder}",
                "nanochat download data --preset d20" if name in TEXT_SOURCES else hint,
            )
        return folder

    if world is None:
        return find()
    found = world.ask_main(find)
    await_path(found / MANIFEST)
    return found


def make_demo(folder: Path) -> None:
    """Write the demo's shards; the folder becomes a data set only when both splits are there."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shards = []
        for split in ("train", "val"):
            shards += write_shard_files(folder, generate_documents(DEMO_CHARS[split], split=split), split)
        replace_manifest(folder, Manifest(tuple(shards)))
