"""A task of one's own: a class in a Python file (`FILE.py:Class`) or in an installed module (`package.module:Class`).

The code runs as the user's own, with all that Python may do; nothing here limits it.
"""

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from nanochat.errors import MissingError, NanochatError, UsageError
from nanochat.tasks.guarded import GuardedTask, watch_code
from nanochat.tasks.task import Split, Task

CLASS_NAME = re.compile(r"(?P<where>[^:]+):(?P<cls>[A-Za-z_]\w*)")


def build_custom_class(name: str, split: Split, taken: Sequence[str] = ()) -> Task:
    """Call the class with the split and return the task, watched; its name is `name` where the class has none.

    taken: names that it may not have. Raises MissingError where there is no such file or module, UsageError where it
    has no such task, and DataError, with the file and the line, where its code fails.
    """
    match = CLASS_NAME.fullmatch(name)
    assert match, name
    module = load_module(match["where"])
    kinds = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    }
    kind = getattr(module, match["cls"], None)
    if not isinstance(kind, type):
        near = difflib.get_close_matches(match["cls"], kinds, n=1) or list(kinds)[:1]
        raise UsageError(
            f"{match['where']} has no class {match['cls']!r}",
            f"did you mean {match['where']}:{near[0]}?" if near else "docs/tasks.md says how to write a task",
        )
    if not issubclass(kind, Task):
        raise UsageError(f"{name} is not a Task", "class " + match["cls"] + "(nanochat.tasks.task.Task): ...")
    if kind.__abstractmethods__:
        lacking = ", ".join(sorted(kind.__abstractmethods__))
        raise UsageError(f"{name} lacks {lacking}", "docs/tasks.md says how to write a task")
    with watch_code(name):
        task = kind(split)  # type: ignore[call-arg]
    return GuardedTask(task, name, taken)


def load_module(where: str) -> ModuleType:
    """Import a file or a module once. Raises MissingError where it is not there, DataError where its code fails."""
    if not where.endswith(".py"):
        with watch_code(where):
            try:
                return importlib.import_module(where)
            except ModuleNotFoundError as error:
                if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
                    raise MissingError(
                        f"there is no module {where!r}", f"a file is named with its ending: {where}.py:Class"
                    ) from None
                raise
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise MissingError(f"there is no file {path}", f"ls {path.parent}")
    key = "nanochat_custom_" + re.sub(r"\W", "_", str(path))
    if key in sys.modules:
        return sys.modules[key]
    found = importlib.util.spec_from_file_location(key, path)
    assert found is not None and found.loader is not None, path
    module = importlib.util.module_from_spec(found)
    sys.modules[key] = module  # dataclasses look their module up
    try:
        with watch_code(where):
            found.loader.exec_module(module)
    except NanochatError:
        del sys.modules[key]
        raise
    return module
