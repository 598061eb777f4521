import pytest

from nanochat.doctor import kernels
from nanochat.doctor.kernels import judge_attention, judge_cpu_kernels, judge_triton


@pytest.mark.parametrize(
    ("device", "working", "status", "piece"),
    [
        ("cpu", [], "ok", "1024"),
        ("mps", [], "ok", "mps"),
        ("cuda", ["efficient", "flash", "math"], "ok", "flash, efficient"),
        ("cuda", ["math"], "warn", "no fused kernel"),
        ("cuda", [], "fail", "no attention kernel"),
    ],
)
def test_attention_without_a_fused_kernel_is_slow_on_a_gpu(device, working, status, piece) -> None:
    finding = judge_attention(device, working)
    assert finding.status == status and piece in finding.message
    assert bool(finding.fix) == (status != "ok")


@pytest.mark.parametrize(
    ("capability", "has_onednn", "arm", "status"),
    [
        ("AVX512", True, False, "ok"),
        ("AVX2", True, False, "ok"),
        ("DEFAULT", True, True, "ok"),
        ("DEFAULT", True, False, "warn"),
        ("NO AVX", True, False, "warn"),
        ("AVX512", False, False, "warn"),
    ],
)
def test_a_cpu_without_vectors_or_onednn_is_slow(monkeypatch, capability, has_onednn, arm, status) -> None:
    monkeypatch.setattr(kernels, "is_arm", lambda: arm)
    finding = judge_cpu_kernels(capability, has_onednn)
    assert finding.status == status and bool(finding.fix) == (status != "ok")


def test_only_a_gpu_needs_triton() -> None:
    assert judge_triton("cuda", "3.6.0").status == judge_triton("cpu", None).status == "ok"
    assert judge_triton("cuda", None).status == "warn" and judge_triton("cuda", None).fix == "pip install triton"
