"""`nanochat export hf` as a command: what it refuses, what it says."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.cli.conftest import Outcome

Call = Callable[..., Outcome]


def test_the_folder_is_the_result(nanochat: Call, trained_home: Path, tmp_path: Path) -> None:
    done = nanochat("export", "hf", "whole/sft", "--home", str(trained_home))
    folder = tmp_path / "whole-sft-hf"
    assert done.code == 0 and done.out == f"{folder}\n"
    assert "model whole/sft@" in done.err and "read back and compared" in done.err and "next:  python -c" in done.err
    told = nanochat("export", "hf", "whole/base", "--home", str(trained_home), "--out", "deep/er/base", "--json", "-q")
    export = json.loads(told.out)
    assert export["folder"] == str(tmp_path / "deep" / "er" / "base") and export["has_chat_template"] is False
    assert export["files"] == {path.name: path.stat().st_size for path in Path(export["folder"]).iterdir()}
    assert told.err == ""


def test_only_an_earlier_export_is_ever_replaced(nanochat: Call, trained_home: Path, tmp_path: Path) -> None:
    words = ("export", "hf", "whole/sft", "--home", str(trained_home), "--out", "out")
    (tmp_path / "out").mkdir()
    assert nanochat(*words).code == 0, "an empty folder may be there"
    again = nanochat(*words)
    assert again.code == 2 and "there is an export in" in again.err
    assert f"--out {tmp_path / 'out'}-2  # --yes replaces it" in again.err
    assert nanochat(*words, "--yes").code == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    other = nanochat(*words, "--yes")
    assert other.code == 2 and "is not empty, and no export of ours" in other.err and "out-2" in other.err
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    assert "is a file" in nanochat(*words[:-1], "file", "--yes").err


def test_a_dry_run_writes_nothing_and_loads_no_torch(trained_home: Path, tmp_path: Path) -> None:
    words = ["export", "hf", "whole/sft", "--home", str(trained_home), "--dry-run"]
    program = (
        f"import sys; from nanochat.cli.main import main; code = main({words!r})\n"
        "assert code == 0 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == f"would write {tmp_path / 'whole-sft-hf'}\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there_is_said_before_anything_is_written(nanochat: Call, trained_home: Path) -> None:
    done = nanochat("export", "hf", "whole/rl", "--home", str(trained_home), "--out", "out")
    assert done.code == 3 and "has no checkpoint of stage 'rl'" in done.err and not Path("out").exists()
    assert nanochat("export", "hf").code == 3


def test_a_place_that_cannot_be_written_is_a_sentence(nanochat: Call, trained_home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file/below", "x" * 300):
        done = nanochat("export", "hf", "whole/sft", "--home", str(trained_home), "--out", out)
        assert done.code == 4 and "cannot be written" in done.err, out
        assert f"hint:  nanochat export hf whole/sft --home {trained_home} --out DIR  # another folder" in done.err
    outside = nanochat("export", "hf", "whole/sft", "--home", str(trained_home), "--out", "/proc/x")
    assert outside.code == 4 and "/proc cannot be written" in outside.err and "--out DIR  # another" in outside.err
