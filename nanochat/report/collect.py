"""Collect what a run directory holds into plain values. Reads files only; a missing piece is "not run", never an error.

Knows neither Markdown nor HTML. A file that cannot be read becomes a line of `problems`, and a last line of a
JSON Lines file that was cut short by a crash is left out and said.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.evals.scores import ScoreRecord, parse_score
from nanochat.files import is_edited
from nanochat.paths import TRAIN_STAGES, RunPaths
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

STAGES = ("tokenizer", *TRAIN_STAGES)
"""In the order in which they run; `rl` is shown only if it was started."""
MEANS = ("reward", "zero_variance", "truncated", "answer_tokens")
"""What is averaged over the steps of practice."""
MAX_ROWS = 12
"""Measurements of practice that are shown."""

Point = tuple[int, float]


@dataclass(frozen=True)
class Sample:
    """What the model wrote after a prompt at one step of a stage."""

    step: int | None
    prompt: str
    text: str


@dataclass(frozen=True)
class KindReport:
    """One kind of text: its bytes, and bytes per token by vocabulary."""

    kind: str
    bytes: int | None
    ratios: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Measured:
    """pass@k by k at a step, and means (MEANS, by name) over the steps since the measurement before."""

    step: int
    pass_at: dict[int, float]
    means: dict[str, float]


@dataclass(frozen=True)
class PracticeReport:
    """rewards: the share of right answers of every step."""

    rewards: tuple[Point, ...] = ()
    measured: tuple[Measured, ...] = ()


@dataclass(frozen=True)
class StageReport:
    """One stage: what was planned, what was measured, what came out."""

    name: str
    status: str
    """"done", "unfinished" or "not run"."""
    plan: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    train_loss: tuple[Point, ...] = ()
    val_bpb: tuple[Point, ...] = ()
    last_step: int | None = None
    seconds: float | None = None
    tokens: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    samples: tuple[Sample, ...] = ()
    practice: PracticeReport = PracticeReport()
    """Of rl alone."""
    compression: tuple[KindReport, ...] = ()
    """Of the tokenizer alone."""


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows."""

    run: str
    version: str = ""
    preset: str = ""
    settings: tuple[tuple[str, Any, str], ...] = ()
    """(dotted key, value, origin), in the order of the file."""
    stages: tuple[StageReport, ...] = ()
    scores: tuple[ScoreRecord, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def basis(self) -> str:
        """What the settings start from: a preset, or else the files that are the origins of some.

        >>> ReportData("small", settings=(("model.depth", 4, "d4.toml:2"), ("model.context", 512, "d4.toml:3"))).basis
        'No preset, settings of d4.toml'
        """
        if self.preset:
            return f"Preset {self.preset}"
        files = dict.fromkeys(re.findall(r"^(.+):\d+$", "\n".join(row[2] for row in self.settings), re.MULTILINE))
        return f"No preset, settings of {', '.join(files)}" if files else "No preset"


def collect_report(run: RunPaths) -> ReportData:
    """Read the run directory. A run that has nothing yet gives stages that say "not run"."""
    problems: list[str] = []
    saved = _read_object(run.settings, run, problems)
    environment = _read_object(run.root / "environment.json", run, problems)
    stages = []
    for name in STAGES:
        stage = _collect_stage(run, name, problems)
        if name != "rl" or stage.status != "not run":
            stages.append(stage)
        environment = environment or read_table(stage.result.get("environment"))
    settings = read_table(saved.get("settings"))
    edits = _find_edits(run, settings, problems)
    origins = dict(flatten(read_table(saved.get("origins")) | edits))
    if not edits and is_edited(saved):
        problems.append("settings.json was edited by hand: where its values come from may not hold")
    return ReportData(
        run=run.name,
        version=read_text(saved.get("nanochat_version")),
        preset=read_text(saved.get("preset")),
        settings=tuple((key, value, read_text(origins.get(key)) or "default") for key, value in flatten(settings)),
        stages=tuple(stages),
        scores=_collect_scores(run, problems),
        environment=environment,
        problems=tuple(problems),
    )


def flatten(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Turn nested tables into dotted keys.

    >>> flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3})
    [('a.b', 1), ('a.c.d', 2), ('e', 3)]
    """
    rows: list[tuple[str, Any]] = []
    for key, item in value.items():
        rows += flatten(item, f"{prefix}{key}.") if isinstance(item, dict) else [(f"{prefix}{key}", item)]
    return rows


def _find_edits(run: RunPaths, settings: dict[str, Any], problems: list[str]) -> dict[str, str]:
    """Origins of the settings that are not those that a stage was trained with, which is a problem too."""
    now, edits = dict(flatten(settings)), {}
    for stage in STAGES:
        used = read_table(_read_object(run.stage(stage).root / "inputs.json", run, problems).get("settings"))
        for key, value in used.items():
            if key in now and now[key] != value and key not in edits:
                edits[key] = "edited by hand"
                problems.append(
                    f"settings.json was edited: it says {key} = {json.dumps(now[key])}, and {stage} was trained with "
                    f"{json.dumps(value)}"
                )
    return edits


def _collect_stage(run: RunPaths, name: str, problems: list[str]) -> StageReport:
    paths = run.stage(name)
    plan = _read_object(paths.plan, run, problems)
    result = _read_object(paths.result, run, problems)
    lines = _read_lines(paths.metrics, run, problems)
    samples = _read_lines(paths.samples, run, problems)
    if not (result or plan or lines or samples):
        return StageReport(name, "not run")
    losses, val = _list_by_step(lines, "loss"), _list_by_step(lines, "val_bpb")
    last = losses[-1] if losses else {}
    seen = [read_count(line.get("step")) for line in (result, *losses[-1:], *val[-1:])]
    return StageReport(
        name=name,
        status="done" if result else "unfinished",
        plan=plan,
        result=result,
        train_loss=_list_points(losses, "loss"),
        val_bpb=_list_points(val, "val_bpb"),
        last_step=max((step for step in seen if step is not None), default=None),
        seconds=first_number(result.get("seconds"), last.get("seconds")),
        tokens=first_number(result.get("tokens"), last.get("tokens")),
        tokens_per_second=first_number(_find_median(losses, "tokens_per_second"), result.get("tokens_per_second")),
        mfu=first_number(_find_median(losses, "mfu"), result.get("mfu")),
        samples=tuple(read_fields(Sample, line) for line in samples),
        practice=collect_practice(lines),
        compression=_collect_compression(run, problems) if name == "tokenizer" else (),
    )


def _list_by_step(lines: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The lines that have a number there, by step. A resumed run takes some steps again: the last line counts."""
    found = {}
    for line in lines:
        if read_count(line.get("step")) is not None and read_number(line.get(key)) is not None:
            found[line["step"]] = line
    return [found[step] for step in sorted(found)]


