"""The tables of a report as plain text cells: what Markdown and HTML have in common. Escapes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.evals.scores import ScoreRecord
from nanochat.report.collect import KindReport, PracticeReport, ReportData, StageReport, flatten
from nanochat.values import first_number

NOTHING = "-"
COLUMNS = ("base", "mid", "sft")
"""Stages whose scores always have a column; others have one if there is a score."""


@dataclass(frozen=True)
class Table:
    """Cells are unescaped text. The first num_literal columns hold keys or values to show literally; from numbers_from
    on they hold numbers.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int | None = None
    num_literal: int = 0

    def is_number(self, column: int) -> bool:
        return self.numbers_from is not None and column >= self.numbers_from


def stage_table(data: ReportData) -> Table:
    """Every stage with its status, its time and how fast it went."""
    rows = tuple(
        (
            stage.name,
            stage.status,
            _show(stage.last_step, ","),
            _show(stage.tokens, ",.0f"),
            format_seconds(stage.seconds),
            _show(stage.tokens_per_second, ",.0f"),
            _format_share(stage.mfu),
            NOTHING if stage.practice.rewards else _show(find_loss(stage), ".4f"),
            _show(stage.val_bpb[-1][1] if stage.val_bpb else None, ".4f"),
        )
        for stage in data.stages
    )
    if total := sum(stage.seconds or 0 for stage in data.stages):
        rows += (("total", "", "", "", format_seconds(total), "", "", "", ""),)
    speed = ("time", "median tokens/s", "MFU")
    header = ("stage", "status", "steps", "tokens", *speed, "train loss", "val bpb of its data")
    return Table(header, rows, numbers_from=2)


def find_loss(stage: StageReport) -> float | None:
    """The smoothed loss of a stage that has ended, as `runs show` has it, else that of its last step."""
    last = stage.train_loss[-1][1] if stage.train_loss else None
    return first_number(stage.result.get("loss"), last)


def score_table(scores: Sequence[ScoreRecord]) -> Table:
    """A row for each score and a column for each stage, with standard errors; examples are those of the stages."""
    stages = list(dict.fromkeys((*COLUMNS, *(score.stage for score in scores))))
    by_name: dict[str, dict[str, ScoreRecord]] = {}
    for score in scores:
        by_name.setdefault(score.name, {})[score.stage] = score
    rows = []
    for name, found in sorted(by_name.items(), key=lambda item: (item[0] != "bpb", item[1].keys() != {"base"})):
        totals = sorted({score.total for score in found.values() if score.total is not None})
        too_long = max(score.too_long for score in found.values())
        rows.append(
            (
                name,
                *(_format_with_error(found[stage]) if stage in found else NOTHING for stage in stages),
                " to ".join(f"{total:,}" for total in dict.fromkeys((*totals[:1], *totals[-1:]))) or NOTHING,
                _show(too_long or None, ","),
            )
        )
    header = ("score", *stages, "examples", "too long")
    return Table(header, tuple(rows), numbers_from=1)


def _format_with_error(score: ScoreRecord) -> str:
    error = _format_rate(score.stderr, score.is_accuracy).removesuffix(" %")
    return f"{format_score(score)} +- {error}" if error else format_score(score)


def pass_table(scores: Sequence[ScoreRecord]) -> Table:
    """pass@k of the scores that have several answers to each question."""
    scores = [score for score in scores if score.pass_at]
    ks = sorted({k for score in scores for k, _ in score.pass_at})
    rows = tuple(
        (score.stage, score.name, f"{score.answers_each:,}", *(_format_share(dict(score.pass_at).get(k)) for k in ks))
        for score in scores
    )
    header = ("stage", "score", "answers each", *(f"pass@{k}" for k in ks))
    return Table(header, rows, numbers_from=2)


def core_table(score: ScoreRecord) -> Table:
    """The tasks of CORE; "cut" counts prompts that lost their oldest tokens to the context."""
    rows = tuple(
        (
            task.label,
            task.kind.replace("_", " "),
            _show(task.num_fewshot),
            _show(task.total, ","),
            _format_share(task.accuracy),
            _format_share(task.stderr),
            _format_share(task.baseline),
            _show(task.centred, ".3f"),
            _show(task.truncated or None, ","),
            _show(task.too_long or None, ","),
        )
        for task in score.core_tasks
    )
    header = ("task", "kind", "shots", "questions", "accuracy", "std. error", "guessing", "centred", "cut", "too long")
    return Table(header, rows, numbers_from=2)


def _format_share(value: float | None) -> str:
    return _format_rate(value, as_percent=True) or NOTHING


def practice_table(practice: PracticeReport) -> Table:
    """pass@k on test questions by step; the other columns are means over the steps since the row before."""
    ks = sorted({k for row in practice.measured for k in row.pass_at})
    rows = tuple(
        (
            f"{row.step:,}",
            *(_format_share(row.pass_at.get(k)) for k in ks),
            *(_format_share(row.means.get(key)) for key in ("reward", "zero_variance", "truncated")),
            _show(row.means.get("answer_tokens"), ".1f"),
        )
        for row in practice.measured
    )
    header = ("step", *(f"pass@{k}" for k in ks), "right in training", "no signal", "cut", "tokens an answer")
    return Table(header, rows, numbers_from=0)


def compression_table(kinds: tuple[KindReport, ...]) -> Table:
    """Bytes per token of each vocabulary on each kind of text."""
    names = list(dict.fromkeys(name for kind in kinds for name, _ in kind.ratios))
    rows = tuple(
        (
            kind.kind,
            _show(kind.bytes, ","),
            *(_show(dict(kind.ratios).get(name), ".2f") for name in names),
        )
        for kind in kinds
    )
    return Table(("bytes per token", "bytes", *names), rows, numbers_from=1)


def settings_table(data: ReportData) -> Table:
    rows = tuple((key, format_value(value), origin) for key, value, origin in data.settings)
    return Table(("setting", "value", "from"), rows, num_literal=2)


def fact_table(facts: dict[str, Any]) -> Table:
    """A plan, a result or the environment: dotted keys and values."""
    rows = tuple((key, format_value(value)) for key, value in flatten(facts))
    return Table(("fact", "value"), rows, num_literal=2)


def format_score(score: ScoreRecord) -> str:
    return _format_rate(score.value, score.is_accuracy) or "not graded"


def _format_rate(value: float | None, as_percent: bool) -> str:
    return "" if value is None else f"{100 * value:.1f} %" if as_percent else f"{value:.4f}"


def _show(value: float | None, form: str = "") -> str:
    """A number in a format, such as ",": thousands apart."""
    return NOTHING if value is None else format(value, form)


def format_value(value: Any) -> str:
    """One cell for any JSON value.

    >>> [format_value(value) for value in (524288, 0.0123456789, ["a", "b"], None, True)]
    ['524,288', '0.0123457', 'a, b', 'unset', 'true']
    """
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value) or "(none)"
    return str(value)


def format_seconds(seconds: float | None) -> str:
    """
    >>> format_seconds(42.34), format_seconds(312), format_seconds(14_520)
    ('42.3 s', '5 min 12 s', '4 h 02 min')
    """
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"
