"""How a stage is computed: compiled or not, by which machines, and within which memory, planned and measured."""

import shlex
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nanochat.config.load import options_again, read_saved
from nanochat.config.memory import MemoryEstimate, estimate_memory
from nanochat.device_memory import peak_memory_bytes, start_memory
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.runtime import can_compile, name_device
from nanochat.stages.job import Job
from nanochat.text import format_size


def compile_loss(job: Job, model: GPT, refusal: str = "") -> tuple[Callable[..., Tensor], Callable[[], str]]:
    """The loss to train with, and what says in a phrase whether it is compiled, which its first call may change.

    refusal: why it must not be.
    """
    possible, reason = (False, refusal or "runtime.compile = false")
    if not refusal and job.settings.runtime.compile:
        possible, reason = can_compile()
    if not possible:
        return model.loss, lambda: f"no ({reason})"
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    compiled = model.compile_loss()
    failure = ""

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        nonlocal failure
        if not failure:
            try:
                return compiled(ids, targets)
            except (TorchDynamoException, InductorError) as error:
                if job.stop is not None and job.stop.requested:  # a request to stop that came while it compiled
                    job.stop.leave()
                failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                job.say(f"torch.compile failed, going on without it: {failure}")
        return model.loss(ids, targets)

    def describe() -> str:
        return f"no (it failed: {failure})" if failure else f"yes (with {reason}; the first step takes longer)"

    return loss, describe


def describe_computing(job: Job, is_compiled: bool) -> dict[str, str | int | bool]:
    """What the bits of a loss depend on, beside data and settings of the model; a checkpoint keeps it.

    threads: of each process, and only on a CPU, where they count.
    """
    is_cpu = job.world.device.type == "cpu"
    return {
        "device": "cpu" if is_cpu else name_device(job.world.device),
        "processes": job.world.world_size,
        **({"threads": torch.get_num_threads()} if is_cpu else {}),
        "dtype": job.dtype_name,
        "device_batch_size": job.rows,
        "compiled": is_compiled,
        "torch": torch.__version__,
    }


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any], resume_command: str) -> str:
    """A sentence about what differs; "" if nothing does, or if the checkpoint is older than this record.

    >>> now = {"device": "cpu", "processes": 1, "threads": 1}
    >>> print(describe_change({"device": "cpu", "processes": 1, "threads": 2}, now, "nanochat resume"))
    the losses from here on differ by rounding from those of an uninterrupted run: threads was 2, now 1
    OMP_NUM_THREADS=2 nanochat resume  # computes as before
    >>> describe_change({"device": "cpu", "processes": 2, "threads": 1}, now, "nanochat resume").splitlines()[1:]
    []
    """
    changed = sorted(key for key in now.keys() | before.keys() if before.get(key) != now.get(key)) if before else []
    if not changed:
        return ""
    differences = ", ".join(f"{key} was {before.get(key, 'unknown')}, now {now.get(key, 'unknown')}" for key in changed)
    said = f"the losses from here on differ by rounding from those of an uninterrupted run: {differences}"
    if changed == ["threads"] and now["processes"] == 1:
        said += f"\nOMP_NUM_THREADS={before['threads']} {resume_command}  # computes as before"
    return said


class MemoryWatch:
    """Compares the peak of a stage with its plan, after the first step and at the end.

    Open it before the model is built. job: with a number of rows. group_bytes: as of `estimate_memory`. Peaks are of
    tensors on CUDA; elsewhere of the process, with the data and the libraries that it loads meanwhile.
    """

    def __init__(self, job: Job, config: GPTConfig, group_bytes: int = 0) -> None:
        self.job = job
        self.planned = plan_step(job, config, job.rows, group_bytes).total
        self._start = start_memory(job.world.device)
        self._stepped = False

    def say_once(self) -> None:
        """After a step: say how the peak of this rank compares, the first time."""
        if not self._stepped:
            self._stepped = True
            self._say(peak_memory_bytes(self.job.world.device, self._start))

    def close(self) -> dict[str, int | None]:
        """Facts for the result: the largest peak of all ranks, None if no step was taken, and the plan. Collective."""
        peak = None
        if self._stepped:  # all ranks have, or none
            peak = self.job.world.largest(peak_memory_bytes(self.job.world.device, self._start))
            self._say(peak)
        return {"peak_memory_bytes": peak, "planned_memory_bytes": self.planned}

    def _say(self, peak: int) -> None:
        self.job.say(describe_memory(peak, self.planned, of_process=self.job.world.device.type != "cuda"))


def describe_memory(peak: int, planned: int, of_process: bool = False) -> str:
    """
    >>> describe_memory(61_300_000_000, 63_000_000_000)
    'memory: 61.3 GB at the peak, planned 63.0 GB (-3 %)'
    >>> describe_memory(680_000_000, 677_000_000, of_process=True)
    'memory: the process has grown by 680 MB at the peak, planned 677 MB (+0 %)'
    """
    difference, grown = round(100 * (peak / planned - 1)), "the process has grown by " if of_process else ""
    return f"memory: {grown}{format_size(peak)} at the peak, planned {format_size(planned)} ({difference:+d} %)"


def plan_step(job: Job, config: GPTConfig, rows: int, group_bytes: int = 0) -> MemoryEstimate:
    """The estimate of training for this job's device, compute type and compiler."""
    return estimate_memory(config, rows, job.world.world_size, **describe_circumstances(job), group_bytes=group_bytes)


def describe_circumstances(job: Job) -> dict[str, Any]:
    """What the estimate must know beside sizes."""
    return {
        "compiled": job.settings.runtime.compile and can_compile()[0],
        "element_bytes": job.dtype.itemsize,
        "device": job.world.device.type,
    }


def suggest_smaller(job: Job, context: int) -> str:
    """The command of a new run with half of the context: one that has started keeps its model."""
    preset, _, origins = read_saved(job.run.settings)
    changes: dict[str, Any] = {"model.context": max(8, context // 2)}
    practice = job.settings.rl
    if practice.task is not None and practice.max_new_tokens >= changes["model.context"]:
        changes["rl.max_new_tokens"] = changes["model.context"] // 2
    words = ["nanochat", "run", "--run", f"{job.run.name}-2", *options_again(preset, job.settings, origins, changes)]
    return shlex.join([*words, *suggest_gpus(job)])


def suggest_gpus(job: Job) -> list[str]:
    """The options that start as many processes again, on as many nodes: those that end the command that resumes."""
    words = shlex.split(job.resume_command)
    first = next((i for i, word in enumerate(words) if word in ("--gpus", "--nodes", "--max-restarts")), len(words))
    return words[first:]
