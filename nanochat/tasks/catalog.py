"""Tasks by name: what `sft.mixture` and `eval.tasks` of a preset mean."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from nanochat.errors import MissingError, UsageError
from nanochat.tasks.arithmetic import ArithmeticTask
from nanochat.tasks.bee import SimpleSpellingTask, SpellingBeeTask
from nanochat.tasks.choice import ARCTask, MMLUTask
from nanochat.tasks.custom_class import CLASS_NAME, build_custom_class
from nanochat.tasks.custom_json import CustomJSONTask
from nanochat.tasks.entry import CUSTOM, parse_spec
from nanochat.tasks.gsm8k import GSM8KTask
from nanochat.tasks.humaneval import HumanEvalTask
from nanochat.tasks.identity import IdentityTask
from nanochat.tasks.letters import LettersTask
from nanochat.tasks.smoltalk import SmolTalkTask
from nanochat.tasks.spelling import SpellingTask
from nanochat.tasks.stories import StoriesTask
from nanochat.tasks.task import Split, Task, TaskMixture, TaskSlice
from nanochat.tasks.totals import TotalsTask

TASKS: dict[str, Callable[[Split], Task]] = {
    "letters": LettersTask,
    "arithmetic": ArithmeticTask,
    "spelling": SpellingTask,
    "totals": TotalsTask,
    "identity": IdentityTask,
    "stories": StoriesTask,
    "spelling-bee": SpellingBeeTask,
    "simple-spelling": SimpleSpellingTask,
}
SIZED = {
    "letters": LettersTask,
    "arithmetic": ArithmeticTask,
    "spelling": SpellingTask,
    "totals": TotalsTask,
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
    "humaneval": HumanEvalTask,
    "smoltalk": SmolTalkTask,
}
"""Tasks whose rows are files of the hub, under the folder of downloaded tasks."""
RUN_CODE = frozenset({"humaneval"})
"""Tasks that are graded by running what a model wrote."""
NAMES = (*TASKS, *HUB)
SPLITS: tuple[Split, ...] = ("train", "test")


def build_task(
    name: str,
    split: Split = "train",
    size: int | None = None,
    *,
    folder: Path | None = None,
    allow_weak_isolation: bool = False,
) -> Task:
    """Make a task by name, `custom:PATH`, `FILE.py:Class` or `module:Class`.

    size: how many examples; never more than the task has, where they are not made here. folder: where downloaded tasks
    lie (workspace.tasks). allow_weak_isolation: run what a model wrote even where it cannot be closed off well.

    Raises UsageError for a name that does not exist; MissingError and DataError for a file that cannot be read.
    """
    if name.startswith(CUSTOM):
        task = CustomJSONTask(Path(name.removeprefix(CUSTOM)).expanduser(), split)
    elif name in SIZED:
        return SIZED[name](split, size)
    elif name in TASKS:
        task = TASKS[name](split)
    elif name in RUN_CODE:
        task = HumanEvalTask(split, folder, allow_weak_isolation)
    elif name in HUB:
        task = HUB[name](split, folder)
    elif CLASS_NAME.fullmatch(name):
        task = build_custom_class(name, split, NAMES)
    elif (whole := name.partition(":")[0]) in NAMES:
        raise UsageError(f"{name!r} is a part of a task", f"name all of it, {whole}; eval.max_examples limits examples")
    else:
        near = difflib.get_close_matches(name, NAMES, n=1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no task {name!r}", f"{guess}tasks: {', '.join(NAMES)}, custom:PATH, FILE.py:Class")
    return task if size is None else TaskSlice(task, 0, size)


def build_entry(spec: str, split: Split = "train", *, folder: Path | None = None) -> Task:
    """Make the part of a task that a mixture's entry asks for, once. folder: as of build_task.

    A part counts training examples; of the test examples it takes as many, from the first.

    Raises UsageError where it cannot be read or there is no such task or part.
    """
    entry = parse_spec(spec)
    if split == "test":
        return build_task(entry.name, split, entry.count, folder=folder)
    task = build_task(entry.name, split, entry.part.stop, folder=folder)
    if entry.part.start is None and entry.part.step is None:
        return task
    part = TaskSlice(task, entry.part.start, None, entry.part.step)
    if not len(part):
        raise UsageError(f"{spec} is empty: the task has {len(task):,} examples", f"{entry.name}:{len(task)}")
    return part


def build_mixture(
    specs: Sequence[str], split: Split = "train", seed: int = 42, *, folder: Path | None = None
) -> TaskMixture:
    """Make the tasks of a preset's mixture and shuffle their examples together. folder: as of build_task.

    Of the test examples each is there once, however often a task stands in the mixture.

    Raises UsageError for an empty mixture, an entry that cannot be read or a task that does not exist.
    """
    if not specs:
        raise UsageError(
            "the mixture is empty: there is nothing to train on",
            f"tasks: {', '.join(NAMES)}, custom:PATH, FILE.py:Class",
        )
    tasks: list[Task] = []
    if split == "test":
        for name, counts in _group_counts(specs).items():
            size = None if None in counts else sum(count or 0 for count in counts)
            tasks.append(build_task(name, split, size, folder=folder))
    else:
        for spec in specs:
            tasks += [build_entry(spec, split, folder=folder)] * parse_spec(spec).times
    return TaskMixture(tasks, seed)


def list_untested(specs: Sequence[str], *, folder: Path | None = None) -> list[str]:
    """Tasks of a mixture whose test examples are their training examples, so that validation measures those.

    Tasks that are made or downloaded with tests of their own are not looked at. folder: as of build_task.
    """
    names = dict.fromkeys(parse_spec(spec).name for spec in specs)
    return [
        name
        for name in names
        if name not in SIZED
        and name not in HUB
        and len({build_task(name, split, folder=folder).content_hash() for split in SPLITS}) == 1
    ]


def _group_counts(specs: Sequence[str]) -> dict[str, list[int | None]]:
    """
    >>> _group_counts(["letters:30", "identity*20", "letters:30:50*2"])
    {'letters': [30, 20], 'identity': [None]}
    """
    counts: dict[str, list[int | None]] = {}
    for entry in map(parse_spec, specs):
        counts.setdefault(entry.name, []).append(entry.count)
    return counts


def find_missing(mixture: Sequence[str], scored: Sequence[str] = (), *, folder: Path | None = None) -> list[str]:
    """Names of tasks that are not downloaded: of a mixture, which trains and validates, and of those to be scored.

    Raises like build_task for everything else that is wrong with them.
    """
    missing: dict[str, None] = {}

    def attempt(name: str, build: Callable[[], Task]) -> Task | None:
        try:
            return build()
        except MissingError:
            if name not in HUB:
                raise
            missing[name] = None
            return None

    for spec in mixture:
        for split in SPLITS:
            attempt(parse_spec(spec).name, partial(build_entry, spec, split, folder=folder))
    tasks = {name: attempt(name, partial(build_task, name, "test", 1, folder=folder)) for name in scored}
    check_names({name: task for name, task in tasks.items() if task})
    return list(missing)


def check_names(tasks: Mapping[str, Task]) -> None:
    """Raise UsageError if two tasks have one name. tasks: by how the settings name them."""
    specs: dict[str, str] = {}
    for spec, task in tasks.items():
        if task.name in specs:
            raise UsageError(
                f"{specs[task.name]} and {spec} are both named {task.name!r}: their scores would be one file",
                f'name = "my-{task.name}"  # in the class of one',
            )
        specs[task.name] = spec
