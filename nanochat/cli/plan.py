"""`nanochat plan`: parameters, tokens, steps, disk, memory, hours and cost, before anything is started."""

import shlex
from dataclasses import asdict
from typing import Any

import typer

from nanochat.cli.config import resolve
from nanochat.cli.console import format_table
from nanochat.cli.options import Config, Invocation, Overrides, Preset, RunName, command
from nanochat.cli.target import find_newest, target_options
from nanochat.cli.validation import check_settings, say_missing
from nanochat.download.sources import TEXT_SOURCES
from nanochat.launch.cluster import Cluster
from nanochat.launch.launch import ALONE
from nanochat.text import format_size


def register(app: typer.Typer) -> None:
    command(app, "plan", "nanochat plan --preset d20 --gpus 8")(plan)


def plan(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    cluster: Cluster = ALONE,
) -> None:
    """Say what settings mean on this many devices: sizes exactly, time and cost as an estimate."""
    from nanochat.config.device_batch import lower_rows
    from nanochat.config.load import is_chosen
    from nanochat.config.plan import plan_base, plan_finetune, plan_rl
    from nanochat.tasks.graded import check_graded
    from nanochat.tasks.sizes import count_conversations

    if preset is None and config is None and run is None:
        find_newest(invocation, allowed=False)
    settings, origins = resolve(invocation, preset, config, overrides, run)
    missing = check_settings(invocation, settings, origins, cluster.world_size)
    chosen = is_chosen(origins, "batch.device_batch_size")
    lowered = {stage: lower_rows(settings, stage, cluster.world_size, chosen) for stage in ("base", "mid", "sft")}
    base = plan_base(lowered["base"][0], cluster.world_size)
    finetunes = [plan_finetune(lowered[stage][0], stage, cluster.world_size, None) for stage in ("mid", "sft")]
    plans: list[Any] = [base, *finetunes]
    if settings.rl.task is not None:
        num_questions = check_graded(settings.rl.task, invocation.workspace.tasks)
        plans.append(plan_rl(settings, cluster.world_size, num_questions or None))
    if invocation.as_json:
        invocation.console.show_json({getattr(item, "stage", "base"): asdict(item) for item in plans})
        return
    text_bytes = measure_own_text(invocation, settings.data.dataset)
    invocation.console.show(format_table(describe_base(base, settings, text_bytes)))
    invocation.console.show("")
    header = ("stage", "steps", "tokens", "tokens/step", "micro-batches", "time", "cost")
    invocation.console.show(format_table([describe_stage(item) for item in plans], header, [1, 2, 3, 4, 5, 6]))
    for _, said in lowered.values():
        if said:
            invocation.console.say(said)
    for item in finetunes:
        if item.num_steps is None and (count := count_conversations(getattr(settings, item.stage).mixture)):
            invocation.console.say(f"{item.stage} learns {count:,} conversations an epoch")
    if any(item.num_steps is None for item in finetunes):
        invocation.console.say("steps of mid and sft follow from their epochs once the conversations are packed")
    if len(plans) > 3:
        invocation.console.say("tokens of rl are an upper bound: the real number depends on how long the answers are")
        if plans[-1].num_steps is None:
            invocation.console.say(f"steps of rl follow from its epochs once {settings.rl.task} is there")
    if missing:
        invocation.console.say(say_missing(missing))
    words = [*target_options(preset, config, run, overrides), *cluster.options()]
    invocation.console.suggest(shlex.join(["nanochat", "run", *words]))


def measure_own_text(invocation: Invocation, dataset: str) -> int | None:
    """Bytes of text that a data set has to train on; None if it is not here, or is fetched as a plan needs it."""
    from nanochat.data.dataset import MANIFEST, load_manifest

    folder = invocation.workspace.dataset(dataset)
    if dataset in TEXT_SOURCES or not (folder / MANIFEST).is_file():
        return None
    known = load_manifest(folder).text_bytes("train")
    if known is None:  # made before manifests knew
        from nanochat.data.shards import measure_text

        known = measure_text(folder, "train")
    return known


