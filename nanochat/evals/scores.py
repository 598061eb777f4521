"""Scores of a run as plain values, from the JSON that evaluations leave. Knows neither Markdown nor HTML."""

from dataclasses import dataclass
from typing import Any

from nanochat.values import (
    first_number,
    parse_count,
    read_count,
    read_fields,
    read_number,
    read_table,
    read_tables,
    read_text,
)


@dataclass(frozen=True)
class SampledAnswer:
    """One graded example of a chat task, for people to read; tool calls look like `[2+2 -> 4]`."""

    question: str
    answer: str
    correct: bool | None


@dataclass(frozen=True)
class CoreTaskReport:
    """One task of CORE; rates from 0 to 1."""

    label: str
    kind: str
    num_fewshot: int | None
    total: int | None
    accuracy: float | None
    stderr: float | None
    baseline: float | None
    centred: float | None
    truncated: int
    too_long: int


@dataclass(frozen=True)
class ScoreRecord:
    """One score of one stage; `value` is an accuracy, or bits per byte or a mean where `is_accuracy` is False.

    pass_at: pass@k by k, of answers_each answers. core_tasks, missing, max_per_task: of CORE alone.
    """

    stage: str
    name: str
    value: float | None
    is_accuracy: bool
    correct: int | None = None
    total: int | None = None
    stderr: float | None = None
    too_long: int = 0
    answers: tuple[SampledAnswer, ...] = ()
    answers_each: int = 1
    pass_at: tuple[tuple[int, float], ...] = ()
    core_tasks: tuple[CoreTaskReport, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    max_per_task: int | None = None
    isolation: str = ""
    """What closed off the code that was run for the score."""


def parse_score(stem: str, value: dict[str, Any]) -> ScoreRecord:
    """`sft_letters.json` holds the score `letters` of stage `sft`; keys of the file win over its name."""
    stage, _, name = stem.partition("_")
    accuracy, bpb = read_number(value.get("accuracy")), read_number(value.get("bpb"))
    pass_at = [(parse_count(k), read_number(share)) for k, share in read_table(value.get("pass_at")).items()]
    return read_fields(
        ScoreRecord,
        value,
        stage=read_text(value.get("stage")) or stage,
        name=_name_score(read_text(value.get("name")) or name or stem, value.get("tasks")),
        value=first_number(accuracy, bpb, value.get("value")),
        is_accuracy=accuracy is not None or read_count(value.get("total")) is not None,
        answers=tuple(read_fields(SampledAnswer, item) for item in read_tables(value.get("samples"))),
        answers_each=read_count(value.get("answers_each")) or 1,
        pass_at=tuple(sorted((k, share) for k, share in pass_at if k is not None and share is not None)),
        core_tasks=tuple(read_fields(CoreTaskReport, item) for item in read_tables(value.get("core_tasks"))),
        missing=tuple((label, read_text(why)) for label, why in read_table(value.get("missing")).items()),
        max_per_task=read_count(read_table(value.get("settings")).get("max_per_task")),
        isolation=_describe_isolation(read_table(value.get("isolation"))),
    )


def _name_score(name: str, tasks: object) -> str:
    """A mean with what it is the mean of, for it changes with the tasks.

    >>> _name_score("ChatCORE", ["letters", "arithmetic"]), _name_score("letters", None)
    ('ChatCORE of letters, arithmetic', 'letters')
    """
    return f"{name} of {', '.join(map(read_text, tasks))}" if isinstance(tasks, list) and tasks else name


def _describe_isolation(value: dict[str, Any]) -> str:
    if "level" not in value:
        return ""
    lists = [found if isinstance(found := value.get(key), list) else [] for key in ("layers", "gaps")]
    layers, gaps = (", ".join(map(read_text, items)) for items in lists)
    allowed = f"; it could {gaps}" if gaps else ""
    return f"{read_text(value['level'])} isolation ({layers or 'no layer'}{allowed})"
