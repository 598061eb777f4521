from types import SimpleNamespace

import pytest

from nanochat.cli import tracking
from nanochat.config.load import read_saved
from tests.cli.conftest import make_run

ALL = ("tokenizer", "base", "mid", "sft")


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["nothing", "only a folder"])
@pytest.mark.parametrize("words", ["run --preset demo", "train base --preset demo", "resume r", "train mid --run r"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(
    nanochat, home, monkeypatch, words, spec
) -> None:
    make_run(home, "r", ("tokenizer",), "base")
    monkeypatch.setattr(tracking, "find_spec", lambda _name: spec)
    outcome = nanochat(*words.split(), "--track", "trackio")
    assert outcome.code == 3
    assert "the package trackio is not installed" in outcome.err and "hint:  pip install trackio" in outcome.err


def test_a_tracker_that_does_not_exist_is_refused(nanochat) -> None:
    outcome = nanochat("run", "--preset", "demo", "--track", "mlflow")
    assert outcome.code == 2 and 'runtime.track = "mlflow"' in outcome.err


@pytest.mark.parametrize("name, value", [("tensorboard", "tensorboard"), ("none", None)])
def test_track_is_a_setting_that_a_run_may_change(nanochat, home, monkeypatch, name, value) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda _name: SimpleNamespace(origin="here"))
    run = make_run(home, "r", ALL, "", "runtime.track=wandb")
    monkeypatch.setattr("nanochat.cli.train.launch_stage", lambda *_arguments, **_options: 75)
    (run.stage("base").result).unlink()
    assert nanochat("resume", "r", "--track", name).code == 75
    assert read_saved(run.settings)[1].runtime.track == value
