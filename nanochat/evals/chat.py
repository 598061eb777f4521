"""Accuracy on a chat task: answers sampled by the engine with tools, or the most likely answer letter.

Knows neither files nor settings. Everything is greedy, so the same model and task give the same score.

Legend: B prompts, T tokens of the longest, C width.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nanochat.conversation import Conversation, Part, PartKind
from nanochat.engine.engine import Engine, Request
from nanochat.engine.sampling import SamplingParams
from nanochat.engine.tool_loop import ToolLoop
from nanochat.runtime import World
from nanochat.tasks.task import Task
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat import render_prompt

Progress = Callable[[int, int], None]

LETTERS = ("A", "B", "C", "D")
"""Choices of a categorical task that has no `letters(index)` of its own."""


@dataclass(frozen=True)
class AnswerSample:
    """One example as the model answered it, for people to read; tool calls look like `[2+2 -> 4]`."""

    question: str
    answer: str
    correct: bool | None


@dataclass(frozen=True)
class Score:
    """An accuracy with what is needed to judge it.

    total: graded examples; too_long of them had a prompt that leaves no room for an answer and count as wrong.
    with_tool: examples whose answer got a tool's output, right or wrong. baseline: what guessing gets. accuracy and
    stderr are None where nothing was graded.
    """

    name: str
    correct: int
    total: int
    too_long: int = 0
    ungraded: int = 0
    with_tool: int = 0
    baseline: float = 0.0
    samples: tuple[AnswerSample, ...] = ()

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.total if self.total else None

    @property
    def stderr(self) -> float | None:
        """sqrt(p (1 - p) / n)"""
        p = self.accuracy
        return None if p is None else math.sqrt(p * (1 - p) / self.total)

    @property
    def centred(self) -> float | None:
        """0 for guessing, 1 for a perfect score."""
        return None if self.accuracy is None else (self.accuracy - self.baseline) / (1 - self.baseline)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, derived numbers included."""
        values = asdict(self)
        samples = values.pop("samples")
        return values | {"accuracy": self.accuracy, "stderr": self.stderr, "samples": list(samples)}


