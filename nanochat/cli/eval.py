"""`nanochat eval bpb | chat | all`."""

import json
from dataclasses import replace
from typing import Annotated, Any

import typer

from nanochat.cli.cluster import Cluster
from nanochat.cli.console import format_table
from nanochat.cli.launch import ALONE
from nanochat.cli.options import Invocation, Overrides, command, new_group
from nanochat.cli.target import Target, check_dataset, choose_target, override_options, read_result
from nanochat.cli.train import check_devices, start
from nanochat.errors import UsageError
from nanochat.paths import ModelPath, RunPaths

app = new_group("Score a trained model.")

Model = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="RUN, RUN/sft or RUN/sft@650; default: the newest model.")
]


@command(app, "bpb", "nanochat eval bpb demo/base")
def evaluate_bpb(
    invocation: Invocation, model: Model = None, overrides: Overrides = None, cluster: Cluster = ALONE
) -> int:
    """Bits per byte on the validation text."""
    return evaluate("bpb", invocation, model, overrides, cluster)


@command(app, "chat", "nanochat eval chat demo/sft")
def evaluate_chat(
    invocation: Invocation, model: Model = None, overrides: Overrides = None, cluster: Cluster = ALONE
) -> int:
    """The chat tasks of eval.tasks."""
    return evaluate("chat", invocation, model, overrides, cluster)


@command(app, "all", "nanochat eval all demo")
def evaluate_all(
    invocation: Invocation, model: Model = None, overrides: Overrides = None, cluster: Cluster = ALONE
) -> int:
    """Every score that suits the model."""
    return evaluate("all", invocation, model, overrides, cluster)


def evaluate(
    score: str, invocation: Invocation, model: str | None, overrides: list[str] | None, cluster: Cluster
) -> int:
    """Find the model, run the evaluation, show what it wrote."""
    from nanochat.tasks.catalog import build_task

    found = invocation.workspace.resolve_model(model)
    if found.run is None:
        raise UsageError(f"{model} is a bare checkpoint; scores belong to a run", "nanochat runs ls")
    invocation.console.say(f"model {found}")
    target = choose_target(invocation, run=found.run.name, overrides=overrides)
    check_evaluation(score, found, target)
    for name in target.settings.eval.tasks:
        build_task(name, "test", 1)
    if score != "chat":
        check_dataset(invocation, target.settings.data.dataset)
    check_devices(target.settings.runtime.device, cluster)
    options = ("--of", f"{found.stage}@{found.step}", "--score", score, *override_options(target))
    overrides_again = [word for item in overrides or [] for word in ("--set", item)]
    again = ("eval", score, str(found), *overrides_again)
    unchanged = replace(target, changed={})  # the run's settings stay as they are
    code = start("evaluate", invocation, unchanged, cluster, options, again)
    if code or invocation.dry_run:
        return code
    show_scores(invocation, [item for item in list_scores(found.run) if item.get("stage") == found.stage])
    invocation.console.suggest(f"nanochat report {found.run.name}")
    return 0


def check_evaluation(score: str, model: ModelPath, target: Target) -> None:
    """Raise UsageError where these scores do not suit the model."""
    if score == "chat" and model.stage == "base":
        raise UsageError(
            f"{model} has not seen conversations: chat tasks need a mid or sft model",
            f"nanochat train mid --run {target.run.name}",
        )
    if score == "chat" and not target.settings.eval.tasks:
        raise UsageError("eval.tasks is empty: there is no chat task to score", "--set eval.tasks=letters,arithmetic")


def list_scores(run: RunPaths) -> list[dict[str, Any]]:
    """The scores of a run, in the order of their files; unreadable ones are left out."""
    scores = []
    for path in sorted(run.eval.glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(value, dict):
            scores.append(value)
    return scores


def are_scores_done(run: RunPaths, tasks: list[str], stage: str = "sft") -> bool:
    """Whether the final model of a stage has its bits per byte and all chat tasks."""
    step = read_result(run, stage).get("step")
    names = {
        score.get("name") for score in list_scores(run) if score.get("stage") == stage and score.get("step") == step
    }
    return {"bpb", *tasks} <= names


def show_scores(invocation: Invocation, scores: list[dict[str, Any]]) -> None:
    """A line for each score, or JSON without the samples."""
    if invocation.as_json:
        invocation.console.show_json([{k: v for k, v in score.items() if k != "samples"} for score in scores])
        return
    rows = []
    for score in scores:
        value = score.get("bpb", score.get("accuracy", score.get("value")))
        shown = "-" if value is None else f"{value:.4f}" if "accuracy" not in score else f"{100 * value:.1f}%"
        tools = f", {score['with_tool']} with a tool" if score.get("with_tool") else ""
        of = (
            f"of {score['total']}{tools}"
            if score.get("total")
            else f"on {score['num_tokens']:,} tokens"
            if score.get("num_tokens")
            else f"over {', '.join(score['tasks'])}"
            if score.get("tasks")
            else ""
        )
        rows.append((f"{score.get('stage')}@{score.get('step')}", score.get("name"), shown, of))
    invocation.console.show(format_table(rows, right=[2]))
