"""`nanochat run`: the whole pipeline, stage by stage; what is done is skipped and said so."""

import typer

from nanochat.cli.cluster import Cluster
from nanochat.cli.eval import are_scores_done, list_scores
from nanochat.cli.launch import ALONE
from nanochat.cli.options import Config, Invocation, Overrides, Preset, RunName, command
from nanochat.cli.report import write_report
from nanochat.cli.target import Target, check_dataset, choose_target, is_done, read_result
from nanochat.cli.tracking import Track, add_track
from nanochat.cli.train import check_stage, check_tasks, describe_result, start
from nanochat.errors import MissingError

STAGES = ("tokenizer", "base", "mid", "sft")


def register(app: typer.Typer) -> None:
    command(app, "run", "nanochat run --preset demo")(run_pipeline)


def run_pipeline(
    invocation: Invocation,
    preset: Preset = None,
    config: Config = None,
    overrides: Overrides = None,
    run: RunName = None,
    cluster: Cluster = ALONE,
    track: Track = None,
) -> int:
    """Run the whole pipeline: data, tokenizer, base, mid, sft, eval, report. Finished stages are skipped."""
    target = choose_target(invocation, preset, config, add_track(overrides, track), run)
    for stage in STAGES[1:]:  # everything is checked before anything is started
        check_stage(stage, invocation, target.settings, cluster)
    check_tasks(invocation, (), target.settings.eval.tasks)
    if cluster.nodes > 1 and not is_done(target.run, "tokenizer"):
        raise MissingError(
            f"run {target.run.name!r} has no tokenizer, and one node makes it, before the others start",
            f"nanochat tokenize train {target.choice}  # on one node; then this again, on all",
        )
    if not invocation.dry_run and not all(is_done(target.run, stage) for stage in STAGES[:2]):
        check_dataset(invocation, target.settings.data.dataset)
    code = run_stages(invocation, target, cluster)
    if code or invocation.dry_run:
        return code
    written = write_report(target.run) if cluster.node_rank == 0 else ()
    if invocation.as_json:
        results = {stage: read_result(target.run, stage) for stage in STAGES}
        invocation.console.show_json(
            {"run": target.run.name, **results, "scores": list_scores(target.run), "report": [str(p) for p in written]}
        )
    else:
        for path in written:
            invocation.console.show(str(path))
    invocation.console.suggest(f"nanochat chat {target.run.name}")
    return 0


def run_stages(invocation: Invocation, target: Target, cluster: Cluster) -> int:
    """Tokenizer, base, mid, sft and eval in order, up to the first that fails; returns its exit code."""
    trained, again = False, ("run", "--run", target.run.name)
    for stage in STAGES:
        if is_done(target.run, stage):
            invocation.console.say(f"{describe_result(stage, read_result(target.run, stage))}, skipped")
            continue
        following = (*STAGES, "eval")[STAGES.index(stage) + 1]
        if stage == "tokenizer":
            code = start(stage, invocation, target, again=again, following=following)
        else:
            code = start(stage, invocation, target, cluster, following=following)
        if code:
            return code
        trained = True
        target = target.written()
    if not trained and are_scores_done(target.run, target.settings.eval.tasks):
        invocation.console.say("eval is done, skipped")
        return 0
    return start("evaluate", invocation, target, cluster, again=again)
