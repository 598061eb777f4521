"""Which checkpoints stay: arithmetic on step numbers that knows no files."""

from collections.abc import Mapping, Sequence


def select_expired(steps: Sequence[int], keep: int, keep_every: int = 0, best: int | None = None) -> list[int]:
    """Which checkpoints to delete: all but the `keep` newest, the multiples of keep_every (0: none) and the best.

    >>> select_expired([10, 20, 30, 40, 50], keep=2, keep_every=20, best=10)
    [30]
    """
    ordered = sorted(steps)
    kept = {*ordered[-max(keep, 1) :], best}
    return [step for step in ordered if step not in kept and not (keep_every and step % keep_every == 0)]


def find_best(steps: Sequence[int], scores: Mapping[int, float]) -> int | None:
    """The step with the lowest score among those that have a checkpoint; the earlier one of two; None without any.

    >>> find_best([10, 20, 30], {5: 1.0, 10: 1.5, 20: 1.2})
    20
    """
    scored = [step for step in sorted(steps) if step in scores]
    return min(scored, key=lambda step: scores[step], default=None)
