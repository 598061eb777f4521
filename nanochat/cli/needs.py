"""What a preset needs from the network: text shards, tasks, the CORE bundle; and whether it is all here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.cli.options import Invocation
from nanochat.download.sources import TASK_SOURCES, TEXT_SOURCES
from nanochat.errors import MissingError, UsageError
from nanochat.paths import Workspace

if TYPE_CHECKING:
    from nanochat.cli.target import Target
    from nanochat.config.settings import Settings
    from nanochat.download.fetch import Order

MIXTURES = {"mid": "mixture", "sft": "mixture", "rl": "task", "eval": "tasks"}
"""Where the settings name tasks."""
NAMED = 6


@dataclass(frozen=True)
class Needs:
    """dataset: of text, "" where none is to be fetched. num_shards: of it, the validation shard included."""

    dataset: str = ""
    num_shards: int | None = None
    tasks: tuple[str, ...] = ()
    has_core: bool = False


def list_needs(settings: "Settings") -> Needs:
    """What all stages of these settings may read. The demo needs nothing, and so not the CORE bundle."""
    from nanochat.config.device_batch import lower_rows
    from nanochat.config.plan import plan_base

    dataset = settings.data.dataset
    is_hub = dataset in TEXT_SOURCES
    num_shards = plan_base(lower_rows(settings, "base", 1, False)[0]).num_shards if is_hub else None
    return Needs(dataset if is_hub else "", num_shards, list_tasks(settings), dataset != "demo")


def list_tasks(settings: "Settings", stages: Sequence[str] = tuple(MIXTURES)) -> tuple[str, ...]:
    """Tasks with files of the hub that these stages name, sorted."""
    from nanochat.tasks.catalog import parse_spec

    tree = settings.model_dump()
    found = set()
    for stage in stages:
        wish = tree.get(stage, {}).get(MIXTURES.get(stage, "")) or []
        for spec in [wish] if isinstance(wish, str) else wish:
            found.add(parse_spec(spec)[0])
    return tuple(sorted(found & set(TASK_SOURCES)))


def order_text(workspace: Workspace, dataset: str, num_shards: int | None) -> "Order":
    """The first shards of a data set of the hub, and its last."""
    from nanochat.download.fetch import Order

    source = TEXT_SOURCES[dataset]
    return Order(source.repo, workspace.dataset(dataset), tuple(source.files.values()), num_shards, source.revision)


def order_tasks(workspace: Workspace, names: Sequence[str]) -> list["Order"]:
    """All splits of tasks: a stage that trains on one measures itself on its test split.

    Raises UsageError for a task that has no files on the hub.
    """
    from nanochat.download.fetch import Order

    orders = []
    for name in names:
        if name not in TASK_SOURCES:
            raise UsageError(
                f"task {name!r} has nothing to download", f"nanochat download tasks {' '.join(TASK_SOURCES)}"
            )
        source = TASK_SOURCES[name]
        folder = workspace.tasks / source.repo
        orders.append(Order(source.repo, folder, tuple(source.files.values()), revision=source.revision))
    return orders


def check_downloads(invocation: Invocation, target: "Target", stages: Sequence[str]) -> None:
    """Raise MissingError where something that the stages will read is not here; nothing is fetched in mid-run.

    stages: of base, mid, sft, rl, eval. The CORE bundle is no condition: without it CORE is not scored. Where there is
    less text than the plan reads, that is said.
    """
    needs = list_needs(target.settings)
    workspace, missing = invocation.workspace, []
    if needs.dataset and any(map(target.settings.learns_text, stages)):
        folder = workspace.dataset(needs.dataset)
        if not (folder / "shards.json").is_file():
            missing.append(f"{needs.num_shards} shards of {needs.dataset}")
        else:
            say_shortage(invocation, target, needs)
    names = list_tasks(target.settings, stages)
    lacking = {name: find_missing(order) for name, order in zip(names, order_tasks(workspace, names), strict=True)}
    missing += [file for files in lacking.values() for file in files]
    if missing:
        named = ", ".join(dict.fromkeys(missing[:NAMED])) + (", ..." if len(missing) > NAMED else "")
        hint = f"nanochat download all {target.choice}"
        if set(stages) <= {"eval", "rl"}:  # whose tasks may be no settings of the run
            hint = f"nanochat download tasks {' '.join(name for name, files in lacking.items() if files)}"
        raise MissingError(f"not downloaded yet: {named}, and a run opens no socket", hint)


def say_shortage(invocation: Invocation, target: "Target", needs: Needs) -> None:
    """Say where the text will repeat because fewer shards are here than the plan reads."""
    from nanochat.download.record import load_record

    record = load_record(invocation.workspace.dataset(needs.dataset))
    if record is None or needs.num_shards is None:
        return
    if len(record.here) < min(needs.num_shards, len(record.files)):
        invocation.console.say(
            f"{needs.dataset} has {len(record.here):,} shards here, the plan reads {needs.num_shards:,}: the text "
            f"repeats  # nanochat download data {target.choice} brings the rest"
        )


def find_missing(order: "Order") -> list[str]:
    """Files of an order that are not here, or its patterns where nothing is known yet; opens no socket."""
    from nanochat.download.record import load_record

    record = load_record(order.folder)
    if record is None:
        return [f"{order.repo}/{pattern}" for pattern in order.patterns if not any(order.folder.glob(pattern))]
    chosen = order.choose(list(record.files))
    return [f"{order.repo}/{path}" for path in chosen if not (order.folder / path).is_file()]
