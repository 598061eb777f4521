"""Reinforcement learning: the sft model answers questions, and right answers become more likely than wrong ones.

An on-policy policy gradient (Williams 1992, "REINFORCE") with each question's mean reward as the baseline; no KL term
and no clipping, which need a second model or a second pass and buy nothing where every answer is used once.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanochat.config.plan import plan_rl
from nanochat.config.settings import RlSettings
from nanochat.data.batch import WeightedBatch
from nanochat.data.cursor import HASH, name_changes
from nanochat.data.policy import PolicyRow, build_policy_batches, compute_advantages
from nanochat.errors import CheckError, DataError, UsageError
from nanochat.evals.chat import spread_indices
from nanochat.evals.passk import list_ks
from nanochat.evals.rollouts import Group, SamplingPlan, find_fitting, measure_pass_at_k, sample_groups
from nanochat.evals.samples import Sample, sample_answers
from nanochat.model.attention import varied_lengths
from nanochat.model.gpt import GPT
from nanochat.runtime import any_kernels
from nanochat.stages.stage import Stage
from nanochat.tasks.graded import build_graded
from nanochat.tasks.task import Task
from nanochat.training.loop import Pace
from nanochat.training.metrics import RolloutFiles

STREAK = 3
"""Steps in a row before a warning: a single one happens by chance."""
MUCH_TRUNCATED = 0.5
"""Share of answers cut for their length from which on it is the length that is learnt from."""


@dataclass(frozen=True)
class Questions:
    """Numbers of the examples to practise on, in an order of its own every epoch."""

    numbers: Sequence[int]
    seed: int

    def of_step(self, step: int, count: int) -> list[int]:
        """The questions of a step, which counts from 0; the epochs follow each other without a gap."""
        first, offset = divmod(step * count, len(self.numbers))
        num_epochs = math.ceil((offset + count) / len(self.numbers))
        numbers = [number for epoch in range(first, first + num_epochs) for number in self.order(epoch)]
        return numbers[offset : offset + count]

    def order(self, epoch: int) -> list[int]:
        shuffled = list(self.numbers)
        random.Random(f"rl/{self.seed}/{epoch}").shuffle(shuffled)
        return shuffled


class Practice(Stage):
    """Practise on rl.task, starting from the sft model.

    The questions follow from the seed and the step alone, and so do the random numbers of sampling: a resumed run asks
    and answers the same, bit for bit. Raises MissingError if sft is not done, UsageError if the task gives no
    rewards, and CheckError if the model never succeeds before the first step.
    """

    scored_by = "pass_at_1"
    higher_is_better = True
    measures_first = True
    uncompiled = "answers have other lengths every time"
    options: RlSettings

    def run(self) -> dict[str, Any]:
        with varied_lengths():
            return super().run()

    def prepare(self) -> None:
        options, folder = self.options, self.job.workspace.tasks
        if options.task is None:
            raise UsageError("rl.task is unset: there is nothing to practise on", "--set rl.task=arithmetic")
        self.open_source()
        context = self.config.context
        self.task, self.test = (build_graded(options.task, split, folder=folder) for split in ("train", "test"))
        numbers = find_fitting(self.task, self.tokenizer, context)
        if not numbers:
            count = f"none of the {self.task.num_examples():,} questions of {options.task}"
            hint = "nanochat run --run NAME --set model.context=...  # a new run with a longer one"
            raise DataError(f"{count} fits the context of {context} tokens", hint)
        fitting = find_fitting(self.test, self.tokenizer, context)
        self.tested = [fitting[place] for place in spread_indices(len(fitting), options.eval_questions)]
        self.fit_rows()
        self.plan = plan_rl(self.job.settings, self.world.world_size, len(numbers), self.config)
        self.files = RolloutFiles(self.paths.root / "rollouts", options.keep_rollouts)
        self.questions = Questions(numbers, self.job.settings.runtime.seed)
        # The place of the data, which the cursor keeps: questions are asked before the loop counts the step.
        self.num_asked, self.without_signal = 0, 0
        self.facts: dict[str, Any] = {}
        self.watch = Watch(options)
        self.data_hash = self.task.content_hash()
        counts = f"{len(numbers):,} training questions, {len(self.tested)} test questions"
        self.notes = [f"rewards of {options.task}: {counts}"]
        if self.num_left_out:
            self.notes.append(f"{self.num_left_out:,} questions are left out: longer than the context")

    @property
    def num_left_out(self) -> int:
        return self.task.num_examples() - len(self.questions.numbers)

    def begin(self) -> None:
        if self.world.is_main:
            self.files.truncate(self.state.step)
        if self.state.step == 0 and self.options.check_questions:
            self.model.eval()
            self.check_signal()

    def open_data(self, cursor: dict | None) -> str:
        if cursor is None:
            return ""
        self.num_asked, self.without_signal = int(cursor["step"]), int(cursor["without_signal"])
        return name_changes(cursor, {HASH: self.data_hash}, "the questions are others")

    def cursor(self) -> dict[str, Any]:
        return {"step": self.num_asked, "without_signal": self.without_signal, HASH: self.data_hash}

    def microbatches(self) -> Sequence[WeightedBatch]:
        """Sample the answers of the next step and make this rank's micro-batches; [] where nothing can be learnt."""
        world, started = self.world, time.perf_counter()
        questions = self.questions.of_step(self.num_asked, self.options.questions_per_step)
        groups = self.sample_groups(self.task, questions, self.plan_sampling(str(self.num_asked)))
        seconds = time.perf_counter() - started
        self.num_asked += 1
        self.without_signal += not any(group.has_signal for group in groups)
        if world.is_main:
            self.files.write(self.num_asked, list_records(self.num_asked, self.task, groups))
        self.facts = describe_groups(groups) | {
            "without_signal": self.without_signal,
            "rollout_seconds": round(seconds, 3),
            "rollout_tokens_per_second": round(sum(r.num_tokens for g in groups for r in g.rollouts) / seconds, 1),
        }
        for warning in self.watch.look(self.num_asked, self.facts):
            self.say(warning)
        rows = [
            PolicyRow(rollout.ids, rollout.chosen, advantage)
            for group in groups
            for rollout, advantage in zip(group.rollouts, compute_advantages(group.rewards), strict=True)
        ]
        max_tokens = self.plan.device_batch_size * self.config.context
        return build_policy_batches(rows, max_tokens, self.tokenizer.bos_id, world.rank, world.world_size)

    def plan_sampling(self, purpose: str, num_samples: int | None = None) -> SamplingPlan:
        """How to sample. purpose: what tells these random numbers from all others of the run."""
        options = self.options
        return SamplingPlan(
            num_samples or options.samples_per_question,
            f"rl/{self.job.settings.runtime.seed}/{purpose}",
            options.temperature,
            options.top_k,
            options.max_new_tokens,
            options.batch_size,
        )

    def sample_groups(self, task: Task, questions: Sequence[int], plan: SamplingPlan, name: str = "") -> list[Group]:
        """Answers of the model as it is now. name: what the progress display calls it; "" shows none."""

        def progress(done: int, total: int) -> None:
            self.job.progress(self.num_asked, f"answer {done} of {total}")
            if name:
                self.job.display.advance(name, done, total, "answers")

        with any_kernels():
            sampler = self.model.cast_weights()  # anew each time: never the weights of a step before
            groups = sample_groups(sampler, self.tokenizer, task, questions, plan, self.world, progress)
        if name:
            self.job.display.finish()
        return groups

    def measure(self) -> dict[str, Any]:
        if not self.tested:
            return {"pass_at_1": None}
        num_samples = self.options.eval_samples
        groups = self.sample_groups(self.test, self.tested, self.plan_sampling("pass@k", num_samples), "pass@k")
        values = measure_pass_at_k(groups)
        shown = ", ".join(f"pass@{k} {100 * values[f'pass_at_{k}']:.1f}%" for k in list_ks(num_samples))
        self.say(f"{shown} of {len(self.tested)} test questions, {num_samples} answers to each")
        return values | {"eval_questions": len(self.tested), "eval_truncated": describe_groups(groups)["truncated"]}

    def sample(self, model: GPT) -> Sequence[Sample]:
        return sample_answers(model, self.tokenizer)

    def describe_step(self) -> dict[str, Any]:
        return self.facts

    def describe_extent(self) -> str:
        options = self.options
        return (
            f"{self.num_steps:,} steps of {options.questions_per_step} questions x {options.samples_per_question} "
            f"answers of at most {options.max_new_tokens} tokens"
        )

    def set_pace(self) -> Pace:
        """Without FLOPs: a step's time is that of sampling."""
        return replace(super().set_pace(), flops_per_token=None)

    def describe_data(self) -> dict[str, Any]:
        if self.without_signal:
            self.say(f"{self.without_signal:,} of {self.num_asked:,} steps had no gradient and changed nothing")
        scores = self.world.ask_main(lambda: self.metrics.values("pass_at_1"))
        before, after = scores.get(0), scores.get(self.num_steps)
        if before is not None and after is not None and after < before:
            self.say(describe_loss(before, after, self.source))
        return {
            "task": self.options.task,
            "pass_at_1_before": before,
            "pass_at_1": after,
            "questions": len(self.questions.numbers),
            "too_long": self.num_left_out,
            "without_signal": self.without_signal,
        }

    def check_signal(self) -> None:
        """Raise CheckError if the model answers no training question right; say so if it answers all of them right."""
        options, name = self.options, self.job.run.name
        numbers = self.questions.order(-1)[: options.check_questions]
        groups = self.sample_groups(self.task, numbers, self.plan_sampling("check"), "check")
        facts = describe_groups(groups)
        num_answers, num_right = len(groups) * options.samples_per_question, sum(group.num_right for group in groups)
        mixed = sum(group.has_signal for group in groups)
        counts = f"{num_right:,} of {num_answers:,} answers to {len(groups)} questions of {options.task}"
        if num_right == 0:
            share = facts["truncated"]
            cut = f"; {share:.0%} were cut at {options.max_new_tokens} tokens" if share else ""
            raise CheckError(
                f"{counts} are right{cut}: without a success there is nothing to learn from",
                f"nanochat eval chat {name}/sft  # then more sft in a new run; or --set rl.check_questions=0",
            )
        self.say(f"check: {counts} are right; {mixed} questions got right and wrong ones")
        if mixed == 0:
            self.say(
                "warning: no question got right and wrong answers, and only those teach something"
                + (": the model knows all of it" if num_right == num_answers else "")
            )


