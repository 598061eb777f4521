"""Plans: what settings mean on this many devices. Every scaling rule, and the estimates of memory, time and cost.

Arithmetic only: no torch, no disk, no clock. Raises UsageError where the numbers do not fit each other.
Sources: Hoffmann et al. 2022 (20 tokens per parameter); NVIDIA H100 datasheet (989 TFLOPS dense bf16, SXM).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from nanochat.config.device_batch import divide_batch, plan_rows, plan_total_tokens
from nanochat.config.memory import MemoryEstimate, estimate_memory
from nanochat.config.settings import FinetuneSettings, Settings
from nanochat.errors import UsageError
from nanochat.model.accounting import count_optimizer_values, count_params, flops_per_token
from nanochat.model.config import GPTConfig

DEVICE = "H100"
PEAK_FLOPS = 989e12
"""bf16 FLOPs a second of one device, dense."""
ASSUMED_MFU = 0.4
"""Share of the peak that a run reaches: the published times of d20, d26 and d32, less the other stages."""
DOLLARS_PER_DEVICE_HOUR = 24.0 / 8
"""8xH100 at $24 an hour."""
CHARS_PER_TOKEN = 4.8
"""Of English web text with 50,304 tokens; a smaller vocabulary gives less."""
SHARD_CHARS = 250_000_000
"""Characters of a shard of fineweb-edu."""
SHARD_BYTES = 100_000_000
"""Bytes of such a shard on disk, compressed."""
NUM_SHARDS_HELD = {"fineweb-edu": 1_822}
"""Shards of the data sets whose size is known; the last is for validation."""
ROLLOUT_TOKEN_BYTES, ROLLOUT_BYTES = 5, 600
"""Of a sampled answer on the disk: a token's characters, and what stands beside the answer (question, reward, keys)."""


@dataclass(frozen=True)
class BasePlan:
    """Pretraining. Tokens, steps and parameters are exact; disk, memory, hours and dollars are estimates.

    num_microbatches: of one step on one device, also called gradient accumulation. memory_bytes: of one device, the sum
    of memory's parts. device_batch_size: where the settings say `auto`, what fits into DEVICE_BYTES by this estimate.
    """

    depth: int
    n_embd: int
    n_head: int
    n_kv_head: int
    context: int
    vocab_size: int
    num_params: int
    num_matrix_params: int
    num_embedding_params: int
    num_head_params: int
    world_size: int
    device_batch_size: int
    total_batch_tokens: int
    num_microbatches: int
    horizon: Literal["num_steps", "flops", "tokens_per_param"]
    num_steps: int
    num_tokens: int
    tokens_per_param: float
    flops_per_token: int
    total_flops: float
    num_chars: int
    num_shards: int
    data_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    memory_bytes: int
    memory: MemoryEstimate
    hours: float
    dollars: float


@dataclass(frozen=True)
class FinetunePlan:
    """Mid or sft. Steps, tokens and estimates are None where they hang on conversations that are not counted yet."""

    stage: str
    context: int
    num_params: int
    world_size: int
    device_batch_size: int
    total_batch_tokens: int
    num_microbatches: int
    epochs: float
    num_batches_per_epoch: int | None
    num_steps: int | None
    num_tokens: int | None
    flops_per_token: int
    total_flops: float | None
    checkpoint_bytes: int
    memory_bytes: int
    memory: MemoryEstimate
    hours: float | None
    dollars: float | None


@dataclass(frozen=True)
class StartedFinetunePlan(FinetunePlan):
    """A plan whose conversations are counted: nothing is open."""

    num_steps: int
    num_tokens: int


@dataclass(frozen=True)
class RlPlan:
    """Reinforcement learning. total_batch_tokens and num_microbatches: at most, where every answer has its full length.

    Steps are None where they hang on questions that are not counted yet. Hours hang on how long the answers are, so
    there is no estimate.
    """

    stage: str
    task: str
    context: int
    num_params: int
    world_size: int
    device_batch_size: int
    total_batch_tokens: int
    num_microbatches: int
    num_answers_per_step: int
    epochs: float
    num_steps: int | None
    num_tokens: int | None
    checkpoint_bytes: int
    rollout_bytes: int
    memory_bytes: int
    memory: MemoryEstimate
    hours: float | None = None
    dollars: float | None = None


