"""A tiny run, trained once for all tests of the stages and of faults; and what holds for every test.

Every test leaves the process as it found it, which is checked, and none depends on which ones ran before it.
"""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from nanochat.config.settings import Settings
from nanochat.data.shards import Manifest, replace_manifest, write_shard_files
from nanochat.stages.__main__ import main
from nanochat.tasks.demo import generate_documents
from tests.process_state import _leaves_the_process_as_it_was, pytest_fixture_setup  # noqa: F401  pytest finds them

NUM_THREADS = 2
"""Of torch, in this process and in those that tests start: another number adds in another order, to other bits."""

TINY = {
    "model": {"depth": 1, "context": 64},
    "tokenizer": {"vocab_size": 400, "train_chars": 50_000},
    "data": {"dataset": "tiny"},
    "batch": {"total_tokens": 512, "device_batch_size": 4},
    "base": {"num_steps": 20, "eval_every": 10, "eval_tokens": 2_000},
    "mid": {"mixture": ["letters:20", "identity*2"], "num_steps": 4, "eval_tokens": 1_000, "replay": 0.25},
    "sft": {"mixture": ["arithmetic:12"], "total_tokens": 256, "epochs": 2, "eval_tokens": 1_000},
    "rl": {
        "num_steps": 6,
        "questions_per_step": 3,
        "samples_per_question": 4,
        "max_new_tokens": 8,
        "eval_every": 3,
        "eval_questions": 4,
        "eval_samples": 4,
    },
    "eval": {"tasks": ["letters", "arithmetic"], "max_examples": 3, "max_new_tokens": 12},
    "checkpoint": {"every": 5},
    "runtime": {"device": "cpu", "dtype": "float32", "compile": False},
}


LONG = ("test_practice_helps.py", "test_ranks_together.py", "test_rl.py", "test_exports.py", "test_kills.py")
"""Files that take minutes: first, so that no worker is left alone with one at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle-files", type=int, default=None, metavar="SEED", help="run the files in a random order")


def pytest_configure(config: pytest.Config) -> None:
    os.environ["OMP_NUM_THREADS"] = str(NUM_THREADS)
    torch.set_num_threads(NUM_THREADS)
    hypothesis.settings.register_profile("untimed", deadline=None)  # a test asserts no time, nor does its library
    hypothesis.settings.load_profile("untimed")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do children
    config.option.loadscopereorder = False  # of xdist, which otherwise begins with the files of most tests


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--shuffle-files")
    if seed is None:
        items.sort(key=lambda item: Path(item.path).name not in LONG)
    else:
        files = sorted({str(item.path) for item in items})
        random.Random(seed).shuffle(files)
        items.sort(key=lambda item: files.index(str(item.path)))


def write_settings(home: Path, run: str, changes: dict[str, dict] | None = None) -> Path:
    """Write the settings.json of a tiny run; returns its path."""
    sections = {key: value | (changes or {}).get(key, {}) for key, value in TINY.items()}
    path = home / "runs" / run / "settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"preset": "tiny", "settings": Settings.model_validate(sections).model_dump()}))
    return path


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the data set `tiny` and the run `whole`, trained through all stages and evaluated."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "data" / "tiny"
    folder.mkdir(parents=True)
    shards = []
    for split, num_chars in (("train", 60_000), ("val", 8_000)):
        shards += write_shard_files(folder, generate_documents(num_chars, split=split), split, group_documents=50)
    replace_manifest(folder, Manifest(tuple(shards)))
    settings = write_settings(home, "whole")
    for stage in ("tokenizer", "base", "mid", "sft", "evaluate"):
        assert main([stage, str(settings)]) == 0, stage
    return home


@pytest.fixture(autouse=True)
def _leaves_the_trained_run_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """All tests of a worker share it, in any order."""
    if "trained_home" not in request.fixturenames:
        yield
        return
    run = request.getfixturevalue("trained_home") / "runs" / "whole"

    def list_files() -> dict[Path, tuple[int, int]]:
        files = [path for path in run.rglob("*") if path.is_file() and "logs" not in path.parts and path.suffix]
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}

    before = list_files()
    yield
    assert list_files() == before, "the test does not leave the run `whole` as it found it"


@pytest.fixture
def start_run(trained_home: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a run in a home of its own that has the tokenizer and, where asked, stages of the run `whole`."""

    def start(run: str = "again", changes: dict[str, dict] | None = None, stages: tuple[str, ...] = ()) -> Path:
        if not (tmp_path / "data").exists():
            shutil.copytree(trained_home / "data", tmp_path / "data")
        settings = write_settings(tmp_path, run, changes)
        for name in ("tokenizer", *stages):
            shutil.copytree(trained_home / "runs" / "whole" / name, settings.parent / name)
        return settings

    return start
