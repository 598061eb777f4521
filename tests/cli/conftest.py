"""A command line in this process, with a home of its own and no environment of the developer's."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from nanochat.cli.main import main
from nanochat.layers import load_settings, save_settings
from nanochat.paths import RunPaths


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
        run.stage(stage).checkpoint(20).mkdir(parents=True)
        run.stage(stage).plan.write_text("{}")
        run.stage(stage).result.write_text(json.dumps({"stage": stage, "step": 20, "loss": 2.5, "val_bpb": 1.25}))
    if started:
        run.stage(started).checkpoint(10).mkdir(parents=True)
        run.stage(started).plan.write_text("{}")
    return run
