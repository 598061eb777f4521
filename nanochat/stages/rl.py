"""Reinforcement learning: the sft model answers questions, and right answers become more likely than wrong ones.

An on-policy policy gradient (Williams 1992, "REINFORCE") with each question's mean reward as the baseline; no KL term
and no clipping, which need a second model or a second pass and buy nothing where every answer is used once.
"""

from dataclasses import asdict, replace
from typing import Any

import nanochat
from nanochat.config.plan import plan_rl
from nanochat.errors import CheckError, DataError, UsageError
from nanochat.evals.chat import spread_indices
from nanochat.evals.rollouts import find_fitting, measure_pass_at_k
from nanochat.evals.samples import sample_answers
from nanochat.model.attention import varied_lengths
from nanochat.model.gpt import GPT
from nanochat.stages.assemble import check_tokenizer, load_newest, open_tokenizer, read_config
from nanochat.stages.course import Course, run_course
from nanochat.stages.display import Display
from nanochat.stages.finetune import find_source
from nanochat.stages.fit import fit_batch
from nanochat.stages.job import Job
from nanochat.stages.practice import Practice, Questions
from nanochat.stages.rollout_facts import describe_groups
from nanochat.tasks.graded import build_graded
from nanochat.training.loop import TrainState
from nanochat.training.metrics import MetricsFile
from nanochat.training.rollout_files import RolloutFiles


def run_rl(job: Job, display: Display) -> dict[str, Any]:
    """Practise on rl.task, starting from the sft model; returns the result. Collective: every rank calls this.

    Raises MissingError where sft is not done, UsageError where the task gives no rewards, and CheckError where the
    model never succeeds before the first step.
    """
    wish, world = job.settings.rl, job.world
    if wish.task is None:
        raise UsageError("rl.task is unset: there is nothing to practise on", "--set rl.task=arithmetic")
    source, checkpoint = load_newest(world.ask_main(lambda: find_source(job, "sft")), display.say, world)
    tokenizer = open_tokenizer(job)
    check_tokenizer(checkpoint.meta, tokenizer, str(source))
    config = read_config(checkpoint.meta, str(source))
    folder = job.workspace.tasks
    task, test = (build_graded(wish.task, split, folder=folder) for split in ("train", "test"))
    numbers = find_fitting(task, tokenizer, config.context)
    if not numbers:
        raise DataError(
            f"none of the {task.num_examples():,} questions of {wish.task} fits the context of {config.context} tokens",
            "nanochat run --run NAME --set model.context=...  # a new run with a longer one",
        )
    fitting = find_fitting(test, tokenizer, config.context)
    tested = [fitting[place] for place in spread_indices(len(fitting), wish.eval_questions)]
    job = fit_batch(_uncompiled(job), "rl", config, display)
    plan = plan_rl(job.settings, world.world_size, len(numbers), config)
    files = RolloutFiles(job.run.stage("rl").root / "rollouts", wish.keep_rollouts)
    practice = Practice(
        job,
        wish,
        task,
        tokenizer,
        Questions(numbers, job.settings.runtime.seed),
        plan.device_batch_size * config.context,
        files,
        display,
    )

    def begin(model: GPT, state: TrainState) -> None:
        practice.model = model
        if world.is_main:
            files.truncate(state.step)
        if state.step == 0 and wish.check_questions:
            model.eval()
            check_signal(practice, display)

    def measure(model: GPT) -> dict[str, Any]:
        if not tested:
            return {"pass_at_1": None}
        groups = practice.sample(test, tested, practice.plan("pass@k", wish.eval_samples), "pass@k")
        display.finish()
        values = measure_pass_at_k(groups)
        shown = ", ".join(f"pass@{k} {100 * values[f'pass_at_{k}']:.1f}%" for k in list_ks(values))
        display.say(f"{shown} of {len(tested)} test questions, {wish.eval_samples} answers to each")
        return values | {"eval_questions": len(tested), "eval_truncated": describe_groups(groups)["truncated"]}

    def describe() -> dict[str, Any]:
        if practice.without_signal:
            display.say(f"{practice.without_signal:,} of {practice.step:,} steps had no gradient and changed nothing")
        scores = world.ask_main(lambda: MetricsFile(job.run.stage("rl").metrics).values("pass_at_1"))
        before, after = scores.get(0), scores.get(plan.num_steps)
        if before is not None and after is not None and after < before:
            display.say(describe_loss(before, after, str(source)))
        return {
            "task": wish.task,
            "pass_at_1_before": before,
            "pass_at_1": after,
            "questions": len(numbers),
            "too_long": task.num_examples() - len(numbers),
            "without_signal": practice.without_signal,
        }

    notes = [f"rewards of {wish.task}: {len(numbers):,} training questions, {len(tested)} test questions"]
    if len(numbers) < task.num_examples():
        notes.append(f"{task.num_examples() - len(numbers):,} questions are left out: longer than the context")
    course = Course(
        stage="rl",
        settings=wish,
        config=config,
        tokenizer=tokenizer,
        num_steps=plan.num_steps,
        num_microbatches=plan.num_microbatches,
        plan=asdict(plan) | {"nanochat_version": nanochat.__version__},
        start=lambda: checkpoint.model,
        open_loader=practice.restore,
        sample=lambda model: sample_answers(model, tokenizer),
        describe_data=describe,
        source=str(source),
        notes=tuple(notes),
        begin=begin,
        take=practice.take,
        measure=measure,
        scored_by="pass_at_1",
        higher_is_better=True,
        describe_step=lambda: practice.facts,
        extent=f"{plan.num_steps:,} steps of {wish.questions_per_step} questions x {wish.samples_per_question} answers "
        f"of at most {wish.max_new_tokens} tokens",
        uncompiled="answers have other lengths every time",
    )
    with varied_lengths():
        return run_course(job, course, display)


