"""A task to practise on: generative, and able to grade what it calls right."""

from pathlib import Path

from nanochat.errors import MissingError, UsageError
from nanochat.tasks.catalog import HUB, build_entry
from nanochat.tasks.entry import parse_spec
from nanochat.tasks.task import Split, Task

CHECKED_EXAMPLES = 8


def build_graded(spec: str, split: Split = "train", *, folder: Path | None = None) -> Task:
    """Make the task of `rl.task`, `name` or a part of one, which counts training examples only.

    folder: where the files of hub tasks lie.

    Raises MissingError where its data is not there, and UsageError where the task cannot be practised on: answers are
    letters, nothing is graded, or the task's own right answers are graded as wrong.
    """
    entry = parse_spec(spec)
    if entry.times > 1:
        raise UsageError(
            f"rl.task = {spec!r} repeats its questions, which rl.epochs does",
            f"--set rl.task={entry.name} --set rl.epochs={entry.times}",
        )
    task = build_entry(spec if split == "train" else entry.name, split, folder=folder)
    if task.eval_type != "generative":
        raise UsageError(
            f"rl.task = {spec!r} is answered with a letter: nothing is sampled", "--set rl.task=arithmetic"
        )
    for index in range(min(CHECKED_EXAMPLES, task.num_examples())):
        example = task.example(index)
        verdict = task.evaluate(example, example.messages[-1].text)
        if verdict is None:
            raise UsageError(f"rl.task = {spec!r} is not graded: no answer gets a reward", "--set rl.task=arithmetic")
        if not verdict:
            raise UsageError(
                f"rl.task = {spec!r} grades its own right answer {example.messages[-1].text[:80]!r} as wrong",
                "--set rl.task=arithmetic",
            )
    return task


def check_graded(spec: str, folder: Path) -> int | None:
    """The number of training questions of `rl.task`; None where its data is not downloaded yet.

    Raises like build_graded for everything else, such as a file of the user's that is not there.
    """
    try:
        return build_graded(spec, folder=folder).num_examples()
    except MissingError:
        if parse_spec(spec).name not in HUB:
            raise
        return None
