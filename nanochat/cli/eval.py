"""`nanochat eval bpb | core | chat | all`."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard

import typer

from nanochat.checkpoint.manifest import MANIFEST, MODEL
from nanochat.cli.console import format_table
from nanochat.cli.needs import check_downloads
from nanochat.cli.options import Invocation, Overrides, command, new_group
from nanochat.cli.target import Target, check_dataset, choose_target, override_options, read_result
from nanochat.cli.train import check_devices, start
from nanochat.data.core_bundle import check_bundle, has_bundle, load_bundle
from nanochat.errors import UsageError
from nanochat.launch.cluster import Cluster
from nanochat.launch.launch import ALONE
from nanochat.paths import ModelPath, RunPaths

if TYPE_CHECKING:
    from nanochat.config.settings import EvalSettings, Settings

MEASURED = frozenset({"data.packing", "runtime.seed"})
"""Settings that say how to measure, beside those of [eval]: another value than the run's holds for one evaluation."""

app = new_group("Score a trained model.")

SAMPLES_TEMPERATURE = 0.8
"""Of `--samples` where none is given: what Chen et al. 2021 found best for many samples."""

Model = Annotated[
    str | None, typer.Argument(metavar="[MODEL]", help="RUN, RUN/sft or RUN/sft@650; default: the newest model.")
]


Tasks = Annotated[
    str | None, typer.Option("--tasks", metavar="A,B", help="Only these tasks; default: those of the settings.")
]
AllowWeak = Annotated[
    bool, typer.Option("--allow-weak-isolation", help="Run what the model wrote even where it is not closed off well.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Keep what an interrupted evaluation has finished.")]


@command(app, "bpb", "nanochat eval bpb demo/base")
def evaluate_bpb(
    invocation: Invocation, model: Model = None, overrides: Overrides = None, cluster: Cluster = ALONE
) -> int:
    """Bits per byte on the validation text."""
    return evaluate("bpb", invocation, model, overrides, cluster)


@command(app, "core", "nanochat eval core d20/base --max-per-task 500")
def evaluate_core(
    invocation: Invocation,
    model: Model = None,
    max_per_task: Annotated[
        int | None, typer.Option("--max-per-task", metavar="N", help="Questions of one task; default: all.")
    ] = None,
    tasks: Tasks = None,
    log_samples: Annotated[
        bool, typer.Option("--log-samples", help="Write every prediction beside its score: eval/core/*.jsonl.")
    ] = False,
    resume: Resume = False,
    overrides: Overrides = None,
    cluster: Cluster = ALONE,
) -> int:
    """CORE: the 22 tasks of the DCLM bundle, for a base model."""
    told = [*(overrides or ())]
    told += [f"eval.max_per_task={max_per_task}"] if max_per_task is not None else []
    told += [f"eval.core_tasks={tasks}"] if tasks else []
    flags = ("--log-samples",) if log_samples else ()
    return evaluate("core", invocation, model, told, cluster, resume, flags)


@command(app, "chat", "nanochat eval chat demo/sft --samples 8")
def evaluate_chat(
    invocation: Invocation,
    model: Model = None,
    tasks: Tasks = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="K", help="Answers to each question of a generative task."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", help="Of the answers; default with --samples: 0.8.")
    ] = None,
    resume: Resume = False,
    allow_weak: AllowWeak = False,
    overrides: Overrides = None,
    cluster: Cluster = ALONE,
) -> int:
    """The chat tasks of eval.tasks, and their centred mean: ChatCORE."""
    told = add_isolation(overrides, allow_weak)
    told += [f"eval.tasks={tasks}"] if tasks else []
    if samples is not None:
        told.append(f"eval.answers_each={samples}")
        if temperature is None and samples > 1 and not any(text.startswith("eval.temperature") for text in told):
            temperature = SAMPLES_TEMPERATURE
    told += [f"eval.temperature={temperature}"] if temperature is not None else []
    return evaluate("chat", invocation, model, told, cluster, resume)


@command(app, "all", "nanochat eval all demo")
def evaluate_all(
    invocation: Invocation,
    model: Model = None,
    resume: Resume = False,
    allow_weak: AllowWeak = False,
    overrides: Overrides = None,
    cluster: Cluster = ALONE,
) -> int:
    """Every score that suits the model and whose data is at hand: bpb, CORE, chat."""
    return evaluate("all", invocation, model, add_isolation(overrides, allow_weak), cluster, resume)


