"""A task of one's own: a class in a Python file (`FILE.py:Class`) or in an installed module (`package.module:Class`).

The code runs as the user's own, with all that Python may do; nothing here limits it.
"""

import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from nanochat.errors import DataError, MissingError, NanochatError, UsageError
from nanochat.tasks.task import Split, Task

CLASS_NAME = re.compile(r"(?P<where>[^:]+):(?P<cls>[A-Za-z_]\w*)")


def build_custom_class(name: str, split: Split) -> Task:
    """Call the class with the split and return the task; its name is `name` where the class has none.

    Raises MissingError where there is no such file or module, UsageError where it has no such task, and DataError, with
    the file and the line, where its code fails.
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
    try:
        task = kind(split)  # type: ignore[call-arg]
        if not hasattr(task, "name"):
            task.name = name
        task.num_examples()
    except NanochatError:
        raise
    except Exception as error:  # the user's code: whatever it raises is theirs
        raise explain(name, error) from error
    return task


def load_module(where: str) -> ModuleType:
    """Import a file or a module once. Raises MissingError where it is not there, DataError where its code fails."""
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
                raise MissingError(
                    f"there is no module {where!r}", f"a file is named with its ending: {where}.py:Class"
                ) from None
            raise explain(where, error) from error
        except Exception as error:
            raise explain(where, error) from error
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
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[key]
        raise explain(where, error) from error
    return module


def explain(name: str, error: Exception) -> DataError:
    """Say what somebody's code raised, and on which line of it."""
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}:{frame.lineno}"
    return DataError(f"{name} fails: {type(error).__name__}: {error} ({place})", "--debug shows the traceback")
