"""`nanochat run`: the whole pipeline, stage by stage; what is done is skipped and said so."""

import typer

from nanochat.cli.cluster import Cluster
from nanochat.cli.eval import AllowWeak, add_isolation, are_scores_done, check_code, is_core_done, list_scores
from nanochat.cli.launch import ALONE
from nanochat.cli.needs import check_downloads
from nanochat.cli.options import Config, Invocation, Overrides, Preset, RunName, command
from nanochat.cli.report import write_report
from nanochat.cli.target import Target, check_dataset, choose_target, is_done, read_result
from nanochat.cli.tracking import Track, add_track
from nanochat.cli.train import check_stage, describe_result, start
from nanochat.data.core_bundle import AGAIN, has_bundle, load_bundle
from nanochat.errors import MissingError

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
    """Run the whole pipeline: data, tokenizer, base, mid, sft, rl, eval, report. Finished stages are skipped."""
    target = choose_target(invocation, preset, config, add_track(add_isolation(overrides, allow_weak), track), run)
    stages = list_stages(target)
    for stage in stages[1:]:  # everything is checked before anything is started
        check_stage(stage, invocation, target.settings, cluster)
    check_code(target)
    if has_bundle(invocation.workspace.core):
        load_bundle(invocation.workspace.core, target.settings.eval.core_tasks)
    if cluster.nodes > 1 and not is_done(target.run, "tokenizer"):
        raise MissingError(
            f"run {target.run.name!r} has no tokenizer, and one node makes it, before the others start",
            f"nanochat tokenize train {target.choice}  # on one node; then this again, on all",
        )
    if not invocation.dry_run:
        check_data(invocation, target, stages)
    code = run_stages(invocation, target, cluster)
    if code or invocation.dry_run:
        return code
    written = write_report(target.run) if cluster.node_rank == 0 else ()
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


def check_data(invocation: Invocation, target: Target, stages: tuple[str, ...]) -> None:
    """Raise MissingError where something that the stages still to come will read is not here."""
    from nanochat.tasks.graded import build_graded

    pending = [stage for stage in stages[1:] if not is_done(target.run, stage)]
    if not is_done(target.run, "tokenizer") and "base" not in pending:
        pending.append("base")
    if pending or not are_scores_done(target.run, target.settings.eval.tasks, stages[-1]):
        check_downloads(invocation, target, [*pending, "eval"])
    if "base" in pending:
        check_dataset(invocation, target.settings.data.dataset, target.choice)
    if "rl" in pending:
        build_graded(target.settings.rl.task or "", folder=invocation.workspace.tasks)


def list_stages(target: Target) -> tuple[str, ...]:
    """The stages of this run, in their order."""
    return STAGES if target.settings.rl.task is not None else STAGES[:-1]


def run_stages(invocation: Invocation, target: Target, cluster: Cluster) -> int:
    """Tokenizer, base, mid, sft, rl and eval in order, up to the first that fails; returns its exit code."""
    trained, again = False, ("run", "--run", target.run.name)
    stages = list_stages(target)
    for stage in stages:
        if is_done(target.run, stage):
            invocation.console.say(f"{describe_result(stage, read_result(target.run, stage))}, skipped")
            continue
        following = (*stages, "eval")[stages.index(stage) + 1]
        if stage == "tokenizer":
            code = start(stage, invocation, target, again=again, following=following)
        else:
            code = start(stage, invocation, target, cluster, following=following)
        if code:
            return code
        trained = True
        target = target.written()
    has_core, wish = has_bundle(invocation.workspace.core), target.settings.eval
    if has_core and (trained or not is_core_done(target.run, wish.core_tasks, wish.max_per_task)):
        options = ("--of", "base", "--score", "core", "--keep-finished")
        code = start("evaluate", invocation, target, cluster, options, again, following="eval")
        if code:
            return code
    if not trained and are_scores_done(target.run, target.settings.eval.tasks, stages[-1]):
        invocation.console.say("eval is done, skipped")
        return 0
    if not has_core:
        invocation.console.say(f"no CORE: its bundle is not at hand; `{AGAIN}` brings it")
    options = ("--score", "bpb,chat", "--keep-finished")
    return start("evaluate", invocation, target, cluster, options, again)
