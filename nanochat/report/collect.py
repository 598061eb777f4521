"""Collect what a run directory holds into plain values. Reads files only; a missing piece is "not run", never an error.

Knows neither Markdown nor HTML. A file that cannot be read becomes a line of `problems`, and a last line of a
JSON Lines file that was cut short by a crash is left out and said.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.evals.scores import ScoreRecord, parse_score
from nanochat.files import is_edited
from nanochat.paths import RunPaths
from nanochat.report.compression import KindReport, parse_compression
from nanochat.report.practice import PracticeReport, collect_practice
from nanochat.values import first_number, read_number, read_text

STAGES = ("tokenizer", "base", "mid", "sft", "rl")
"""In the order in which they run; `rl` is shown only where it was started."""

Point = tuple[int, float]


@dataclass(frozen=True)
class Sample:
    """What the model wrote after a prompt at one step of a stage."""

    step: int | None
    prompt: str
    text: str


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
    origins = saved.get("origins")
    environment = _read_object(run.root / "environment.json", run, problems)
    stages = []
    for name in STAGES:
        stage = _collect_stage(run, name, problems)
        if name != "rl" or stage.status != "not run":
            stages.append(stage)
        recorded = stage.result.get("environment")
        if not environment and isinstance(recorded, dict):
            environment = recorded
    edits = _find_edits(run, saved.get("settings"), problems)
    if not edits and is_edited(saved):
        problems.append("settings.json was edited by hand: where its values come from may not hold")
    return ReportData(
        run=run.name,
        version=read_text(saved.get("nanochat_version")),
        preset=read_text(saved.get("preset")),
        settings=_collect_settings(saved.get("settings"), (origins if isinstance(origins, dict) else {}) | edits),
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


def _find_edits(run: RunPaths, settings: object, problems: list[str]) -> dict[str, str]:
    """Origins of the settings that are not those that a stage was trained with, which is a problem too."""
    now = dict(flatten(settings)) if isinstance(settings, dict) else {}
    edits = {}
    for stage in STAGES:
        used = _read_object(run.stage(stage).root / "inputs.json", run, problems).get("settings")
        for key, value in used.items() if isinstance(used, dict) else ():
            if key in now and now[key] != value and key not in edits:
                edits[key] = "edited by hand"
                problems.append(
                    f"settings.json was edited: it says {key} = {json.dumps(now[key])}, and {stage} was trained with "
                    f"{json.dumps(value)}"
                )
    return edits


def _collect_settings(settings: object, origins: dict[str, Any]) -> tuple[tuple[str, Any, str], ...]:
    if not isinstance(settings, dict):
        return ()
    flat_origins = dict(flatten(origins))
    return tuple((key, value, read_text(flat_origins.get(key)) or "default") for key, value in flatten(settings))


def _collect_stage(run: RunPaths, name: str, problems: list[str]) -> StageReport:
    paths = run.stage(name)
    plan = _read_object(paths.plan, run, problems)
    result = _read_object(paths.result, run, problems)
    lines = _read_lines(paths.metrics, run, problems)
    samples = _read_lines(paths.samples, run, problems)
    if not (result or plan or lines or samples):
        return StageReport(name, "not run")
    # A resumed run logs some steps again: the last line of a step is the one that led to the result.
    by_step: dict[int, dict[str, Any]] = {}
    val: dict[int, float] = {}
    for line in lines:
        step, loss, bpb = line.get("step"), read_number(line.get("loss")), read_number(line.get("val_bpb"))
        if not isinstance(step, int) or isinstance(step, bool):
            continue
        if loss is not None:
            by_step[step] = line
        if bpb is not None:
            val[step] = bpb
    steps = sorted(by_step)
    last = by_step[steps[-1]] if steps else {}
    rates = sorted(rate for step in steps if (rate := read_number(by_step[step].get("tokens_per_second"))) is not None)
    shares = sorted(share for step in steps if (share := read_number(by_step[step].get("mfu"))) is not None)
    seen = [step for step in (result.get("step"), *steps[-1:], *sorted(val)[-1:]) if isinstance(step, int)]
    return StageReport(
        name=name,
        status="done" if result else "unfinished",
        plan=plan,
        result=result,
        train_loss=tuple((step, float(by_step[step]["loss"])) for step in steps),
        val_bpb=tuple(sorted(val.items())),
        last_step=max(seen, default=None),
        seconds=first_number(result.get("seconds"), last.get("seconds")),
        tokens=first_number(result.get("tokens"), last.get("tokens")),
        tokens_per_second=first_number(rates[len(rates) // 2] if rates else None, result.get("tokens_per_second")),
        mfu=first_number(shares[len(shares) // 2] if shares else None, result.get("mfu")),
        samples=tuple(_parse_sample(line) for line in samples),
        practice=collect_practice(lines),
        compression=parse_compression(_read_object(run.compression, run, problems) if name == "tokenizer" else {}),
    )


def _parse_sample(line: dict[str, Any]) -> Sample:
    step = line.get("step")
    return Sample(step if isinstance(step, int) else None, read_text(line.get("prompt")), read_text(line.get("text")))


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
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.relative_to(run.root).as_posix()} cannot be read: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.relative_to(run.root).as_posix()} is not a JSON object")
        return {}
    return value


def _read_lines(path: Path, run: RunPaths, problems: list[str]) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        problems.append(f"{path.relative_to(run.root).as_posix()} cannot be read: {error}")
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
        problems.append(f"{path.relative_to(run.root).as_posix()}: left out line {numbers}{torn}")
    return values
