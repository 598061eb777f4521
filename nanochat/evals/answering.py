"""Answers of a model to many prompts: written with tools, or the most likely answer letter. Grades nothing.

Legend: B prompts, T tokens of the longest, C width.
"""

from collections.abc import Callable, Sequence

import torch

from nanochat.engine.engine import Engine, complete
from nanochat.engine.sampling import SamplingParams
from nanochat.model.attention import varied_lengths
from nanochat.tokenizer.bpe import Tokenizer

Progress = Callable[[int, int], None]


def generate_answers(
    model,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    batch_size: int,
    report: Progress,
) -> tuple[list[list[int]], int]:
    """Answers with tools, many at a time, without their stop token; and how many of them a tool wrote to.

    params: one for each prompt. Prompts that stand beside each other and are alike share their computation.
    """
    if not prompts:
        return [], 0
    longest = max(len(prompt) + p.max_new_tokens for prompt, p in zip(prompts, params, strict=True))
    context = min(model.config.context, longest)  # the cache is no larger than needed
    engine = Engine.for_chat(model, tokenizer, min(batch_size, len(prompts)), context)
    answers = complete(engine, prompts, params, report)
    return [answer.text_ids for answer in answers], sum(any(answer.forced) for answer in answers)


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
