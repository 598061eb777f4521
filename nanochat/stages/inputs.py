"""What a stage depends on, kept as `inputs.json` beside its plan: settings, text, the user's files of its mixture.

By this a change between a kill and a resume, or after the end, is known and named. Loads no torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.config.load import flatten
from nanochat.config.settings import Settings
from nanochat.errors import UsageError
from nanochat.files import hash_file
from nanochat.paths import RunPaths, Workspace
from nanochat.tasks.entry import CUSTOM, parse_spec

if TYPE_CHECKING:
    from nanochat.stages.job import Job

FREE = frozenset(
    {"runtime.device", "runtime.dtype", "runtime.compile", "runtime.log_every", "runtime.hang_seconds"}
    | {"runtime.track", "runtime.deterministic", "batch.device_batch_size"}
    | {f"checkpoint.{name}" for name in ("every", "keep", "keep_best", "keep_every")}
    | {f"{stage}.{name}" for stage in ("base", "mid", "sft") for name in ("eval_every", "eval_tokens", "sample_every")}
    | {f"rl.{name}" for name in ("eval_every", "eval_questions", "eval_samples", "sample_every", "check_questions")}
    | {f"rl.{name}" for name in ("batch_size", "keep_rollouts")}
)
"""Settings that a run may change at any time: they say how, not what, is learned. So are all of [eval]."""

SHARED = ("model", "batch", "runtime")
"""Tables that every training stage depends on."""


@dataclass(frozen=True)
class Inputs:
    """settings: by dotted key. data: hashes by name. changes: what has become of the data since the first step."""

    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)


def list_settings(stage: str, settings: Settings) -> dict[str, Any]:
    """The settings that a stage depends on, by dotted key."""
    whole = flatten(settings.model_dump(mode="json"))
    if stage == "tokenizer":
        names = [key for key in whole if key.partition(".")[0] in ("tokenizer", "data") and key != "data.packing"]
        return {key: whole[key] for key in (*names, "runtime.seed")}
    tables = (*SHARED, stage, *(("data",) if settings.learns_text(stage) else ()))
    return {key: value for key, value in whole.items() if key.partition(".")[0] in tables and key not in FREE}


def hash_data(stage: str, settings: Settings, workspace: Workspace) -> dict[str, str]:
    """Name -> SHA-256 of what a stage learns from and a user may change: text, conversations, code of tasks."""
    found = {}
    folder = workspace.dataset(settings.data.dataset)
    if stage == "tokenizer" or settings.learns_text(stage):
        from nanochat.data.shards import MANIFEST, load_manifest

        if (folder / MANIFEST).is_file():
            found[f"data set {settings.data.dataset!r}"] = load_manifest(folder).hash
    if stage in ("mid", "sft", "rl"):
        options = getattr(settings, stage)
        files = list_files([options.task or ""] if stage == "rl" else options.mixture)
        found |= {name: hash_file(path) for name, path in files.items() if path.is_file()}
    return found


def list_files(mixture: Sequence[str]) -> dict[str, Path]:
    """The files of a user that a mixture names.

    >>> list_files(["letters:50", "custom:a.jsonl*3", "mine.py:Reversal:100"])
    {'custom:a.jsonl': PosixPath('a.jsonl'), 'mine.py': PosixPath('mine.py')}
    """
    files = {}
    for name in (parse_spec(spec).name for spec in mixture if spec):
        path = name.removeprefix(CUSTOM) if name.startswith(CUSTOM) else name.rpartition(":")[0]
        if name.startswith(CUSTOM) or path.endswith(".py"):
            files[name if name.startswith(CUSTOM) else path] = Path(path).expanduser()
    return files


def read_inputs_of_all(job: "Job", stage: str) -> Inputs:
    """What the stage depends on now. Collective: all ranks raise UsageError if one reads other data than rank 0."""
    inputs = Inputs(list_settings(stage, job.settings), hash_data(stage, job.settings, job.workspace))
    first, *others = job.world.all_gather(inputs.data)
    for rank, data in enumerate(others, start=1):
        if data != first:
            names = ", ".join(find_changed_data(first, data) or sorted(set(first) ^ set(data)))
            raise UsageError(
                f"{names} is another one for rank {rank} than for rank 0", "--home DIR  # one that all machines share"
            )
    return inputs


def read_inputs(run: RunPaths, stage: str) -> Inputs | None:
    """What a stage depended on when it began; None if it left no such file, as older versions did, or none to read."""
    try:
        value = json.loads(inputs_path(run, stage).read_text(encoding="utf-8"))
        return Inputs(dict(value["settings"]), dict(value["data"]), list(value["changes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def dump_inputs(inputs: Inputs) -> str:
    return json.dumps(asdict(inputs), indent=1)


def inputs_path(run: RunPaths, stage: str) -> Path:
    return run.stage(stage).root / "inputs.json"


def find_edits(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (before, now) for each setting that both have and that differs."""
    return {key: (before[key], now[key]) for key in before if key in now and before[key] != now[key]}


def find_changed_data(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of data that both have and that differs."""
    return list(find_edits(before, now))


def continue_inputs(run: RunPaths, stage: str, now: Inputs, step: int) -> Inputs:
    """The inputs of a stage that continues at a step, with what has changed since it began; `now` at step 0.

    Raises UsageError if a setting that its steps were taken with has been edited: the result would lie.
    """
    before = read_inputs(run, stage) if step else None
    if before is None:
        return now
    edits = find_edits(before.settings, now.settings)
    if edits:
        raise describe_edit(run, stage, edits)
    changes = [f"{name} is another one from step {step:,} on" for name in find_changed_data(before.data, now.data)]
    return Inputs(now.settings, now.data, [*before.changes, *changes])


def describe_edit(run: RunPaths, stage: str, edits: Mapping[str, tuple[Any, Any]]) -> UsageError:
    """The error for settings that were edited in `settings.json` after a stage had used them."""
    back = " ".join(f"--set {key}={_show(before)}" for key, (before, _) in edits.items())
    said = ", ".join(f"{key} = {_show(before)}, not {_show(now)}" for key, (before, now) in edits.items())
    return UsageError(
        f"{run.settings} was edited: run {run.name!r} has trained its {stage} with {said}",
        f"{back}  # puts it back; another value takes a new run",
    )


def _show(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
