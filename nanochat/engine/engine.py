"""Ids in, ids out: many requests decoded together against one KV cache.

`add`, `step` and `cancel` are the whole state machine. It knows no text, no files and no threads: one
caller at a time. Requests that answer always fill rows 0 .. B-1 of the cache, so a step computes only those; the one
whose prompt is still being read has row B, and the rows behind it remember what they held, for a next turn.

Legend: B answering requests, V vocabulary, T tokens of a prompt that are read at once.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from nanochat.engine.kv_cache import KVCache
from nanochat.engine.rows import Rows
from nanochat.engine.sampling import (
    SamplingParams,
    TokenLogprob,
    find_logprobs,
    penalize_repetition,
    sample_tokens,
)
from nanochat.engine.tool_loop import ToolLoop, ToolState
from nanochat.model.attention import varied_lengths
from nanochat.runtime import threads_for
from nanochat.tools.calculator import calculate

Finish = Literal["stop", "length", "cancelled"]


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
    comes with the stop token itself. token is None only where finish is "cancelled". logprob: where the request asked
    for it. prompt: on the first event, where the request asked for it; nothing predicts the first token.
    """

    request_id: int | str
    token: int | None
    forced: bool = False
    finish: Finish | None = None
    logprob: TokenLogprob | None = None
    prompt: tuple[TokenLogprob | None, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """A finished answer: its ids (with the stop token, if any), which of them were forced, and why it ended."""

    ids: list[int]
    forced: list[bool]
    finish: Finish

    @property
    def text_ids(self) -> list[int]:
        """Without the stop token."""
        return self.ids[:-1] if self.finish == "stop" else self.ids


@dataclass
class _Slot:
    """An active request: all its ids, of which the last is not yet in the cache."""

    request: Request
    ids: list[int]
    generator: torch.Generator
    tools: ToolState | None
    seen: Tensor | None
    num_read: int
    """Tokens of the prompt that are in the cache; it answers once only the last is missing."""
    forced: deque[int] = field(default_factory=deque)
    prompt_logprobs: list[TokenLogprob | None] | None = None

    @property
    def num_new(self) -> int:
        return len(self.ids) - len(self.request.prompt)

    @property
    def is_read(self) -> bool:
        return self.num_read >= len(self.request.prompt) - 1


class Engine:
    """A fixed number of slots over one model; requests beyond it wait their turn.

    model: a GPT (or anything with its config, compute_dtype, hidden and forward). eos_ids end every answer.
    prefill_tokens: of prompts that one step reads, so that a long prompt does not hold up the answers of others; None
    reads them whole. Raises ValueError where num_slots or prefill_tokens is below 1, or max_context below 2.
    """

    def __init__(
        self,
        model,
        num_slots: int,
        max_context: int | None = None,
        tool_loop: ToolLoop | None = None,
        eos_ids: Collection[int] = (),
        prefill_tokens: int | None = None,
    ) -> None:
        config = model.config
        max_context = config.context if max_context is None else max_context
        if num_slots < 1 or max_context < 2:
            raise ValueError(f"num_slots = {num_slots}, max_context = {max_context}: need at least 1 and 2")
        if prefill_tokens is not None and prefill_tokens < 1:
            raise ValueError(f"prefill_tokens = {prefill_tokens} is less than 1")
        self.model, self.num_slots, self.max_context = model, num_slots, max_context
        self.tool_loop, self.eos_ids, self.prefill_tokens = tool_loop, frozenset(eos_ids), prefill_tokens
        self.device: torch.device = next(model.parameters()).device
        self._num_weights = sum(
            weight.numel() for name, weight in model.named_parameters() if name != "embedding.weight"
        )
        self.cache = KVCache(
            config.n_layer,
            config.n_kv_head,
            config.head_dim,
            num_slots,
            max_context,
            getattr(model, "compute_dtype", torch.float32),
            self.device,
        )
        self._slots: list[_Slot] = []  # those that answer
        self._reading: _Slot | None = None  # its row is len(self._slots)
        self._waiting: OrderedDict[int | str, Request] = OrderedDict()
        self._cancelled: list[TokenEvent] = []
        self._rows = Rows(self.cache, num_slots)

    @classmethod
    def for_chat(
        cls,
        model,
        tokenizer,
        num_slots: int,
        max_context: int | None = None,
        *,
        tool: Callable[[str], str | None] | None = calculate,
        prefill_tokens: int | None = None,
    ) -> "Engine":
        """An engine for conversations: answers end with the tokenizer's end of an answer. tool: None for none."""
        special, loop = tokenizer.special_ids, ToolLoop.from_tokenizer(tokenizer, tool) if tool else None
        ends = (special["<|assistant_end|>"], special["<|bos|>"])
        return cls(model, num_slots, max_context, loop, ends, prefill_tokens)

    @property
    def num_active(self) -> int:
        """Requests that are not finished, waiting ones included."""
        return self.num_running + len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return len(self._slots) + (self._reading is not None)

    def add(self, request: Request) -> None:
        """Accept a request; its first token comes from a `step` that has a slot for it and has read its prompt.

        Raises ValueError where the prompt is empty, leaves no room for an answer, or holds an unknown id.
        """
        prompt, vocab_size = request.prompt, self.model.config.vocab_size
        if not prompt:
            raise ValueError("the prompt is empty")
        if len(prompt) >= self.max_context:
            raise ValueError(f"the prompt has {len(prompt)} tokens; the context is {self.max_context} with the answer")
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise ValueError(f"the prompt holds an id outside 0 .. {vocab_size - 1}")
        running = (*self._slots, *filter(None, [self._reading]))
        if request.id in self._waiting or any(request.id == slot.request.id for slot in running):
            raise ValueError(f"request {request.id!r} is already active")
        self._waiting[request.id] = request

    def cancel(self, request_id: int | str) -> bool:
        """Drop a request now; the next step reports it. False where no such request is active."""
        if self._waiting.pop(request_id, None) is not None:
            pass
        elif self._reading is not None and self._reading.request.id == request_id:
            self._rows.leave(len(self._slots))
            self._reading = None
        else:
            rows = [row for row, slot in enumerate(self._slots) if slot.request.id == request_id]
            if not rows:
                return False
            self._release(rows[0])
        self._cancelled.append(TokenEvent(request_id, None, False, "cancelled"))
        return True

    @torch.no_grad()
    def step(self) -> list[TokenEvent]:
        """Read prompts that wait, then give every answering request one more token.

        Empty while only a prompt is being read, and when all is done.
        """
        events, self._cancelled = self._cancelled, []
        with varied_lengths():
            self._read_prompts()
            if not self._slots:
                return events
            last = torch.tensor([[slot.ids[-1]] for slot in self._slots], device=self.device)
            lengths = [len(slot.ids) - 1 for slot in self._slots]
            with threads_for(len(lengths) * self._num_weights):
                logits = self.model(last, cache=self.cache.decode(lengths))[:, 0]  # (B, V)
        for row, slot in enumerate(self._slots):
            self._rows.extend(row, slot.ids[-1:])
        chosen = self._choose(logits)
        logprobs = self._measure(logits, [token for token, _ in chosen])
        finished = []
        for row, (slot, (token, forced)) in enumerate(zip(self._slots, chosen, strict=True)):
            finish = self._extend(slot, token, forced)
            prompt, slot.prompt_logprobs = slot.prompt_logprobs, None
            of_prompt = None if prompt is None else tuple(prompt)
            events.append(TokenEvent(slot.request.id, token, forced, finish, logprobs.get(row), of_prompt))
            if finish:
                finished.append(row)
        for row in reversed(finished):
            self._release(row)
        return events

    def _read_prompts(self) -> None:
        """Bring prompts into the cache, no more tokens than one step may read."""
        budget = self.prefill_tokens or self.num_slots * self.max_context
        while budget > 0:
            if self._reading is None:
                if not self._waiting or len(self._slots) == self.num_slots:
                    return
                self._reading = self._admit(self._waiting.popitem(last=False)[1])
            budget -= self._read(self._reading, budget)
            if self._reading.is_read:
                self._slots.append(self._reading)
                self._reading = None

    def _admit(self, request: Request) -> _Slot:
        """A row for a request, with whatever beginning of its prompt some row holds."""
        prompt = list(request.prompt)
        num_read = self._rows.claim(len(self._slots), prompt, reuse=not request.params.prompt_logprobs)
        seen = None
        if request.params.repetition_penalty != 1:
            seen = torch.zeros(self.model.config.vocab_size, dtype=torch.bool, device=self.device)
            seen[torch.tensor(prompt, device=self.device)] = True
        generator = torch.Generator().manual_seed(request.params.seed)  # on the CPU: the same draws on every device
        tools = ToolState(self.tool_loop) if self.tool_loop else None
        logprobs: list[TokenLogprob | None] | None = [None] if request.params.prompt_logprobs else None
        return _Slot(request, prompt, generator, tools, seen, num_read, prompt_logprobs=logprobs)

    def _read(self, slot: _Slot, most: int) -> int:
        """Bring at most so many prompt tokens into the cache, never the last: it joins the batched step."""
        row, prompt, start = len(self._slots), slot.request.prompt, slot.num_read
        end = min(start + most, len(prompt) - 1)
        if end <= start:
            return 0
        ids = torch.tensor([prompt[start:end]], device=self.device)  # (1, T)
        view = self.cache.prefill(row, start, end - start)
        threads = threads_for((end - start) * self._num_weights)
        if slot.prompt_logprobs is None:
            with threads:
                self.model.hidden(ids, cache=view)
        else:
            with threads:
                logits = self.model(ids, cache=view)[0]  # (T, V)
            params = slot.request.params
            slot.prompt_logprobs += find_logprobs(logits, prompt[start + 1 : end + 1], params.logprobs or 0)
        slot.num_read = end
        self._rows.extend(row, prompt[start:end])
        return end - start

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
            0.0 if p.is_greedy else float(torch.rand((), generator=slot.generator))
            for p, slot in zip(params, slots, strict=True)
        ]
        for row, token in zip(free, sample_tokens(picked, params, draws), strict=True):
            chosen[row] = (token, False)
        return chosen

    def _measure(self, logits: Tensor, tokens: Sequence[int]) -> dict[int, TokenLogprob]:
        """Log-probabilities of the chosen tokens, by row, where a request asked for them."""
        wishes = {row: slot.request.params.logprobs for row, slot in enumerate(self._slots)}
        found = {}
        for row, number in wishes.items():
            if number is not None:
                (found[row],) = find_logprobs(logits[row : row + 1], tokens[row : row + 1], number)
        return found

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
        """Free a row: the last answering request takes it, and the one that is being read moves up by one."""
        last = len(self._slots) - 1
        moved = self._slots.pop()
        if row != last:
            self._slots[row] = moved
            self._rows.exchange(last, row)
        self._rows.leave(last)
        if self._reading is not None:
            self._rows.exchange(last + 1, last)


def complete(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams],
    progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Finish all prompts on an idle engine, many at a time; answers come in the order of the prompts.

    One SamplingParams for all: prompt i is sampled with seed + i, so that equal prompts get different answers.
    Equal prompts beside each other share their computation. progress(done, all): after each answer.
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
    num_done = 0
    while engine.num_active:
        for event in engine.step():
            assert isinstance(event.request_id, int) and event.token is not None
            ids[event.request_id].append(event.token)
            forced[event.request_id].append(event.forced)
            if event.finish:
                finish[event.request_id], num_done = event.finish, num_done + 1
                if progress:
                    progress(num_done, len(prompts))
    return [Completion(*parts) for parts in zip(ids, forced, finish, strict=True)]


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
) -> list[list[int]]:
    """The new ids of every prompt, without the stop token; see `complete` for seeds and order."""
    return [completion.text_ids for completion in complete(engine, prompts, params)]
