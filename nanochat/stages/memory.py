"""The memory of a stage beside its plan: what was expected on this device, and what the peak was."""

import shlex
from typing import Any

from nanochat.config.load import options_again, read_saved
from nanochat.config.memory import MemoryEstimate, estimate_memory
from nanochat.device_memory import peak_memory_bytes, start_memory
from nanochat.model.config import GPTConfig
from nanochat.runtime import can_compile
from nanochat.stages.display import Display
from nanochat.stages.job import Job
from nanochat.text import format_size


class MemoryWatch:
    """Compares the peak of a stage with its plan, after the first step and at the end.

    Open it before the model is built. job: with a number of rows. group_bytes: as of `estimate_memory`. Peaks are of
    tensors on CUDA; elsewhere of the process, with the data and the libraries that it loads meanwhile.
    """

    def __init__(self, job: Job, config: GPTConfig, group_bytes: int = 0) -> None:
        self.world = job.world
        self.planned = plan_step(job, config, job.rows, group_bytes).total
        self._start = start_memory(self.world.device)
        self._stepped = False

    def say_once(self, display: Display) -> None:
        """After a step: say how the peak of this rank compares, the first time."""
        if not self._stepped:
            self._stepped = True
            display.say(self._describe(peak_memory_bytes(self.world.device, self._start)))

    def close(self, display: Display) -> dict[str, int | None]:
        """Facts for the result: the largest peak of all ranks (None where no step was taken) and the plan.

        Collective: every rank calls this.
        """
        peak = None
        if self._stepped:  # all ranks have, or none
            peak = self.world.largest(peak_memory_bytes(self.world.device, self._start))
            display.say(self._describe(peak))
        return {"peak_memory_bytes": peak, "planned_memory_bytes": self.planned}

    def _describe(self, peak: int) -> str:
        return describe_memory(peak, self.planned, of_process=self.world.device.type != "cuda")


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
    wishes: dict[str, Any] = {"model.context": max(8, context // 2)}
    practice = job.settings.rl
    if practice.task is not None and practice.max_new_tokens >= wishes["model.context"]:
        wishes |= {"rl.max_new_tokens": wishes["model.context"] // 2}
    words = ["nanochat", "run", "--run", f"{job.run.name}-2", *options_again(preset, job.settings, origins, wishes)]
    return shlex.join([*words, *suggest_gpus(job)])


def suggest_gpus(job: Job) -> list[str]:
    """The options that start as many processes again, on as many nodes: those that end the command that resumes."""
    words = shlex.split(job.resume_command)
    first = next((i for i, word in enumerate(words) if word in ("--gpus", "--nodes", "--max-restarts")), len(words))
    return words[first:]
