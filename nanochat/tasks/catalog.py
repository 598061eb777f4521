"""Tasks by name: what `sft.mixture` and `eval.tasks` of a preset mean."""

import difflib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from nanochat.errors import UsageError
from nanochat.tasks.arithmetic import ArithmeticTask
from nanochat.tasks.bee import SimpleSpellingTask, SpellingBeeTask
from nanochat.tasks.choice import ARCTask, MMLUTask
from nanochat.tasks.custom_json import CustomJSONTask
from nanochat.tasks.gsm8k import GSM8KTask
from nanochat.tasks.identity import IdentityTask
from nanochat.tasks.letters import LettersTask
from nanochat.tasks.smoltalk import SmolTalkTask
from nanochat.tasks.spelling import SpellingTask
from nanochat.tasks.stories import StoriesTask
from nanochat.tasks.task import Split, Task, TaskMixture, TaskSlice

TASKS: dict[str, Callable[[Split], Task]] = {
    "letters": LettersTask,
    "arithmetic": ArithmeticTask,
    "spelling": SpellingTask,
    "identity": IdentityTask,
    "stories": StoriesTask,
    "spelling-bee": SpellingBeeTask,
    "simple-spelling": SimpleSpellingTask,
}
SIZED = {
    "letters": LettersTask,
    "arithmetic": ArithmeticTask,
    "spelling": SpellingTask,
    "stories": StoriesTask,
    "spelling-bee": SpellingBeeTask,
    "simple-spelling": SimpleSpellingTask,
}
"""Tasks that make as many examples as they are asked for."""
HUB: dict[str, Callable[[Split, Path | None], Task]] = {
    "mmlu": MMLUTask,
    "arc-easy": partial(ARCTask, "arc-easy"),
    "arc-challenge": partial(ARCTask, "arc-challenge"),
    "gsm8k": GSM8KTask,
    "smoltalk": SmolTalkTask,
}
"""Tasks whose rows are files of the hub, under the folder of downloaded tasks."""
NAMES = (*TASKS, *HUB)

CUSTOM = "custom:"
SPEC = re.compile(r"(?P<name>[^:*]+)(?::(?P<stop>\d+))?(?:\*(?P<times>\d+))?")
CUSTOM_SPEC = re.compile(r"(?P<name>custom:.+?)(?P<stop>)(?:\*(?P<times>\d+))?")


def build_task(name: str, split: Split = "train", size: int | None = None, *, folder: Path | None = None) -> Task:
    """Make a task by name, or `custom:PATH`. size: how many examples, never more than the task has.

    folder: where downloaded tasks lie (workspace.tasks).

    Raises UsageError for a name that does not exist; MissingError and DataError for a file that cannot be read.
    """
    if name.startswith(CUSTOM):
        task = CustomJSONTask(Path(name.removeprefix(CUSTOM)).expanduser())
    elif name in SIZED:
        return SIZED[name](split, size)
    elif name in TASKS:
        task = TASKS[name](split)
    elif name in HUB:
        task = HUB[name](split, folder)
    else:
        near = difflib.get_close_matches(name, NAMES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no task {name!r}", f"{guess}tasks: {', '.join(NAMES)}, custom:PATH")
    return task if size is None else TaskSlice(task, 0, size)


def parse_spec(spec: str) -> tuple[str, int | None, int]:
    """Split a mixture's entry into name, number of examples (None: all) and repetitions.

    >>> parse_spec("letters:5000"), parse_spec("identity*100"), parse_spec("custom:a.jsonl*2")
    (('letters', 5000, 1), ('identity', None, 100), ('custom:a.jsonl', None, 2))
    """
    match = (CUSTOM_SPEC if spec.startswith(CUSTOM) else SPEC).fullmatch(spec.strip())
    if not match or match["stop"] == "0" or match["times"] == "0":
        raise UsageError(
            f"mixture entry {spec!r} is not NAME, NAME:STOP or NAME*TIMES", "for example letters:5000 or identity*100"
        )
    return match["name"], int(match["stop"]) if match["stop"] else None, int(match["times"] or 1)


def build_mixture(
    specs: Sequence[str], split: Split = "train", seed: int = 42, *, folder: Path | None = None
) -> TaskMixture:
    """Make the tasks of a preset's mixture and shuffle their examples together. folder: as of build_task.

    Raises UsageError for an empty mixture, an entry that cannot be read or a task that does not exist.
    """
    if not specs:
        raise UsageError(
            "the mixture is empty: there is nothing to train on", f"tasks: {', '.join(NAMES)}, custom:PATH"
        )
    tasks: list[Task] = []
    for spec in specs:
        name, stop, times = parse_spec(spec)
        tasks += [build_task(name, split, stop, folder=folder)] * times
    return TaskMixture(tasks, seed)
