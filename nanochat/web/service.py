"""A model that answers requests: prompts made of messages, answers made of tokens. Knows no HTTP.

Text that a client sends never becomes a special token, whatever is typed.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from nanochat.chat.decoding import Piece, PieceDecoder
from nanochat.conversation import Conversation, Message, Part, join_text, user
from nanochat.engine.engine import Finish, TokenEvent
from nanochat.engine.sampling import SamplingParams
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat import count_at_least, render_prompt
from nanochat.web.errors import ApiError
from nanochat.web.schema import ChatMessage, ChatRequest, CompletionRequest, Numbers
from nanochat.web.worker import BusyError, EngineFailedError, Pool, Stream

DEFAULT_COMPLETION = 16
"""Tokens of a completion that says no number, or as many as fit (OpenAI's API reference, max_tokens)."""


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server."""

    max_new_tokens: int = 4096
    """Of one answer; a request that asks for more is refused, one that asks for nothing gets what fits."""
    deadline_seconds: float = 300.0
    """From a request's arrival to its last token: then its answer ends with what there is."""
    retry_seconds: int = 5


@dataclass
class Counters:
    """What /metrics tells."""

    requests: dict[tuple[str, int], int] = field(default_factory=dict)
    """By path and status."""
    num_answers: int = 0
    first_token_seconds: float = 0.0
    """Summed over the answers."""
    started: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Chunk:
    """Some of an answer. tokens: those that it was made of, with their log-probabilities. finish: on the last one."""

    pieces: tuple[Piece, ...] = ()
    tokens: tuple[TokenEvent, ...] = ()
    finish: Finish | None = None


@dataclass
class Answer:
    """One choice of a request, which `read` fills."""

    index: int
    stream: Stream
    num_tokens: int = 0


class Service:
    """A model with its pool of engines. name: what clients call it. max_context: of the engines, in tokens."""

    def __init__(
        self,
        pool: Pool,
        tokenizer: Tokenizer,
        name: str,
        max_context: int,
        default: SamplingParams,
        limits: Limits | None = None,
        is_chat: bool = True,
    ) -> None:
        self.pool, self.tokenizer, self.name, self.max_context = pool, tokenizer, name, max_context
        self.default, self.limits, self.is_chat = default, limits or Limits(), is_chat
        self.counters = Counters()
        self.created = int(time.time())
        self.is_stopping = False
        self.failure: Exception | None = None
        """What kept the engines from starting."""

    def check_model(self, model: str | None) -> None:
        """Raises ApiError for another model's name."""
        if model is not None and model not in (self.name, "nanochat"):
            raise ApiError(404, f"there is no model {model!r} here, but {self.name!r}", "model", "model_not_found")

    def render(self, messages: Sequence[ChatMessage]) -> list[int]:
        """The ids of a prompt. Messages of one role in a row are joined; a system prompt goes before the first.

        Takes a while for a long one. Raises ApiError where the first words are not the user's, and, before it encodes
        anything, where there are too many.
        """
        self._check_length(sum(len(message.text) for message in messages), "messages")
        system = "\n\n".join(message.text for message in messages if message.role in ("system", "developer"))
        said: list[Message] = []
        for message in messages:
            if message.role in ("user", "assistant"):
                before = said.pop().parts if said and said[-1].role == message.role else ()
                between = [Part("text", "\n\n")] if before else []
                said.append(Message(message.role, join_text([*before, *between, *message.parts])))
        if said[0].role != "user":
            raise ApiError(400, "the first message after the system's must be the user's", "messages")
        if system:
            said[0] = user(f"{system}\n\n{said[0].text}")
        return render_prompt(self.tokenizer, Conversation(tuple(said)))

    def encode_all(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        """The ids of texts to continue, each a document's beginning. Takes a while for long ones.

        Raises ApiError for an unknown id and, before it encodes anything, for a prompt that is too long.
        """
        for prompt in prompts:
            if isinstance(prompt, str):
                self._check_length(len(prompt), "prompt")
            elif len(prompt) > self.max_context:
                raise self._too_long(f"{len(prompt)}", "prompt")
            elif any(token >= self.tokenizer.vocab_size for token in prompt):
                raise ApiError(400, f"prompt: ids are less than {self.tokenizer.vocab_size}", "prompt")
        return [
            [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
            for prompt in prompts
        ]

    def _check_length(self, num_chars: int, name: str) -> None:
        """Raises ApiError for a text that cannot fit, whatever its tokens are."""
        if (least := count_at_least(self.tokenizer, num_chars)) > self.max_context:
            raise self._too_long(f"at least {least}", name)

    def _too_long(self, num_prompt: str, name: str) -> ApiError:
        said = f"the context is {self.max_context} tokens; the prompt has {num_prompt}"
        return ApiError(400, said, name, "context_length_exceeded")

    def check_number(self, num_answers: int, name: str) -> None:
        """Raises ApiError for more answers than fit into an idle server, to which asking again is no help."""
        if num_answers > self.pool.capacity:
            said = f"{num_answers} answers are asked for; this server takes at most {self.pool.capacity} at a time"
            raise ApiError(400, said, name)

    def plan(self, request: ChatRequest | CompletionRequest, num_prompt: int) -> SamplingParams:
        """How to sample. Raises ApiError where the prompt or the answer does not fit."""
        if isinstance(request, ChatRequest):
            asked, name = request.max_completion_tokens, "max_completion_tokens"
            if asked is None:
                asked, name = request.max_tokens, "max_tokens"
        else:
            asked, name = request.max_tokens, "max_tokens"
        room = self.max_context - num_prompt
        if room < 1 or (asked is not None and asked > room):
            what = f" and {name} = {asked}" if asked is not None else ""
            raise self._too_long(f"{num_prompt}{what}", "messages" if isinstance(request, ChatRequest) else "prompt")
        if asked is not None and asked > self.limits.max_new_tokens:
            raise ApiError(400, f"{name} = {asked} is more than this server's {self.limits.max_new_tokens}", name)
        few = DEFAULT_COMPLETION if isinstance(request, CompletionRequest) else room
        params = self.draw(request, asked if asked is not None else min(few, room))
        if isinstance(request, ChatRequest):
            return replace(params, logprobs=request.num_logprobs)
        wants_prompt = bool(request.echo and request.logprobs is not None)
        return replace(params, logprobs=request.logprobs, prompt_logprobs=wants_prompt)

    def draw(self, numbers: Numbers, max_new_tokens: int) -> SamplingParams:
        """How to sample where some of it is wished for; a seed is made up where there is none."""
        seed = numbers.seed if numbers.seed is not None else secrets.randbits(53)
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        changes = {name: value for name in names if (value := getattr(numbers, name)) is not None}
        limited = max(1, min(max_new_tokens, self.limits.max_new_tokens))
        return replace(self.default, seed=seed % 2**62, max_new_tokens=limited, **changes)

    def start(self, prompt: Sequence[int], params: SamplingParams, num: int, first_index: int = 0) -> list[Answer]:
        """Ask for several answers to a prompt; all or none. Raises ApiError where the server is full or stopping."""
        if self.is_stopping:
            raise ApiError(503, "the server is stopping", retry_after=self.limits.retry_seconds)
        answers: list[Answer] = []
        try:
            for index in range(num):
                own = replace(params, seed=(params.seed + index) % 2**62, prompt_logprobs=params.prompt_logprobs)
                answers.append(Answer(first_index + index, self.pool.submit(prompt, own)))
        except BusyError:
            for answer in answers:
                answer.stream.cancel()
            raise ApiError(
                429, "the server is busy", code="server_busy", retry_after=self.limits.retry_seconds
            ) from None
        except EngineFailedError as error:
            raise ApiError(503, f"the engine cannot be started again: {error}") from None
        return answers

    async def read(
        self, answer: Answer, stops: Sequence[str], arrived: float, clean: bool = True
    ) -> AsyncIterator[Chunk]:
        """An answer as it comes; whoever stops reading frees its slot. arrived: time.monotonic() of the request.

        clean: without what could steer a terminal.
        Raises ApiError where the engine failed. An answer that is cut off by its deadline, or by the server's end, ends
        with "length" as one does that is cut for its number of tokens.
        """
        decoder = PieceDecoder(self.tokenizer, tuple(stops), clean)
        tokens: list[TokenEvent] = []
        pieces: tuple[Piece, ...] = ()
        finish: Finish | None = None
        timer = asyncio.get_running_loop().call_later(
            max(0.0, arrived + self.limits.deadline_seconds - time.monotonic()), answer.stream.cancel
        )
        try:
            async for event in answer.stream:
                finish = event.finish
                if event.token is None:
                    break
                if answer.num_tokens == 0:
                    self.counters.num_answers += 1
                    self.counters.first_token_seconds += time.monotonic() - arrived
                answer.num_tokens += 1
                tokens.append(event)
                pieces = tuple(decoder.feed(event.token, event.forced))
                if decoder.stopped:
                    finish = "stop"
                    break
                if finish is not None:
                    break
                if pieces or event.logprob is not None:
                    yield Chunk(pieces, tuple(tokens))
                    tokens, pieces = [], ()
            yield Chunk((*pieces, *decoder.flush(is_cut=finish != "stop")), tuple(tokens), finish)
        except EngineFailedError as error:
            raise ApiError(500, f"the engine failed and was started again: {error}") from error
        finally:
            timer.cancel()
            answer.stream.cancel()

    def token_text(self, token: int) -> str:
        """A token by itself, for log-probabilities; special ones as they are written."""
        return self.tokenizer.decode([token])

    def token_bytes(self, token: int) -> list[int]:
        return list(self.tokenizer.decode_bytes([token]))

    def count(self, path: str, status: int) -> None:
        key = (path, status)
        self.counters.requests[key] = self.counters.requests.get(key, 0) + 1
