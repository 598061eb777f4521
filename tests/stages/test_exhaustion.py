"""Memory that runs out on purpose, in a stage that really trains: exit code 5, a sentence, a command that works."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.cli import train as train_module
from nanochat.cli.main import main as nanochat
from nanochat.device_memory import is_memory_error
from nanochat.errors import CapacityError
from nanochat.launch.cluster import Cluster
from nanochat.model.gpt import GPT
from nanochat.runtime import World
from nanochat.stages import fit
from nanochat.stages.__main__ import main
from nanochat.stages.fit import memory_errors
from nanochat.stages.job import Job, read_settings

Start = Callable[..., Path]
CPU_WORDS = (
    "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)
PARTS = ("weights", "gradients", "optimizer", "activations", "working", "process")


@pytest.fixture
def limit_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a training step with more rows than given run out of memory, after so many steps that fit."""
    real = GPT.loss

    def limit(most: int, error: Exception | None = None, after: int = 0) -> None:
        calls = [0]

        def loss(self: GPT, ids: torch.Tensor, *others: Any) -> torch.Tensor:
            calls[0] += 1
            if len(ids) > most and calls[0] > after:
                raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return real(self, ids, *others)

        monkeypatch.setattr(GPT, "loss", loss)

    return limit


def paste(hint: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> list[tuple[str, Any]]:
    """Run a hint as the command line would; returns the stages it started, with the settings they were given."""
    started: list[tuple[str, Any]] = []

    def launch(stage: str, settings: Path, **options: Any) -> int:
        started.append((stage, read_settings(settings)[2]))
        return 75

    monkeypatch.setattr(train_module, "launch_stage", launch)
    words = shlex.split(hint)
    assert words[0] == "nanochat"
    assert nanochat([*words[1:], "--home", str(home)]) == 75
    return started


def read_hint(said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith("hint:")).removeprefix("hint:").strip()


def test_out_of_memory_says_what_used_it_and_a_command_that_mends_it(
    start_run: Start,
    limit_rows: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = start_run()
    limit_rows(2)
    assert main(["base", str(settings)]) == 5
    said = capsys.readouterr().err
    assert "out of memory in base (4 rows of 64 tokens, depth 1); cpu, " in said
    sizes = [float(re.search(rf"{part} ([\d.]+) MB", said)[1]) for part in PARTS]  # type: ignore[index]
    assert sum(sizes) == pytest.approx(float(re.search(r"planned: ([\d.]+) MB", said)[1]), abs=0.1 * len(PARTS))  # type: ignore
    assert read_hint(said) == "nanochat train base --run again --set batch.device_batch_size=2"
    (stage, wishes), *_ = paste(read_hint(said), monkeypatch, settings.parents[2])
    assert (stage, wishes.batch.device_batch_size, wishes.batch.total_tokens) == ("base", 2, 512)
    assert main(["base", str(settings)]) == 0


def test_a_run_with_a_checkpoint_is_resumed(
    start_run: Start,
    limit_rows: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = start_run()
    limit_rows(2, after=2 * 7)  # 2 micro-batches a step: after the checkpoint of step 5
    assert main(["base", str(settings)]) == 5
    hint = read_hint(capsys.readouterr().err)
    assert hint == "nanochat resume again --set batch.device_batch_size=2"
    assert paste(hint, monkeypatch, settings.parents[2])[0][0] == "base"
    assert main(["base", str(settings)]) == 0


def test_auto_that_no_longer_fits_is_lowered_from_what_was_found(
    start_run: Start, limit_rows: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = start_run(changes={"batch": {"device_batch_size": "auto"}})
    limit_rows(4, RuntimeError(CPU_WORDS))
    assert main(["base", str(settings)]) == 5
    said = capsys.readouterr().err
    assert "(8 rows of 64 tokens" in said and read_hint(said).endswith("--set batch.device_batch_size=4")


def test_one_row_that_does_not_fit_is_told_honestly(
    start_run: Start,
    limit_rows: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = start_run(changes={"batch": {"device_batch_size": 1}, "rl": {"task": "spelling", "max_new_tokens": 40}})
    record = json.loads(settings.read_text())
    record |= {"preset": "demo", "origins": {"batch.device_batch_size": "--set", "base.num_steps": "preset demo"}}
    settings.write_text(json.dumps(record))
    limit_rows(0)
    assert main(["base", str(settings)]) == 5
    said = capsys.readouterr().err
    assert "one row is the least" in said
    hint = read_hint(said)
    assert hint.startswith("nanochat run --run again-2 --preset demo ")
    stage, wishes = paste(hint, monkeypatch, settings.parents[2])[0]
    assert (stage, wishes.model.context, wishes.batch.device_batch_size) == ("tokenizer", 32, 1)
    assert wishes.rl.max_new_tokens == 16, "an answer leaves room for its question in half of the context"


def test_an_evaluation_that_runs_out_of_memory_is_told_too(
    start_run: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = start_run(stages=("base",))

    def fail(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("nanochat.stages.evaluate.measure_bits", fail)
    assert main(["evaluate", str(settings)]) == 5
    said = capsys.readouterr().err
    assert "out of memory in evaluate: cpu, " in said
    stage, _ = paste(read_hint(said), monkeypatch, settings.parents[2])[0]
    assert stage == "evaluate"


def test_hints_start_as_many_processes_as_there_were(start_run: Start) -> None:
    workspace, run, wishes = read_settings(start_run())
    again = " ".join(["nanochat", "resume", run.name, *Cluster(1, 2, 1, "node0:29500").options()])
    job = Job(workspace, run, wishes, World(1, 0, 2), torch.float32, "asked for", resume_command=again)
    with pytest.raises(CapacityError) as caught, memory_errors(job, "base"):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert caught.value.hint == (
        "nanochat train base --run again --nodes 2 --node-rank 1 --rdzv-endpoint node0:29500 "
        "--set batch.device_batch_size=2"
    )


def test_on_a_gpu_what_others_hold_is_said(start_run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, run, wishes = read_settings(start_run())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 40 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 45 * 10**9)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 44 * 10**9)
    monkeypatch.setattr(fit, "name_device", lambda device: "NVIDIA H100 80GB HBM3")
    job = Job(workspace, run, wishes, World(device=torch.device("cuda")), torch.bfloat16, "asked for")
    with pytest.raises(CapacityError) as caught, memory_errors(job, "base"):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert (
        "NVIDIA H100 80GB HBM3 has 80.0 GB: this process held up to 44.0 GB, others and the driver hold 34.0 GB"
        in caught.value.message
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError(CPU_WORDS),
        RuntimeError("[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_wording_of_exhausted_memory_is_known(error: BaseException) -> None:
    assert is_memory_error(error)


def test_other_errors_stay_what_they_are(start_run: Start) -> None:
    workspace, run, wishes = read_settings(start_run())
    job = Job(workspace, run, wishes, World(), torch.float32, "asked for")
    with pytest.raises(RuntimeError, match="shape"), memory_errors(job, "base"):
        raise RuntimeError("shape '[2]' is invalid for input of size 3")
    assert not is_memory_error(ValueError("out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)  # no machine has an exbibyte: the real words of this torch
    assert is_memory_error(caught.value)
