"""Processes of the sandbox that this process has started, or that nobody owns any more: none may be left behind."""

import os
import subprocess

MARK = "nanochat.tools.sandbox.child import main"


def list_sandboxed() -> set[str]:
    """Their numbers and command lines; bubblewrap's own around them included.

    Those of a test that runs beside this one, in another worker, are left out: their parent is no relative of ours.
    """
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    parents = {int(pid): int(parent) for pid, parent, *_ in rows}
    shown = {int(row[0]): row[2] for row in rows if len(row) == 3 and MARK in row[2]}
    return {f"{pid} {args}" for pid, args in shown.items() if _is_ours(pid, parents, shown)}


def _is_ours(pid: int, parents: dict[int, int], shown: dict[int, str]) -> bool:
    """Whether what started a sandboxed process is this one or its child, or is gone, so that an ancestor adopted it."""
    while pid in shown:
        pid = parents.get(pid, 0)
    return os.getpid() in _ancestry(pid, parents) or pid in _ancestry(os.getpid(), parents) or pid <= 1


def _ancestry(pid: int, parents: dict[int, int]) -> list[int]:
    """A process, its parent, and so on.

    >>> _ancestry(9, {9: 4, 4: 1, 1: 0})
    [9, 4, 1]
    """
    found = []
    while pid in parents and pid not in found:
        found.append(pid)
        pid = parents[pid]
    return found
