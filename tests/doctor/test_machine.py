import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.doctor.examine import examine_machine
from nanochat.doctor.finding import Finding, guard, worst_status
from nanochat.doctor.machine import (
    check_disk,
    check_home,
    check_open_files,
    check_python,
    check_variables,
    judge_disk,
    judge_open_files,
    judge_shared_memory,
    parse_version,
)
from tests.patience import PATIENCE_SECONDS


def test_every_check_is_made_even_where_the_home_does_not_exist(tmp_path: Path) -> None:
    findings = examine_machine(tmp_path / "new" / "home")
    names = [finding.name for finding in findings]
    assert names == [
        *("python", "cores", "memory", "shared memory", "open files", "home", "disk"),
        *("temporary files", "network", "variables", "sandbox"),
        *(
            "tokenizer",
            "gpu memory",
            "torch",
            "accelerator",
            "driver",
            "dtype",
            "attention",
            "cpu kernels",
            "compile",
            "triton",
        ),
    ]
    assert all(finding.message for finding in findings)
    assert not (tmp_path / "new").exists()


def test_what_fails_names_the_command_that_mends_it(tmp_path: Path) -> None:
    for finding in examine_machine(tmp_path):
        assert finding.status != "fail" or finding.fix, finding


def test_this_machine_has_what_the_tests_need(tmp_path: Path) -> None:
    statuses = {finding.name: finding.status for finding in examine_machine(tmp_path)}
    assert statuses["python"] == statuses["home"] == statuses["torch"] == "ok"
    assert statuses["dtype"] == "ok"


def test_an_old_python_is_a_failure() -> None:
    assert check_python((3, 9, 18)).status == "fail"
    assert check_python((3, 13, 0)).status == "ok"


def test_a_home_under_a_file_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check_home(tmp_path / "file" / "home").status == "fail"
    assert check_disk(tmp_path / "file" / "home").name == "disk"


def test_a_variable_that_looks_like_a_setting_is_named_with_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_variables({}).status == "ok"
    monkeypatch.setenv("NANOCHAT_HME", "/data")
    finding = check_variables()
    assert finding.status == "warn" and "NANOCHAT_HME (did you mean NANOCHAT_HOME?)" in finding.message
    assert finding.fix.startswith('export NANOCHAT_HOME="$NANOCHAT_HME"; unset NANOCHAT_HME')


@pytest.mark.parametrize(
    ("free", "status", "piece"),
    [
        (10**9, "fail", "the demo wants 2.0 GB"),
        (10 * 10**9, "ok", "too little for the text and checkpoints of d12 20, d20 60 GB"),
        (30 * 10**9, "ok", "of d20 60 GB"),
        (90 * 10**9, "ok", "enough for every preset"),
    ],
)
def test_the_disk_is_held_against_what_presets_need(free: int, status: str, piece: str) -> None:
    finding = judge_disk(free, {"demo": 10**9, "d12": 20 * 10**9, "d20": 60 * 10**9})
    assert finding.status == status and piece in finding.message
    assert status == "ok" or finding.fix


@pytest.mark.parametrize(
    ("free", "num_gpus", "status"),
    [(64 << 20, 0, "ok"), (64 << 20, 1, "ok"), (64 << 20, 2, "warn"), (16 << 30, 8, "ok")],
)
def test_small_shared_memory_matters_between_gpus(free: int, num_gpus: int, status: str) -> None:
    finding = judge_shared_memory(free, num_gpus)
    assert finding.status == status and ("--shm-size" in finding.fix) == (status == "warn")


def test_few_open_files_are_a_warning() -> None:
    assert judge_open_files(256).status == "warn" and judge_open_files(256).fix.startswith("ulimit -n")
    assert judge_open_files(1024).status == judge_open_files(None).status == "ok"
    assert check_open_files().name == "open files"


@pytest.mark.parametrize(
    "error", [ImportError("libcudart.so"), OSError("gone"), RuntimeError("driver"), ValueError("?")]
)
def test_a_check_that_breaks_is_a_finding(error: Exception) -> None:
    def check() -> Finding:
        raise error

    finding = guard("driver", check)
    assert finding.status == "fail" and str(error) in finding.message


@pytest.mark.parametrize("version", ["2.9.0", "2.9.1rc2", "2.9.0a0+git123", "2.9"])
def test_versions_of_every_kind_of_build_are_read(version: str) -> None:
    assert parse_version(version) == (2, 9)


def test_the_worst_finding_is_the_verdict() -> None:
    ok, warn, fail = Finding("a", "ok", ""), Finding("b", "warn", ""), Finding("c", "fail", "")
    assert worst_status(()) == worst_status((ok,)) == "ok"
    assert worst_status((ok, warn)) == "warn"
    assert worst_status((fail, warn, ok)) == "fail"


def test_importing_the_doctor_loads_no_torch() -> None:
    code = "import sys, nanochat.doctor.examine, nanochat.doctor.distributed; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_SECONDS).returncode == 0
