from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.stages.__main__ import main
from nanochat.training import tracking
from nanochat.training.metrics import MetricsFile
from tests.trackers import install_fake_wandb

Start = Callable[..., Path]


def read_curve(run: Path) -> list[tuple]:
    records = MetricsFile(run / "base" / "metrics.jsonl").read()
    return [(record["step"], record.get("loss"), record.get("val_bpb")) for record in records]


@pytest.mark.parametrize("fails", ["", "log raises", "log hangs"])
def test_training_is_the_same_whatever_the_tracker_does(
    trained_home: Path,
    start_run: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
) -> None:
    fake = install_fake_wandb(tmp_path, monkeypatch, fails)
    if "hangs" in fails:
        close = tracking.Tracking.close
        monkeypatch.setattr(tracking.Tracking, "close", lambda self, say: close(self, say, seconds=1.0))
    settings = start_run(changes={"runtime": {"track": "wandb"}})
    assert main(["base", str(settings)]) == 0
    assert read_curve(settings.parent) == read_curve(trained_home / "runs" / "whole")
    said = capsys.readouterr().err
    assert said.count("tracking with wandb") == (2 if fails else 1)
    if not fails:
        logged = [(step, values.get("loss"), values.get("val_bpb")) for step, values in fake.logged()]
        assert logged == read_curve(settings.parent)
