"""An export whose writing fails, whichever write it is, leaves what stood there before, and the next one succeeds."""

import errno
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nanochat.errors import NanochatError
from nanochat.paths import Workspace
from nanochat.stages.export import export_hf
from tests.faults.workers import KILL, LASTING, Fault, Workers

EXPORT = "tests.faults.test_exports:run_export"


def run_export(arguments: Sequence[str]) -> int:
    """Arguments: the home and the folder. What a forked worker does."""
    try:
        export_hf(Workspace(Path(arguments[0])).resolve_model("whole/sft"), Path(arguments[1]))
    except NanochatError as error:
        sys.stderr.write(f"error: {error.message}\nhint:  {error.hint}\n")
        return error.exit_code
    return 0


def hash_folder(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("error", "status"),
    [(errno.ENOSPC + LASTING, 5), (errno.EIO, 4), (KILL, -9)],
    ids=["full", "failing once", "killed"],
)
def test_every_write_of_an_export_may_fail(
    workers: Workers, trained_home: Path, tmp_path: Path, error: int, status: int
) -> None:
    folder = tmp_path / "exports" / "sft"
    arguments = [str(trained_home), str(folder)]
    num_calls = workers.run(arguments, Fault("/exports", 0), EXPORT).calls
    whole = hash_folder(folder)
    assert num_calls > 10 and len(whole) == 5
    for k in range(1, num_calls + 1):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        ended = workers.run(arguments, Fault("/exports", k, error), EXPORT)
        assert ended.status in (status, 0), f"call {k}: {ended.said}"
        assert "Traceback" not in ended.said
        assert not folder.exists() or hash_folder(folder) == whole, f"call {k}: half an export has the name"
        assert workers.run(arguments, function=EXPORT).status == 0
        assert hash_folder(folder) == whole and [path.name for path in folder.parent.iterdir()] == ["sft"], f"call {k}"


@pytest.mark.parametrize("error", [errno.ENOSPC + LASTING, KILL], ids=["full", "killed"])
def test_an_earlier_export_is_replaced_or_kept(
    workers: Workers, trained_home: Path, tmp_path: Path, error: int
) -> None:
    folder = tmp_path / "exports" / "sft"
    arguments = [str(trained_home), str(folder)]
    assert workers.run(arguments, function=EXPORT).status == 0
    whole = hash_folder(folder)
    num_calls = workers.run(arguments, Fault("/exports", 0), EXPORT).calls
    for k in range(1, num_calls + 1, 3):
        (folder / "config.json").write_text("{}")  # an export of another model
        before = hash_folder(folder)
        workers.run(arguments, Fault("/exports", k, error), EXPORT)
        if folder.exists():  # else it was killed between two renames: the old one and the new are both beside it
            assert hash_folder(folder) in (before, whole)
        assert workers.run(arguments, function=EXPORT).status == 0
        assert hash_folder(folder) == whole and [path.name for path in folder.parent.iterdir()] == ["sft"], f"call {k}"