def evaluate(
    score: str,
    invocation: Invocation,
    model: str | None,
    overrides: list[str] | None,
    cluster: Cluster,
    resume: bool = False,
    flags: tuple[str, ...] = (),
) -> int:
    """Find the model, run the evaluation, show what it wrote. flags: options that the worker has by the same name."""
    if score == "core":
        check_bundle(invocation.workspace.core)
    found = invocation.workspace.resolve_model(model)
    if found.run is None:
        raise UsageError(f"{model} is a bare checkpoint; scores belong to a run", "nanochat runs ls")
    target = choose_target(invocation, run=found.run.name, overrides=overrides, free=MEASURED, trains=False)
    check_evaluation(score, found, target)
    if score in ("core", "all") and has_bundle(invocation.workspace.core):
        load_bundle(invocation.workspace.core, target.settings.eval.core_tasks)
    if score in ("chat", "all"):
        check_downloads(invocation, target, ["eval"])
        check_tasks(invocation, target)
    if score in ("bpb", "all"):
        check_dataset(invocation, target.settings.data.dataset, target.choice)
    check_devices(target.settings.runtime.device, cluster)
    kept = ("--keep-finished",) if resume else ()
    of = f"{found.stage}@{found.step}" if found.is_exact else str(found.stage)  # a damaged newest one has a substitute
    options = ("--of", of, "--score", score, *kept, *flags, *override_options(target))
    overrides_again = [word for item in overrides or [] for word in ("--set", item)]
    again = (
        "eval",
        score,
        f"{found.run.name}/{of}",
        *flags,
        *(("--resume",) if score != "bpb" else ()),
        *overrides_again,
    )
    unchanged = replace(target, changed={})  # the run's settings stay as they are
    code = start("evaluate", invocation, unchanged, cluster, options, again)
    if code or invocation.dry_run:
        return code
    show_scores(invocation, [item for item in list_scores(found.run) if item.get("stage") == found.stage])
    invocation.console.suggest(f"nanochat report {found.run.name}")
    return 0


def add_isolation(overrides: list[str] | None, allow_weak: bool) -> list[str]:
    """The overrides with `--allow-weak-isolation` as one of them."""
    return [*(overrides or ()), *(["eval.allow_weak_isolation=true"] if allow_weak else [])]


def check_tasks(invocation: Invocation, target: Target) -> None:
    """Raise where a chat task to be scored cannot be built, or where its code cannot be closed off on this machine."""
    from nanochat.tasks.catalog import build_task

    check_code(target)
    for name in target.settings.eval.tasks:
        build_task(name, "test", 1, folder=invocation.workspace.tasks)


def check_code(target: Target) -> None:
    """Raise UsageError where a task runs what the model wrote and this machine cannot close that off."""
    from nanochat.tasks.catalog import RUN_CODE
    from nanochat.tools.sandbox.probe import require_isolation

    if RUN_CODE.intersection(target.settings.eval.tasks):
        require_isolation(target.settings.eval.allow_weak_isolation)


def check_evaluation(score: str, model: ModelPath, target: Target) -> None:
    """Raise UsageError where these scores do not suit the model."""
    if score == "chat" and model.stage == "base":
        raise UsageError(
            f"{model} has not seen conversations: chat tasks need a mid or sft model",
            f"nanochat eval bpb {model}  # or eval core {model}",
        )
    if score == "chat" and not target.settings.eval.tasks:
        raise UsageError("there is no chat task to score", f"nanochat eval chat {model} --tasks letters,arithmetic")


def list_scores(run: RunPaths) -> list[dict[str, Any]]:
    """The scores of a run, in the order of their files; damaged ones are left out."""
    scores = []
    for path in sorted(run.eval.glob("*.json"), key=lambda path: path.stem):  # the one that counts comes first
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if is_score(value):
            scores.append(value)
    return scores


