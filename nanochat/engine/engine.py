"""Ids in, ids out: many requests decoded together against one KV cache.

`add`, `step` and `cancel` are the whole state machine. It knows no text, no files and no threads: one
caller at a time. Active requests always fill rows 0 .. B-1 of the cache, so a step computes only those.

Legend: B active requests, V vocabulary.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from nanochat.engine.kv_cache import KVCache
from nanochat.engine.sampling import SamplingParams, penalize_repetition, sample_tokens
from nanochat.engine.tool_loop import ToolLoop, ToolState
from nanochat.model.attention import varied_lengths

Finish = Literal["stop", "length", "cancelled"]

MIN_REUSED_TOKENS = 16
"""A shared beginning shorter than this is computed again, unless it is the whole prompt: a copy would save nothing."""


@dataclass(frozen=True)
class Request:
    """A prompt to continue. The id is the caller's and must be unique among unfinished requests."""

    id: int | str
    prompt: Sequence[int]
    params: SamplingParams = SamplingParams()


@dataclass(frozen=True)
class TokenEvent:
    """One new token of one request.

    forced: written by a tool, not chosen by the model. finish: set on the request's last event; "stop"
    comes with the stop token itself. token is None only where finish is "cancelled".
    """

    request_id: int | str
    token: int | None
    forced: bool = False
    finish: Finish | None = None


@dataclass(frozen=True)
class Completion:
    """A finished answer: its ids (with the stop token, if any), which of them were forced, and why it ended."""

    ids: list[int]
    forced: list[bool]
    finish: Finish


@dataclass
class _Slot:
    """An active request: all its ids, of which the last is not yet in the cache."""

    request: Request
    ids: list[int]
    generator: torch.Generator
    tools: ToolState | None
    seen: Tensor | None
    forced: deque[int] = field(default_factory=deque)

    @property
    def num_new(self) -> int:
        return len(self.ids) - len(self.request.prompt)

    def penalize(self, logits: Tensor) -> Tensor:
        assert self.seen is not None
        return penalize_repetition(logits, self.seen, self.request.params.repetition_penalty)


