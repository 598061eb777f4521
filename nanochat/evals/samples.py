"""What the model writes: a few fixed beginnings, continued greedily. For people to read, not a score.

Knows neither files nor settings.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nanochat.conversation import Conversation, user
from nanochat.engine.sampling import SamplingParams
from nanochat.evals.chat import generate_answers, show_parts, split_parts
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat import render_prompt
from nanochat.tools.calculator import calculate

TEXT_PROMPTS = (
    "Once upon a time",
    "The capital of France is",
    "The opposite of hot is",
    "If yesterday was Friday, then tomorrow will be",
)
"""Beginnings of documents, for a model that has not seen conversations."""

CHAT_PROMPTS = (
    "Hello, who are you?",
    "What is 12 + 34?",
    "How many letters r are in strawberry?",
    "Tell me a short story.",
)
"""Questions, for a model that has."""


@dataclass(frozen=True)
class Sample:
    """A prompt and how the model went on; tool calls look like `[2+2 -> 4]`."""

    prompt: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def sample_texts(
    model, tokenizer: Tokenizer, prompts: Sequence[str] = TEXT_PROMPTS, max_new_tokens: int = 48
) -> tuple[Sample, ...]:
    """Continue documents. Prompts that leave no room in the context are cut to its last half."""
    context, asked = model.config.context, []
    for prompt in prompts:
        ids = tokenizer.encode(prompt)
        asked.append([tokenizer.bos_id, *(ids if len(ids) + 1 < context else ids[-(context // 2) :])])
    return _continue(model, tokenizer, prompts, asked, max_new_tokens, None)


def sample_answers(
    model, tokenizer: Tokenizer, prompts: Sequence[str] = CHAT_PROMPTS, max_new_tokens: int = 96
) -> tuple[Sample, ...]:
    """Answer questions with tools. Questions that leave no room in the context are left out."""
    rendered = {prompt: render_prompt(tokenizer, Conversation((user(prompt),))) for prompt in prompts}
    fitting = {prompt: ids for prompt, ids in rendered.items() if len(ids) < model.config.context}
    return _continue(model, tokenizer, list(fitting), list(fitting.values()), max_new_tokens, calculate)


def _continue(
    model, tokenizer: Tokenizer, prompts: Sequence[str], asked: list[list[int]], max_new_tokens: int, tool
) -> tuple[Sample, ...]:
    params = [SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)] * len(asked)
    answers = generate_answers(model, tokenizer, asked, params, len(asked), tool=tool)
    texts = (show_parts(split_parts(tokenizer, answer.text_ids)) for answer in answers)
    return tuple(Sample(prompt, text) for prompt, text in zip(prompts, texts, strict=True))
