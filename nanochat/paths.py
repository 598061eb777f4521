"""Where each artifact lives. Standard library only; creates nothing, reads only directory names.

Model names are the same everywhere: RUN, RUN/sft, RUN/sft@650, or a directory of a checkpoint.
"""

import contextlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.errors import MissingError, UsageError

TRAIN_STAGES = ("base", "mid", "sft", "rl")
"""Stages that leave a model, in the order in which they build on each other."""

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(what: str, name: str, hint: str) -> None:
    """Raise UsageError unless a name can be that of a folder. what: stands before it in the sentence."""
    if not RUN_NAME.fullmatch(name):
        raise UsageError(
            f"{what} {name!r} is not a name: letters, digits, '.', '_' and '-' only, a letter or digit first", hint
        )


@dataclass(frozen=True)
class StagePaths:
    """Files of one stage of one run."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def samples(self) -> Path:
        return self.root / "samples.jsonl"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, oldest first (not verified)."""
        found = (re.fullmatch(r"step_(\d+)", path.name) for path in self.checkpoints.glob("step_*"))
        return sorted(int(match[1]) for match in found if match)


@dataclass(frozen=True)
class RunPaths:
    """Files of one run."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def compression(self) -> Path:
        """What `tokenize eval` measured."""
        return self.tokenizer / "compression.json"

    @property
    def eval(self) -> Path:
        return self.root / "eval"

    @property
    def report_md(self) -> Path:
        return self.root / "report.md"

    @property
    def report_html(self) -> Path:
        return self.root / "report.html"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def pipeline(self) -> Path:
        """Is there while `nanochat run` has begun the whole pipeline and not come to its end."""
        return self.root / "pipeline.json"

    @property
    def changed(self) -> float:
        """When its settings were written, or a stage left something, for the last time; seconds since 1970."""
        paths = [self.settings, self.tokenizer]
        for stage in map(self.stage, TRAIN_STAGES):
            paths += [stage.plan, stage.metrics, stage.checkpoints, stage.result]
        times = []
        for path in paths:
            with contextlib.suppress(OSError):  # not there, or gone meanwhile
                times.append(path.stat().st_mtime)
        return max(times, default=0.0)

    def stage(self, stage: str) -> StagePaths:
        return StagePaths(self.root / stage)

    def logs(self, stage: str) -> Path:
        """What the processes of a stage print and what became of each (launch/marks.py)."""
        return self.root / "logs" / stage


@dataclass(frozen=True)
class ModelPath:
    """A resolved model name: the checkpoint folder and where it came from (None for a bare directory)."""

    checkpoint: Path
    run: RunPaths | None
    stage: str | None
    step: int | None
    is_exact: bool = False
    """Whether this step was asked for, and not only the newest."""

    def __str__(self) -> str:
        if self.run is None:
            return str(self.checkpoint)
        return f"{self.run.name}/{self.stage}@{self.step}"

    def find_earlier(self) -> "ModelPath | None":
        """The checkpoint before this one of the same stage."""
        if self.run is None or self.stage is None or self.step is None:
            return None
        paths = self.run.stage(self.stage)
        steps = [step for step in paths.steps() if step < self.step]
        return replace(self, checkpoint=paths.checkpoint(steps[-1]), step=steps[-1]) if steps else None


@dataclass(frozen=True)
class Workspace:
    """$NANOCHAT_HOME."""

    home: Path

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def tasks(self) -> Path:
        return self.home / "tasks"

    @property
    def ranks(self) -> Path:
        """Rank files of published vocabularies, where somebody put them."""
        return self.home / "ranks"

    @property
    def core(self) -> Path:
        return self.home / "core"

    @property
    def chats(self) -> Path:
        """The file of conversations."""
        return self.home / "chats" / "chats.db"

    def dataset(self, name: str) -> Path:
        """The folder of a data set that may not exist yet. Raises UsageError where the name is no folder name."""
        check_name("data set", name, "--set data.dataset=NAME")
        return self.home / "data" / name

    def run(self, name: str) -> RunPaths:
        """Paths of a run that may not exist yet. Raises UsageError where the name is not a plain folder name."""
        check_name("run =", name, "nanochat runs ls")
        return RunPaths(self.runs / name)

    def list_runs(self) -> list[RunPaths]:
        """Runs that have settings, the most recently changed last."""
        found = [run for run in self._list_folders() if run.settings.is_file()]
        return sorted(found, key=lambda run: (run.changed, run.name))

    def list_lost(self) -> list[RunPaths]:
        """Folders of runs that have a tokenizer or a stage, and no settings any more."""
        return [
            run
            for run in self._list_folders()
            if not run.settings.is_file()
            and any(run.stage(name).root.is_dir() for name in ("tokenizer", *TRAIN_STAGES))
        ]

    def _list_folders(self) -> list[RunPaths]:
        if not self.runs.is_dir():
            return []
        return [RunPaths(path) for path in sorted(self.runs.iterdir()) if RUN_NAME.fullmatch(path.name)]

    def resolve_model(self, name: str | None = None) -> ModelPath:
        """Turn RUN, RUN/sft, RUN/sft@650, a checkpoint directory or None into one checkpoint folder.

        None is the most recently completed run's furthest stage (a run that has only checkpoints counts
        after all completed ones). Raises MissingError where there is no such model.
        """
        if name is None:
            for run in reversed(self.list_runs()):
                for stage in reversed(TRAIN_STAGES):
                    if run.stage(stage).result.is_file() and run.stage(stage).steps():
                        return _latest(run, stage)
            for run in reversed(self.list_runs()):
                for stage in reversed(TRAIN_STAGES):
                    if run.stage(stage).steps():
                        return _latest(run, stage)
            raise MissingError(f"there is no trained model in {self.runs}", "nanochat run --preset demo")
        if (Path(name) / "MANIFEST.json").is_file():
            return ModelPath(Path(name), None, None, None)
        match = re.fullmatch(r"([^/@]+)(?:/([a-z]+)(?:@(\d+))?)?", name)
        if not match:
            raise UsageError(
                f"model {name!r} is not RUN, RUN/STAGE, RUN/STAGE@STEP or a checkpoint folder", "nanochat runs ls"
            )
        run = self.run(match[1])
        if not run.settings.is_file():
            raise MissingError(f"there is no run {match[1]!r} in {self.runs}", "nanochat runs ls")
        if match[2] is not None and match[2] not in TRAIN_STAGES:
            raise UsageError(
                f"stage {match[2]!r} is none of {', '.join(TRAIN_STAGES)}", f"nanochat runs show {run.name}"
            )
        stages = [match[2]] if match[2] else [stage for stage in reversed(TRAIN_STAGES) if run.stage(stage).steps()]
        if not stages or not run.stage(stages[0]).steps():
            stage = stages[0] if stages else "base"
            raise MissingError(
                f"run {run.name!r} has no checkpoint of stage {stage!r}", f"nanochat train {stage} --run {run.name}"
            )
        if match[3] is None:
            return _latest(run, stages[0])
        step = int(match[3])
        if step not in run.stage(stages[0]).steps():
            have = ", ".join(map(str, run.stage(stages[0]).steps()))
            raise MissingError(
                f"{run.name}/{stages[0]} has no step {step}, only {have}", f"nanochat runs show {run.name}"
            )
        return ModelPath(run.stage(stages[0]).checkpoint(step), run, stages[0], step, is_exact=True)


def _latest(run: RunPaths, stage: str) -> ModelPath:
    step = run.stage(stage).steps()[-1]
    return ModelPath(run.stage(stage).checkpoint(step), run, stage, step)
