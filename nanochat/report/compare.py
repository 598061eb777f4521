"""Two runs side by side as Markdown: what was set differently, and what came out differently."""

import math

from nanochat.evals.scores import ScoreRecord
from nanochat.report.collect import ReportData
from nanochat.report.document import NOT_RUN
from nanochat.report.markdown import escape, render_table
from nanochat.report.tables import NOTHING, Table, format_score, format_seconds, format_value


def render_comparison(first: ReportData, second: ReportData) -> str:
    """Write the tables of settings that differ, of scores and of times. The same data gives the same text."""
    lines = [f"# {escape(first.run)} and {escape(second.run)}", ""]
    for title, table in (
        ("Settings that differ", settings_that_differ(first, second)),
        ("Scores", scores_side_by_side(first, second)),
        ("Times", times_side_by_side(first, second)),
    ):
        lines += [f"## {title}", "", *(render_table(table) if table.rows else ["None."]), ""]
    return "\n".join(lines)


def settings_that_differ(first: ReportData, second: ReportData) -> Table:
    left, right = ({key: format_value(value) for key, value, _ in data.settings} for data in (first, second))
    pairs = ((key, left.get(key, NOTHING), right.get(key, NOTHING)) for key in left | right)
    rows = tuple((key, before, after) for key, before, after in pairs if before != after)
    return Table(("setting", first.run, second.run), rows, num_literal=3)


def scores_side_by_side(first: ReportData, second: ReportData) -> Table:
    """The difference is given in standard errors of the difference if both scores have one."""
    left, right = ({(score.stage, score.name): score for score in _list_scores(data)} for data in (first, second))
    rows = tuple((*key, *_compare(left.get(key), right.get(key))) for key in left | right)
    return Table(("stage", "score", first.run, second.run, "difference"), rows, numbers_from=2)


def _list_scores(data: ReportData) -> list[ScoreRecord]:
    """The scores, each mean of CORE followed by its tasks."""
    listed = []
    for score in data.scores:
        listed.append(score)
        listed += [
            ScoreRecord(score.stage, f"CORE: {task.label}", task.accuracy, True, total=task.total, stderr=task.stderr)
            for task in score.core_tasks
        ]
    return listed


def times_side_by_side(first: ReportData, second: ReportData) -> Table:
    left, right = ({stage.name: stage.seconds for stage in data.stages} for data in (first, second))
    rows = tuple((name, format_seconds(left.get(name)), format_seconds(right.get(name))) for name in left | right)
    return Table(("stage", first.run, second.run), rows, numbers_from=1)


def _compare(left: ScoreRecord | None, right: ScoreRecord | None) -> tuple[str, str, str]:
    """Both scores and their difference."""
    before, after = (NOT_RUN if score is None else format_score(score) for score in (left, right))
    if left is None or right is None or left.value is None or right.value is None:
        return before, after, NOTHING
    change = right.value - left.value
    shown = f"{100 * change:+.1f} %" if right.is_accuracy else f"{change:+.4f}"
    error = math.hypot(left.stderr or 0.0, right.stderr or 0.0)
    return before, after, f"{shown} ({abs(change) / error:.1f} std. errors)" if error else shown