@dataclass(frozen=True)
class StartedRlPlan(RlPlan):
    """A plan whose questions are counted."""

    num_steps: int
    num_tokens: int


def plan_base(settings: Settings, world_size: int = 1, vocab_size: int | None = None) -> BasePlan:
    """Plan pretraining. vocab_size: of the trained tokenizer, where there is one; else the settings'.

    Raises UsageError where sizes do not divide or no step fits the horizon.
    """
    config = plan_model(settings, vocab_size)
    wish, batch = settings.base, settings.batch
    _check_schedule("base", wish.warmup, wish.warmdown)
    rows = plan_rows("batch.total_tokens", batch.total_tokens, settings, world_size, config)
    num_microbatches = divide_batch("batch.total_tokens", batch.total_tokens, rows, config.context, world_size)
    memory = plan_memory(settings, config, rows, world_size)
    params, per_token = count_params(config), flops_per_token(config)
    horizon, num_steps = _plan_steps(settings, params["total"], per_token)
    num_tokens = num_steps * batch.total_tokens
    num_chars = math.ceil(num_tokens * CHARS_PER_TOKEN)
    num_shards = math.ceil(num_chars / SHARD_CHARS) + 1  # and one for validation
    num_shards = min(num_shards, NUM_SHARDS_HELD.get(settings.data.dataset, num_shards))
    data_bytes = min(num_shards * SHARD_BYTES, math.ceil(num_chars * SHARD_BYTES / SHARD_CHARS) + SHARD_BYTES)
    hours = _estimate_hours(num_tokens * per_token, world_size)
    checkpoint = estimate_checkpoint_bytes(config)
    return BasePlan(
        depth=config.n_layer,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_kv_head=config.n_kv_head,
        context=config.context,
        vocab_size=config.vocab_size,
        num_params=params["total"],
        num_matrix_params=params["matrices"],
        num_embedding_params=params["embedding"],
        num_head_params=params["head"],
        world_size=world_size,
        device_batch_size=rows,
        total_batch_tokens=batch.total_tokens,
        num_microbatches=num_microbatches,
        horizon=horizon,
        num_steps=num_steps,
        num_tokens=num_tokens,
        tokens_per_param=num_tokens / params["total"],
        flops_per_token=per_token,
        total_flops=float(num_tokens * per_token),
        num_chars=num_chars,
        num_shards=num_shards,
        data_bytes=data_bytes,
        checkpoint_bytes=checkpoint,
        disk_bytes=data_bytes + checkpoint * count_checkpoints(settings, num_steps),
        memory_bytes=memory.total,
        memory=memory,
        hours=hours,
        dollars=hours * world_size * DOLLARS_PER_DEVICE_HOUR,
    )


def plan_memory(
    settings: Settings, config: GPTConfig, rows: int, world_size: int, compiled: bool | None = None
) -> MemoryEstimate:
    """Memory on the device that the settings name; "auto" counts as a GPU in bf16. compiled: None: as they say."""
    return estimate_memory(
        config,
        rows,
        world_size,
        compiled=settings.runtime.compile if compiled is None else compiled,
        element_bytes=4 if settings.runtime.dtype == "float32" else 2,
        device=settings.runtime.device,
    )


def plan_finetune(
    settings: Settings,
    stage: Literal["mid", "sft"],
    world_size: int,
    num_rows_per_epoch: int,
    config: GPTConfig | None = None,
) -> StartedFinetunePlan:
    """Plan mid or sft once its conversations are packed.

    num_rows_per_epoch: rows of all devices in a pass over the mixture; so the steps do not depend on how many rows a
    device takes at once; rows of replayed text come on top. config: of the model it starts from; None: the settings'.
    The last step is filled from the next epoch.
    """
    wish: FinetuneSettings = getattr(settings, stage)
    sketch = sketch_finetune(settings, stage, world_size, config)
    if wish.num_steps is None and num_rows_per_epoch < 1:
        raise UsageError(f"{stage}.mixture fills no row", f"nanochat train {stage} --set {stage}.num_steps=10")
    rows_per_step = sketch.total_batch_tokens // sketch.context
    num_rows = wish.epochs * num_rows_per_epoch / (1 - wish.replay)
    num_steps = wish.num_steps or math.ceil(num_rows / rows_per_step)
    num_batches = math.ceil(num_rows_per_epoch / (sketch.device_batch_size * world_size))
    return StartedFinetunePlan(**_finish(sketch, num_steps, num_batches))


