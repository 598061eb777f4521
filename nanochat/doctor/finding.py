"""A finding: one fact about the machine, how bad it is, and the command that mends it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """fix: the command that mends it, "" where nothing needs mending. values: what was measured, for programs."""

    name: str
    status: Status
    message: str
    fix: str = ""
    values: dict[str, float] = field(default_factory=dict)


def worst_status(findings: Iterable[Finding]) -> Status:
    """ "fail" where anything failed, else "warn" where anything is slower than it could be, else "ok"."""
    order: tuple[Status, ...] = ("ok", "warn", "fail")
    return order[max((order.index(finding.status) for finding in findings), default=0)]


def guard(name: str, check: Callable[[], Finding]) -> Finding:
    """Make a check; one that cannot be made is a failure of its own and does not hide the others."""
    try:
        return check()
    except ModuleNotFoundError as error:
        fix = "pip install torch" if error.name == "torch" else ""
        return Finding(name, "fail", f"cannot be checked: {error}", fix)
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # a broken driver or library is a finding
        return Finding(name, "fail", f"cannot be checked: {error}", "")


def format_gigabytes(size: float) -> str:
    """
    >>> format_gigabytes(1_500_000_000)
    '1.5 GB'
    """
    return f"{size / 1e9:.1f} GB"
