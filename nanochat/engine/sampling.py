"""Choose the next token of each row from its logits. Knows neither requests nor the cache.

Each row has its own random number, drawn by its request, so the choice never depends on its neighbours.
Sources: nucleus sampling, Holtzman et al. 2019; min-p, Nguyen et al. 2024; repetition penalty, Keskar et al. 2019.

Legend: B batch, V vocabulary, N candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanochat.engine.bounds import check_bounds

TINY, HUGE = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
"""Numbers beyond these become 0 and infinity in float32, and what is divided by them no number at all."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request is sampled. Raises ValueError where a number is out of its range."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Only the k most likely tokens."""
    top_p: float | None = None
    """Only the most likely tokens that together reach this probability."""
    min_p: float | None = None
    """Only tokens at least this times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of the prompt and the answer so far become less likely."""
    seed: int = 0
    max_new_tokens: int = 256
    """Tokens of the answer, forced tool output included."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end this answer, besides the engine's own."""
    logprobs: int | None = None
    """Report each token's log-probability, and those of so many of the most likely; None reports none."""
    prompt_logprobs: bool = False
    """Report them for the prompt too, with the same number of others."""

    def __post_init__(self) -> None:
        check_bounds(vars(self))

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken; below TINY no other has a probability above 0."""
        return self.temperature < TINY


@dataclass(frozen=True)
class TokenLogprob:
    """What the model gave a token: its natural log-probability before any sampling parameter, and the likeliest others.

    top: (token, log-probability), the most likely first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def find_logprobs(logits: Tensor, tokens: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """Log-probabilities of one token per row, and of the num_top likeliest. logits: (T, V) float32.

    >>> find_logprobs(torch.tensor([[0.0, 0.0]]), [1], 0)
    [TokenLogprob(token=1, logprob=-0.6931471824645996, top=())]
    """
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    num_top = min(num_top, logits.shape[1])
    if not num_top:
        return [TokenLogprob(token, value) for token, value in zip(tokens, own, strict=True)]
    values, ids = logprobs.topk(num_top, dim=-1)
    tops = [tuple(zip(*pair, strict=True)) for pair in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(*triple) for triple in zip(tokens, own, tops, strict=True)]


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide positive and multiply negative logits (V,) of the tokens in `seen` (V,) bool by the penalty.

    What comes out is finite, whatever the penalty.
    """
    penalty = min(max(penalty, TINY), HUGE)
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty).clamp_(-HUGE, HUGE)
    return torch.where(seen, penalized, logits)


def sample_tokens(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> list[int]:
    """Choose one token per row.

    logits: (B, V) float32, repetition already penalised. draws: B numbers in [0, 1), unused where the
    parameters are greedy.

    >>> sample_tokens(torch.tensor([[0.0, 3.0, 1.0]]), [SamplingParams(temperature=0)], [0.5])
    [1]
    """
    groups: dict[tuple, list[int]] = {}
    for row, p in enumerate(params):
        key = ("greedy",) if p.is_greedy else (p.temperature, p.top_k, p.top_p, p.min_p)
        groups.setdefault(key, []).append(row)
    chosen = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    for key, rows in groups.items():
        index = torch.tensor(rows, device=logits.device)
        picked = logits if len(groups) == 1 else logits[index]
        if key == ("greedy",):
            chosen[index] = picked.argmax(dim=-1)
        else:
            numbers = torch.tensor([draws[row] for row in rows], dtype=torch.float32).to(logits.device)
            chosen[index] = _sample_alike(picked, params[rows[0]], numbers)
    return chosen.tolist()


def _sample_alike(logits: Tensor, params: SamplingParams, draws: Tensor) -> Tensor:
    """Rows (B, V) that share their parameters -> token ids (B,), by inverting the cumulative probability."""
    ids = None
    if params.top_k is not None and params.top_k < logits.shape[1]:
        logits, ids = logits.topk(params.top_k, dim=-1)  # (B, N), most likely first
    elif params.top_p is not None and params.top_p < 1:
        logits, ids = logits.sort(dim=-1, descending=True, stable=True)
    # The largest logit is taken off first: a tiny temperature must not overflow to inf - inf.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / min(params.temperature, HUGE)
    probs = logits.softmax(dim=-1)
    if params.top_p is not None and params.top_p < 1:
        before = probs.cumsum(dim=-1) - probs
        probs = probs.masked_fill(before >= max(params.top_p, TINY), 0.0)
    if params.min_p is not None:
        probs = probs.masked_fill(probs < params.min_p * probs.amax(dim=-1, keepdim=True), 0.0)
    # Sums of 50,000 float32 lose the rare tokens; MPS has no float64.
    wide = torch.float32 if probs.device.type == "mps" else torch.float64
    cumulative = probs.to(wide).cumsum(dim=-1)  # (B, N)
    targets = draws.to(wide)[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, targets, right=True).clamp_(max=probs.shape[1] - 1)  # (B, 1)
    return (place if ids is None else ids.gather(1, place))[:, 0]