def sketch_finetune(
    settings: Settings, stage: Literal["mid", "sft"], world_size: int = 1, config: GPTConfig | None = None
) -> FinetunePlan:
    """Plan mid or sft before its conversations are counted: whole where num_steps is set."""
    wish: FinetuneSettings = getattr(settings, stage)
    config = config or plan_model(settings)
    _check_schedule(stage, wish.warmup, wish.warmdown)
    total_tokens, name = plan_total_tokens(settings, stage)
    rows = plan_rows(name, total_tokens, settings, world_size, config)
    memory = plan_memory(settings, config, rows, world_size)
    sketch = FinetunePlan(
        stage=stage,
        context=config.context,
        num_params=count_params(config)["total"],
        world_size=world_size,
        device_batch_size=rows,
        total_batch_tokens=total_tokens,
        num_microbatches=divide_batch(name, total_tokens, rows, config.context, world_size),
        epochs=wish.epochs,
        num_batches_per_epoch=None,
        num_steps=None,
        num_tokens=None,
        flops_per_token=flops_per_token(config),
        total_flops=None,
        checkpoint_bytes=estimate_checkpoint_bytes(config),
        memory_bytes=memory.total,
        memory=memory,
        hours=None,
        dollars=None,
    )
    return FinetunePlan(**_finish(sketch, wish.num_steps, None)) if wish.num_steps else sketch


def plan_rl(settings: Settings, world_size: int, num_questions: int, config: GPTConfig | None = None) -> StartedRlPlan:
    """Plan rl once its questions are counted. config: of the model it starts from; None: the settings'."""
    sketch, wish = sketch_rl(settings, world_size, config), settings.rl
    num_steps = wish.num_steps or math.ceil(wish.epochs * num_questions / wish.questions_per_step)
    counted: dict[str, Any] = {"num_steps": num_steps, "num_tokens": num_steps * sketch.total_batch_tokens}
    return StartedRlPlan(**vars(sketch) | counted)