def is_number(value: object) -> TypeGuard[float]:
    """A finite number that is no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_score(value: object) -> bool:
    """Whether what a score file holds can be shown: each number of it is one, and each list."""
    if not isinstance(value, dict):
        return False
    numbers = [value.get(key) for key in ("bpb", "accuracy", "value", "stderr", "total", "num_tokens", "answers_each")]
    lists = [value.get(key) for key in ("core_tasks", "tasks")]
    shares = value.get("pass_at") or {}
    tasks = value.get("core_tasks")
    return (
        all(number is None or is_number(number) for number in numbers)
        and all(found is None or isinstance(found, list) for found in lists)
        and isinstance(value.get("missing") or {}, (dict, list))
        and isinstance(shares, dict)
        and all(is_number(share) for share in shares.values())
        and all(
            isinstance(task, dict)
            and all(is_number(task.get(key)) for key in ("accuracy", "stderr", "total", "centred"))
            for task in tasks or ()
        )
    )


def are_scores_done(run: RunPaths, settings: "Settings", stage: str = "sft") -> bool:
    """Whether the final model of a stage has its bits per byte, all chat tasks and their mean, as the settings say."""
    wish, names, means = settings.eval, {}, []
    for score in _final_scores(run, stage):
        name = str(score.get("name")).removesuffix(f" x{score.get('answers_each')}")
        if covers(score, wish):
            names |= {name: name, score.get("task", name): name}  # a class of the user's may have a name of its own
            means += [score["tasks"]] if isinstance(score.get("tasks"), list) else []
    has_mean = any({names.get(task) for task in wish.tasks} <= set(tasks) for tasks in means)
    return is_text_scored(run, settings, stage) and set(wish.tasks) <= set(names) and (has_mean or not means)


def is_text_scored(run: RunPaths, settings: "Settings", stage: str) -> bool:
    """Whether the final model of a stage has its bits per byte, on as many tokens as the settings say or more."""
    wish = settings.base.eval_tokens
    scores = [score for score in _final_scores(run, stage) if str(score.get("name")).partition("-")[0] == "bpb"]
    return any(_is_enough(_table(score.get("measured")).get("eval_tokens", wish), wish) for score in scores)


def covers(score: dict[str, Any], wish: "EvalSettings") -> bool:
    """Whether a chat score was measured as wished, on as many questions or more. What it does not say, it is."""
    from nanochat.config.settings import SAMPLED

    had = _table(score.get("settings"))
    is_same = all(had.get(key, getattr(wish, key)) == getattr(wish, key) for key in SAMPLED)
    return is_same and _is_enough(had.get("max_examples", wish.max_examples), wish.max_examples)


def is_core_done(run: RunPaths, tasks: list[str], max_per_task: int | None) -> bool:
    """Whether the final base model has its CORE, or the mean of the tasks that there were, with these or more."""
    for score in _final_scores(run, "base"):
        had = _table(score.get("settings"))
        is_same = "core_tasks" in score and had.get("core_tasks") == tasks and "max_per_task" in had
        if is_same and _is_enough(had["max_per_task"], max_per_task):
            return True
    return False


def _is_enough(had: object, wish: int | None) -> bool:
    """Whether a limit is not below the one that is wished for; None: no limit."""
    return had is None or (wish is not None and is_number(had) and had >= wish)


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _final_scores(run: RunPaths, stage: str) -> list[dict[str, Any]]:
    """The scores of the model that a finished stage has left."""
    step = read_result(run, stage).get("step")
    found = [score for score in list_scores(run) if score.get("stage") == stage and score.get("step") == step]
    try:
        manifest = run.stage(stage).checkpoint(step) / MANIFEST if isinstance(step, int) else Path()
        weights = json.loads(manifest.read_text(encoding="utf-8"))["files"][MODEL]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # it is not kept, or damaged
        return found
    return [score for score in found if score.get("model_sha256", weights) == weights]


def show_scores(invocation: Invocation, scores: list[dict[str, Any]]) -> None:
    """A line for each score, or JSON without the samples."""
    if invocation.as_json:
        invocation.console.show_json([{k: v for k, v in score.items() if k != "samples"} for score in scores])
        return
    rows = []
    for score in scores:
        value, error = score.get("bpb", score.get("accuracy", score.get("value"))), score.get("stderr")
        scale, digits, unit = (100, 1, "%") if "accuracy" in score else (1, 4, "")
        shown = f"{scale * value:.{digits}f}{unit}" if is_number(value) else "-"
        shown_error = f"+- {scale * error:.{digits}f}" if is_number(error) else ""
        name = f"{score.get('stage')}@{score.get('step')}"
        rows.append((name, f"{score.get('name')}", shown, shown_error, _describe_extent(score)))
        rows += [
            (
                name,
                f"  {task['label']}",
                f"{100 * task['accuracy']:.1f}%",
                f"+- {100 * task['stderr']:.1f}",
                f"of {task['total']}, centred {task['centred']:.3f}",
            )  # fmt: skip
            for task in score.get("core_tasks") or ()
        ]
        shares = score.get("pass_at") or {}
        rows += [(name, f"  pass@{k}", f"{100 * share:.1f}%", "", "") for k, share in shares.items()]
    invocation.console.show(format_table(rows, right=[2, 3]))


def _describe_extent(score: dict[str, Any]) -> str:
    """What a score was measured on, and whether another one counts."""
    note = "" if score.get("counts", True) else "; another one counts"
    return f"{_describe_size(score)}{note}"


def _describe_size(score: dict[str, Any]) -> str:
    if score.get("total"):
        answers = f" x {score['answers_each']} answers" if score.get("answers_each", 1) > 1 else ""
        tools = f", {score['with_tool']} with a tool" if score.get("with_tool") else ""
        return f"of {score['total']}{answers}{tools}"
    if score.get("num_tokens"):
        return f"on {score['num_tokens']:,} tokens"
    if score.get("missing"):
        return f"without {', '.join(score['missing'])}"
    return f"over {', '.join(score['tasks'])}" if score.get("tasks") else ""
