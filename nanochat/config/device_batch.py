"""How a step is divided among devices: rows of each at once, and micro-batches.

Arithmetic only: no torch, no disk. Raises UsageError where the numbers do not divide. The trial of what fits a device
is that of stages/fit.py.
"""

import math
from typing import Literal

from nanochat.config.memory import MARGIN, estimate_memory, list_rows
from nanochat.config.settings import Settings
from nanochat.errors import UsageError
from nanochat.model.config import GPTConfig

Stage = Literal["base", "mid", "sft", "rl"]

DEVICE_BYTES = 80e9
"""Memory of one device: what `auto` fills in a plan; a run measures its own."""


def plan_total_tokens(settings: Settings, stage: Stage) -> tuple[int, str]:
    """Tokens of a step of a stage, and the name of the setting that says so.

    Those of rl are whatever was answered; its device batch is one of base's.
    """
    own = settings.mid.total_tokens if stage == "mid" else settings.sft.total_tokens if stage == "sft" else None
    return (own, f"{stage}.total_tokens") if own else (settings.batch.total_tokens, "batch.total_tokens")


def plan_rows(name: str, total_tokens: int, settings: Settings, world_size: int, config: GPTConfig) -> int:
    """Rows of a device: as set, or where that is `auto` the most that fit into DEVICE_BYTES by the estimate.

    name: the setting that says total_tokens, for the error where no number of rows divides it.
    """
    rows = settings.batch.device_batch_size
    if rows != "auto":
        return rows
    divide_batch(name, total_tokens, 1, config.context, world_size)
    candidates = list_rows(total_tokens, config.context, world_size)
    return choose_rows(candidates, config, world_size, (1 - MARGIN) * DEVICE_BYTES, compiled=settings.runtime.compile)


def lower_rows(
    settings: Settings,
    stage: Stage,
    world_size: int,
    is_chosen: bool,
    context: int | None = None,
) -> tuple[Settings, str]:
    """The settings of one stage, and a sentence if its device batch is lower than they say ("": it is not).

    A device batch that nobody chose is an upper limit: the largest that divides the step is taken. is_chosen: somebody
    chose it, so that it stays, and planning refuses what does not divide. context: of the model; None: the settings'.
    """
    rows, context = settings.batch.device_batch_size, context or settings.model.context
    if is_chosen or rows == "auto" or world_size < 1 or stage == "rl":  # the step of rl is whatever was answered
        return settings, ""
    total_tokens, _ = plan_total_tokens(settings, stage)
    lower = max((n for n in list_rows(total_tokens, context, world_size) if n <= rows), default=rows)
    if lower == rows:
        return settings, ""
    batch = settings.batch.model_copy(update={"device_batch_size": lower})
    devices = f" on {world_size} devices" if world_size > 1 else ""
    said = (
        f"{stage}: device_batch_size = {lower} instead of {rows}, the largest that divides a step of "
        f"{total_tokens:,} tokens{devices}"
    )
    return settings.model_copy(update={"batch": batch}), said


def choose_rows(
    candidates: list[int],
    config: GPTConfig,
    world_size: int,
    limit_bytes: float,
    *,
    compiled: bool = False,
    element_bytes: int = 2,
    device: str = "cuda",
) -> int:
    """The last of the candidates, fewest rows first, whose estimate keeps to the limit; the first where none does."""
    fitting = [
        rows
        for rows in candidates
        if estimate_memory(
            config, rows, world_size, compiled=compiled, element_bytes=element_bytes, device=device
        ).total
        <= limit_bytes
    ]
    return fitting[-1] if fitting else candidates[0]


def divide_batch(name: str, total_tokens: int, rows: int, context: int, world_size: int) -> int:
    """Micro-batches of one step on one device. name: the setting that says total_tokens, for the error."""
    if world_size < 1:
        raise UsageError(f"GPUs = {world_size} is less than 1", "--gpus 1")
    tokens = rows * context * world_size
    if total_tokens % tokens:
        nearest = max(1, round(total_tokens / tokens)) * tokens
        if abs(nearest - total_tokens) * 20 > total_tokens:  # rather fewer rows than a step of quite another size
            for fewer in range(rows - 1, 0, -1):
                if total_tokens % (fewer * context * world_size) == 0:
                    hint = f"--set batch.device_batch_size={fewer}"
                    break
            else:
                hint = f"--set {name}={nearest}"
        else:
            hint = f"--set {name}={math.ceil(total_tokens / tokens) * tokens}"
        raise UsageError(
            f"{name} = {total_tokens} is not a multiple of {rows} x {context} x {world_size} = {tokens} "
            "(device batch x context x GPUs)",
            hint,
        )
    return total_tokens // tokens
