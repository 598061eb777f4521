"""What is wrong with settings, said before anything is started: sizes, mixtures, files and names of tasks."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from nanochat.cli.options import Invocation
from nanochat.paths import TRAIN_STAGES

if TYPE_CHECKING:
    from nanochat.config.settings import Settings


def check_settings(
    invocation: Invocation,
    settings: "Settings",
    origins: dict[str, str],
    world_size: int,
    stages: Collection[str] = TRAIN_STAGES,
    *,
    scores: bool = True,
) -> list[str]:
    """Raise for what is wrong with these stages and, where scores are still to be taken, with the tasks to be scored.

    Returns the tasks that are not downloaded yet, which are no fault of the settings.
    """
    from nanochat.config.device_batch import lower_rows
    from nanochat.config.load import is_chosen
    from nanochat.config.plan import plan_base, plan_finetune, plan_rl
    from nanochat.data.core_bundle import check_labels
    from nanochat.tasks.catalog import find_missing
    from nanochat.tasks.entry import parse_spec
    from nanochat.tasks.graded import check_graded
    from nanochat.tokenizer.bpe import check_pattern

    invocation.workspace.dataset(settings.data.dataset)  # raises for what is no name
    check_pattern(settings.tokenizer.pattern)
    folder, mixture, missing = invocation.workspace.tasks, [], []
    chosen = is_chosen(origins, "batch.device_batch_size")
    if "base" in stages:
        plan_base(lower_rows(settings, "base", world_size, chosen)[0], world_size)
    for stage in ("mid", "sft"):
        if stage in stages:
            plan_finetune(lower_rows(settings, stage, world_size, chosen)[0], stage, world_size, None)
            mixture += getattr(settings, stage).mixture
    if "rl" in stages and settings.rl.task is not None:
        plan_rl(settings, world_size, None)
        if check_graded(settings.rl.task, folder) is None:
            missing.append(parse_spec(settings.rl.task).name)
    if scores:
        check_labels(invocation.workspace.core, settings.eval.core_tasks)
    missing += find_missing(mixture, settings.eval.tasks if scores else (), folder=folder)
    return list(dict.fromkeys(missing))


def say_missing(tasks: list[str]) -> str:
    return f"not downloaded yet: {', '.join(tasks)}  # nanochat download tasks"