def evaluate_chat(
    task: Task,
    model,
    tokenizer: Tokenizer,
    *,
    max_examples: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 256,
    num_samples: int = 8,
    world: World | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score a model on at most `max_examples` examples, spread evenly over the task.

    model: a GPT in the state in which it is to be scored. max_new_tokens: the longest answer where the task
    does not ask for a shorter one. num_samples: examples to keep for people, wrong ones first up to half of them.
    progress(done, all) is called after each example or batch.
    Collective with a `world`: rank r answers examples r, r + n, ...; counts are summed, samples stay with each rank.
    """
    picked = spread_indices(task.num_examples(), max_examples)
    rank, world_size = (0, 1) if world is None else (world.rank, world.world_size)
    indices = picked[rank::world_size]
    conversations = [task.example(index) for index in indices]
    prompts = [render_prompt(tokenizer, without_answer(conversation)) for conversation in conversations]
    fitting = [place for place, prompt in enumerate(prompts) if len(prompt) < model.config.context]
    fitting_prompts = [prompts[place] for place in fitting]
    report = progress or (lambda done, num_all: None)
    baseline, with_tool = 0.0, 0
    if task.eval_type == "categorical":
        letters = [_letters_of(task, index) for index in indices]
        baseline = sum(1 / len(choices) for choices in letters)
        fitting_letters = [letters[place] for place in fitting]
        chosen = _choose_letters(model, tokenizer, fitting_prompts, fitting_letters, batch_size, report)
        answers = [(Part("text", letter),) for letter in chosen]
    else:
        longest = max_new_tokens if task.max_new_tokens is None else min(task.max_new_tokens, max_new_tokens)
        answer_ids, with_tool = _answer(model, tokenizer, fitting_prompts, batch_size, longest, report)
        answers = [split_parts(tokenizer, ids) for ids in answer_ids]
    answered = dict(zip(fitting, answers, strict=True))
    graded: list[bool | None] = []
    samples: list[AnswerSample] = []
    for place, conversation in enumerate(conversations):
        parts = answered.get(place)
        if parts is None:
            verdict: bool | None = False
            shown = f"(the prompt has {len(prompts[place])} tokens, too long for a context of {model.config.context})"
        else:
            verdict = task.evaluate(conversation, "".join(part.text for part in parts if part.kind == "text"))
            shown = show_parts(parts)
        graded.append(verdict)
        samples.append(AnswerSample(conversation.messages[-2].text, shown, verdict))
    counts = [sum(v is True for v in graded), sum(v is not None for v in graded), len(prompts) - len(fitting)]
    sums = torch.tensor([*counts, with_tool, baseline], dtype=torch.float64)
    if world is not None and world_size > 1:
        sums = sums.to(world.device)
        world.all_reduce_sum(sums)
    *numbers, baseline = sums.tolist()
    correct, total, too_long, with_tool = map(int, numbers)
    mean_baseline = baseline / len(picked) if picked else 0.0
    return Score(
        task.name,
        correct,
        total,
        too_long,
        len(picked) - total,
        with_tool,
        mean_baseline,
        _pick_samples(samples, num_samples),
    )


def _pick_samples(samples: list[AnswerSample], limit: int) -> tuple[AnswerSample, ...]:
    """At most `limit` of them in their order; up to half are wrong ones, which teach most."""
    places = range(len(samples))
    wrong = [place for place in places if samples[place].correct is False][: max(1, limit // 2)]
    others = [place for place in places if place not in wrong]
    return tuple(samples[place] for place in sorted((wrong + others)[:limit]))


def average_centred(scores: Sequence[Score]) -> float | None:
    """ChatCORE: the mean of the centred accuracies of graded tasks; None where there is none."""
    values = [score.centred for score in scores if score.centred is not None]
    return sum(values) / len(values) if values else None


def spread_indices(num_examples: int, limit: int | None) -> list[int]:
    """Evenly spaced example numbers, so that a task sorted by subject is not judged by its first subject.

    >>> spread_indices(10, 4), spread_indices(3, 4)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    if limit is None or num_examples <= limit:
        return list(range(num_examples))
    return [place * num_examples // limit for place in range(limit)]


def without_answer(conversation: Conversation) -> Conversation:
    """The conversation without its last message, the right answer. Raises ValueError where there is none."""
    if len(conversation.messages) < 2 or conversation.messages[-1].role != "assistant":
        raise ValueError("an example ends with a message of the assistant: its right answer")
    return Conversation(conversation.messages[:-1])


def split_parts(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[Part, ...]:
    """Turn an answer's ids into text, tool calls and tool output; an unfinished call is a call all the same."""
    special = tokenizer.special_ids
    kinds: dict[int, PartKind] = {
        special["<|python_start|>"]: "python",
        special["<|output_start|>"]: "python_output",
        special["<|python_end|>"]: "text",
        special["<|output_end|>"]: "text",
    }
    parts: list[Part] = []
    kind: PartKind = "text"
    collected: list[int] = []

    def finish() -> None:
        if collected:
            parts.append(Part(kind, tokenizer.decode(collected)))

    for token in ids:
        if token in kinds:
            finish()
            kind, collected = kinds[token], []
        elif token not in special.values():
            collected.append(token)
    finish()
    return tuple(parts)


def show_parts(parts: Sequence[Part]) -> str:
    """Write an answer for people.

    >>> show_parts([Part("python", "2+2"), Part("python_output", "4"), Part("text", " It is 4.")])
    '[2+2 -> 4] It is 4.'
    """
    shown = ""
    for part in parts:
        if part.kind == "python":
            shown += f"[{part.text}]"
        elif part.kind == "python_output":
            shown = f"{shown[:-1]} -> {part.text}]" if shown.endswith("]") else f"{shown}[-> {part.text}]"
        else:
            shown += part.text
    return shown


def _answer(
    model, tokenizer: Tokenizer, prompts: list[list[int]], batch_size: int, longest: int, report: Progress
) -> tuple[list[list[int]], int]:
    """Greedy answers with tools, many at a time, without their stop token; and how many of them a tool wrote to."""
    if not prompts:
        return [], 0
    special = tokenizer.special_ids
    context = min(model.config.context, max(map(len, prompts)) + longest)  # the cache is no larger than needed
    engine = Engine(
        model,
        num_slots=min(batch_size, len(prompts)),
        max_context=context,
        tool_loop=ToolLoop.from_tokenizer(tokenizer),
        eos_ids=(special["<|assistant_end|>"], tokenizer.bos_id),
    )
    params = SamplingParams(temperature=0.0, max_new_tokens=longest)
    for number, prompt in enumerate(prompts):
        engine.add(Request(number, prompt, params))
    answers: list[list[int]] = [[] for _ in prompts]
    helped: set[int] = set()
    done = 0
    while engine.num_active:
        for event in engine.step():
            assert isinstance(event.request_id, int)
            if event.token is not None and event.finish != "stop":
                answers[event.request_id].append(event.token)
            if event.forced:
                helped.add(event.request_id)
            if event.finish:
                done += 1
                report(done, len(prompts))
    return answers, len(helped)


@torch.inference_mode()
def _choose_letters(
    model,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    letters: list[Sequence[str]],
    batch_size: int,
    report: Progress,
) -> list[str]:
    """The most likely first token among the letters of each prompt. The soft cap is monotone, so it is left out."""
    device = next(model.parameters()).device
    chosen = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))  # alike lengths need little padding
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        width = len(prompts[places[-1]])
        rows = [prompts[place] + [tokenizer.bos_id] * (width - len(prompts[place])) for place in places]
        hidden = model.hidden(torch.tensor(rows, device=device))  # (B, T, C); padding follows, so it is never seen
        for row, place in enumerate(places):
            ids = [tokenizer.encode(letter)[0] for letter in letters[place]]
            if len(set(ids)) < len(ids):
                raise ValueError(f"the choices {', '.join(letters[place])} begin with the same token")
            weight = model.head_weight[torch.tensor(ids, device=device)].float()
            logits = weight @ hidden[row, len(prompts[place]) - 1].float()
            chosen[place] = letters[place][int(logits.argmax())]
        report(start + len(places), len(prompts))
    return chosen


def _letters_of(task: Task, index: int) -> Sequence[str]:
    letters = getattr(task, "letters", None)
    return LETTERS if letters is None else letters(index)
