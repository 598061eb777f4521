"""A report as one HTML file: inline style and SVG, no script, no request, light and dark. Everything is escaped."""

from collections.abc import Iterable
from html import escape

from nanochat.evals.scores import SampledAnswer
from nanochat.report import document
from nanochat.report.collect import ReportData
from nanochat.report.plot import plot_lines
from nanochat.report.tables import Table
from nanochat.text import escape_hidden

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5b6672; --line: #dfe3e8; --page: #ffffff; --panel: #f6f7f9;
  --good: #1a7f4b; --bad: #b3372f; --c0: #2563c9; --c1: #c2571a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #98a3af; --line: #343c45; --page: #14181c;
  --panel: #1d2329; --good: #5cc48d; --bad: #ee837a; --c0: #6ba3f5; --c1: #f0975e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; }
.lead, .none, figcaption, small { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin-top: .75rem; font-size: .9rem; }
a { color: var(--c0); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; overflow-wrap: normal; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code, pre { font: .85rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
td code { overflow-wrap: anywhere; }
pre { margin: 0; padding: .75rem 1rem; background: var(--panel); border-radius: 6px; white-space: pre-wrap; }
pre b { font-weight: 600; color: var(--c0); }
figure { break-inside: avoid; margin: 1rem 0; padding: .75rem; background: var(--panel); border-radius: 6px; }
figcaption { font-size: .9rem; padding: 0 .25rem .5rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); }
svg .grid { stroke: var(--line); }
svg polyline { fill: none; }
svg polyline, svg line { stroke-width: 2; stroke-linejoin: round; }
svg .grid, svg .faint { stroke-width: 1; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); }
circle.s0 { fill: var(--c0); } circle.s1 { fill: var(--c1); }
details { margin: .75rem 0; }
summary { cursor: pointer; font-weight: 500; padding: .25rem 0; }
.sample { margin: .75rem 0; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.done { color: var(--good); } .unfinished { color: var(--bad); }
ul.problems { border-left: 3px solid var(--bad); padding: .25rem 0 .25rem 1.75rem; }
@media print { body { max-width: none; padding: 0; } }
"""


def render_html(data: ReportData) -> str:
    """Write the whole page. The same data gives the same text."""
    blocks = list(document.build_document(data))
    title = f"Run {_text(data.run)}"
    anchored = [block for block in blocks if isinstance(block, document.Heading) and block.anchor]
    links = "".join(
        f'<a href="#{_text(block.anchor)}">{_text(block.text.removeprefix("Stage "))}</a>' for block in anchored
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{title} - nanochat</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            *_print(blocks[:2]),
            f"<nav>{links}</nav>",
            *_print(blocks[2:]),
            "</body>",
            "</html>",
            "",
        ]
    )


def _print(blocks: Iterable[document.Block]) -> list[str]:
    return [text for block in blocks if (text := _print_block(block))]


def _print_block(block: document.Block) -> str:
    match block:
        case document.Heading(level, text, anchor, _, note):
            name = f' id="{_text(anchor)}"' if anchor else ""
            return f"<h{level}{name}>{_text(text)}{_small(note)}</h{level}>"
        case document.Paragraph(text, kind):
            return f'<p class="{kind}">{_text(text)}</p>' if kind else f"<p>{_text(text)}</p>"
        case document.Items(texts):
            return f'<ul class="problems">{"".join(f"<li>{_text(text)}</li>" for text in texts)}</ul>'
        case Table():
            return _table(block)
        case document.Figure(caption, title, curves):
            svg = plot_lines(curves, title, "step")
            return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>" if svg else ""
        case document.SampleText(prompt, text, gap):
            return f'<pre class="sample"><b>{_text(prompt)}</b>{gap}{_text(text)}</pre>'
        case document.Answers(title, value, answers):
            return _fold(f"Answers: {title}", value, "\n".join(map(_answer, answers)))
        case document.Facts(title, table, _, note):
            return _fold(title, note, _table(table))


def _answer(answer: SampledAnswer) -> str:
    verdict = document.VERDICTS[answer.correct]
    kind = "none" if answer.correct is None else verdict
    texts = f"<b>{_text(answer.question)}</b>\n{_text(answer.answer)}"
    return f'<div class="sample"><span class="{kind}">{verdict}</span><pre>{texts}</pre></div>'


def _small(note: str) -> str:
    return f" <small>{_text(note)}</small>" if note else ""


def _fold(title: str, note: str, body: str) -> str:
    """Closed until it is wanted. body: HTML already."""
    return f"<details><summary>{_text(title)}{_small(note)}</summary>\n{body}\n</details>"


def _table(table: Table) -> str:
    def cell(tag: str, index: int, text: str) -> str:
        kind = "number" if table.is_number(index) else text if text in ("done", "unfinished") else ""
        content = f"<code>{_text(text)}</code>" if tag == "td" and index < table.num_literal else _text(text)
        return f'<{tag} class="{kind}">{content}</{tag}>' if kind else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", index, text) for index, text in enumerate(table.header))
    lines = ("".join(cell("td", index, text) for index, text in enumerate(row)) for row in table.rows)
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _text(text: str) -> str:
    return escape(escape_hidden(text), quote=True)
