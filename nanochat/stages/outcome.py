"""The two ends of a training stage: what it says before its first step, and the result that it writes last."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nanochat
from nanochat.errors import UsageError
from nanochat.files import write_atomically
from nanochat.model.accounting import count_params
from nanochat.runtime import name_device
from nanochat.stages.display import Display
from nanochat.stages.inputs import Inputs, find_changed_data, hash_data, list_settings
from nanochat.stages.job import Job
from nanochat.text import format_seconds
from nanochat.training.loop import TrainState
from nanochat.training.metrics import MetricsFile

if TYPE_CHECKING:
    from nanochat.stages.course import Course


def read_inputs_of_all(job: Job, stage: str) -> Inputs:
    """What the stage depends on now. Collective: all ranks raise UsageError if one reads other data than rank 0."""
    inputs = Inputs(list_settings(stage, job.settings), hash_data(stage, job.settings, job.workspace))
    first, *others = job.world.all_gather(inputs.data)
    for rank, data in enumerate(others, start=1):
        if data != first:
            names = ", ".join(find_changed_data(first, data) or sorted(set(first) ^ set(data)))
            raise UsageError(
                f"{names} is another one for rank {rank} than for rank 0", "--home DIR  # one that all machines share"
            )
    return inputs


def announce(job: Job, course: "Course", state: TrainState, compiled: str, display: Display) -> None:
    """Say what is going to be trained, on what, and how far it is."""
    config, world = course.config, job.world
    params = count_params(config)
    tokens = course.plan["total_batch_tokens"]
    display.say(
        f"{course.stage}: {config.n_layer} layers, width {config.n_embd}, context {config.context}, "
        f"vocabulary {config.vocab_size:,}; {params['total'] / 1e6:,.1f}M parameters"
    )
    display.say(
        f"device {name_device(world.device)} x {world.world_size}, {str(job.dtype).removeprefix('torch.')} "
        f"({job.dtype_reason}); compiled: {compiled}"
    )
    display.say(
        course.extent
        or f"{course.num_steps:,} steps of {tokens:,} tokens = {course.num_steps * tokens:,} tokens, "
        f"{course.num_microbatches} micro-batches a step and device"
    )
    for note in course.notes:
        display.say(note)
    if state.step:
        display.say(f"{state.step:,} steps and {format_seconds(state.seconds)} are done")


def write_result(
    job: Job,
    course: "Course",
    state: TrainState,
    metrics: MetricsFile,
    compiled: str,
    memory: dict[str, Any],
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `result.json`, whose presence means done. Collective: every rank calls this.

    changes: of the data since the first step.
    """
    steps = job.run.stage(course.stage).steps

    def read_metrics() -> dict[str, Any]:  # the file is rank 0's
        return {
            "val_bpb": metrics.value_at(state.step, "val_bpb"),
            "best_val_bpb": state.best,
            "best_checkpoint": course.find_best(steps(), metrics),
        }

    result = {
        "stage": course.stage,
        "step": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "loss": state.smoothed_loss,
        **job.world.ask_main(read_metrics),
        "skipped": state.skipped,
        "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
        "num_params": count_params(course.config)["total"],
        "source": course.source,
        "device": name_device(job.world.device),
        "world_size": job.world.world_size,
        "dtype": str(job.dtype).removeprefix("torch."),
        "dtype_reason": job.dtype_reason,
        "compiled": compiled,
        "device_batch_size": course.plan["device_batch_size"],
        **memory,
        "tokenizer_hash": course.tokenizer.hash,
        "nanochat_version": nanochat.__version__,
        **({"data_changes": list(changes)} if changes else {}),
        **course.describe_data(),
    }
    if job.world.is_main:
        write_atomically(job.run.stage(course.stage).result, json.dumps(result, indent=1))
    job.world.barrier()
    return result