class Engine:
    """A fixed number of slots over one model; requests beyond it wait their turn.

    model: a GPT (or anything with its config, compute_dtype, hidden and forward). eos_ids end every answer.
    Raises ValueError where num_slots or max_context is below 1.
    """

    def __init__(
        self,
        model,
        num_slots: int,
        max_context: int | None = None,
        tool_loop: ToolLoop | None = None,
        eos_ids: Collection[int] = (),
    ) -> None:
        config = model.config
        max_context = config.context if max_context is None else max_context
        if num_slots < 1 or max_context < 2:
            raise ValueError(f"num_slots = {num_slots}, max_context = {max_context}: need at least 1 and 2")
        self.model, self.num_slots, self.max_context = model, num_slots, max_context
        self.tool_loop, self.eos_ids = tool_loop, frozenset(eos_ids)
        self.device: torch.device = next(model.parameters()).device
        self.cache = KVCache(
            config.n_layer,
            config.n_kv_head,
            config.head_dim,
            num_slots,
            max_context,
            getattr(model, "compute_dtype", torch.float32),
            self.device,
        )
        self._slots: list[_Slot] = []
        self._waiting: deque[Request] = deque()
        self._cancelled: list[TokenEvent] = []
        self._contents: list[list[int]] = [[] for _ in range(num_slots)]  # ids whose keys a row holds

    @property
    def num_active(self) -> int:
        """Requests that are not finished, waiting ones included."""
        return len(self._slots) + len(self._waiting)

    def add(self, request: Request) -> None:
        """Accept a request; its first token comes from the next `step` that has a slot for it.

        Raises ValueError where the prompt is empty, leaves no room for an answer, or holds an unknown id.
        """
        prompt, vocab_size = request.prompt, self.model.config.vocab_size
        if not prompt:
            raise ValueError("the prompt is empty")
        if len(prompt) >= self.max_context:
            raise ValueError(f"the prompt has {len(prompt)} tokens; the context is {self.max_context} with the answer")
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise ValueError(f"the prompt holds an id outside 0 .. {vocab_size - 1}")
        if any(request.id == other.id for other in (*self._waiting, *(slot.request for slot in self._slots))):
            raise ValueError(f"request {request.id!r} is already active")
        self._waiting.append(request)

    def cancel(self, request_id: int | str) -> bool:
        """Drop a request now; the next step reports it. False where no such request is active."""
        for request in self._waiting:
            if request.id == request_id:
                self._waiting.remove(request)
                break
        else:
            rows = [row for row, slot in enumerate(self._slots) if slot.request.id == request_id]
            if not rows:
                return False
            self._release(rows[0])
        self._cancelled.append(TokenEvent(request_id, None, False, "cancelled"))
        return True

    @torch.no_grad()
    def step(self) -> list[TokenEvent]:
        """Give every active request one more token; admit waiting ones first. Empty only when all is done."""
        events, self._cancelled = self._cancelled, []
        with varied_lengths():
            while self._waiting and len(self._slots) < self.num_slots:
                self._admit(self._waiting.popleft())
            if not self._slots:
                return events
            last = torch.tensor([[slot.ids[-1]] for slot in self._slots], device=self.device)
            lengths = [len(slot.ids) - 1 for slot in self._slots]
            logits = self.model(last, cache=self.cache.decode(lengths))[:, 0]  # (B, V)
        for row, slot in enumerate(self._slots):
            self._contents[row].append(slot.ids[-1])
        finished = []
        for row, (slot, (token, forced)) in enumerate(zip(self._slots, self._choose(logits), strict=True)):
            finish = self._extend(slot, token, forced)
            events.append(TokenEvent(slot.request.id, token, forced, finish))
            if finish:
                finished.append(row)
        for row in reversed(finished):
            self._release(row)
        return events

    def _admit(self, request: Request) -> None:
        """Bring all but the last prompt token into the cache; the last one joins the batched step."""
        row, prompt = len(self._slots), list(request.prompt)
        shared = [_common_length(contents, prompt[:-1]) for contents in self._contents]
        source = max(range(self.num_slots), key=lambda r: (shared[r], r == row))
        start = shared[source]
        if source != row and start < min(MIN_REUSED_TOKENS, len(prompt) - 1):
            start = 0
        self.cache.copy_row(source, row, start)
        if start < len(prompt) - 1:
            ids = torch.tensor([prompt[start:-1]], device=self.device)
            self.model.hidden(ids, cache=self.cache.prefill(row, start, ids.shape[1]))
        self._contents[row] = prompt[:-1]
        seen = None
        if request.params.repetition_penalty != 1:
            seen = torch.zeros(self.model.config.vocab_size, dtype=torch.bool, device=self.device)
            seen[torch.tensor(prompt, device=self.device)] = True
        generator = torch.Generator().manual_seed(request.params.seed)  # on the CPU: the same draws on every device
        tools = ToolState(self.tool_loop) if self.tool_loop else None
        self._slots.append(_Slot(request, prompt, generator, tools, seen))

    def _choose(self, logits: Tensor) -> list[tuple[int, bool]]:
        """The next token of every slot and whether a tool forces it; a forced token costs no random number."""
        free = [row for row, slot in enumerate(self._slots) if not slot.forced]
        chosen = [(slot.forced.popleft(), True) if slot.forced else (-1, False) for slot in self._slots]
        if not free:
            return chosen
        picked = logits if len(free) == len(self._slots) else logits[torch.tensor(free, device=logits.device)]
        slots = [self._slots[row] for row in free]
        if any(slot.seen is not None for slot in slots):
            rows = [
                row
                if slot.seen is None
                else penalize_repetition(row, slot.seen, slot.request.params.repetition_penalty)
                for row, slot in zip(picked, slots, strict=True)
            ]
            picked = torch.stack(rows)
        params = [slot.request.params for slot in slots]
        draws = [
            0.0 if p.temperature == 0 else float(torch.rand((), generator=slot.generator))
            for p, slot in zip(params, slots, strict=True)
        ]
        for row, token in zip(free, sample_tokens(picked, params, draws), strict=True):
            chosen[row] = (token, False)
        return chosen

    def _extend(self, slot: _Slot, token: int, forced: bool) -> Finish | None:
        slot.ids.append(token)
        if slot.seen is not None:
            slot.seen[token] = True
        if not forced:
            if token in self.eos_ids or token in slot.request.params.stop_ids:
                return "stop"
            if slot.tools:
                slot.forced.extend(slot.tools.observe(token))
        if slot.num_new >= slot.request.params.max_new_tokens or len(slot.ids) >= self.max_context:
            return "length"
        return None

    def _release(self, row: int) -> None:
        """Free a row and move the last active row into it, so that active rows stay the first ones."""
        last = len(self._slots) - 1
        moved = self._slots.pop()
        if row != last:
            self._slots[row] = moved
            self.cache.copy_row(last, row, len(self._contents[last]))
            self._contents[row] = list(self._contents[last])


def complete(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
) -> list[Completion]:
    """Finish all prompts on an idle engine, many at a time; answers come in the order of the prompts.

    One SamplingParams for all: prompt i is sampled with seed + i, so that equal prompts get different answers.
    """
    if engine.num_active:
        raise ValueError(f"the engine has {engine.num_active} unfinished requests")
    if isinstance(params, SamplingParams):
        params = [replace(params, seed=(params.seed + i) % 2**63) for i in range(len(prompts))]
    for i, (prompt, own) in enumerate(zip(prompts, params, strict=True)):
        engine.add(Request(i, prompt, own))
    ids: list[list[int]] = [[] for _ in prompts]
    forced: list[list[bool]] = [[] for _ in prompts]
    finish: list[Finish] = ["length"] * len(prompts)
    while engine.num_active:
        for event in engine.step():
            assert isinstance(event.request_id, int) and event.token is not None
            ids[event.request_id].append(event.token)
            forced[event.request_id].append(event.forced)
            finish[event.request_id] = event.finish or "length"
    return [Completion(*parts) for parts in zip(ids, forced, finish, strict=True)]


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
) -> list[list[int]]:
    """The new ids of every prompt, without the stop token; see `complete` for seeds and order."""
    completions = complete(engine, prompts, params)
    return [c.ids[:-1] if c.finish == "stop" else c.ids for c in completions]


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """[1, 2, 3], [1, 2, 4, 5] -> 2"""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
