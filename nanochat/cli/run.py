"""`nanochat run`: the whole pipeline, stage by stage; what is done is skipped and said so."""

import json
import shlex

import typer

from nanochat.cli.eval import (
    AllowWeak,
    add_isolation,
    are_scores_done,
    check_code,
    is_core_done,
    is_text_scored,
    list_scores,
)
from nanochat.cli.needs import check_downloads
from nanochat.cli.options import Config, Invocation, Overrides, Preset, RunName, command
from nanochat.cli.report import write_report
from nanochat.cli.target import (
    Target,
    check_dataset,
    choose_target,
    is_done,
    read_result,
    settle,
    warn_of_changed_data,
)
from nanochat.cli.tracking import Track, add_track
from nanochat.cli.train import check_devices, check_stage, describe_result, start
from nanochat.cli.validation import check_settings, say_missing
from nanochat.data.core_bundle import AGAIN, has_bundle
from nanochat.errors import MissingError
from nanochat.files import disk_errors, write_atomically
from nanochat.launch.cluster import Cluster
from nanochat.launch.launch import ALONE, stopping_before

STAGES = ("tokenizer", "base", "mid", "sft", "rl")
"""In their order; rl only where there is an rl.task."""


def register(app: typer.Typer) -> None:
    command(app, "run", "nanochat run --preset demo")(run_pipeline)


def run_pipeline(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    allow_weak: AllowWeak = False,
    cluster: Cluster = ALONE,
    track: Track = None,
) -> int:
    """Run the whole pipeline: data, tokenizer, base, mid, sft, eval, rl, report. Finished stages are skipped."""
    target = choose_target(invocation, preset, config, add_track(add_isolation(overrides, allow_weak), track), run)
    stages = list_stages(target)
    pending = [stage for stage in stages[1:] if not is_done(target.run, stage)]
    is_scored = not pending and all(are_scores_done(target.run, target.settings, stage) for stage in stages[3:])
    check_devices(target.settings.runtime.device, cluster)
    for stage in pending:  # everything is checked before anything is started
        check_stage(stage, invocation, target, cluster)
    wish = (target.settings, target.origins, cluster.world_size, pending)
    if (missing := check_settings(invocation, *wish, scores=not is_scored)) and invocation.dry_run:
        invocation.console.say(say_missing(missing))
    check_code(target)
    if cluster.nodes > 1 and not is_done(target.run, "tokenizer"):
        raise MissingError(
            f"run {target.run.name!r} has no tokenizer, and one node makes it, before the others start",
            f"nanochat tokenize train {target.choice}  # on one node; then this again, on all",
        )
    if not invocation.dry_run:
        check_data(invocation, target, stages)
    code = settle(invocation, target, lambda written: run_to_the_end(invocation, written, cluster))
    if code or invocation.dry_run:
        return code
    written = (target.run.report_md, target.run.report_html) if cluster.node_rank == 0 else ()
    if invocation.as_json:
        results = {stage: read_result(target.run, stage) for stage in stages}
        invocation.console.show_json(
            {"run": target.run.name, **results, "scores": list_scores(target.run), "report": [str(p) for p in written]}
        )
    else:
        for path in written:
            invocation.console.show(str(path))
    invocation.console.suggest(f"nanochat chat {target.run.name}")
    return 0


def run_to_the_end(invocation: Invocation, target: Target, cluster: Cluster) -> int:
    """All stages and the report; the mark that `resume` finds is there meanwhile. Returns the exit code.

    Raises StoppedError for a request to stop that comes between two stages.
    """
    if invocation.dry_run:
        return run_stages(invocation, target, cluster)
    again = shlex.join(["nanochat", "run", "--run", target.run.name, *cluster.options()])
    with stopping_before(lambda: name_next(target), again):
        if cluster.node_rank == 0:
            write_atomically(target.run.pipeline, json.dumps({"command": again}))
        code = run_stages(invocation, target, cluster)
        if not code and cluster.node_rank == 0:
            write_report(target.run)
            with disk_errors(target.run.root):
                target.run.pipeline.unlink(missing_ok=True)
    return code


