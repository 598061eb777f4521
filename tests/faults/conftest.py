"""Forked workers, and a run that nothing happened to, for all tests of faults."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import write_settings
from tests.faults.workers import Workers, can_inject

NUM_STEPS = 80
CHANGES = {"base": {"num_steps": NUM_STEPS, "eval_every": 40}, "checkpoint": {"every": 2}}


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    if not can_inject():
        pytest.skip("faults are injected on Linux, with a C compiler")
    with Workers(tmp_path_factory.mktemp("workers")) as started:
        yield started


@pytest.fixture(scope="session")
def new_run(trained_home: Path) -> Callable[..., Path]:
    """Make a run that has its tokenizer and nothing else; returns its settings.json."""

    def make(run: str, **checkpoint: int) -> Path:
        changes = CHANGES | {"checkpoint": CHANGES["checkpoint"] | checkpoint}
        settings = write_settings(trained_home, run, changes)
        shutil.copytree(trained_home / "runs" / "whole" / "tokenizer", settings.parent / "tokenizer")
        return settings

    return make


@pytest.fixture(scope="session")
def whole(new_run: Callable[..., Path], workers: Workers) -> Path:
    """The base stage of a run that nothing happened to, with as many threads as the workers have."""
    settings = new_run("undisturbed")
    ended = workers.run(["base", str(settings)])
    assert ended.status == 0, ended.said
    return settings.parent / "base"
