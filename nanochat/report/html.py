"""A report as one HTML file: inline style and SVG, no script, no request, light and dark. Everything is escaped."""

from html import escape

from nanochat.report.collect import ReportData, StageReport
from nanochat.report.plot import Series, plot_lines, smooth
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
.lead, .none, figcaption, summary small { color: var(--soft); }
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
    title = f"Run {_text(data.run)}"
    links = [("stages", "Stages"), ("scores", "Scores")]
    links += [(f"stage-{_text(stage.name)}", _text(stage.name)) for stage in data.stages]
    links += [("settings", "Settings"), ("environment", "Environment")]
    parts = [
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
        f"<h1>{title}</h1>",
        f'<p class="lead">{_text(data.basis)}, nanochat {_text(data.version) or "of unknown version"}</p>',
        "<nav>" + "".join(f'<a href="#{link}">{name}</a>' for link, name in links) + "</nav>",
    ]
    if data.problems:
        problems = "".join(f"<li>{_text(problem)}</li>" for problem in data.problems)
        parts += ["<h2>Left out</h2>", f'<ul class="problems">{problems}</ul>']
    parts += ['<h2 id="stages">Stages</h2>', _table(stage_table(data)), '<h2 id="scores">Scores</h2>']
    if data.scores:
        parts.append(_table(score_table(data)))
        parts += [f"<p>{_text(sentence)}</p>" for sentence in describe_isolation(data)]
        if any(score.pass_at for score in data.scores):
            parts += ["<h3>pass@k</h3>", _table(pass_table(data))]
        parts += [*map(_core, data.scores), *map(_answers, data.scores)]
    else:
        parts.append(f'<p class="none">Evaluation: {NOT_RUN}.</p>')
    parts += [_stage(stage) for stage in data.stages]
    parts.append('<h2 id="settings">Settings</h2>')
    if data.settings:
        changed = sum(origin != "default" for _, _, origin in data.settings)
        parts.append(_details(f"{len(data.settings)} settings <small>({changed} differ from the default)</small>",
                              _table(settings_table(data))))  # fmt: skip
    else:
        parts.append('<p class="none">No settings are saved.</p>')
    parts.append('<h2 id="environment">Environment</h2>')
    parts.append(_table(fact_table(data.environment)) if data.environment else '<p class="none">Not recorded.</p>')
    return "\n".join([*parts, "</body>", "</html>", ""])


def _stage(stage: StageReport) -> str:
    name = _text(stage.name)
    parts = [f'<h2 id="stage-{name}">Stage {name}</h2>']
    if stage.status == NOT_RUN:
        return "\n".join([*parts, f'<p class="none">Stage {name}: {NOT_RUN}.</p>'])
    curves = (Series("train loss", stage.train_loss, faint=True), Series("train loss", smooth(stage.train_loss)))
    rewards = stage.practice.rewards
    if rewards:  # the loss of a policy gradient says nothing
        curves = (Series("right answers", rewards, faint=True), Series("right answers", smooth(rewards, 0.05)))
    parts += [
        _figure("Right answers in training (share)", plot_lines(curves, f"{stage.name}: right answers", "step"))
        if rewards
        else _figure("Training loss (nats per token)", plot_lines(curves, f"{stage.name}: train loss", "step")),
        _figure(
            "Validation (bits per byte)",
            plot_lines((Series("val bpb", stage.val_bpb),), f"{stage.name}: validation bits per byte", "step"),
        ),
    ]
    parts += [f"<p>{_text(sentence)}</p>" for sentence in describe_stage(stage)]
    for title, table in stage_tables(stage):
        parts += [f"<h3>{title}</h3>", _table(table)]
    samples = last_samples(stage)
    if samples:
        parts.append("<h3>Samples</h3>")
        step = samples[0].step
        if step is not None:
            parts.append(f'<p class="none">After step {step:,}; the prompt is in bold.</p>')
        gap = sample_gap(stage)
        for sample in samples:
            parts.append(f'<pre class="sample"><b>{_text(sample.prompt)}</b>{gap}{_text(sample.text)}</pre>')
    parts += [_details(title, _table(table)) for title, table in stage_facts(stage)]
    return "\n".join(part for part in parts if part)


def _core(score: ScoreReport) -> str:
    if not score.core_tasks:
        return ""
    told = "\n".join(f"<p>{_text(sentence)}</p>" for sentence in describe_core(score))
    return f"<h3>CORE tasks of {_text(score.stage)}</h3>\n{told}\n{_table(core_table(score))}"


def _answers(score: ScoreReport) -> str:
    if not score.answers:
        return ""
    blocks = []
    for answer in score.answers:
        kind, word = {True: ("right", "right"), False: ("wrong", "wrong"), None: ("none", "not graded")}[answer.correct]
        blocks.append(
            f'<div class="sample"><span class="{kind}">{word}</span>'
            f"<pre><b>{_text(answer.question)}</b>\n{_text(answer.answer)}</pre></div>"
        )
    title = f"Answers: {_text(score.stage)} {_text(score.name)} <small>{_text(format_score(score))}</small>"
    return _details(title, "\n".join(blocks))


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>" if svg else ""


def _details(summary: str, body: str) -> str:
    """`summary` and `body` are HTML already."""
    return f"<details><summary>{summary}</summary>\n{body}\n</details>"


def _table(table: Table) -> str:
    def cell(tag: str, index: int, text: str) -> str:
        kind = "number" if index in table.numeric else text if text in ("done", "unfinished") else ""
        content = f"<code>{_text(text)}</code>" if tag == "td" and index in table.code else _text(text)
        return f'<{tag} class="{kind}">{content}</{tag}>' if kind else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", index, text) for index, text in enumerate(table.header))
    lines = ("".join(cell("td", index, text) for index, text in enumerate(row)) for row in table.rows)
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _text(text: str) -> str:
    return escape(visible(text), quote=True)
