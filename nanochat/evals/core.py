"""CORE: how well a base model answers the questions of the DCLM bundle, without having been told what a question is.

Knows neither files nor settings. Every score is greedy and every draw is seeded, so the same model and bundle give the
same score on any number of ranks. Sources: Li et al. 2024, "DataComp-LM"; llm-foundry for the three kinds of task.

Legend: N scored tokens, C width, V vocabulary; B rows, P tokens of the longest prefix, T tokens of all tails of a row,
S = P + T, H heads, D head width.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.data.core_bundle import CORE_TASKS, CoreItem, CoreTask
from nanochat.errors import NumericalError
from nanochat.evals.chat import Progress, spread_indices
from nanochat.evals.core_prompt import Question, Tree, iter_questions
from nanochat.model.attention import attend, varied_lengths
from nanochat.model.loss import capped_logits, plan_chunk_tokens
from nanochat.runtime import World
from nanochat.tokenizer.bpe import Tokenizer

BATCH_TOKENS = {"cpu": 1_024, "cuda": 32_768}
"""Tokens of a pass, padding included: as many as keep the device busy. On a CPU more leave its caches: at depth 4 a
token takes 1.4 to 2 times as long in passes of 16,384 as in passes of 1,024."""


@dataclass(frozen=True)
class Prediction:
    """What the model made of one item.

    chosen: the option with the lowest mean loss; None if the item is too long for the context, which is wrong. For
    language modelling 0 where every token was the most likely one, else -1. losses: nats per scored token of each
    option. num_dropped: oldest tokens that were left out.
    """

    index: int
    chosen: int | None
    correct: bool
    losses: tuple[float, ...] = ()
    num_dropped: int = 0


@dataclass(frozen=True)
class TaskScore:
    """A task's accuracy with what is needed to judge it.

    truncated: items that lost tokens of their prompt to the context. too_long: those with an option that does not fit
    at all; they count as wrong.
    """

    label: str
    kind: str
    num_fewshot: int
    correct: int
    total: int
    baseline: float
    truncated: int = 0
    too_long: int = 0

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def stderr(self) -> float:
        """sqrt(p (1 - p) / n)"""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.total)

    @property
    def centred(self) -> float:
        """0 for guessing, 1 for a perfect score."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, derived numbers included."""
        return asdict(self) | {"accuracy": self.accuracy, "stderr": self.stderr, "centred": self.centred}


@dataclass(frozen=True)
class CoreScore:
    """The mean of centred accuracies. It is CORE exactly where its tasks are the 22 of CORE."""

    tasks: tuple[TaskScore, ...]

    @property
    def is_core(self) -> bool:
        return len(self.tasks) == len(CORE_TASKS) and {task.label for task in self.tasks} == set(CORE_TASKS)

    @property
    def name(self) -> str:
        """
        >>> CoreScore((TaskScore("copa", "multiple_choice", 0, 60, 100, 0.5),)).name
        'centred mean of 1 of the 22 CORE tasks'
        """
        if self.is_core:
            return "CORE"
        num_known = sum(task.label in CORE_TASKS for task in self.tasks)
        others = len(self.tasks) - num_known
        return f"centred mean of {num_known} of the {len(CORE_TASKS)} CORE tasks" + (
            f" and {others} others" if others else ""
        )

    @property
    def value(self) -> float:
        return sum(task.centred for task in self.tasks) / len(self.tasks)

    @property
    def stderr(self) -> float:
        """Of the mean, the tasks being independent."""
        return math.hypot(*(task.stderr / (1 - task.baseline) for task in self.tasks)) / len(self.tasks)


