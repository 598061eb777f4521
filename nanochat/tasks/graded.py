"""A task to practise on: generative, and able to grade what it calls right."""

from nanochat.errors import MissingError, UsageError
from nanochat.sources import TASK_SOURCES
from nanochat.tasks.catalog import TASKS, build_task, parse_spec
from nanochat.tasks.task import Split, Task

CHECKED_EXAMPLES = 8


def build_graded(spec: str, split: Split = "train") -> Task:
    """Make the task of `rl.task`, `name` or `name:stop`; stop counts training examples only.

    Raises MissingError where its data is not there, and UsageError where the task cannot be practised on: answers are
    letters, nothing is graded, or the task's own right answers are graded as wrong.
    """
    name, stop, times = parse_spec(spec)
    if times > 1:
        raise UsageError(
            f"rl.task = {spec!r} repeats its questions, which rl.epochs does",
            f"--set rl.task={name} --set rl.epochs={times}",
        )
    if name in TASK_SOURCES and name not in TASKS:
        raise MissingError(f"the data of task {name!r} is not there", "nanochat download tasks")
    task = build_task(name, split, stop if split == "train" else None)
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


def check_graded(spec: str) -> int | None:
    """The number of training questions of `rl.task`; None where its data is not downloaded yet.

    Raises UsageError like build_graded.
    """
    try:
        return build_graded(spec).num_examples()
    except MissingError:
        return None
