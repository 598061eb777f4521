"""`nanochat train base | mid | sft | rl`."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.cli.needs import check_downloads
from nanochat.cli.options import Config, Invocation, Overrides, Preset, RunName, command, new_group
from nanochat.cli.target import (
    Target,
    check_dataset,
    check_disk,
    choose_target,
    find_damage,
    is_done,
    read_result,
    settle,
    warn_of_changed_data,
    write_target,
)
from nanochat.cli.tracking import Track, add_track, check_tracker
from nanochat.cli.validation import check_settings
from nanochat.errors import MissingError, UsageError
from nanochat.files import SPARE_BYTES, count_bytes
from nanochat.launch.cluster import Cluster
from nanochat.launch.launch import ALONE, launch_stage, stage_command
from nanochat.paths import TRAIN_STAGES, RunPaths

if TYPE_CHECKING:
    from nanochat.config.settings import Settings

GPU_DEVICES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg", "/dev/nvgpu")
"""Of NVIDIA, AMD, WSL and Jetson: without one of them there is no GPU for PyTorch."""

app = new_group("Train one stage of a run.")

BEFORE = {"base": "tokenizer", "mid": "base", "sft": "mid", "rl": "sft"}
COMMAND = {
    "tokenizer": "tokenize train",
    "base": "train base",
    "mid": "train mid",
    "sft": "train sft",
    "rl": "train rl",
}


@command(app, "base", "nanochat train base --preset d20 --gpus 8")
def train_base(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    cluster: Cluster = ALONE,
    track: Track = None,
) -> int:
    """Pretrain the base model on packed documents."""
    target = choose_target(invocation, preset, config, add_track(overrides, track), run)
    return train("base", invocation, target, cluster)


@command(app, "mid", "nanochat train mid --run d20 --gpus 8")
def train_mid(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    cluster: Cluster = ALONE,
    track: Track = None,
) -> int:
    """Midtrain the base model on conversations and tool calls."""
    target = choose_target(invocation, preset, config, add_track(overrides, track), run, newest=True)
    return train("mid", invocation, target, cluster)


@command(app, "sft", "nanochat train sft --run d20")
def train_sft(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    cluster: Cluster = ALONE,
    track: Track = None,
) -> int:
    """Fine-tune the midtrained model on a smaller mixture, at a fraction of the rates."""
    target = choose_target(invocation, preset, config, add_track(overrides, track), run, newest=True)
    return train("sft", invocation, target, cluster)


@command(app, "rl", "nanochat train rl --run d20 --gpus 8")
def train_rl(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    cluster: Cluster = ALONE,
    track: Track = None,
) -> int:
    """Let the fine-tuned model practise on rl.task: answers that it samples, right ones made more likely."""
    target = choose_target(invocation, preset, config, add_track(overrides, track), run, newest=True)
    return train("rl", invocation, target, cluster)


def train(stage: str, invocation: Invocation, target: Target, cluster: Cluster) -> int:
    """Check a training stage, start it, and show its result and the next command."""
    run = target.run
    damage = find_damage(run, stage) if is_done(run, stage) else ""
    if damage:
        invocation.console.say(f"{stage} of run {run.name} is done, and {damage}: its last steps are taken again")
    if not is_done(run, stage) or damage:
        check_stage(stage, invocation, target, cluster)
    following = [later for later in TRAIN_STAGES[TRAIN_STAGES.index(stage) + 1 :] if not is_done(run, later)]
    check_settings(invocation, target.settings, target.origins, cluster.world_size, following)
    if is_done(run, stage) and not damage:
        write_target(invocation, target)
        invocation.console.say(f"{describe_result(stage, read_result(run, stage))} of run {run.name}: nothing to do")
        warn_of_changed_data(invocation, target, stage)
    else:
        before = BEFORE[stage]
        if not is_done(run, before):
            unfinished = before != "tokenizer" and run.stage(before).steps()
            raise MissingError(
                f"run {run.name!r} has no finished {before} to start {stage} from",
                f"nanochat resume {run.name}" if unfinished else f"nanochat {COMMAND[before]} {target.choice}",
            )
        if target.settings.learns_text(stage):
            check_dataset(invocation, target.settings.data.dataset, target.choice)
        if stage != "base":
            check_downloads(invocation, target, [stage])
        if stage == "rl":
            from nanochat.tasks.graded import build_graded

            build_graded(target.settings.rl.task or "", folder=invocation.workspace.tasks)
        code = start(stage, invocation, target, cluster)
        if code or invocation.dry_run:
            return code
    if invocation.as_json:
        invocation.console.show_json(read_result(run, stage))
    suggested = {"base": f"nanochat train mid --run {run.name}", "mid": f"nanochat train sft --run {run.name}"}
    if target.settings.rl.task is not None:
        suggested["sft"] = f"nanochat train rl --run {run.name}"
    suggested["rl"] = f"nanochat {'rl show' if target.settings.rl.keep_rollouts else 'eval chat'} {run.name}"
    invocation.console.suggest(suggested.get(stage, f"nanochat chat {run.name}"))
    return 0


def start(
    stage: str,
    invocation: Invocation,
    target: Target,
    cluster: Cluster = ALONE,
    options: tuple[str, ...] = (),
    again: tuple[str, ...] = (),
    following: str = "",
) -> int:
    """Write the settings and run the stage's worker; a dry run shows what would be started.

    again: the arguments of nanochat that continue it where `resume` does not. following: the stage that comes next.
    """
    flags = (*options, *(["--quiet"] if invocation.quiet else []), *(["--debug"] if invocation.debug else []))

    def launch(_written: Target) -> int:
        shown = shlex.join(stage_command(stage, target.run.settings, cluster, flags))
        if invocation.dry_run:
            invocation.console.show(shown)
            return 0
        if invocation.verbose:
            invocation.console.say(shown)
        return launch_stage(
            stage,
            target.run.settings,
            cluster=cluster,
            options=flags,
            again=again,
            following=following,
            offline=invocation.offline,
            color=invocation.color,
            say=invocation.console.say,
        )

    return settle(invocation, target, launch)


def check_stage(stage: str, invocation: Invocation, target: Target, cluster: Cluster) -> Any:
    """Validate a stage without torch: sizes, mixture, devices, disk. Returns its plan."""
    from nanochat.config.device_batch import lower_rows
    from nanochat.config.load import is_chosen
    from nanochat.config.plan import count_checkpoints, plan_base, plan_finetune, plan_rl
    from nanochat.tasks.catalog import find_missing
    from nanochat.tasks.graded import check_graded

    chosen = is_chosen(target.origins, "batch.device_batch_size")
    settings, _ = lower_rows(target.settings, stage, cluster.world_size, chosen)  # type: ignore[arg-type]
    check_devices(settings.runtime.device, cluster)
    more_bytes = 0
    if target.run.stage(stage).steps():
        check_division(settings, stage, cluster)
    if stage == "base":
        plan: Any = plan_base(settings, cluster.world_size)
    elif stage == "rl":
        plan = plan_rl(settings, cluster.world_size, None)
        more_bytes = plan.rollout_bytes
        check_graded(plan.task, invocation.workspace.tasks)
    else:
        plan = plan_finetune(settings, stage, cluster.world_size, None)  # type: ignore[arg-type]
        mixture = getattr(settings, stage).mixture
        if not mixture:
            raise UsageError(
                f"{stage}.mixture is empty: there is nothing to train on",
                f"--set {stage}.mixture=letters:5000,identity",
            )
        find_missing(mixture, folder=invocation.workspace.tasks)  # raises for what is wrong; check_downloads for these
    check_tracker(settings.runtime.track)
    if not is_done(target.run, stage):
        needed = plan.checkpoint_bytes * count_checkpoints(settings, plan.num_steps) + more_bytes
        check_disk(invocation, needed - count_held(target.run, stage) + SPARE_BYTES, target.is_new)
    return plan


def check_division(settings: "Settings", stage: str, cluster: Cluster) -> None:
    """Raise UsageError if the step of a stage that has begun, which stays, cannot be divided among so many devices."""
    from nanochat.config.device_batch import list_rows, plan_total_tokens

    tokens, context = plan_total_tokens(settings, stage)[0], settings.model.context  # type: ignore[arg-type]
    if stage == "rl" or list_rows(tokens, context, cluster.world_size):
        return
    gpus = [n for n in range(cluster.gpus - 1, 0, -1) if list_rows(tokens, context, n * cluster.nodes)]
    if gpus:
        raise UsageError(
            f"{stage} has begun with steps of {tokens} tokens, {tokens // context} rows, which {cluster.world_size} "
            "devices cannot share",
            f"--gpus {gpus[0]}",
        )


def count_held(run: RunPaths, stage: str) -> int:
    """Bytes that a stage which is continued has already: checkpoints that later ones replace, sampled answers."""
    paths = run.stage(stage)
    folders = [*map(paths.checkpoint, paths.steps()), paths.root / "rollouts"]
    return sum(count_bytes(folder, own=True) for folder in folders)


def check_devices(device: str, cluster: Cluster) -> None:
    """Raise UsageError where the nodes cannot meet or this one has fewer GPUs than processes. Without: --device cpu."""
    cluster.check_meeting()
    gpus = cluster.gpus
    if device == "cuda" and not any(map(os.path.exists, GPU_DEVICES)):
        raise UsageError("runtime.device = cuda, but this machine has no GPU that PyTorch could use", "--device cpu")
    if gpus > 1 and device in ("auto", "cuda") and not Path("/dev/kfd").exists():  # AMD's are not counted here
        from nanochat.machine import gpu_names

        found = len(gpu_names())
        if found < gpus:
            hint = f"--gpus {found}" if found else f"--device cpu --gpus {gpus}"
            raise UsageError(f"--gpus {gpus}, but this machine has {found or 'none'}", hint)


def describe_result(stage: str, result: dict[str, Any]) -> str:
    """`base is done (300 steps, 1.0123 bits per byte)`"""
    facts = []
    if isinstance(result.get("step"), int):
        facts.append(f"{result['step']:,} steps")
    if isinstance(result.get("vocab_size"), int):
        facts.append(f"{result['vocab_size']:,} tokens")
    if isinstance(result.get("val_bpb"), float):
        facts.append(f"{result['val_bpb']:.4f} bits per byte")
    if isinstance(result.get("pass_at_1"), float):
        facts.append(f"pass@1 {100 * result['pass_at_1']:.1f}%")
    return f"{stage} is done" + (f" ({', '.join(facts)})" if facts else "")
