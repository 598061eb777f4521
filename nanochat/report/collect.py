"""Collect what a run directory holds into plain values. Reads files only; a missing piece is "not run", never an error.

Knows neither Markdown nor HTML. A file that cannot be read becomes a line of `problems`, and a last line of a
JSON Lines file that was cut short by a crash is left out and said.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.paths import RunPaths

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


@dataclass(frozen=True)
class Answer:
    """One graded example of a chat task."""

    question: str
    answer: str
    correct: bool | None


@dataclass(frozen=True)
class ScoreReport:
    """One score of one stage; `value` is an accuracy, or bits per byte where `is_accuracy` is False."""

    stage: str
    name: str
    value: float | None
    is_accuracy: bool
    correct: int | None = None
    total: int | None = None
    stderr: float | None = None
    too_long: int = 0
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows."""

    run: str
    version: str = ""
    preset: str = ""
    settings: tuple[tuple[str, Any, str], ...] = ()
    """(dotted key, value, origin), in the order of the file."""
    stages: tuple[StageReport, ...] = ()
    scores: tuple[ScoreReport, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


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
    return ReportData(
        run=run.name,
        version=_text(saved.get("nanochat_version")),
        preset=_text(saved.get("preset")),
        settings=_collect_settings(saved.get("settings"), origins if isinstance(origins, dict) else {}),
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


def _collect_settings(settings: object, origins: dict[str, Any]) -> tuple[tuple[str, Any, str], ...]:
    if not isinstance(settings, dict):
        return ()
    flat_origins = dict(flatten(origins))
    return tuple((key, value, _text(flat_origins.get(key)) or "default") for key, value in flatten(settings))


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
        step, loss, bpb = line.get("step"), _number(line.get("loss")), _number(line.get("val_bpb"))
        if not isinstance(step, int) or isinstance(step, bool):
            continue
        if loss is not None:
            by_step[step] = line
        if bpb is not None:
            val[step] = bpb
    steps = sorted(by_step)
    last = by_step[steps[-1]] if steps else {}
    rates = sorted(rate for step in steps if (rate := _number(by_step[step].get("tokens_per_second"))) is not None)
    shares = sorted(share for step in steps if (share := _number(by_step[step].get("mfu"))) is not None)
    seen = [step for step in (result.get("step"), *steps[-1:], *sorted(val)[-1:]) if isinstance(step, int)]
    return StageReport(
        name=name,
        status="done" if result else "unfinished",
        plan=plan,
        result=result,
        train_loss=tuple((step, float(by_step[step]["loss"])) for step in steps),
        val_bpb=tuple(sorted(val.items())),
        last_step=max(seen, default=None),
        seconds=_first_number(result.get("seconds"), last.get("seconds")),
        tokens=_first_number(result.get("tokens"), last.get("tokens")),
        tokens_per_second=_first_number(rates[len(rates) // 2] if rates else None, result.get("tokens_per_second")),
        mfu=_first_number(shares[len(shares) // 2] if shares else None, result.get("mfu")),
        samples=tuple(_parse_sample(line) for line in samples),
    )


def _parse_sample(line: dict[str, Any]) -> Sample:
    step = line.get("step")
    return Sample(step if isinstance(step, int) else None, _text(line.get("prompt")), _text(line.get("text")))


def _collect_scores(run: RunPaths, problems: list[str]) -> tuple[ScoreReport, ...]:
    scores = []
    paths = sorted(run.eval.glob("*.json")) if run.eval.is_dir() else []
    for path in paths:
        value = _read_object(path, run, problems)
        if value:
            scores.append(_parse_score(path.stem, value))
    order = {name: index for index, name in enumerate(STAGES)}
    return tuple(sorted(scores, key=lambda score: (order.get(score.stage, len(order)), score.stage, score.name)))


def _parse_score(stem: str, value: dict[str, Any]) -> ScoreReport:
    """`sft_letters.json` holds the score `letters` of stage `sft`; keys of the file win over its name."""
    stage, _, name = stem.partition("_")
    inner = value.get("score")
    if isinstance(inner, dict):
        value = {**value, **inner}
    elif _number(inner) is not None:
        value = {"value": inner, **value}
    bpb = _number(value.get("bpb"))
    accuracy = _number(value.get("accuracy"))
    total, correct, too_long = (_count(value.get(key)) for key in ("total", "correct", "too_long"))
    samples = value.get("samples")
    answers = [item for item in samples if isinstance(item, dict)] if isinstance(samples, list) else []
    return ScoreReport(
        stage=_text(value.get("stage")) or stage,
        name=_text(value.get("name")) or name or stem,
        value=_first_number(accuracy, bpb, value.get("value")),
        is_accuracy=accuracy is not None or total is not None,
        correct=correct,
        total=total,
        stderr=_number(value.get("stderr")),
        too_long=too_long or 0,
        answers=tuple(_parse_answer(item) for item in answers),
    )


def _parse_answer(value: dict[str, Any]) -> Answer:
    verdict = value.get("correct")
    correct = verdict if isinstance(verdict, bool) else None
    return Answer(_text(value.get("question")), _text(value.get("answer")), correct)


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


def _text(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _first_number(*values: object) -> float | None:
    return next((number for value in values if (number := _number(value)) is not None), None)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
