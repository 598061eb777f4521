"""Plans: what settings mean on this many devices. Every scaling rule, and the estimates of memory, time and cost.

Arithmetic only: no torch, no disk, no clock. Raises UsageError where the numbers do not fit each other.
Sources: Hoffmann et al. 2022 (20 tokens per parameter); NVIDIA H100 datasheet (989 TFLOPS dense bf16, SXM).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from nanochat.config.device_batch import Stage, divide_batch, plan_rows, plan_total_tokens
from nanochat.config.memory import MemoryEstimate, estimate_memory
from nanochat.config.settings import FinetuneSettings, Settings, TrainSettings
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
class StagePlan:
    """What every training stage plans. Tokens, steps and parameters are exact; memory, hours and dollars estimates.

    num_microbatches: of one step on one device, also called gradient accumulation. memory_bytes: of one device, the sum
    of memory's parts. device_batch_size: if the settings say `auto`, what fits into DEVICE_BYTES by this estimate.
    What is not counted yet, or not known, is None.
    """

    context: int
    num_params: int
    world_size: int
    device_batch_size: int
    total_batch_tokens: int
    num_microbatches: int
    num_steps: int | None
    num_tokens: int | None
    checkpoint_bytes: int
    memory_bytes: int
    memory: MemoryEstimate
    hours: float | None
    dollars: float | None


@dataclass(frozen=True)
class BasePlan(StagePlan):
    """Pretraining. Everything is known; disk_bytes is an estimate, too."""

    num_steps: int
    num_tokens: int
    hours: float
    dollars: float
    depth: int
    n_embd: int
    n_head: int
    n_kv_head: int
    vocab_size: int
    num_matrix_params: int
    num_embedding_params: int
    num_head_params: int
    horizon: Literal["num_steps", "flops", "tokens_per_param"]
    tokens_per_param: float
    flops_per_token: int
    total_flops: float
    num_chars: int
    num_shards: int
    data_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class FinetunePlan(StagePlan):
    """Mid or sft. Steps, tokens and estimates are None until the conversations are counted."""

    stage: str
    epochs: float
    num_batches_per_epoch: int | None
    flops_per_token: int
    total_flops: float | None


@dataclass(frozen=True)
class RlPlan(StagePlan):
    """Reinforcement learning. total_batch_tokens and num_microbatches: at most, if every answer has its full length.

    Steps are None until the questions are counted. Hours depend on how long the answers are: there is no estimate.
    """

    stage: str
    task: str
    num_answers_per_step: int
    epochs: float
    rollout_bytes: int


def plan_base(settings: Settings, world_size: int = 1, vocab_size: int | None = None) -> BasePlan:
    """Plan pretraining. vocab_size: of the trained tokenizer, if there is one; else the settings'.

    Raises UsageError where sizes do not divide or no step fits the horizon.
    """
    config = plan_model(settings, vocab_size)
    shared = _plan_shared(settings, "base", config, world_size)
    params, per_token = count_params(config), flops_per_token(config)
    horizon, num_steps = _plan_steps(settings, params["total"], per_token)
    num_tokens = num_steps * settings.batch.total_tokens
    num_chars = math.ceil(num_tokens * CHARS_PER_TOKEN)
    num_shards = math.ceil(num_chars / SHARD_CHARS) + 1  # and one for validation
    num_shards = min(num_shards, NUM_SHARDS_HELD.get(settings.data.dataset, num_shards))
    data_bytes = min(num_shards * SHARD_BYTES, math.ceil(num_chars * SHARD_BYTES / SHARD_CHARS) + SHARD_BYTES)
    return BasePlan(
        **shared | _plan_cost(num_steps, settings.batch.total_tokens, per_token, world_size),
        depth=config.n_layer,
        n_embd=config.n_embd,
        n_head=config.n_head,
        n_kv_head=config.n_kv_head,
        vocab_size=config.vocab_size,
        num_matrix_params=params["matrices"],
        num_embedding_params=params["embedding"],
        num_head_params=params["head"],
        horizon=horizon,
        tokens_per_param=num_tokens / params["total"],
        flops_per_token=per_token,
        num_chars=num_chars,
        num_shards=num_shards,
        data_bytes=data_bytes,
        disk_bytes=data_bytes + shared["checkpoint_bytes"] * count_checkpoints(settings, num_steps),
    )


def _plan_shared(
    settings: Settings, stage: Stage, config: GPTConfig, world_size: int, compiled: bool | None = None
) -> dict[str, Any]:
    """The fields of StagePlan before steps are counted."""
    options: TrainSettings = getattr(settings, stage)
    _check_schedule(stage, options.warmup, options.warmdown)
    if world_size < 1:
        raise UsageError(f"GPUs = {world_size} is less than 1", "--gpus 1")
    total_tokens, name = plan_total_tokens(settings, stage)
    rows = plan_rows(name, total_tokens, settings, world_size, config)
    memory = plan_memory(settings, config, rows, world_size, compiled)
    is_divided = stage != "rl"  # whose step is whatever was answered
    return {
        "context": config.context,
        "num_params": count_params(config)["total"],
        "world_size": world_size,
        "device_batch_size": rows,
        "total_batch_tokens": total_tokens,
        "num_microbatches": divide_batch(name, total_tokens, rows, config.context, world_size) if is_divided else 1,
        "num_steps": None,
        "num_tokens": None,
        "checkpoint_bytes": estimate_checkpoint_bytes(config),
        "memory_bytes": memory.total,
        "memory": memory,
        "hours": None,
        "dollars": None,
    }


def _plan_cost(num_steps: int, total_tokens: int, per_token: int, world_size: int) -> dict[str, Any]:
    """The fields that follow from the number of steps."""
    num_tokens = num_steps * total_tokens
    hours = num_tokens * per_token / (PEAK_FLOPS * ASSUMED_MFU * world_size) / 3600
    return {
        "num_steps": num_steps,
        "num_tokens": num_tokens,
        "total_flops": float(num_tokens * per_token),
        "hours": hours,
        "dollars": hours * world_size * DOLLARS_PER_DEVICE_HOUR,
    }


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
    num_rows_per_epoch: int | None,
    config: GPTConfig | None = None,
) -> FinetunePlan:
    """Plan mid or sft.

    num_rows_per_epoch: rows of all devices in a pass over the mixture, so that the steps do not depend on how many rows
    a device takes at once; rows of replayed text come on top; None: not counted yet. config: of the model it starts
    from; None: the settings'. The last step is filled from the next epoch.
    """
    options: FinetuneSettings = getattr(settings, stage)
    config = config or plan_model(settings)
    shared = _plan_shared(settings, stage, config, world_size)
    if options.num_steps is None and num_rows_per_epoch is not None and num_rows_per_epoch < 1:
        raise UsageError(f"{stage}.mixture fills no row", f"nanochat train {stage} --set {stage}.num_steps=10")
    num_steps, num_batches, total_tokens = options.num_steps, None, shared["total_batch_tokens"]
    if num_rows_per_epoch is not None:
        num_batches = math.ceil(num_rows_per_epoch / (shared["device_batch_size"] * world_size))
        num_rows = options.epochs * num_rows_per_epoch / (1 - options.replay)
        num_steps = num_steps or math.ceil(num_rows / (total_tokens // config.context))
    per_token = flops_per_token(config)
    cost: dict[str, Any] = {"total_flops": None}
    if num_steps is not None:
        cost = _plan_cost(num_steps, total_tokens, per_token, world_size)
    return FinetunePlan(
        **shared | cost,
        stage=stage,
        epochs=options.epochs,
        num_batches_per_epoch=num_batches,
        flops_per_token=per_token,
    )


def plan_rl(settings: Settings, world_size: int, num_questions: int | None, config: GPTConfig | None = None) -> RlPlan:
    """Plan rl. num_questions: None: not counted yet. config: of the model it starts from; None: the settings'.

    Raises UsageError where rl.task is unset, or an answer of full length leaves no room for a question.
    """
    options = settings.rl
    config = config or plan_model(settings)
    if options.task is None:
        raise UsageError("rl.task is unset: there is nothing to practise on", "--set rl.task=arithmetic")
    shared = _plan_shared(settings, "rl", config, world_size, compiled=False)
    if options.max_new_tokens >= config.context:
        raise UsageError(
            f"rl.max_new_tokens = {options.max_new_tokens} leaves no room for a question: the context is "
            f"{config.context}",
            f"--set rl.max_new_tokens={max(1, config.context // 2)}",
        )
    num_steps = options.num_steps
    if num_steps is None and num_questions is not None:
        num_steps = math.ceil(options.epochs * num_questions / options.questions_per_step)
    num_answers = options.questions_per_step * options.samples_per_question
    num_tokens = num_answers * options.max_new_tokens
    rows_per_answer = shared["device_batch_size"] * config.context // (2 * options.max_new_tokens)
    own: dict[str, Any] = {
        "total_batch_tokens": num_tokens,
        "num_microbatches": math.ceil(math.ceil(num_answers / world_size) / max(1, rows_per_answer)),
        "num_steps": num_steps,
        "num_tokens": num_steps * num_tokens if num_steps is not None else None,
    }
    answer_bytes = options.max_new_tokens * ROLLOUT_TOKEN_BYTES + ROLLOUT_BYTES
    return RlPlan(
        **shared | own,
        stage="rl",
        task=options.task,
        num_answers_per_step=num_answers,
        epochs=options.epochs,
        rollout_bytes=(options.keep_rollouts + 1) * num_answers * answer_bytes,
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
