"""The check that every test leaves the process as it found it, on tests that do not."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests import conftest
from tests.process_state import FLAGS, describe_changes, read_settings

CONFTEST = """
import tests.process_state
from tests.process_state import _leaves_the_process_as_it_was, pytest_fixture_setup
tests.process_state.PATIENCE_SECONDS = 0.1
"""
LEAKS = """
import os, pytest, signal, subprocess, threading

def test_variable():
    os.environ["LEFT"] = "1"

def test_folder():
    os.chdir("/")

def test_signal():
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

def test_thread():
    threading.Thread(target=threading.Event().wait, name="left", daemon=True).start()

def test_child():
    subprocess.Popen(["sleep", "600"])

def test_clean():
    thread = threading.Thread(target=int)
    thread.start()
    subprocess.run(["true"])

@pytest.fixture(scope="module")
def held():
    with subprocess.Popen(["sleep", "600"]) as child:
        yield
        child.kill()

def test_held(held):
    pass

@pytest.fixture(scope="module")
def wrong():
    os.environ["OF_A_FIXTURE"] = "1"

def test_fixture(wrong):
    pass
"""
SAID = {
    "variable": "the variable LEFT was not there and is '1'",
    "folder": "the working directory was ",
    "signal": "the handler of SIGUSR2 was ",
    "thread": "the thread 'left' (daemon) still runs",
    "child": " sleep 600 still runs",
    "fixture": "the fixture 'wrong' changes the process: the variable OF_A_FIXTURE was not there and is '1'",
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its children")
def test_whatever_a_test_leaves_is_named_and_fails_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--tb=line", "."]
    ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    found = dict(re.findall(r"^ERROR test_leaks.py::test_(\w+) - (.*)$", ended.stdout, re.MULTILINE))
    assert found.keys() == SAID.keys(), ended.stdout
    for line in SAID.values():
        assert line in ended.stdout


def test_flags_of_torch_are_looked_at() -> None:
    before = read_settings()
    assert before.keys() > FLAGS.keys() and describe_changes(before, read_settings()) == []
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        assert describe_changes(before, read_settings()) == [
            "torch.get_deterministic_debug_mode was 0 and is 2",
            f"torch.get_num_threads was {conftest.NUM_THREADS} and is 1",
        ]
    finally:
        torch.set_num_threads(conftest.NUM_THREADS)
        torch.use_deterministic_algorithms(False)


def test_files_are_shuffled_whole_and_a_seed_repeats_their_order() -> None:
    def shuffle(seed: int | None) -> list[tuple[str, int]]:
        items: list = [SimpleNamespace(path=name, number=number) for name in "abcdefgh" for number in (1, 2)]
        config: Any = SimpleNamespace(getoption=lambda _: seed)
        conftest.pytest_collection_modifyitems(config, items)
        return [(item.path, item.number) for item in items]

    plain, first, second = shuffle(None), shuffle(1), shuffle(2)
    assert plain == sorted(plain) and first == shuffle(1) and first != second and plain not in (first, second)
    assert first[::2] == [(name, 1) for name, _ in first[1::2]] and sorted(first) == plain