def describe_base(plan: Any, settings: Any, text_bytes: int | None = None) -> list[tuple[str, str]]:
    """Names and values of a BasePlan, for people. text_bytes: of the text that is there."""
    from nanochat.config.device_batch import DEVICE_BYTES
    from nanochat.config.plan import ASSUMED_MFU, DEVICE, DOLLARS_PER_DEVICE_HOUR
    from nanochat.data.dataset import describe_repeats

    is_auto = settings.batch.device_batch_size == "auto"
    auto = f" (auto: what {format_size(round(DEVICE_BYTES))} hold; a run tries its own device)" if is_auto else ""
    parts = ", ".join(f"{name} {format_size(size)}" for name, size in plan.memory.parts.items())

    data_bytes = plan.data_bytes if text_bytes is None else text_bytes
    described = f", {plan.num_shards:,} shards" if settings.data.dataset in TEXT_SOURCES else ""
    if text_bytes is not None:
        repeats = describe_repeats(plan.num_chars / max(1, text_bytes))
        described = f", which has {format_size(text_bytes)}{repeats and f': {repeats}'}"

    horizon = {
        "num_steps": "asked for",
        "flops": "the FLOP budget",
        "tokens_per_param": f"{plan.tokens_per_param:.1f} tokens per parameter",
    }[plan.horizon]
    return [
        ("model", f"depth {plan.depth}, width {plan.n_embd}, {plan.n_head} heads, {plan.n_kv_head} of keys and values"),
        ("context", f"{plan.context:,} tokens"),
        ("vocabulary", f"{plan.vocab_size:,} tokens"),
        (
            "parameters",
            f"{format_count(plan.num_params)}: {format_count(plan.num_matrix_params)} in the blocks, "
            f"{format_count(plan.num_embedding_params)} embedding, {format_count(plan.num_head_params)} head",
        ),
        ("FLOPs", f"{plan.flops_per_token:.3g} per token, {plan.total_flops:.3g} in all"),
        (
            "batch",
            f"{plan.total_batch_tokens:,} tokens = {plan.device_batch_size} rows x {plan.context:,} x "
            f"{plan.world_size} devices x {plan.num_microbatches} micro-batches{auto}",
        ),
        ("steps", f"{plan.num_steps:,} ({horizon})"),
        ("tokens", f"{plan.num_tokens:,} = {plan.tokens_per_param:.2f} per parameter"),
        (
            "text",
            f"about {format_count(plan.num_chars)} characters of {settings.data.dataset}{described}",
        ),
        (
            "disk",
            f"about {format_size(plan.disk_bytes - plan.data_bytes + data_bytes)}: {format_size(data_bytes)} of text, "
            f"{format_size(plan.checkpoint_bytes)} a checkpoint",
        ),
        ("memory", f"about {format_size(plan.memory_bytes)} a device: {parts}"),
        (
            "time",
            f"about {format_hours(plan.hours)} and {format_dollars(plan.dollars)} on {plan.world_size} x {DEVICE} "
            f"(at {ASSUMED_MFU:.0%} of the peak, ${DOLLARS_PER_DEVICE_HOUR:.0f} an hour each)",
        ),
    ]


def describe_stage(plan: Any) -> tuple[str, ...]:
    """A line of the table of stages."""
    return (
        getattr(plan, "stage", "base"),
        "-" if plan.num_steps is None else f"{plan.num_steps:,}",
        "-" if plan.num_tokens is None else format_count(plan.num_tokens),
        f"{plan.total_batch_tokens:,}",
        f"{plan.num_microbatches:,}",
        "-" if plan.hours is None else format_hours(plan.hours),
        "-" if plan.dollars is None else format_dollars(plan.dollars),
    )


def format_count(number: int) -> str:
    """
    >>> format_count(521_994_240), format_count(10_439_622_656), format_count(1024)
    ('522.0M', '10.44B', '1,024')
    """
    if number >= 1e9:
        return f"{number / 1e9:,.2f}B"
    return f"{number / 1e6:,.1f}M" if number >= 1e6 else f"{number:,}"


def format_hours(hours: float) -> str:
    """
    >>> format_hours(3.09), format_hours(0.5), format_hours(0.0001)
    ('3.1 h', '30 min', '0.4 s')
    """
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def format_dollars(dollars: float) -> str:
    return f"${dollars:,.0f}" if dollars >= 10 else f"${dollars:,.2f}"
