"""A command line in this process, with a home of its own and no environment of the developer's."""

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import nanochat.cli.train as train_module
from nanochat.checkpoint.manifest import MANIFEST, MODEL, STATE
from nanochat.cli.main import main
from nanochat.config.load import load_settings, read_saved, save_settings
from nanochat.paths import RunPaths, StagePaths

RUN = ["tokenizer", "base", "mid", "sft", "evaluate", "evaluate", "rl", "evaluate"]
"""What `nanochat run` starts, in its order."""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("NANOCHAT_") or name == "HF_HUB_OFFLINE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NANOCHAT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return tmp_path / "home"


@pytest.fixture
def nanochat(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*words: str) -> Outcome:
        capsys.readouterr()
        code = main(list(words))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


def write_checkpoint(stage: StagePaths, step: int) -> None:
    """A whole checkpoint without tensors."""
    folder = stage.checkpoint(step)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest()} for name in (MODEL, STATE)}
    for name in files:
        (folder / name).write_bytes(b"{}")
    manifest = {"version": 2, "stage": stage.root.name, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def make_run(home: Path, name: str, done: tuple[str, ...] = (), started: str = "", *overrides: str) -> RunPaths:
    """A run directory of the demo as stages leave it, without the tensors."""
    run = RunPaths(home / "runs" / name)
    settings, origins = load_settings("demo", overrides=overrides, environ={})
    save_settings(run.settings, "demo", settings, origins, "0.1.0")
    for stage in done:
        if stage == "tokenizer":
            run.tokenizer.mkdir()
            (run.tokenizer / "result.json").write_text('{"stage": "tokenizer", "vocab_size": 1024}')
            continue
        write_checkpoint(run.stage(stage), 20)
        run.stage(stage).plan.write_text("{}")
        run.stage(stage).result.write_text(json.dumps({"stage": stage, "step": 20, "loss": 2.5, "val_bpb": 1.25}))
    if started:
        run.stage(started).checkpoint(10).mkdir(parents=True)
        run.stage(started).plan.write_text("{}")
    return run


@pytest.fixture
def launched(monkeypatch):
    """Stands for the workers: each leaves what its stage leaves; a code stops the pipeline there."""
    calls: list[tuple[str, tuple[str, ...]]] = []
    codes: dict[str, int] = {}

    def launch(stage: str, settings: Path, *, options: tuple[str, ...], again: tuple = (), **others: object) -> int:
        read_saved(settings)
        calls.append((stage, tuple(options)))
        launch.again.append(" ".join(again))  # type: ignore[attr-defined]
        folder = settings.parent / ("eval" if stage == "evaluate" else stage)
        if codes.get(stage):
            return codes[stage]
        folder.mkdir(exist_ok=True)
        if "core" in options:
            wish = read_saved(settings)[1].eval.model_dump()
            record = {"stage": "base", "step": 20, "name": "CORE", "value": 0.5, "core_tasks": [], "settings": wish}
            (folder / "base_core.json").write_text(json.dumps(record))
        elif stage == "evaluate":
            for of in options[options.index("--of") + 1].split("@")[0].split(","):
                names = [] if options[options.index("--score") + 1] == "bpb" else read_saved(settings)[1].eval.tasks
                for name in ("bpb", *names):
                    record = {"stage": of, "step": 20, "name": name, "accuracy": 0.5, "total": 2}
                    (folder / f"{of}_{name}.json").write_text(json.dumps(record))
        else:
            (folder / "plan.json").write_text("{}")
            (folder / "result.json").write_text(json.dumps({"stage": stage, "step": 20}))
            write_checkpoint(StagePaths(folder), 20)
        return 0

    launch.calls, launch.codes, launch.again = calls, codes, []  # type: ignore[attr-defined]
    monkeypatch.setattr(train_module, "launch_stage", launch)
    return launch
