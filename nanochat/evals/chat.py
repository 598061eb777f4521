"""Accuracy on a chat task: answers written by the engine with tools, or the most likely answer letter.

Knows neither files nor settings. Greedy by default; sampled answers have a seed of their own each. So the same model,
task and seed give the same score on any number of ranks.

Legend: B prompts, T tokens of the longest, C width.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nanochat.conversation import Conversation, Message, Part, PartKind, hash_conversations
from nanochat.engine.engine import Completion, Engine, complete
from nanochat.engine.sampling import SamplingParams
from nanochat.evals.passk import estimate_pass_at_k, list_ks
from nanochat.evals.scores import SampledAnswer
from nanochat.model.attention import varied_lengths
from nanochat.runtime import World
from nanochat.tasks.task import Task
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat import render_prompt
from nanochat.tools.calculator import calculate

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Score:
    """An accuracy with what is needed to judge it.

    total: graded examples; too_long of them had a prompt that leaves no room for an answer and count as wrong. correct
    and with_tool count answers. baseline: what guessing gets. pass_at: pass@k by k. squares: the mean of the squared
    accuracies of the examples; None: each has one answer. accuracy and stderr are None if nothing was graded.
    """

    name: str
    correct: int
    total: int
    too_long: int = 0
    ungraded: int = 0
    with_tool: int = 0
    baseline: float = 0.0
    samples: tuple[SampledAnswer, ...] = ()
    answers_each: int = 1
    pass_at: tuple[tuple[int, float], ...] = ()
    squares: float | None = None

    @property
    def accuracy(self) -> float | None:
        return self.correct / (self.total * self.answers_each) if self.total else None

    @property
    def stderr(self) -> float | None:
        """sqrt(p (1 - p) / n) for one answer an example. Examples are independent, several answers to one are not."""
        p = self.accuracy
        if p is None:
            return None
        return math.sqrt(max(0.0, (p if self.squares is None else self.squares) - p * p) / self.total)

    @property
    def centred(self) -> float | None:
        """0 for guessing, 1 for a perfect score."""
        return None if self.accuracy is None else (self.accuracy - self.baseline) / (1 - self.baseline)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, derived numbers included."""
        values = asdict(self)
        samples, pass_at, squares = (values.pop(key) for key in ("samples", "pass_at", "squares"))
        if pass_at:
            values |= {"pass_at": {str(k): value for k, value in pass_at}, "squares": squares}
        return values | {"accuracy": self.accuracy, "stderr": self.stderr, "samples": list(samples)}


def read_score(values: dict[str, Any]) -> Score:
    """The score that `to_dict` wrote; other keys are left alone."""
    own = {key: values[key] for key in Score.__dataclass_fields__ if key in values}
    own["samples"] = tuple(SampledAnswer(**sample) for sample in values["samples"])
    own["pass_at"] = tuple((int(k), value) for k, value in values.get("pass_at", {}).items())
    return Score(**own)