def describe_loss(before: float, after: float, source: str) -> str:
    """
    >>> describe_loss(0.5, 0.4, "demo/sft@650")
    'practice did not help: pass@1 was 50.0% and is 40.0%; `nanochat chat demo/sft@650` is the model before it'
    """
    was, now = (f"{100 * share:.1f}%" for share in (before, after))
    return f"practice did not help: pass@1 was {was} and is {now}; `nanochat chat {source}` is the model before it"


def describe_groups(groups: Sequence[Group]) -> dict[str, Any]:
    """Shares and means over the answers of a step; the shares of zero variance and of one answer are of questions."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    num_answers, num_groups = len(rollouts), len(groups)
    return {
        "reward": sum(r.reward for r in rollouts) / num_answers,
        "solved": sum(group.num_right > 0 for group in groups) / num_groups,
        "zero_variance": sum(not group.has_signal for group in groups) / num_groups,
        "one_answer": sum(len({r.text for r in group.rollouts}) == 1 for group in groups) / num_groups,
        "truncated": sum(r.truncated for r in rollouts) / num_answers,
        "with_tool": sum(r.with_tool for r in rollouts) / num_answers,
        "answer_tokens": sum(r.num_tokens for r in rollouts) / num_answers,
        "longest_answer": max(r.num_tokens for r in rollouts),
    }


def list_records(step: int, task: Task, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """A line for each answer, as `nanochat rl show` reads them."""
    records = []
    for group in groups:
        example = task.example(group.question)
        advantages = compute_advantages(group.rewards)
        for number, (rollout, advantage) in enumerate(zip(group.rollouts, advantages, strict=True)):
            records.append(
                {
                    "step": step,
                    "question": group.question,
                    "prompt": example.messages[-2].text,
                    "right": example.messages[-1].text,
                    "sample": number,
                    "answer": rollout.text,
                    "reward": rollout.reward,
                    "advantage": round(advantage, 6),
                    "tokens": rollout.num_tokens,
                    "forced": rollout.num_tokens - sum(rollout.chosen),
                    "truncated": rollout.truncated,
                }
            )
    return records


class Watch:
    """Warns if steps teach nothing or the wrong thing; once, until it has been well again."""

    def __init__(self, options: RlSettings) -> None:
        self._options = options
        self._streaks: dict[str, int] = {}

    def look(self, step: int, facts: dict[str, Any]) -> list[str]:
        """Sentences for the step that has just been sampled."""
        limit, num_samples = self._options.max_new_tokens, self._options.samples_per_question
        longer = f"--set rl.max_new_tokens={2 * limit}"
        found = {
            "no signal": (
                facts["zero_variance"] == 1,
                f"the answers to each question were all right or all wrong ({facts['reward']:.0%} right): "
                "such a step has no gradient and changes nothing",
            ),
            "cut": (
                facts["truncated"] >= MUCH_TRUNCATED,
                f"{facts['truncated']:.0%} of answers were cut at {limit} tokens: {longer}, in a new run",
            ),
            "collapse": (
                facts["one_answer"] == 1 and facts["reward"] < 1,
                f"every question got one and the same answer {num_samples} times, and not all are right: "
                "the model has stopped trying others",
            ),
        }
        sentences = []
        for name, (is_so, sentence) in found.items():
            self._streaks[name] = self._streaks.get(name, 0) + 1 if is_so else 0
            if self._streaks[name] == STREAK:
                sentences.append(f"warning: steps {step - STREAK + 1} to {step}: {sentence}")
        return sentences