def evaluate_core_task(
    task: CoreTask,
    items: Sequence[CoreItem],
    model,
    tokenizer: Tokenizer,
    *,
    max_examples: int | None = None,
    seed: int = 42,
    batch_tokens: int | None = None,
    world: World | None = None,
    progress: Progress | None = None,
) -> tuple[TaskScore, list[Prediction]]:
    """Score a model on at most `max_examples` items, spread evenly over the task; the predictions in their order.

    seed: of the few-shot examples. batch_tokens: at most so many tokens a pass; changes nothing but speed and memory.
    progress(done, all) is told this rank's items. Raises NumericalError if the model is broken.
    Collective with a `world`: rank r answers items r, r + n, ...; every rank returns all predictions.
    """
    picked = spread_indices(len(items), max_examples)
    rank, world_size = (0, 1) if world is None else (world.rank, world.world_size)
    indices = picked[rank::world_size]
    questions = list(iter_questions(task, items, indices, tokenizer, model.config.context, seed))
    predictions: dict[int, Prediction] = {}
    for place, (losses, is_argmax) in _score_questions(questions, model, tokenizer.bos_id, batch_tokens):
        index = indices[place]
        if not all(map(math.isfinite, losses)):
            raise NumericalError(f"{task.label}: the losses of question {index} are not finite", "nanochat runs ls")
        if task.kind == "language_modeling":
            chosen = 0 if is_argmax[0] else -1
        else:
            chosen = min(range(len(losses)), key=losses.__getitem__)
        correct = chosen == items[index].gold
        predictions[index] = Prediction(index, chosen, correct, tuple(losses), questions[place].num_dropped)
        if progress is not None:
            progress(len(predictions), len(indices))
    for index, question in zip(indices, questions, strict=True):
        if question.is_too_long:
            predictions[index] = Prediction(index, None, False, (), question.num_dropped)
    shares = [predictions] if world is None else world.all_gather(predictions)
    merged = {index: prediction for share in shares for index, prediction in share.items()}
    ordered = [merged[index] for index in picked]
    too_long = sum(prediction.chosen is None for prediction in ordered)
    score = TaskScore(
        task.label,
        task.kind,
        task.num_fewshot,
        sum(prediction.correct for prediction in ordered),
        len(ordered),
        task.baseline,
        sum(prediction.num_dropped > 0 for prediction in ordered) - too_long,
        too_long,
    )
    return score, ordered


Answer = tuple[list[float], list[bool]]
"""For each option: nats per scored token, and whether each of them was the most likely token."""


def _score_questions(
    questions: Sequence[Question], model, padding: int, batch_tokens: int | None
) -> Iterator[tuple[int, Answer]]:
    """(place, answer) of every question that fits, the longest first."""
    device = next(model.parameters()).device
    budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"])
    budget = budget if batch_tokens is None else min(batch_tokens, budget)
    pending: dict[int, dict[int, Answer]] = {place: {} for place, question in enumerate(questions) if question.trees}
    trees = [(place, tree) for place in pending for tree in questions[place].trees]
    # The last token of a tail is only predicted.
    sizes = [(len(tree.prefix), sum(len(tail) - 1 for tail in tree.tails)) for _, tree in trees]
    for batch in plan_batches(sizes, budget):
        answers = score_trees([trees[number][1] for number in batch], model, padding, device)
        for number, answer in zip(batch, answers, strict=True):
            place = trees[number][0]
            pending[place][number] = answer
            if len(pending[place]) == len(questions[place].trees):
                parts = [part for _, part in sorted(pending.pop(place).items())]
                yield place, ([x for losses, _ in parts for x in losses], [x for _, hits in parts for x in hits])


def plan_batches(sizes: Sequence[tuple[int, int]], budget: int) -> list[list[int]]:
    """Numbers of rows to compute together: alike in length, longest first, at most `budget` padded tokens, or one row.

    sizes: tokens of the prefix and of the tails of each row.

    >>> plan_batches([(2, 0), (9, 1), (3, 0), (3, 1)], 8)
    [[1], [3, 2], [0]]
    """
    batches: list[list[int]] = []
    width = (0, 0)
    for number in sorted(range(len(sizes)), key=lambda number: (-sum(sizes[number]), number)):
        grown = (max(width[0], sizes[number][0]), max(width[1], sizes[number][1]))
        if batches and (len(batches[-1]) + 1) * sum(grown) <= budget:
            batches[-1].append(number)
            width = grown
        else:
            batches.append([number])
            width = sizes[number]
    return batches


