"""How many rows fit: the search itself with a made-up memory, then a stage that uses what it found."""

import bisect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from nanochat.device_memory import DeviceMemory
from nanochat.errors import CapacityError
from nanochat.model.config import GPTConfig
from nanochat.runtime import World
from nanochat.stages import fit as fit_module
from nanochat.stages.__main__ import main
from nanochat.stages.computing import plan_step
from nanochat.stages.finetune import iter_validation
from nanochat.stages.fit import MAX_PROBES, find_rows, fit_batch, memory_errors, read_fit
from nanochat.stages.job import Job, read_settings
from nanochat.tasks.catalog import build_mixture
from nanochat.tokenizer.bpe import load_tokenizer
from nanochat.training.metrics import MetricsFile

Start = Callable[..., Path]
AUTO: dict[str, Any] = {"batch": {"device_batch_size": "auto"}}
CONFIG = GPTConfig.from_depth(1, 400, 64)


class FakeMemory:
    """A trial needs fixed + each * rows bytes; what is out of the device's size raises, as None."""

    def __init__(self, fixed: int, each: int, size: int) -> None:
        self.fixed, self.each, self.size = fixed, each, size
        self.tried: list[int] = []

    def need(self, rows: int) -> int:
        return self.fixed + self.each * rows

    def __call__(self, rows: int) -> int | None:
        self.tried.append(rows)
        return self.need(rows) if self.need(rows) <= self.size else None


@given(st.sets(st.integers(1, 10**6), min_size=1, max_size=63), st.data())
def test_the_largest_that_fits_is_found_within_six_trials_whatever_the_guess(rows: set[int], data) -> None:
    candidates = sorted(rows)
    guess = data.draw(st.integers(0, 2 * 10**6))
    limit = data.draw(st.integers(0, candidates[-1] + 2))
    memory = FakeMemory(0, 1, size=limit + data.draw(st.integers(0, 5)))  # what fits may leave too little margin
    plans = data.draw(st.sampled_from([lambda rows: 0, memory.need]))  # a plan that helps not at all, or is right
    found, num_probes, peak = find_rows(candidates, guess, memory, plans, limit, World())
    fitting = candidates[: bisect.bisect_right(candidates, limit)]
    assert found == (fitting[-1] if fitting else None) == (peak if fitting else None)
    assert num_probes == len(memory.tried) <= MAX_PROBES
    assert len(set(memory.tried)) == num_probes


def test_a_good_guess_takes_two_trials_and_a_good_plan_one() -> None:
    candidates = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    memory = FakeMemory(8, 1, size=80)
    assert find_rows(candidates, 64, memory, lambda rows: 0, 76, World()) == (64, 2, 72)
    assert memory.tried == [64, 128]
    memory.tried.clear()
    assert find_rows(candidates, 64, memory, memory.need, 76, World()) == (64, 1, 72)
    memory.tried.clear()
    assert find_rows(candidates, 128, memory, memory.need, 76, World()) == (64, 2, 72)
    assert memory.tried == [128, 64]


