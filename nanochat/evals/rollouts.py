"""Rollouts: several sampled answers to each of some questions, with tools, each graded.

Knows neither files nor settings nor what the answers are for: practice, a check or pass@k.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.conversation import Message
from nanochat.engine.sampling import SamplingParams
from nanochat.evals.chat import Progress, generate_answers, show_parts, split_parts, without_answer
from nanochat.evals.passk import estimate_pass_at_k, list_ks
from nanochat.runtime import World
from nanochat.tasks.task import Task
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat import render, render_prompt


@dataclass(frozen=True)
class SamplingPlan:
    """How answers are sampled. seed: a text; with it, the same model gives the same answers to the same questions."""

    num_samples: int
    seed: str
    temperature: float = 1.0
    top_k: int | None = 50
    max_new_tokens: int = 256
    batch_size: int = 128


@dataclass(frozen=True)
class Rollout:
    """One answer. ids: the prompt and the answer with its stop token; chosen: those that the model chose itself.

    num_tokens: of the answer, tool output included. truncated: cut for its length. text: for people, tool calls as
    `[2+2 -> 4]`.
    """

    ids: list[int]
    chosen: list[bool]
    num_tokens: int
    truncated: bool
    with_tool: bool
    text: str
    reward: float


@dataclass(frozen=True)
class Group:
    """All answers to one question, which is the number of an example of the task."""

    question: int
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float]:
        return [rollout.reward for rollout in self.rollouts]

    @property
    def num_right(self) -> int:
        return sum(reward > 0 for reward in self.rewards)

    @property
    def has_signal(self) -> bool:
        """Whether some answers are better than others."""
        return min(self.rewards) < max(self.rewards)


def find_fitting(task: Task, tokenizer: Tokenizer, context: int) -> list[int]:
    """Numbers of the examples that fit the context with their right answer."""
    return [index for index in range(task.num_examples()) if len(render(tokenizer, task.example(index))[0]) <= context]


def sample_groups(
    model,
    tokenizer: Tokenizer,
    task: Task,
    questions: Sequence[int],
    plan: SamplingPlan,
    world: World | None = None,
    progress: Progress | None = None,
) -> list[Group]:
    """Answer every question plan.num_samples times; groups come in the order of the questions, on every rank all.

    model: a GPT. questions: numbers of examples whose prompts leave room in the context; one may stand twice.
    progress(done, all) counts this rank's answers. Collective: rank r answers questions r, r + n, ...
    """
    world = world or World()
    places = range(world.rank, len(questions), world.world_size)
    mine = dict(zip(places, _answer(model, tokenizer, task, questions, places, plan, progress), strict=True))
    found: dict[int, Group] = {}
    for part in world.all_gather(mine):
        found |= part
    return [found[place] for place in range(len(questions))]


def _answer(
    model,
    tokenizer: Tokenizer,
    task: Task,
    questions: Sequence[int],
    places: Sequence[int],
    plan: SamplingPlan,
    progress: Progress | None,
) -> list[Group]:
    examples = [task.example(questions[place]) for place in places]
    prompts = [render_prompt(tokenizer, without_answer(example)) for example in examples]
    asked, params = [], []
    for place, prompt in zip(places, prompts, strict=True):
        for sample in range(plan.num_samples):  # answers to one question stand together: they share the prompt's keys
            seed = random.Random(f"{plan.seed}/{place}/{sample}").getrandbits(62)
            asked.append(prompt)
            params.append(SamplingParams(plan.temperature, plan.top_k, seed=seed, max_new_tokens=plan.max_new_tokens))
    answers = generate_answers(model, tokenizer, asked, params, plan.batch_size, progress)
    groups = []
    for row, place in enumerate(places):
        rollouts = []
        for answer in answers[row * plan.num_samples : (row + 1) * plan.num_samples]:
            parts = split_parts(tokenizer, answer.ids)
            said = Message("assistant", parts).text
            rollouts.append(
                Rollout(
                    ids=[*prompts[row], *answer.ids],
                    chosen=[False] * len(prompts[row]) + [not value for value in answer.forced],
                    num_tokens=len(answer.ids),
                    truncated=answer.finish == "length",
                    with_tool=any(answer.forced),
                    text=show_parts(parts),
                    reward=float(bool(task.evaluate(examples[row], said))),
                )
            )
        groups.append(Group(questions[place], tuple(rollouts)))
    return groups


def measure_pass_at_k(groups: Sequence[Group]) -> dict[str, float]:
    """`pass_at_1`, `pass_at_2`, `pass_at_4`, ... up to all answers, as means over the questions.

    pass_at_1_stderr is the standard error of that mean.
    """
    num_samples = len(groups[0].rollouts)
    values = {}
    for k in list_ks(num_samples):
        each = [estimate_pass_at_k(num_samples, group.num_right, k) for group in groups]
        values[f"pass_at_{k}"] = sum(each) / len(each)
        if k == 1 and len(each) > 1:
            variance = sum((value - values["pass_at_1"]) ** 2 for value in each) / (len(each) - 1)
            values["pass_at_1_stderr"] = math.sqrt(variance / len(each))
    return values
