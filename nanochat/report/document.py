"""A report as one document: headings, sentences, tables, curves and texts, for the two printers (Markdown, HTML).

Escapes nothing: the printers do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.data.dataset import describe_repeats
from nanochat.evals.scores import SampledAnswer, ScoreRecord
from nanochat.report.collect import ReportData, StageReport
from nanochat.report.plot import Series, smooth
from nanochat.report.tables import (
    Table,
    compression_table,
    core_table,
    fact_table,
    format_score,
    pass_table,
    practice_table,
    score_table,
    settings_table,
    stage_table,
)

NOT_RUN = "not run"
MAX_SAMPLES = 8
VERDICTS = {True: "right", False: "wrong", None: "not graded"}


@dataclass(frozen=True)
class Heading:
    """level: 1 is the title. anchor: where a link leads, or "". of: whose it is, for Markdown. note: for a page."""

    level: int
    text: str
    anchor: str = ""
    of: str = ""
    note: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A sentence. kind: "lead", "none" (something is not there) or ""."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Items:
    """What could not be read."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """Curves. number_of: what the values are called where only numbers can be shown; "" if they are not worth it."""

    caption: str
    title: str
    curves: tuple[Series, ...]
    number_of: str = ""


@dataclass(frozen=True)
class SampleText:
    """What the model wrote after a prompt. gap: what stands between the two."""

    prompt: str
    text: str
    gap: str = "\n"
    step: int | None = None


@dataclass(frozen=True)
class Answers:
    """Graded examples of a score, which a page may fold away."""

    title: str
    value: str
    answers: tuple[SampledAnswer, ...]


@dataclass(frozen=True)
class Facts:
    """A long table, which a page may fold away. note: beside the title."""

    title: str
    table: Table
    of: str = ""
    note: str = ""


Block = Heading | Paragraph | Items | Table | Figure | SampleText | Answers | Facts


def build_document(data: ReportData) -> Iterator[Block]:
    """The whole report, from its title on."""
    yield Heading(1, f"Run {data.run}")
    yield Paragraph(f"{data.basis}, nanochat {data.version or 'of unknown version'}", "lead")
    if data.problems:
        yield Heading(2, "Left out")
        yield Items(data.problems)
    yield Heading(2, "Stages", "stages")
    yield stage_table(data)
    yield Heading(2, "Scores", "scores")
    yield from _build_scores(data)
    for stage in data.stages:
        yield Heading(2, f"Stage {stage.name}", f"stage-{stage.name}")
        yield from _build_stage(stage)
    yield Heading(2, "Settings", "settings")
    if data.settings:
        changed = sum(origin != "default" for _, _, origin in data.settings)
        title, note = f"{len(data.settings)} settings", f"({changed} differ from the default)"
        yield Facts(title, settings_table(data), note=note)
    else:
        yield Paragraph("No settings are saved.", "none")
    yield Heading(2, "Environment", "environment")
    yield fact_table(data.environment) if data.environment else Paragraph("Not recorded.", "none")


def _build_scores(data: ReportData) -> Iterator[Block]:
    if not data.scores:
        yield Paragraph(f"Evaluation: {NOT_RUN}.", "none")
        return
    yield score_table(data.scores)
    for score in data.scores:
        if score.isolation:
            yield Paragraph(f"Code of {score.stage} {score.name} ran in {score.isolation}.")
    if any(score.pass_at for score in data.scores):
        yield Heading(3, "pass@k")
        yield pass_table(data.scores)
    for score in data.scores:
        if score.core_tasks:
            yield Heading(3, f"CORE tasks of {score.stage}")
            yield from (Paragraph(sentence) for sentence in describe_core(score))
            yield core_table(score)
    for score in data.scores:
        if score.answers:
            yield Answers(f"{score.stage} {score.name}", format_score(score), score.answers)


def describe_core(score: ScoreRecord) -> Iterator[str]:
    """What to know about a CORE score beside its table, a sentence each."""
    error = "" if score.stderr is None else f" +- {score.stderr:.4f}"
    yield f"{score.name}: {format_score(score)}{error}, the mean of the centred accuracies."
    if score.missing:
        reasons = ", ".join(f"{label} ({why})" for label, why in score.missing)
        yield f"Without {len(score.missing)} of the CORE tasks, so this is not CORE: {reasons}."
    if score.max_per_task:
        yield f"At most {score.max_per_task:,} questions of a task."


def _build_stage(stage: StageReport) -> Iterator[Block]:
    if stage.status == NOT_RUN:
        yield Paragraph(f"Stage {stage.name}: {NOT_RUN}.", "none")
        return
    if rewards := stage.practice.rewards:  # the loss of a policy gradient says nothing
        caption, name = "Right answers in training (share)", "right answers"
        curves = (Series(name, rewards, faint=True), Series(name, smooth(rewards, 0.05)))
    else:
        caption, name = "Training loss (nats per token)", "train loss"
        curves = (Series(name, stage.train_loss, faint=True), Series(name, smooth(stage.train_loss)))
    yield Figure(caption, f"{stage.name}: {name}", curves)
    title = f"{stage.name}: validation bits per byte"
    yield Figure("Validation (bits per byte)", title, (Series("val bpb", stage.val_bpb),), "val bpb")
    epochs = stage.result.get("epochs")
    if repeats := describe_repeats(epochs) if isinstance(epochs, int | float) else "":
        yield Paragraph(f"{repeats[0].upper()}{repeats[1:]}.")
    if stage.practice.measured:
        yield Heading(3, "Practice", of=stage.name)
        yield practice_table(stage.practice)
    if stage.compression:
        yield Heading(3, "Compression", of=stage.name)
        yield compression_table(stage.compression)
    yield from _build_samples(stage)
    result = {key: value for key, value in stage.result.items() if key != "environment"}
    for title, facts in (("Plan", stage.plan), ("Result", result)):
        if facts:
            yield Facts(title, fact_table(facts), of=stage.name)


def _build_samples(stage: StageReport) -> Iterator[Block]:
    """The samples of the stage's last sampled step."""
    last = max((sample.step for sample in stage.samples if sample.step is not None), default=None)
    samples = [sample for sample in stage.samples if sample.step == last][:MAX_SAMPLES]
    if last is None:
        samples = stage.samples[-MAX_SAMPLES:]
    if samples:
        note = "" if last is None else f"after step {last:,}, the prompt in bold"
        yield Heading(3, "Samples", of=stage.name, note=note)
    gap = "" if stage.name == "base" else "\n"  # base continues the text, later stages answer it
    yield from (SampleText(sample.prompt, sample.text, gap, sample.step) for sample in samples)
