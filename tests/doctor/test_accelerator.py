import pytest

from nanochat.doctor.accelerator import (
    Gpu,
    judge_accelerator,
    judge_driver,
    judge_gpu_memory,
    parse_gpus,
    read_driver_cuda,
)


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


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("| NVIDIA-SMI 535.183.01   Driver Version: 535.183.01   CUDA Version: 12.2     |", (12, 2)),
        ("| NVIDIA-SMI 590.44   KMD Version: 590.44   CUDA UMD Version: 13.1     |", (13, 1)),
        ("CUDA Version        : 13.0", (13, 0)),
        ("NVIDIA-SMI has failed", None),
        ("| CUDA Version: N/A |", None),
    ],
)
def test_the_newest_cuda_of_a_driver_is_read(text: str, version: tuple[int, int] | None) -> None:
    assert read_driver_cuda(text) == version


@pytest.mark.parametrize(
    ("driver", "build", "usable", "status", "piece"),
    [
        (None, None, False, "ok", "no NVIDIA driver"),
        (None, "12.8", True, "ok", "works"),
        ((12, 2), None, False, "ok", "has no CUDA"),
        ((12, 2), "12.8", True, "ok", "the same major version"),
        ((13, 1), "12.8", True, "ok", "speaks CUDA 13.1"),
        ((12, 2), "13.0", False, "fail", "built for 13.0"),
        ((11, 4), "12.8", False, "fail", "built for 12.8"),
        ((12, 2), "13.0", True, "ok", "PyTorch is built for 13.0"),  # a forward compatibility package
    ],
)
def test_a_driver_of_an_older_major_version_is_a_failure(driver, build, usable, status, piece) -> None:
    finding = judge_driver(driver, build, usable)
    assert finding.status == status and piece in finding.message
    assert bool(finding.fix) == (status == "fail")


def test_processes_are_put_to_their_gpus_and_our_own_is_left_out() -> None:
    gpus = "0, GPU-a, 81559, 40000\n1, GPU-b, 81559, 2\n2, GPU-c, [N/A], [N/A]\n"
    found = parse_gpus(gpus, "GPU-a, 11\nGPU-a, 12\nGPU-b, 99\nGPU-a, [Not Found]\n", own=99)
    assert found == (Gpu(0, 81559, 40000, (11, 12)), Gpu(1, 81559, 2))
    assert parse_gpus("", "") == ()


@pytest.mark.parametrize(
    ("gpus", "status", "message", "fix"),
    [
        ((), "ok", "no GPU memory", ""),
        ((Gpu(0, 81920, 600),), "ok", "80 GiB, free", ""),
        ((Gpu(0, 81920, 600), Gpu(1, 81920, 3)), "ok", "160 GiB on 2 GPUs, all free", ""),
        (
            (Gpu(0, 81920, 61440, (11, 12)), Gpu(1, 81920, 3)),
            "warn",
            "GPU 0: 60 of 80 GiB in use by process 11, 12",
            "-p 11,12",
        ),
        ((Gpu(0, 81920, 61440), Gpu(1, 81920, 3)), "warn", "a process that is not told", "CUDA_VISIBLE_DEVICES=1 "),
        ((Gpu(0, 81920, 61440),), "warn", "GPU 0: 60 of 80 GiB", "nvidia-smi"),
    ],
)
def test_a_gpu_that_others_use_is_named_with_who_they_are(gpus, status, message, fix) -> None:
    finding = judge_gpu_memory(gpus)
    assert finding.status == status and message in finding.message
    assert fix in finding.fix and bool(finding.fix) == bool(fix)
