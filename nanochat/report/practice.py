"""What the metrics of rl say, as plain values: the reward of every step, pass@k where it was measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.values import parse_count, read_count, read_number

MEANS = ("reward", "zero_variance", "truncated", "answer_tokens")
MAX_ROWS = 12


@dataclass(frozen=True)
class Measured:
    """pass@k by k at a step, and means (MEANS, by name) over the steps since the measurement before."""

    step: int
    pass_at: dict[int, float]
    means: dict[str, float]


@dataclass(frozen=True)
class PracticeReport:
    """rewards: the share of right answers of every step."""

    rewards: tuple[tuple[int, float], ...] = ()
    measured: tuple[Measured, ...] = field(default=())


def collect_practice(lines: Iterable[dict[str, Any]]) -> PracticeReport:
    """From the records of the metrics. A resumed run takes some steps again: the last record of a step counts."""
    taken: dict[int, dict[str, Any]] = {}
    passes: dict[int, dict[int, float]] = {}
    for line in lines:
        step = read_count(line.get("step"))
        if step is None:
            continue
        if read_number(line.get("reward")) is not None:
            taken[step] = line
        pass_at = {
            k: share
            for key, value in line.items()
            if key.startswith("pass_at_")
            and (k := parse_count(key.removeprefix("pass_at_"))) is not None
            and (share := read_number(value)) is not None
        }
        if pass_at:
            passes[step] = pass_at
    measured, before = [], -1
    for step in sorted(passes):
        since = [line for number, line in taken.items() if before < number <= step]
        measured.append(
            Measured(step, passes[step], {key: mean for key in MEANS if (mean := _mean(since, key)) is not None})
        )
        before = step
    rewards = tuple((step, float(taken[step]["reward"])) for step in sorted(taken))
    return PracticeReport(rewards, tuple(_spread(measured)))


def _mean(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [value for line in lines if (value := read_number(line.get(key))) is not None]
    return sum(values) / len(values) if values else None


def _spread(measured: Sequence[Measured]) -> Sequence[Measured]:
    """The first, the last, and what lies evenly between, MAX_ROWS in all."""
    last = len(measured) - 1
    return measured if last < MAX_ROWS else [measured[round(i * last / (MAX_ROWS - 1))] for i in range(MAX_ROWS)]