def evaluate_chat(
    task: Task,
    model,
    tokenizer: Tokenizer,
    *,
    max_examples: int | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 256,
    answers_each: int = 1,
    temperature: float = 0.0,
    seed: int = 42,
    num_samples: int = 8,
    world: World | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score a model on at most `max_examples` examples, spread evenly over the task.

    model: a GPT in the state in which it is to be scored. max_new_tokens: the longest answer if the task does not ask
    for a shorter one. answers_each: answers to each example of a generative task; with more than one the score has
    pass@k. num_samples: examples to keep for people, wrong ones first up to half of them. progress(done, all) is called
    after each example or batch.
    Collective with a `world`: rank r answers examples r, r + n, ...; counts are summed, samples stay with each rank.
    """
    picked = spread_indices(task.num_examples(), max_examples)
    rank, world_size = (0, 1) if world is None else (world.rank, world.world_size)
    indices = picked[rank::world_size]
    conversations = [task.example(index) for index in indices]
    prompts = [render_prompt(tokenizer, without_answer(conversation)) for conversation in conversations]
    fitting = [place for place, prompt in enumerate(prompts) if len(prompt) < model.config.context]
    report = progress or (lambda done, num_all: None)
    baseline, with_tool = 0.0, 0
    if task.eval_type == "categorical":
        answers_each = 1
        letters = [task.letters(index) for index in indices]
        baseline = sum(1 / len(choices) for choices in letters)
        asked, choices = [prompts[place] for place in fitting], [letters[place] for place in fitting]
        chosen = choose_letters(model, tokenizer, asked, choices, batch_size, report)
        answers = [(Part("text", letter),) for letter in chosen]
    else:
        longest = max_new_tokens if task.max_new_tokens is None else min(task.max_new_tokens, max_new_tokens)
        params = [
            SamplingParams(temperature, seed=draw_seed(seed, task.name, indices[place], number), max_new_tokens=longest)
            for place in fitting
            for number in range(answers_each)
        ]
        asked = [prompts[place] for place in fitting for _ in range(answers_each)]
        written = generate_answers(model, tokenizer, asked, params, batch_size, report)
        with_tool = sum(any(answer.forced) for answer in written)
        answers = [split_parts(tokenizer, answer.text_ids) for answer in written]
    graded = _grade(task, conversations, fitting, answers, answers_each, report)
    shown = [
        f"(the prompt has {len(prompt)} tokens, too long for a context of {model.config.context})" for prompt in prompts
    ]
    for number, place in enumerate(fitting):
        shown[place] = show_parts(answers[number * answers_each])
    samples = [
        SampledAnswer(conversation.messages[-2].text, text, own[0])
        for conversation, text, own in zip(conversations, shown, graded, strict=True)
    ]
    counts = [sum(map(bool, own)) for own in graded if None not in own]  # right answers of each graded example
    ks = list_ks(answers_each) if answers_each > 1 else []
    passed = [sum(estimate_pass_at_k(answers_each, count, k) for count in counts) for k in ks]
    squares = sum((count / answers_each) ** 2 for count in counts)
    numbers = [sum(counts), len(counts), len(prompts) - len(fitting), with_tool, baseline, squares, *passed]
    correct, total, too_long, with_tool, baseline, squares, *passed = _sum_ranks(numbers, world)
    return Score(
        task.name,
        int(correct),
        int(total),
        int(too_long),
        len(picked) - int(total),
        int(with_tool),
        baseline / len(picked) if picked else 0.0,
        _pick_samples(samples, num_samples),
        answers_each,
        tuple((k, value / total) for k, value in zip(ks, passed, strict=True)) if total else (),
        squares / total if total and answers_each > 1 else None,
    )


def _grade(
    task: Task,
    conversations: Sequence[Conversation],
    fitting: Sequence[int],
    answers: Sequence[tuple[Part, ...]],
    answers_each: int,
    report: Progress,
) -> list[Sequence[bool | None]]:
    """The verdicts on every conversation. fitting: places of those that were answered; all others are wrong."""
    repeated = (conversations[place] for place in fitting for _ in range(answers_each))
    texts = (Message("assistant", parts).text for parts in answers)
    verdicts = task.evaluate_all(list(zip(repeated, texts, strict=True)), report)
    graded: list[Sequence[bool | None]] = [[False] * answers_each for _ in conversations]
    for number, place in enumerate(fitting):
        graded[place] = verdicts[number * answers_each : (number + 1) * answers_each]
    return graded


def _sum_ranks(numbers: Sequence[float], world: World | None) -> list[float]:
    sums = torch.tensor(numbers, dtype=torch.float64)
    if world is not None and world.world_size > 1:
        sums = sums.to(world.device)
        world.all_reduce_sum(sums)
    return sums.tolist()


def generate_answers(
    model,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    batch_size: int,
    progress: Progress | None = None,
    tool: Callable[[str], str | None] | None = calculate,
) -> list[Completion]:
    """Answers, many at a time. params: one for each prompt. Prompts beside each other that are alike share their work.

    tool: None for none.
    """
    if not prompts:
        return []
    longest = max(len(prompt) + p.max_new_tokens for prompt, p in zip(prompts, params, strict=True))
    context = min(model.config.context, longest)  # the cache is no larger than needed
    engine = Engine.for_chat(model, tokenizer, min(batch_size, len(prompts)), context, tool=tool)
    return complete(engine, prompts, params, progress)


@torch.inference_mode()
def choose_letters(
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
        with varied_lengths():
            hidden = model.hidden(torch.tensor(rows, device=device))  # (B, T, C); the padding behind is never seen
        for row, place in enumerate(places):
            ids = [tokenizer.encode(letter)[0] for letter in letters[place]]
            if len(set(ids)) < len(ids):
                raise ValueError(f"the choices {', '.join(letters[place])} begin with the same token")
            weight = model.head_weight[torch.tensor(ids, device=device)].to(hidden.dtype)  # as for all other logits
            logits = weight.float() @ hidden[row, len(prompts[place]) - 1].float()
            chosen[place] = letters[place][int(logits.argmax())]
        report(start + len(places), len(prompts))
    return chosen


def draw_seed(seed: int, task: str, index: int, number: int) -> int:
    """The seed of one answer, whatever else is answered: 63 bits."""
    digest = hashlib.sha256(f"{seed}/{task}/{index}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def hash_examples(task: Task, max_examples: int | None) -> str:
    """SHA-256 of the examples that `evaluate_chat` looks at."""
    return hash_conversations(task.example(index) for index in spread_indices(task.num_examples(), max_examples))


def _pick_samples(samples: list[SampledAnswer], limit: int) -> tuple[SampledAnswer, ...]:
    """At most `limit` of them in their order; up to half are wrong ones, which teach most."""
    places = range(len(samples))
    wrong = [place for place in places if samples[place].correct is False][: max(1, limit // 2)]
    others = [place for place in places if place not in wrong]
    return tuple(samples[place] for place in sorted((wrong + others)[:limit]))


def estimate_mean_error(scores: Sequence[Score]) -> float | None:
    """The standard error of `average_centred`, the tasks being independent."""
    errors = [score.stderr / (1 - score.baseline) for score in scores if score.stderr is not None]
    return math.hypot(*errors) / len(errors) if errors else None


def average_centred(scores: Sequence[Score]) -> float | None:
    """ChatCORE: the mean of the centred accuracies of graded tasks; None if there is none."""
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
    """The conversation without its last message, the right answer. Raises ValueError if there is none."""
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