def describe_loss(before: float, after: float, source: str) -> str:
    """
    >>> describe_loss(0.5, 0.4, "demo/sft@650")
    'practice did not help: pass@1 was 50.0% and is 40.0%; `nanochat chat demo/sft@650` is the model before it'
    """
    was, now = (f"{100 * share:.1f}%" for share in (before, after))
    return f"practice did not help: pass@1 was {was} and is {now}; `nanochat chat {source}` is the model before it"


def check_signal(practice: Practice, display: Display) -> None:
    """Raise CheckError where the model answers no training question right. Collective: every rank calls this.

    Says so where there is as little to learn because every answer is right.
    """
    wish = practice.settings
    numbers = practice.questions.order(-1)[: wish.check_questions]
    groups = practice.sample(practice.task, numbers, practice.plan("check"), "check")
    display.finish()
    facts = describe_groups(groups)
    num_answers, num_right = len(groups) * wish.samples_per_question, sum(group.num_right for group in groups)
    mixed = sum(group.has_signal for group in groups)
    counts = f"{num_right:,} of {num_answers:,} answers to {len(groups)} questions of {wish.task}"
    if num_right == 0:
        cut = f"; {facts['truncated']:.0%} were cut at {wish.max_new_tokens} tokens" if facts["truncated"] else ""
        name = practice.job.run.name
        raise CheckError(
            f"{counts} are right{cut}: without a success there is nothing to learn from",
            f"nanochat eval chat {name}/sft  # then more sft in a new run; or --set rl.check_questions=0",
        )
    display.say(f"check: {counts} are right; {mixed} questions got right and wrong ones")
    if mixed == 0:
        display.say(
            "warning: no question got right and wrong answers, and only those teach something"
            + (": the model knows all of it" if num_right == num_answers else "")
        )


def list_ks(values: dict[str, Any]) -> list[int]:
    """
    >>> list_ks({"pass_at_1": 0.5, "pass_at_1_stderr": 0.1, "pass_at_4": 0.9})
    [1, 4]
    """
    return [int(name.removeprefix("pass_at_")) for name in values if name.removeprefix("pass_at_").isdigit()]


def _uncompiled(job: Job) -> Job:
    """The rows of a step have another length every time: compiled kernels of a shape would hardly be used twice."""
    runtime = job.settings.runtime.model_copy(update={"compile": False})
    return replace(job, settings=job.settings.model_copy(update={"runtime": runtime}))
