"""Standard streams as shells and schedulers leave them: closed, or of another alphabet."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import UsageError
from nanochat.launch.launch import count_gpus

NEWS = "import sys; from nanochat.cli.main import main; sys.exit(main(sys.argv[1:]))"


def run(redirect: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A command line in a shell, with a home of its own."""
    command = shlex.join([sys.executable, "-c", NEWS, *words])
    return subprocess.run(
        ["sh", "-c", f"{command} {redirect}"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="surrogateescape",
        stdin=subprocess.DEVNULL,
        env=os.environ | environ,
    )


@pytest.mark.parametrize("redirect", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_ends_no_command_and_takes_no_other_streams_text(tmp_path: Path, redirect: str) -> None:
    done = run(redirect, "chat", "--home", str(tmp_path))
    assert done.returncode == 3 and done.stdout == ""  # there is no run; news do not go to stdout
    assert ("error: " in done.stderr) == ("2>&-" not in redirect) and "Traceback" not in done.stderr


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    code = f"""
import os, sys
from nanochat.cli.console import prepare_streams
prepare_streams()
file = open({str(tmp_path / "file")!r}, "w")
print("news", file=sys.stderr)
os.write(2, b"of a library")
assert file.fileno() > 2 and all(os.get_inheritable(number) for number in range(3))
"""
    done = subprocess.run(["sh", "-c", f"{shlex.join([sys.executable, '-c', code])} <&- >&- 2>&-"])
    assert done.returncode == 0 and (tmp_path / "file").read_text() == ""


def test_characters_that_a_terminal_cannot_show_are_escaped_and_counted() -> None:
    code = r"""
import nanochat.cli.main as command
command._run = lambda words, console: console.show("na\u00efve \u2014 \udcff") or 0
raise SystemExit(command.main([]))
"""
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environ)
    assert done.stdout == b"na\\xefve \\u2014 \xff\n"  # the byte of a file's name as it is
    assert b"2 characters are written as escapes" in done.stderr and b"PYTHONIOENCODING=utf-8" in done.stderr


def test_a_user_without_a_home_folder_is_told_what_to_set(nanochat) -> None:
    outcome = nanochat("runs", "ls", "--home", "~nobody-of-this-name/x")
    assert outcome.code == 2 and "no home folder" in outcome.err and "export NANOCHAT_HOME=" in outcome.err
    outcome = nanochat("presets", "copy", "demo", "~nobody-of-this-name/x.toml")
    assert outcome.code == 2 and "the home folder is not known" in outcome.err


def test_a_folder_that_was_removed_is_said(nanochat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    try:
        outcomes = [nanochat(*words.split()) for words in ("runs ls --home relative", "train base --preset demo")]
    finally:
        os.chdir(tmp_path)
    for outcome in outcomes:
        assert outcome.code == 2 and "the current folder is not there any more" in outcome.err


@pytest.mark.parametrize("value", ["-1", "", "NoDevFiles", "none"])
def test_words_that_hide_every_gpu_are_no_gpus(value: str) -> None:
    with pytest.raises(UsageError, match="no GPU to count"):
        count_gpus("all", "auto", {"CUDA_VISIBLE_DEVICES": value})
