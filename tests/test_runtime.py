"""What is known of a device follows from whole words of its name; what torch's compiler can do, from paths."""

import os
from pathlib import Path

import pytest
import torch

from nanochat import runtime
from nanochat.runtime import PEAK_FLOPS, find_peak


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("NVIDIA B200", "B200"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("A100-PCIE-40GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_every_device_of_the_table_is_found_by_the_name_that_its_driver_gives(name: str, entry: str) -> None:
    assert find_peak(name) == PEAK_FLOPS[entry]


def test_the_names_above_cover_the_table() -> None:
    (mark,) = test_every_device_of_the_table_is_found_by_the_name_that_its_driver_gives.pytestmark  # type: ignore[attr-defined]
    assert {entry for _, entry in mark.args[1]} == set(PEAK_FLOPS)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A1000",
        "NVIDIA L400",
        "NVIDIA A100X",
        "NVIDIA A10M",
        "NVIDIA GH200 480GB",
        "NVIDIA GB200",
        "NVIDIA H20",
    ]
    + ["NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti"]
    + ["NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA RTX 4000 Ada Generation", "AMD Instinct MI300A", "Tesla T4", ""],
)
def test_a_device_that_only_looks_like_one_of_them_has_no_peak(name: str) -> None:
    assert find_peak(name) is None


@pytest.mark.parametrize("name", ["my models", "o'neill", 'a"b'])
def test_kernels_lie_where_the_compiler_can_be_told_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_VEC_ISA_OK"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(variable, "")  # so that what is set here is taken back
        monkeypatch.delenv(variable)
    runtime.prepare_compile(tmp_path / name / "compile")
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    runtime.prepare_compile(tmp_path / "compile")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compile")


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels of CUDA take another way")
@pytest.mark.parametrize("variable", ["TORCHINDUCTOR_CACHE_DIR", "TMPDIR"])
def test_a_path_that_no_compiler_can_be_told_is_the_reason_for_not_compiling(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    if not runtime.can_compile()[0]:
        pytest.skip("no C++ compiler here")
    (tmp_path / "a b").mkdir()
    monkeypatch.setenv(variable, str(tmp_path / "a b"))
    monkeypatch.setattr("tempfile.tempdir", None)  # which is kept
    possible, reason = runtime.can_compile()
    assert not possible and f"the path {tmp_path / 'a b'} has a space or a quote" in reason
