"""What the answers of a step say: numbers for the metrics, a line for each, warnings where practice goes wrong."""

from collections.abc import Sequence
from typing import Any

from nanochat.config.settings import RlSettings
from nanochat.data.policy import compute_advantages
from nanochat.evals.rollouts import Group
from nanochat.tasks.task import Task

STREAK = 3
"""Steps in a row before a warning: a single one happens by chance."""
MUCH_TRUNCATED = 0.5
"""Share of answers cut for their length from which on it is the length that is learnt from."""


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
    """Warns where steps teach nothing or the wrong thing; once, until it has been well again."""

    def __init__(self, settings: RlSettings) -> None:
        self._settings = settings
        self._streaks: dict[str, int] = {}

    def look(self, step: int, facts: dict[str, Any]) -> list[str]:
        """Sentences for the step that has just been sampled."""
        wish = self._settings
        longer = f"--set rl.max_new_tokens={2 * wish.max_new_tokens}"
        found = {
            "no signal": (
                facts["zero_variance"] == 1,
                f"the answers to each question were all right or all wrong ({facts['reward']:.0%} right): "
                "such a step has no gradient and changes nothing",
            ),
            "cut": (
                facts["truncated"] >= MUCH_TRUNCATED,
                f"{facts['truncated']:.0%} of answers were cut at {wish.max_new_tokens} tokens: {longer}, in a new run",
            ),
            "collapse": (
                facts["one_answer"] == 1 and facts["reward"] < 1,
                f"every question got one and the same answer {wish.samples_per_question} times, and not all are right: "
                "the model has stopped trying others",
            ),
        }
        sentences = []
        for name, (is_so, sentence) in found.items():
            self._streaks[name] = self._streaks.get(name, 0) + 1 if is_so else 0
            if self._streaks[name] == STREAK:
                sentences.append(f"warning: steps {step - STREAK + 1} to {step}: {sentence}")
        return sentences
