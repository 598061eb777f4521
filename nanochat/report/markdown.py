"""A report as Markdown: a pure function of the collected values. Everything from files is escaped."""

import re

from nanochat.report.collect import ReportData, StageReport
from nanochat.report.scores import ScoreReport
from nanochat.report.sections import (
    NOT_RUN,
    Table,
    core_table,
    describe_core,
    describe_isolation,
    describe_stage,
    fact_table,
    format_score,
    last_samples,
    pass_table,
    sample_gap,
    score_table,
    settings_table,
    stage_facts,
    stage_table,
    stage_tables,
    visible,
)

MAX_ANSWERS = 5
SPECIAL = re.compile(r"([\\`*_\[\]<>|&~#!])")


def render_markdown(data: ReportData) -> str:
    """Write the whole report. The same data gives the same text."""
    lines = [f"# Run {escape(data.run)}", ""]
    version = escape(data.version) or "of unknown version"
    lines += [f"{escape(data.basis)}, nanochat {version}.", ""]
    if data.problems:
        lines += ["## Left out", "", *(f"- {escape(problem)}" for problem in data.problems), ""]
    lines += ["## Stages", "", *render_table(stage_table(data)), "", "## Scores", ""]
    if data.scores:
        lines += [*render_table(score_table(data)), ""]
        lines += [line for sentence in describe_isolation(data) for line in (escape(sentence), "")]
        if any(score.pass_at for score in data.scores):
            lines += ["### pass@k", "", *render_table(pass_table(data)), ""]
        for score in data.scores:
            lines += _core(score)
        for score in data.scores:
            lines += _answers(score)
    else:
        lines += [f"Evaluation: {NOT_RUN}.", ""]
    for stage in data.stages:
        lines += _stage(stage)
    lines += ["## Settings", ""]
    lines += [*render_table(settings_table(data)), ""] if data.settings else ["No settings are saved.", ""]
    lines += ["## Environment", ""]
    lines += [*render_table(fact_table(data.environment)), ""] if data.environment else ["Not recorded.", ""]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Escape text for one line of Markdown, tables included.

    >>> escape("a|b <i> *c*")
    'a\\\\|b \\\\<i\\\\> \\\\*c\\\\*'
    """
    return SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))


def code(text: str) -> str:
    """A code span for one table cell; text with backticks is escaped instead."""
    text = " ".join(visible(text).split())
    return escape(text) if "`" in text or not text or text.endswith("\\") else "`" + text.replace("|", "\\|") + "`"


def _stage(stage: StageReport) -> list[str]:
    lines = [f"## Stage {escape(stage.name)}", ""]
    if stage.status == NOT_RUN:
        return [*lines, f"Stage {escape(stage.name)}: {NOT_RUN}.", ""]
    lines += [line for sentence in describe_stage(stage) for line in (escape(sentence), "")]
    if stage.val_bpb:
        rows = tuple((f"{step:,}", f"{bpb:.4f}") for step, bpb in stage.val_bpb[-10:])
        lines += [*render_table(Table(("step", "val bpb"), rows, numeric=frozenset({0, 1}))), ""]
    for title, table in (*stage_tables(stage), *stage_facts(stage)):
        lines += [f"### {title} of {escape(stage.name)}", "", *render_table(table), ""]
    samples = last_samples(stage)
    if samples:
        lines += [f"### Samples of {escape(stage.name)}", ""]
        for sample in samples:
            step = "" if sample.step is None else f" (step {sample.step:,})"
            lines += [
                f"Prompt: {escape(sample.prompt)}{step}",
                "",
                *_block(sample.prompt + sample_gap(stage) + sample.text),
                "",
            ]
    return lines


def _core(score: ScoreReport) -> list[str]:
    if not score.core_tasks:
        return []
    told = [line for sentence in describe_core(score) for line in (escape(sentence), "")]
    return [f"### CORE tasks of {escape(score.stage)}", "", *told, *render_table(core_table(score)), ""]


def _answers(score: ScoreReport) -> list[str]:
    if not score.answers:
        return []
    lines = [f"### Answers: {escape(score.stage)} {escape(score.name)}, {escape(format_score(score))}", ""]
    for answer in score.answers[:MAX_ANSWERS]:
        block = _block(f"user: {answer.question}\nassistant: {answer.answer}")
        lines += [f"{_verdict(answer.correct)}:", "", *block, ""]
    return lines


def _verdict(correct: bool | None) -> str:
    return "Not graded" if correct is None else "Right" if correct else "Wrong"


def _block(text: str) -> list[str]:
    """An indented code block: no text can end it, whatever fences it contains."""
    return ["    " + line for line in (visible(text) or " ").split("\n")]


def render_table(table: Table) -> list[str]:
    """The lines of a table; every cell is escaped."""
    rule = ("---:" if index in table.numeric else "---" for index in range(len(table.header)))
    lines = [f"| {' | '.join(map(escape, table.header))} |", f"| {' | '.join(rule)} |"]
    for row in table.rows:
        cells = (code(cell) if index in table.code else escape(cell) for index, cell in enumerate(row))
        lines.append(f"| {' | '.join(cells)} |")
    return lines