def _list_points(lines: Sequence[dict[str, Any]], key: str) -> tuple[Point, ...]:
    return tuple((line["step"], float(line[key])) for line in lines)


def _list_numbers(lines: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [number for line in lines if (number := read_number(line.get(key))) is not None]


def _find_median(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    values = sorted(_list_numbers(lines, key))
    return values[len(values) // 2] if values else None


def collect_practice(lines: Sequence[dict[str, Any]]) -> PracticeReport:
    """From the records of the metrics: MAX_ROWS measurements, the first, the last, and what lies evenly between."""
    taken, measured, before = _list_by_step(lines, "reward"), [], -1
    passes: dict[int, dict[int, float]] = {}
    for line in lines:
        counts = {parse_count(key.removeprefix("pass_at_")): key for key in line if key.startswith("pass_at_")}
        pass_at = {k: x for k, key in counts.items() if k is not None and (x := read_number(line[key])) is not None}
        if pass_at and read_count(line.get("step")) is not None:
            passes[line["step"]] = pass_at
    for step in sorted(passes):
        since = [line for line in taken if before < line["step"] <= step]
        values = {key: _list_numbers(since, key) for key in MEANS}
        measured.append(Measured(step, passes[step], {key: sum(x) / len(x) for key, x in values.items() if x}))
        before = step
    last = len(measured) - 1
    if last >= MAX_ROWS:
        measured = [measured[round(i * last / (MAX_ROWS - 1))] for i in range(MAX_ROWS)]
    return PracticeReport(_list_points(taken, "reward"), tuple(measured))


def _collect_compression(run: RunPaths, problems: list[str]) -> tuple[KindReport, ...]:
    found = []
    for item in read_tables(_read_object(run.compression, run, problems).get("kinds")):
        shares = {name: read_number(share) for name, share in read_table(item.get("bytes_per_token")).items()}
        ratios = tuple((name, ratio) for name, ratio in shares.items() if ratio is not None)
        found.append(read_fields(KindReport, item, ratios=ratios))
    return tuple(found)


def _collect_scores(run: RunPaths, problems: list[str]) -> tuple[ScoreRecord, ...]:
    scores = []
    paths = sorted(run.eval.glob("*.json")) if run.eval.is_dir() else []
    for path in paths:
        value = _read_object(path, run, problems)
        if value and value.get("counts") is not False:
            scores.append(parse_score(path.stem, value))
    order = {name: index for index, name in enumerate(STAGES)}
    return tuple(sorted(scores, key=lambda score: (order.get(score.stage, len(order)), score.stage, score.name)))


def _read_object(path: Path, run: RunPaths, problems: list[str]) -> dict[str, Any]:
    name = path.relative_to(run.root).as_posix()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{name} cannot be read: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{name} is not a JSON object")
    return read_table(value)


def _read_lines(path: Path, run: RunPaths, problems: list[str]) -> list[dict[str, Any]]:
    name = path.relative_to(run.root).as_posix()
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        problems.append(f"{name} cannot be read: {error}")
        return []
    values, bad = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            values.append(value)
        else:
            bad.append(number)
    if bad:
        torn = " (cut short)" if bad == [len(lines)] else ""
        numbers = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        problems.append(f"{name}: left out line {numbers}{torn}")
    return values
