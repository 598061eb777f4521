"""A report as Markdown: a pure function of the collected values. Everything from files is escaped."""

import re
from collections.abc import Iterator

from nanochat.report import document
from nanochat.report.collect import ReportData
from nanochat.report.tables import Table
from nanochat.text import escape_hidden

MAX_ANSWERS, MAX_POINTS = 5, 10
SPECIAL = re.compile(r"([\\`*_\[\]<>|&~#!])")


def render_markdown(data: ReportData) -> str:
    """Write the whole report. The same data gives the same text."""
    return "\n".join(line for block in document.build_document(data) for line in (*_print_block(block), ""))


def _print_block(block: document.Block) -> Iterator[str]:
    """The lines of a block, without the empty one behind it."""
    match block:
        case document.Heading(level, text, _, of):
            yield f"{'#' * level} {escape(text)}" + (f" of {escape(of)}" if of else "")
        case document.Paragraph(text, kind):
            yield escape(text) + ("." if kind == "lead" else "")
        case document.Items(texts):
            yield from (f"- {escape(text)}" for text in texts)
        case Table():
            yield from render_table(block)
        case document.Figure(_, _, curves, number_of) if number_of and curves[0].points:
            rows = tuple((f"{step:,}", f"{value:.4f}") for step, value in curves[0].points[-MAX_POINTS:])
            yield from render_table(Table(("step", number_of), rows, numbers_from=0))
        case document.SampleText(prompt, text, gap, step):
            yield from (f"Prompt: {escape(prompt)}" + ("" if step is None else f" (step {step:,})"), "")
            yield from _block(prompt + gap + text)
        case document.Answers(title, value, answers):
            yield f"### Answers: {escape(title)}, {escape(value)}"
            for answer in answers[:MAX_ANSWERS]:
                yield from ("", f"{document.VERDICTS[answer.correct].capitalize()}:", "")
                yield from _block(f"user: {answer.question}\nassistant: {answer.answer}")
        case document.Facts(title, table, of):
            yield from ((f"### {title} of {escape(of)}", "") if of else ())
            yield from render_table(table)


def escape(text: str) -> str:
    """Escape text for one line of Markdown, tables included.

    >>> escape("a|b <i> *c*")
    'a\\\\|b \\\\<i\\\\> \\\\*c\\\\*'
    """
    return SPECIAL.sub(r"\\\1", " ".join(escape_hidden(text).split()))


def code(text: str) -> str:
    """A code span for one table cell; text with backticks is escaped instead."""
    text = " ".join(escape_hidden(text).split())
    return escape(text) if "`" in text or not text or text.endswith("\\") else "`" + text.replace("|", "\\|") + "`"


def _block(text: str) -> list[str]:
    """An indented code block: no text can end it, whatever fences it contains."""
    return ["    " + line for line in (escape_hidden(text) or " ").split("\n")]


def render_table(table: Table) -> list[str]:
    """The lines of a table; every cell is escaped."""
    rule = ("---:" if table.is_number(index) else "---" for index in range(len(table.header)))
    lines = [f"| {' | '.join(map(escape, table.header))} |", f"| {' | '.join(rule)} |"]
    for row in table.rows:
        cells = (code(cell) if index < table.num_literal else escape(cell) for index, cell in enumerate(row))
        lines.append(f"| {' | '.join(cells)} |")
    return lines