def name_next(target: Target) -> str:
    """What the pipeline does next, for messages."""
    return next((stage for stage in list_stages(target) if not is_done(target.run, stage)), "evaluation")


def check_data(invocation: Invocation, target: Target, stages: tuple[str, ...]) -> None:
    """Raise MissingError where something that the stages still to come will read is not here."""
    from nanochat.tasks.graded import build_graded

    pending = [stage for stage in stages[1:] if not is_done(target.run, stage)]
    if not is_done(target.run, "tokenizer") and "base" not in pending:
        pending.append("base")
    if pending or not are_scores_done(target.run, target.settings, stages[-1]):
        check_downloads(invocation, target, [*pending, "eval"])
    if any(map(target.settings.learns_text, pending)):
        check_dataset(invocation, target.settings.data.dataset, target.choice)
    if "rl" in pending:
        build_graded(target.settings.rl.task or "", folder=invocation.workspace.tasks)


def list_stages(target: Target) -> tuple[str, ...]:
    """The stages of this run, in their order."""
    return STAGES if target.settings.rl.task is not None else STAGES[:-1]


def run_stages(invocation: Invocation, target: Target, cluster: Cluster) -> int:
    """Train and score in order, up to what fails first; returns its exit code.

    sft is scored and reported before rl begins, which ends with an error where the model never succeeds.
    """
    plan = [*STAGES[:-1], "core", "text", "sft scores", *(["rl", "rl scores"] if "rl" in list_stages(target) else [])]
    trained = False
    for part in plan:
        if part in STAGES:
            if is_done(target.run, part):
                invocation.console.say(f"{describe_result(part, read_result(target.run, part))}, skipped")
                warn_of_changed_data(invocation, target, part)
                continue
            if part == "rl" and cluster.node_rank == 0 and not invocation.dry_run:
                write_report(target.run)
            code, trained = _train(part, invocation, target, cluster), True
        elif part == "core":
            code = _score_core(invocation, target, cluster, trained)
        elif part == "text":
            code = _score_text(invocation, target, cluster)
        else:
            code = _score_chat(part.removesuffix(" scores"), invocation, target, cluster, trained)
        if code:
            return code
    return 0


def _train(stage: str, invocation: Invocation, target: Target, cluster: Cluster) -> int:
    again = ("run", "--run", target.run.name)
    if stage == "tokenizer":
        return start(stage, invocation, target, again=again, following="base")
    following = {"base": "mid", "mid": "sft"}.get(stage, "eval")
    return start(stage, invocation, target, cluster, following=following)


def _score_core(invocation: Invocation, target: Target, cluster: Cluster, trained: bool) -> int:
    wish = target.settings.eval
    if not has_bundle(invocation.workspace.core):
        if trained:
            invocation.console.say(f"CORE is skipped: its bundle is not downloaded. Run `{AGAIN}`")
        return 0
    if not trained and is_core_done(target.run, wish.core_tasks, wish.max_per_task):
        return 0
    options = ("--of", "base", "--score", "core", "--keep-finished")
    return start("evaluate", invocation, target, cluster, options, ("run", "--run", target.run.name), following="eval")


def _score_text(invocation: Invocation, target: Target, cluster: Cluster) -> int:
    """Bits per byte of the models before sft: what each stage forgets of the text is seen beside them."""
    stages = [stage for stage in ("base", "mid") if not is_text_scored(target.run, target.settings, stage)]
    if not stages:
        return 0
    options = ("--of", ",".join(stages), "--score", "bpb")
    return start("evaluate", invocation, target, cluster, options, ("run", "--run", target.run.name), following="eval")


def _score_chat(stage: str, invocation: Invocation, target: Target, cluster: Cluster, trained: bool) -> int:
    if not trained and are_scores_done(target.run, target.settings, stage):
        invocation.console.say(f"eval of {stage} is done, skipped")
        return 0
    options = ("--of", stage, "--score", "bpb,chat", "--keep-finished")
    following = "rl" if stage != list_stages(target)[-1] else ""
    return start(
        "evaluate", invocation, target, cluster, options, ("run", "--run", target.run.name), following=following
    )
