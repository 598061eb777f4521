import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.doctor import (
    Finding,
    check_disk,
    check_home,
    check_python,
    examine_machine,
    judge_accelerator,
    parse_version,
    worst_status,
)


def test_every_check_is_made_even_where_the_home_does_not_exist(tmp_path: Path) -> None:
    findings = examine_machine(tmp_path / "new" / "home")
    names = [finding.name for finding in findings]
    assert names == "python cores memory home disk tokenizer torch accelerator dtype compile".split()
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


@pytest.mark.parametrize(
    ("facts", "status", "piece"),
    [
        ({"gpus": ["H100"], "cuda_build": "12.8", "usable": ["H100"]}, "ok", "1 x H100"),
        ({"gpus": ["H100"] * 8, "cuda_build": None, "usable": []}, "fail", "CPU only"),
        ({"gpus": ["H100"], "cuda_build": "13.0", "usable": []}, "fail", "13.0"),
        ({"gpus": [], "cuda_build": None, "usable": [], "has_mps": True}, "ok", "mps"),
        ({"gpus": [], "cuda_build": None, "usable": [], "has_amd": True}, "warn", "AMD"),
        ({"gpus": [], "cuda_build": None, "usable": []}, "warn", "no GPU"),
    ],
)
def test_a_gpu_that_pytorch_cannot_use_is_a_failure_and_no_gpu_a_warning(facts: dict, status: str, piece: str) -> None:
    finding = judge_accelerator(**facts)
    assert finding.status == status and piece in finding.message
    assert status != "fail" or finding.fix


@pytest.mark.parametrize("version", ["2.9.0", "2.9.1rc2", "2.9.0a0+git123", "2.9"])
def test_versions_of_every_kind_of_build_are_read(version: str) -> None:
    assert parse_version(version) == (2, 9)


def test_the_worst_finding_is_the_verdict() -> None:
    ok, warn, fail = Finding("a", "ok", ""), Finding("b", "warn", ""), Finding("c", "fail", "")
    assert worst_status(()) == worst_status((ok,)) == "ok"
    assert worst_status((ok, warn)) == "warn"
    assert worst_status((fail, warn, ok)) == "fail"


def test_importing_the_doctor_loads_no_torch() -> None:
    code = "import sys, nanochat.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