def run_rank(rank: int, folder: str) -> None:
    """Rank 1 has less memory than rank 0; both must try the same rows and end with the same."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    memory = FakeMemory(8, 1, size=(300, 41)[rank])
    world = World(rank, rank, 2)
    found = find_rows([1, 2, 4, 8, 16, 32, 64, 128, 256], 256, memory, memory.need, memory.size, world)
    Path(folder, f"{rank}.json").write_text(json.dumps([found, memory.tried, world.smallest(3 + rank)]))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_agree_on_what_fits_on_the_one_with_the_least_memory(tmp_path: Path) -> None:
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    (rows, num_probes, peak), tried, smallest = first
    assert (rows, peak, smallest) == (32, 40, 3) and num_probes == len(tried) <= MAX_PROBES


def run_machine(rank: int, folder: str, settings: Path) -> None:
    """Rank 0's machine has bf16, that of rank 1 has not: the same memory holds fewer rows there."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/machines", rank=rank, world_size=2)
    job = replace(open_job(settings), world=World(rank, rank, 2))
    narrow, wide = (replace(job, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    free = 2 * plan_step(narrow, CONFIG, 4).total
    assert free < 2 * plan_step(wide, CONFIG, 4).total
    fit_module.read_memory = lambda device: DeviceMemory(10**12, free, 0)
    fitted = fit_batch((narrow, wide)[rank], "base", CONFIG)
    Path(folder, f"machine{rank}.json").write_text(json.dumps(fitted.settings.batch.device_batch_size))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_machines_that_differ_agree_on_the_fewest_rows(start_run: Start, tmp_path: Path) -> None:
    settings = start_run(changes=AUTO)
    mp.spawn(run_machine, (str(tmp_path), settings), nprocs=2)  # type: ignore[attr-defined]
    first, second = (json.loads((tmp_path / f"machine{rank}.json").read_text()) for rank in range(2))
    assert first == second < 4


def read_losses(settings: Path) -> list[float]:
    return [r["loss"] for r in MetricsFile(settings.parent / "base" / "metrics.jsonl").read() if "loss" in r]


def test_a_stage_trains_with_what_fits_keeps_it_and_goes_on_with_it(
    start_run: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"base": {"num_steps": 10}, "checkpoint": {"every": 5, "keep": 2}}
    fixed = start_run("fixed", short | {"batch": {"device_batch_size": 8}})
    assert main(["base", str(fixed)]) == 0
    auto = start_run("auto", short | AUTO)
    assert main(["base", str(auto)]) == 0
    said = capsys.readouterr().err
    assert "device_batch_size = auto: 8 rows of 64 tokens (" in said and "memory: the process has grown by" in said
    assert read_losses(auto) == read_losses(fixed)
    result = json.loads((auto.parent / "base" / "result.json").read_text())
    assert result["device_batch_size"] == 8 and result["planned_memory_bytes"] > 1_000_000
    assert result["peak_memory_bytes"] >= 0  # what malloc has kept from the tests before is no growth

    for name in ("result.json", "checkpoints/step_000010/model.safetensors"):  # as if it had been stopped at step 5
        (auto.parent / "base" / name).unlink()
    monkeypatch.setattr(fit_module, "choose_rows", None)  # nothing is estimated or tried again
    assert main(["base", str(auto)]) == 0
    said = capsys.readouterr().err
    assert "8 rows of 64 tokens, as found before" in said and "continuing base from step 5" in said
    assert read_losses(auto) == read_losses(fixed)


def test_every_stage_and_the_evaluation_understand_auto(start_run: Start) -> None:
    settings = start_run(changes=AUTO | {"sft": {"total_tokens": 256, "epochs": 1}}, stages=("base", "mid"))
    assert main(["sft", str(settings)]) == 0
    plan = json.loads((settings.parent / "sft" / "plan.json").read_text())
    assert (plan["device_batch_size"], plan["num_microbatches"], plan["total_batch_tokens"]) == (4, 1, 256)
    found = read_fit(read_settings(settings)[1].stage("sft"))
    assert found is not None and found.rows == 4
    bpb = []
    for options in ([], ["--set", "batch.device_batch_size=3"]):
        assert main(["evaluate", str(settings), "--score", "bpb", *options]) == 0
        bpb.append(json.loads((settings.parent / "eval" / "sft_bpb.json").read_text())["bpb"])
    assert bpb[0] == pytest.approx(bpb[1], rel=1e-6)


def open_job(settings: Path) -> Job:
    workspace, run, wishes = read_settings(settings)
    return Job(workspace, run, wishes, World(), torch.float32, "asked for")


@pytest.mark.parametrize("origin, rows", [("preset tiny", 4), ("default", 4), ("--set", 8), ("my.toml:3", 8)])
def test_rows_that_nobody_chose_are_lowered_and_said(
    start_run: Start, capsys: pytest.CaptureFixture[str], origin: str, rows: int
) -> None:
    settings = start_run(changes={"batch": {"device_batch_size": 8}})
    record = json.loads(settings.read_text()) | {"origins": {"batch.device_batch_size": origin}}
    settings.write_text(json.dumps(record))
    job = replace(open_job(settings), world=World(1, 1, 2))  # 512 tokens are 4 rows of 64 on each of two devices
    assert fit_batch(job, "base", CONFIG).settings.batch.device_batch_size == rows
    said = capsys.readouterr().err
    assert ("base: device_batch_size = 4 instead of 8" in said) == (rows == 4)
    with pytest.raises(CapacityError) as caught, memory_errors(job, "base"):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert f"--set batch.device_batch_size={2 if rows == 4 else 4}" in caught.value.hint


@pytest.mark.parametrize("changed", ["device", "world_size", "model", "total_tokens", "dtype", "compile", "torch"])
def test_another_device_world_or_model_asks_again(start_run: Start, changed: str) -> None:
    settings = start_run(changes=AUTO)
    job = open_job(settings)
    assert fit_batch(job, "base", CONFIG).settings.batch.device_batch_size == 8
    path = settings.parent / "base" / "batch.json"
    record = json.loads(path.read_text()) | {"rows": 2}
    path.write_text(json.dumps(record))
    assert fit_batch(job, "base", CONFIG).settings.batch.device_batch_size == 2
    record["conditions"][changed] = "another"
    path.write_text(json.dumps(record))
    assert fit_batch(job, "base", CONFIG).settings.batch.device_batch_size == 8
    assert json.loads(path.read_text())["rows"] == 8


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """A CUDA device in name only: trials run on the CPU, and more rows than given raise as CUDA does."""
    tried: list[int] = []

    def start(most_rows: int) -> list[int]:
        real = fit_module.compile_loss

        def compile_loss(job: Any, model: Any) -> Any:
            loss, reason = real(job, model)

            def limited(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
                if len(ids) not in tried:
                    tried.append(len(ids))
                if len(ids) > most_rows:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
                return loss(ids, targets)

            return limited, reason

        monkeypatch.setattr(fit_module, "compile_loss", compile_loss)
        monkeypatch.setattr(fit_module, "read_memory", lambda device: DeviceMemory(10**12, 10**12, 0))
        for name in ("reset_peak_memory_stats", "empty_cache", "synchronize"):
            monkeypatch.setattr(torch.cuda, name, lambda *device: None)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 10**9)
        monkeypatch.setattr(fit_module, "can_try", lambda device: True)
        return tried

    return start


@pytest.mark.parametrize("most_rows", [1, 2, 4, 8])
def test_trials_end_where_memory_runs_out_and_leave_nothing_behind(
    start_run: Start, fake_cuda: Callable[[int], list[int]], most_rows: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = fake_cuda(most_rows)
    job = open_job(start_run(changes=AUTO))
    before = torch.get_rng_state()
    assert fit_batch(job, "base", CONFIG).settings.batch.device_batch_size == most_rows
    assert torch.equal(torch.get_rng_state(), before)
    assert len(tried) <= MAX_PROBES and set(tried) <= {1, 2, 4, 8}
    assert f"{most_rows} rows of 64 tokens fit (peak 1.0 GB of 1,000.0 GB, {len(tried)} " in capsys.readouterr().err


def test_where_nothing_fits_a_smaller_run_is_suggested(start_run: Start, fake_cuda: Callable[[int], list[int]]) -> None:
    fake_cuda(0)
    job = replace(open_job(start_run(changes=AUTO)), world=World())
    with pytest.raises(CapacityError, match="not even 1 row of 64 tokens fits") as caught:
        fit_batch(job, "base", CONFIG)
    assert caught.value.exit_code == 5 and "--set model.context=32" in caught.value.hint


def test_losses_do_not_depend_on_the_rows(trained_home: Path, start_run: Start) -> None:
    settings = start_run(changes={"batch": {"device_batch_size": 2}})
    assert main(["base", str(settings)]) == 0
    whole = read_losses(trained_home / "runs" / "whole" / "settings.json")
    assert read_losses(settings) == pytest.approx(whole, rel=1e-4)


def test_validation_of_conversations_does_not_depend_on_the_rows(start_run: Start) -> None:
    job = open_job(start_run())
    tokenizer = load_tokenizer(job.run.tokenizer, "rustbpe")
    examples = build_mixture(job.settings.sft.mixture, "test")
    passes = [list(iter_validation(examples, tokenizer, rows, 64)) for rows in (1, 3, 64)]
    ids, targets = ([torch.cat([batch[i] for batch in batches]) for batches in passes] for i in (0, 1))
    assert len(ids[0]) > 3 and len(ids[0]) % 3  # the last batch is short
    assert all(torch.equal(ids[0], other) for other in ids[1:])
    assert all(torch.equal(targets[0], other) for other in targets[1:])