Row = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prefix and its tails; a tail may be empty, the prefix may not."""


class TreeAttention:
    """Many endings of one beginning in a single pass: a prefix and, side by side behind it, its tails.

    Stands where the model expects a cache and keeps nothing. A token of a tail sees the whole prefix and its own tail,
    at the positions it would have if that tail stood there alone: the states equal those of separate rows. ids and
    positions: (B, S) int64, both parts padded on the right, where nothing looks.
    """

    def __init__(self, rows: Sequence[Row], padding: int, device: torch.device) -> None:
        self.num_prefix = max(len(prefix) for prefix, _ in rows)
        width = max(sum(map(len, tails)) for _, tails in rows)
        ids = np.full((len(rows), self.num_prefix + width), padding, dtype=np.int64)
        positions = np.zeros_like(ids)
        positions[:, : self.num_prefix] = np.arange(self.num_prefix)
        tail_numbers = np.full((len(rows), width), -1)  # which tail a place belongs to
        for row, (prefix, tails) in enumerate(rows):
            ids[row, : len(prefix)] = prefix
            place = 0
            for number, tail in enumerate(tails):
                span = slice(place, place + len(tail))
                ids[row, self.num_prefix :][span] = tail
                positions[row, self.num_prefix :][span] = np.arange(len(prefix), len(prefix) + len(tail))
                tail_numbers[row, span] = number
                place += len(tail)
        self.ids, self.positions = torch.from_numpy(ids).to(device), torch.from_numpy(positions).to(device)
        numbers = torch.from_numpy(tail_numbers).to(device)
        lengths = torch.tensor([len(prefix) for prefix, _ in rows], device=device)
        sees_prefix = torch.arange(self.num_prefix, device=device) < lengths[:, None, None]  # (B, 1, P)
        sees_tail = (numbers[:, :, None] == numbers[:, None]).tril()  # (B, T, T); padding sees padding, never nothing
        self._mask = torch.cat((sees_prefix.expand(-1, width, -1), sees_tail), dim=2)[:, None]  # (B, 1, T, S)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, S, H, D) to k and v (B, S, G, D); returns (B, S, H, D)."""
        first = self.num_prefix
        prefix = attend(q[:, :first], k[:, :first], v[:, :first])
        if q.size(1) == first:
            return prefix
        q, k, v = q[:, first:].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        tails = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask, enable_gqa=k.size(1) != q.size(1))
        return torch.cat((prefix, tails.transpose(1, 2)), dim=1)

    def place(self, row: Row, tail: int, token: int) -> int:
        """Where in its row of S the state lies that predicts token `token` of tail `tail`."""
        prefix, tails = row
        if token == 0:
            return len(prefix) - 1
        return self.num_prefix + sum(len(other) for other in tails[:tail]) + token - 1


@torch.inference_mode()
def score_trees(trees: Sequence[Tree], model, padding: int, device: torch.device) -> list[Answer]:
    """Score all options of the trees in one pass, with logits only where a scored token is predicted."""
    rows: list[Row] = [(tree.prefix, [tail[:-1] for tail in tree.tails]) for tree in trees]
    attention = TreeAttention(rows, padding, device)
    width = attention.ids.size(1)
    places: list[int] = []
    targets: list[int] = []
    for number, (tree, row) in enumerate(zip(trees, rows, strict=True)):
        for option, (tail, scored) in enumerate(zip(tree.tails, tree.num_scored, strict=True)):
            for token in range(len(tail) - scored, len(tail)):
                places.append(number * width + attention.place(row, option, token))
                targets.append(tail[token])
    with varied_lengths():
        hidden = model.hidden(attention.ids, attention).flatten(0, 1)[torch.tensor(places, device=device)]  # (N, C)
    nll, hits = score_tokens(hidden, model.head_weight, torch.tensor(targets, device=device), model.config.softcap)
    losses, is_argmax = nll.double().tolist() if device.type != "mps" else nll.tolist(), hits.tolist()
    answers, start = [], 0
    for tree in trees:
        answer: Answer = ([], [])
        for scored in tree.num_scored:
            answer[0].append(sum(losses[start : start + scored]) / scored)
            answer[1].append(all(is_argmax[start : start + scored]))
            start += scored
        answers.append(answer)
    return answers


def score_tokens(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Loss in nats (N,) float32 of targets (N,) int64 and whether each is the most likely token, (N,) bool.

    hidden: (N, C). weight: (V, C). Never holds the whole table of logits.
    """
    chunk = plan_chunk_tokens(hidden.size(0), weight.size(0), hidden.device)
    weight = weight.to(hidden.dtype)
    losses, hits = [], []
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = capped_logits(h, weight, softcap)
        losses.append(F.cross_entropy(logits, t, reduction="none"))
        hits.append(logits.argmax(dim=-1) == t)
    return torch.cat(losses), torch.cat(hits)
