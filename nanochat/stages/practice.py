"""Practice: the questions of every step of rl, the answers sampled for them, and the batches made of those.

The questions follow from the seed and the step alone, and so do the random numbers of sampling: a resumed run asks and
answers the same, bit for bit.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.config.settings import RlSettings
from nanochat.data.batch import WeightedBatch
from nanochat.data.cursor import HASH, name_changes
from nanochat.data.policy import PolicyRow, build_policy_batches, compute_advantages
from nanochat.evals.rollouts import Group, SamplingPlan, sample_groups
from nanochat.model.gpt import GPT
from nanochat.runtime import any_kernels
from nanochat.stages.display import Display
from nanochat.stages.job import Job
from nanochat.stages.rollout_facts import Watch, describe_groups, list_records
from nanochat.tasks.task import Task
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.training.rollout_files import RolloutFiles


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


class Practice:
    """The source of micro-batches of the rl stage. model: set before the first `take`.

    Collective: every rank calls `take`.
    """

    def __init__(
        self,
        job: Job,
        settings: RlSettings,
        task: Task,
        tokenizer: Tokenizer,
        questions: Questions,
        max_tokens: int,
        files: RolloutFiles,
        display: Display,
    ) -> None:
        self.job, self.settings, self.task, self.tokenizer = job, settings, task, tokenizer
        self.questions, self.max_tokens, self.files, self.display = questions, max_tokens, files, display
        self.model: GPT | None = None
        self.step, self.without_signal = 0, 0
        self.facts: dict[str, Any] = {}
        self.changed = ""
        self._data_hash = task.content_hash()
        self._watch = Watch(settings)

    def restore(self, cursor: dict | None) -> "Practice":
        """Go on where `cursor()` was asked."""
        if cursor is not None:
            self.step, self.without_signal = int(cursor["step"]), int(cursor["without_signal"])
            self.changed = name_changes(cursor, {HASH: self._data_hash}, "the questions are others")
        return self

    def cursor(self) -> dict[str, Any]:
        return {"step": self.step, "without_signal": self.without_signal, HASH: self._data_hash}

    def close(self) -> None:
        """Nothing is open."""

    def plan(self, purpose: str, num_samples: int | None = None) -> SamplingPlan:
        """How to sample. purpose: what tells these random numbers from all others of the run."""
        wish = self.settings
        return SamplingPlan(
            num_samples or wish.samples_per_question,
            f"rl/{self.job.settings.runtime.seed}/{purpose}",
            wish.temperature,
            wish.top_k,
            wish.max_new_tokens,
            wish.batch_size,
        )

    def sample(self, task: Task, questions: Sequence[int], plan: SamplingPlan, name: str = "") -> list[Group]:
        """Answers of the model as it is now. name: what the progress display calls it; "" shows none."""
        assert self.model is not None
        step = self.step

        def progress(done: int, total: int) -> None:
            self.job.progress(step, f"answer {done} of {total}")
            if name:
                self.display.advance(name, done, total, "answers")

        with any_kernels():
            sampler = self.model.cast_weights()  # anew each time: never the weights of a step before
            return sample_groups(sampler, self.tokenizer, task, questions, plan, self.job.world, progress)

    def take(self) -> list[WeightedBatch]:
        """Sample the answers of the next step and make this rank's micro-batches; [] where nothing can be learnt."""
        world, started = self.job.world, time.perf_counter()
        questions = self.questions.of_step(self.step, self.settings.questions_per_step)
        groups = self.sample(self.task, questions, self.plan(str(self.step)))
        seconds = time.perf_counter() - started
        self.step += 1
        self.without_signal += not any(group.has_signal for group in groups)
        if world.is_main:
            self.files.write(self.step, list_records(self.step, self.task, groups))
        self.facts = describe_groups(groups) | {
            "without_signal": self.without_signal,
            "rollout_seconds": round(seconds, 3),
            "rollout_tokens_per_second": round(sum(r.num_tokens for g in groups for r in g.rollouts) / seconds, 1),
        }
        for warning in self._watch.look(self.step, self.facts):
            self.display.say(warning)
        rows = [
            PolicyRow(rollout.ids, rollout.chosen, advantage)
            for group in groups
            for rollout, advantage in zip(group.rollouts, compute_advantages(group.rewards), strict=True)
        ]
        return build_policy_batches(rows, self.max_tokens, self.tokenizer.bos_id, world.rank, world.world_size)
