"""Processes of ours, started in a folder whose files are named like modules, by every Python that is here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nanochat
from nanochat.machine import START, module_command

TRAPS = ("os", "random", "runpy", "pathlib", "site", "torch", "json", "typing")
PROBE = "import json, random, sys; print('probe', sys.argv[1:], __name__)\n"


def find_pythons() -> list[str]:
    """This one, and a 3.10 where there is one: it does not know PYTHONSAFEPATH."""
    oldest = shutil.which("python3.10")
    works = oldest and subprocess.run([oldest, "-c", ""], capture_output=True, check=False).returncode == 0
    return [sys.executable, *([oldest] if works else [])]


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder where every import ends in an error."""
    folder = tmp_path / "typed here"
    (folder / "nanochat").mkdir(parents=True)
    for path in (folder / "nanochat" / "__init__.py", *(folder / f"{name}.py" for name in TRAPS)):
        path.write_text("raise SystemExit('a file of the current folder was imported')\n")
    return folder


@pytest.mark.parametrize("python", find_pythons())
@pytest.mark.parametrize("is_rank", [False, True])
def test_no_module_of_the_current_folder_is_imported(trap: Path, tmp_path: Path, python: str, is_rank: bool) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "probe.py").write_text(PROBE)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = module_command("probe", "one", "two words")[1:]
    as_torchrun_does = ["-u"] if is_rank else []
    done = subprocess.run(
        [python, *as_torchrun_does, *command],
        cwd=trap,
        env=environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "probe ['one', 'two words'] __main__\n", done.stderr


def test_python_itself_would_import_them(trap: Path) -> None:
    """The trap is one: without our way of starting, it catches."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, "-m", "random"], cwd=trap, env=environ, capture_output=True, text=True)
    assert "current folder was imported" in done.stderr


def test_a_process_of_a_checkout_finds_the_package_that_started_it(tmp_path: Path) -> None:
    root = tmp_path / "check out"
    (root / "nanochat").mkdir(parents=True)
    shutil.copy(START, root / "nanochat" / "start.py")
    (root / "nanochat" / "__init__.py").write_text("")
    (root / "nanochat" / "where.py").write_text("print(__file__)")
    command = [sys.executable, str(root / "nanochat" / "start.py"), "nanochat.where"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.stdout.strip() == str(root / "nanochat" / "where.py"), done.stderr


def test_ctrl_c_while_a_module_loads_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(module_command("slow"), env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_while_the_command_loads_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [Path(sys.executable).with_name("nanochat"), "--version"]
    for words in (command, [sys.executable, "-m", "nanochat", "runs", "ls"]):
        done = subprocess.run(words, env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_every_process_of_ours_is_started_this_way() -> None:
    """`-m` and `-c` look in the current folder; the sandbox's `-I` does not."""
    package = Path(nanochat.__file__).parent
    for path in package.rglob("*.py"):
        for line in re.findall(r"^.*sys\.executable.*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert path.name in ("machine.py", "process.py"), f"{path}: {line.strip()}"