def sketch_rl(settings: Settings, world_size: int = 1, config: GPTConfig | None = None) -> RlPlan:
    """Plan rl before its questions are counted: whole where num_steps is set.

    Raises UsageError where rl.task is unset, or an answer of full length leaves no room for a question.
    """
    wish = settings.rl
    config = config or plan_model(settings)
    if wish.task is None:
        raise UsageError("rl.task is unset: there is nothing to practise on", "--set rl.task=arithmetic")
    _check_schedule("rl", wish.warmup, wish.warmdown)
    if world_size < 1:
        raise UsageError(f"GPUs = {world_size} is less than 1", "--gpus 1")
    if wish.max_new_tokens >= config.context:
        raise UsageError(
            f"rl.max_new_tokens = {wish.max_new_tokens} leaves no room for a question: the context is {config.context}",
            f"--set rl.max_new_tokens={max(1, config.context // 2)}",
        )
    total_tokens, name = plan_total_tokens(settings, "rl")
    rows = plan_rows(name, total_tokens, settings, world_size, config)
    memory = plan_memory(settings, config, rows, world_size, compiled=False)
    num_answers = wish.questions_per_step * wish.samples_per_question
    num_tokens = num_answers * wish.max_new_tokens
    own_answers = math.ceil(num_answers / world_size)
    return RlPlan(
        stage="rl",
        task=wish.task,
        context=config.context,
        num_params=count_params(config)["total"],
        world_size=world_size,
        device_batch_size=rows,
        total_batch_tokens=num_tokens,
        num_microbatches=math.ceil(own_answers / max(1, rows * config.context // (2 * wish.max_new_tokens))),
        num_answers_per_step=num_answers,
        epochs=wish.epochs,
        num_steps=wish.num_steps,
        num_tokens=wish.num_steps * num_tokens if wish.num_steps else None,
        checkpoint_bytes=estimate_checkpoint_bytes(config),
        rollout_bytes=(wish.keep_rollouts + 1)
        * num_answers
        * (wish.max_new_tokens * ROLLOUT_TOKEN_BYTES + ROLLOUT_BYTES),
        memory_bytes=memory.total,
        memory=memory,
    )


def plan_model(settings: Settings, vocab_size: int | None = None) -> GPTConfig:
    """The architecture. Raises UsageError where its sizes do not fit each other."""
    wish = settings.model
    try:
        return GPTConfig.from_depth(
            wish.depth, vocab_size or settings.tokenizer.vocab_size, wish.context, wish.n_kv_head
        )
    except ValueError as error:
        n_head = GPTConfig.from_depth(wish.depth, settings.tokenizer.vocab_size, wish.context).n_head
        raise UsageError(f"model: {error}", f"--set model.n_kv_head={n_head}") from None


def count_checkpoints(settings: Settings, num_steps: int | None) -> int:
    """The most checkpoints of a stage that are on the disk at once: the newest is written before an old one goes.

    num_steps: of the stage; None: not known yet, so that those of checkpoint.keep_every are not counted.
    """
    rule, every = settings.checkpoint, settings.checkpoint.every_steps
    if not every and rule.every_seconds is None:
        return 1
    for_good = (num_steps or 0) // math.lcm(every or 1, rule.keep_every) if rule.keep_every else 0
    count = rule.keep + 1 + rule.keep_best + for_good
    return min(count, math.ceil(num_steps / every)) if num_steps is not None and every else count


def estimate_checkpoint_bytes(config: GPTConfig) -> int:
    """Weights and optimizer of all devices in float32."""
    return 4 * (count_params(config)["total"] + count_optimizer_values(config))


def _plan_steps(
    settings: Settings, num_params: int, per_token: int
) -> tuple[Literal["num_steps", "flops", "tokens_per_param"], int]:
    wish, batch_tokens = settings.base, settings.batch.total_tokens
    if wish.num_steps is not None and wish.flops is not None:
        raise UsageError(
            f"base.num_steps = {wish.num_steps} and base.flops = {wish.flops:g} are two horizons: choose one",
            "--set base.flops=none",
        )
    if wish.num_steps is not None:
        return "num_steps", wish.num_steps
    if wish.flops is not None:
        num_steps = round(wish.flops / (per_token * batch_tokens))
        if num_steps < 1:
            raise UsageError(
                f"base.flops = {wish.flops:g} is less than one step of {float(per_token * batch_tokens):g} FLOPs",
                "--set base.num_steps=1",
            )
        return "flops", num_steps
    return "tokens_per_param", max(1, round(wish.tokens_per_param * num_params / batch_tokens))


def _check_schedule(stage: str, warmup: float, warmdown: float) -> None:
    if warmup + warmdown > 1:
        raise UsageError(
            f"{stage}.warmup + {stage}.warmdown = {warmup:g} + {warmdown:g} is more than 1",
            f"--set {stage}.warmdown={1 - warmup:g}",
        )


def _finish(sketch: FinetunePlan, num_steps: int, num_batches_per_epoch: int | None) -> dict:
    num_tokens = num_steps * sketch.total_batch_tokens
    flops = float(num_tokens * sketch.flops_per_token)
    hours = _estimate_hours(flops, sketch.world_size)
    return vars(sketch) | {
        "num_batches_per_epoch": num_batches_per_epoch,
        "num_steps": num_steps,
        "num_tokens": num_tokens,
        "total_flops": flops,
        "hours": hours,
        "dollars": hours * sketch.world_size * DOLLARS_PER_DEVICE_HOUR,
    }


def _estimate_hours(flops: float, world_size: int) -> float:
    return flops / (PEAK_FLOPS * ASSUMED_MFU * world_size) / 3600
